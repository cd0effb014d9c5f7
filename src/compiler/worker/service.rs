//! A worker's side of its conversation with the daemon, whatever its work is.
//!
//! Invariants: it is confined before it reads its job, and it ends when its daemon does. A thread waits for the end of stdin
//! and then kills the process group. (`PR_SET_PDEATHSIG` would follow the
//! daemon's *thread* that forked, which an async runtime may end at any time.)

use std::{
    fs::File,
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd, FromRawFd, OwnedFd},
    sync::mpsc,
    thread,
};

use kiln_proto::{Failure, FailureKind};
use rustix::process::{Resource, Rlimit, Signal};
use serde::{Serialize, de::DeserializeOwned};

use super::protocol::{self, Answer};
use crate::compiler::sandbox;

/// Answers hello with what `load` tells, and one job with what `work` makes of it. `devices`:
/// it may use a GPU. `load` has confined this thread to its files when it returns.
pub(crate) fn serve<H, R, L, J, D>(
    devices: bool,
    load: impl FnOnce(H) -> Answer<(L, R)>,
    work: impl FnOnce(L, J) -> Answer<D>,
) -> io::Result<()>
where
    H: DeserializeOwned,
    R: Serialize,
    J: DeserializeOwned + Send + 'static,
    D: Serialize,
{
    sandbox::begin(devices)?;
    let mut answers = take_stdout()?;
    let mut requests = io::stdin().lock();
    let hello: H = protocol::read(&mut requests)?;
    drop(requests);
    // From here on this thread may be inside a library for long: another one listens.
    let (sender, jobs) = mpsc::channel();
    let (listens, begun) = mpsc::sync_channel(1);
    let listening = move || {
        // What it takes of memory at its start it has taken: where the library's data then lies
        // does not hang on which of both threads was faster (see `addresses`).
        drop(listens.send(Box::new(())));
        listen::<J>(&sender);
    };
    thread::Builder::new().name("kiln-stdin".into()).spawn(listening)?;
    drop(begun.recv());

    let loaded = match load(hello) {
        Ok((loaded, ready)) => {
            protocol::write(&mut answers, &Answer::Ok(ready))?;
            loaded
        }
        Err(failure) => return protocol::write(&mut answers, &Answer::<R>::Err(failure)),
    };
    let Ok(job) = jobs.recv() else { return Ok(()) };
    protocol::write(&mut answers, &work(loaded, job))
}

/// Sets a limit on this process.
pub(crate) fn limit(resource: Resource, most: u64) -> Answer<()> {
    let failed = |e| Failure::new(FailureKind::Crashed, format!("limit the worker: {e}"));
    rlimit(resource, most).map_err(failed)
}

fn rlimit(resource: Resource, most: u64) -> io::Result<()> {
    let most = Some(most);
    Ok(rustix::process::setrlimit(resource, Rlimit { current: most, maximum: most })?)
}

/// Passes the job on, and ends the process group when the daemon is gone.
fn listen<J: DeserializeOwned>(jobs: &mpsc::Sender<J>) {
    let mut requests = io::stdin().lock();
    if let Ok(job) = protocol::read(&mut requests) {
        // The other thread is confined by now. This one was there before, and sees to it itself.
        if let Err(e) = sandbox::join_files() {
            eprintln!("confine the worker: {e}");
            end();
        }
        // The other thread waits for exactly one.
        let _ = jobs.send(job);
        let _ = io::copy(&mut requests, &mut io::sink());
    }
    end();
}

/// At once: no destructors run under the feet of the working thread.
fn end() -> ! {
    let me = rustix::process::getpid();
    if rustix::process::getpgrp() == me {
        let _ = rustix::process::kill_current_process_group(Signal::KILL);
    }
    std::process::abort()
}

/// Our stdout for answers alone: what a library prints goes to stderr.
fn take_stdout() -> io::Result<File> {
    let answers = io::stdout().as_fd().try_clone_to_owned()?;
    // SAFETY: descriptor 1 is open, and is not closed here: it becomes a copy of 2.
    let mut one = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(1) });
    rustix::io::dup2(io::stderr(), &mut one)?;
    Ok(answers.into())
}
