//! What an idle node costs: resident memory and share of a core, for each node
//! of an idle three-node cluster, its leader among them.
//!
//! Reads `/proc` over half a minute; prints one line a node.
#![allow(clippy::unwrap_used, missing_docs)]
#![expect(clippy::disallowed_methods, reason = "an idle process is measured by waiting")]

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

const WINDOW: Duration = Duration::from_secs(30);
/// Clock ticks a second in `/proc/PID/stat` on Linux.
const TICKS: f64 = 100.0;

struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.0.id() as i32).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["dev", "--nodes", "3", "--dir"])
        .arg(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut dev = Dev(child);
    let mut line = String::new();
    BufReader::new(dev.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
    let pids: Vec<u64> =
        ready["nodes"].as_array().unwrap().iter().map(|n| n["pid"].as_u64().unwrap()).collect();
    // Elections and first compactions are over after this.
    sleep(Duration::from_secs(5));
    let (before, began) = (pids.iter().map(|p| ticks(*p)).collect::<Vec<_>>(), Instant::now());
    sleep(WINDOW);
    for (node, pid) in pids.iter().enumerate() {
        let share = (ticks(*pid) - before[node]) / TICKS / began.elapsed().as_secs_f64();
        println!(
            "idle node {}: {:.1} MiB resident, {:.2}% of a core over {} s",
            node + 1,
            resident_mib(*pid),
            100.0 * share,
            WINDOW.as_secs()
        );
    }
}

/// User and system ticks of a process.
fn ticks(pid: u64) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
}

fn resident_mib(pid: u64) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
