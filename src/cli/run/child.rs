//! COMMAND itself: its signals and its exit code.
//!
//! Invariant: COMMAND has stdin, stdout and stderr of `kiln run` untouched, gets
//! each signal that would have ended it, and never outlives `kiln run`.

use std::{
    ffi::OsString,
    fs,
    io::{self, ErrorKind},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::ExitStatus,
};

use rustix::process::{Pid, Signal};
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal as Arrivals, SignalKind, signal},
};

/// How COMMAND ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// Its exit code, or 128 and its signal, as a shell has it.
    pub(crate) code: u8,
    /// It was told to end before.
    pub(crate) told: bool,
}

/// A process that runs, and the signals meant for it.
pub(crate) struct Running {
    child: Child,
    arrivals: Vec<(Signal, Arrivals)>,
    told: bool,
}

const FORWARDED: [Signal; 6] =
    [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP, Signal::USR1, Signal::USR2];

/// Starts `command` with `variables` added to its environment.
pub(crate) fn start(command: &[OsString], variables: &[(&str, PathBuf)]) -> io::Result<Running> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(ErrorKind::InvalidInput.into());
    };
    // From here on a signal is an event. One that is ignored stays ignored, for
    // COMMAND too: `nohup kiln run`.
    let ignored = ignored_signals();
    let mut arrivals = Vec::new();
    for wanted in FORWARDED {
        if ignored & (1 << (wanted.as_raw() - 1)) == 0 {
            arrivals.push((wanted, signal(SignalKind::from_raw(wanted.as_raw()))?));
        }
    }
    let mut starting = Command::new(program);
    starting.args(arguments).envs(variables.iter().map(|(name, value)| (name, value)));
    end_with_parent(&mut starting);
    Ok(Running { child: starting.spawn()?, arrivals, told: false })
}

/// The exit code for a command that cannot be started, as a shell has it.
pub(crate) fn no_start(error: &io::Error) -> u8 {
    if error.kind() == ErrorKind::NotFound { 127 } else { 126 }
}

impl Running {
    /// Waits for its end and passes signals on until then.
    pub(crate) async fn end(&mut self) -> io::Result<Ended> {
        loop {
            let signal = tokio::select! {
                status = self.child.wait() => return Ok(self.ended(status?)),
                signal = next(&mut self.arrivals) => signal,
            };
            self.told |= !matches!(signal, Signal::USR1 | Signal::USR2);
            // The terminal tells its whole foreground group, COMMAND too: twice
            // would be once too often.
            let by_terminal = matches!(signal, Signal::INT | Signal::QUIT) && in_foreground();
            if let (Some(pid), false) = (self.child.id(), by_terminal) {
                let pid = Pid::from_raw(pid.cast_signed());
                // It may have ended a moment ago: then `wait` tells.
                let _ = pid.map(|pid| rustix::process::kill_process(pid, signal));
            }
        }
    }

    /// Waits for a signal that asks `kiln run` itself to hurry.
    pub(crate) async fn hurried(&mut self) {
        while matches!(next(&mut self.arrivals).await, Signal::USR1 | Signal::USR2) {}
    }

    fn ended(&self, status: ExitStatus) -> Ended {
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        let code = code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX);
        Ended { code, told: self.told }
    }
}

async fn next(arrivals: &mut [(Signal, Arrivals)]) -> Signal {
    let each = arrivals.iter_mut().map(|(signal, arrivals)| {
        Box::pin(async move {
            // `None` would be the end of the runtime: nothing arrives any more.
            if arrivals.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
            *signal
        })
    });
    let each: Vec<_> = each.collect();
    match each.is_empty() {
        true => std::future::pending().await,
        false => futures::future::select_all(each).await.0,
    }
}

/// `SigIgn` of this process, a bit for each signal.
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// Whether this process belongs to the foreground group of its terminal.
fn in_foreground() -> bool {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    foreground(&stat)
}

fn foreground(stat: &str) -> bool {
    // The name, in brackets, may hold anything.
    let fields: Vec<&str> = match stat.rsplit_once(')') {
        Some((_, rest)) => rest.split_whitespace().collect(),
        None => return false,
    };
    let (group, terminals) = (fields.get(2), fields.get(5));
    group.is_some() && group == terminals
}

/// Has the kernel end COMMAND where `kiln run` is killed: whoever started it
/// takes it for ended.
fn end_with_parent(command: &mut Command) {
    let parent = std::process::id().cast_signed();
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // The parent may have ended before the line above.
        match rustix::process::getppid().map(Pid::as_raw_pid) {
            Some(pid) if pid == parent => Ok(()),
            _ => Err(ErrorKind::NotConnected.into()),
        }
    };
    // SAFETY: between fork and exec it makes two plain system calls and
    // allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_foreground_is_where_group_and_terminal_agree() {
        assert!(foreground("12 (a) b) S 1 77 77 34816 77 4194304"));
        assert!(!foreground("12 (kiln) S 1 77 77 34816 80 4194304"));
        assert!(!foreground("12 (kiln) S 1 77 77 0 -1 4194304"));
        assert!(!foreground(""));
    }

    #[test]
    fn a_command_that_is_missing_has_a_shells_exit_code() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _context = runtime.enter();
        let missing = start(&["/nonexistent/command".into()], &[]).err().unwrap();
        assert_eq!(no_start(&missing), 127);
        let folder = start(&["/tmp".into()], &[]).err().unwrap();
        assert_eq!(no_start(&folder), 126);
    }

    #[tokio::test]
    async fn its_exit_code_is_ours() {
        for (script, code) in [("exit 7", 7), ("kill -9 $$", 137), ("true", 0)] {
            let command = ["sh".into(), "-c".into(), script.into()];
            let mut running = start(&command, &[]).unwrap();
            let ended = running.end().await.unwrap();
            assert_eq!((ended.code, ended.told), (code, false), "{script}");
        }
    }
}
