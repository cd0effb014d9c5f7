//! Nodes that go away while they compile a piece, or wait for one.
//!
//! Invariant: a strike has a piece under way on the node that it says, with its compiler held
//! still, and the whole is there in time all the same.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use anyhow::{Context, bail, ensure};
use kiln::config::Config;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{Done, Nemesis, Strike, THREE, nemesis};
use crate::{
    calls::Caller,
    clients::WHOLE,
    fleet::{LEASE, Plan},
    history::{Call, End},
    node::Node,
};

/// After the fault: the lease of the piece, one election, and compiles on a loaded machine.
const LATEST: Duration = Duration::from_secs(LEASE.as_secs() + 2 + 15);
/// Models that are asked for until the node to strike takes a piece of one.
const MODELS: usize = 6;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Looks, one after the other, at a compiler that does nothing.
const IDLE: usize = 10;

pub(super) fn all() -> Vec<Nemesis> {
    let pieces = |name, about, strike| Nemesis {
        plan: Plan { configure: one_compiler, ..THREE },
        ..nemesis(name, about, 15, strike)
    };
    vec![
        pieces("piece-killed", "kill -9 of a node that compiles a piece", killed),
        pieces("piece-paused", "SIGSTOP of such a node for longer than its lease", paused),
        pieces("piece-leader", "kill -9 of the leader while another node compiles one", leader),
        pieces("piece-wanter", "kill -9 of the node that wants them", wanter),
    ]
}

/// So that no node compiles all pieces at once.
fn one_compiler(_: usize, config: &mut Config) {
    config.compile.concurrency = 1;
}

/// A model that `asks` was asked for, of which `makes` compiles a piece that does not end.
struct UnderWay {
    number: usize,
    answer: JoinHandle<Call>,
    compilers: Compilers,
}

/// Compilers that are held still; they go on when it is dropped.
struct Compilers(Vec<Pid>);

impl Drop for Compilers {
    fn drop(&mut self) {
        for pid in &self.0 {
            // One that ended meanwhile needs nothing.
            let _ = kill_process(*pid, Signal::CONT);
        }
    }
}

fn killed<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let [makes, asks] = two(strike).await?;
        let under_way = begin(strike, makes, asks).await?;
        strike.fleet.nodes[makes].kill().await?;
        strike.struck(format!("killed {makes}, which compiled a piece for {asks}"));
        there(strike, under_way).await?;
        strike.fleet.nodes[makes].start().await?;
        strike.heal()
    })
}

fn paused<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let [makes, asks] = two(strike).await?;
        let under_way = begin(strike, makes, asks).await?;
        strike.pause(makes).await?;
        strike.struck(format!("paused {makes}, which compiles a piece for {asks}"));
        there(strike, under_way).await?;
        // What it brings now is too late.
        strike.resume(makes)?;
        strike.hold(2.0).await;
        strike.heal()
    })
}

fn leader<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (leader, others) = strike.roles().await?;
        let [makes, asks] = [others[0], others[1]];
        let mut under_way = begin(strike, makes, asks).await?;
        strike.fleet.nodes[leader].kill().await?;
        strike.struck(format!("killed the leader {leader} while {makes} and {asks} compile"));
        strike.fleet.leader().await?;
        under_way.compilers = Compilers(Vec::new());
        there(strike, under_way).await?;
        strike.fleet.nodes[leader].start().await?;
        strike.heal()
    })
}

fn wanter<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let [makes, asks] = two(strike).await?;
        let mut under_way = begin(strike, makes, asks).await?;
        strike.fleet.nodes[asks].kill().await?;
        strike.struck(format!("killed {asks}, for which {makes} compiles a piece"));
        under_way.answer.abort();
        under_way.compilers = Compilers(Vec::new());
        // What was begun is of use to whoever asks next.
        under_way.answer = ask(strike, makes, under_way.number);
        there(strike, under_way).await?;
        strike.fleet.nodes[asks].start().await?;
        strike.heal()
    })
}

/// Two nodes, one of which may lead.
async fn two(strike: &mut Strike<'_>) -> anyhow::Result<[usize; 2]> {
    let (leader, others) = strike.roles().await?;
    let mut three = vec![leader, others[0], others[1]];
    let makes = three.swap_remove(strike.chance.below(3));
    let asks = three.swap_remove(strike.chance.below(2));
    Ok([makes, asks])
}

/// Asks `at` for a model.
fn ask(strike: &Strike<'_>, at: usize, number: usize) -> JoinHandle<Call> {
    let caller = Caller::new(200, strike.shared.clone());
    let door = strike.fleet.nodes[at].door.clone();
    tokio::spawn(async move { caller.whole(&door, number, WHOLE.as_millis() as u64).await })
}

/// Has `makes` begin a piece of a model that `asks` is asked for.
async fn begin(strike: &mut Strike<'_>, makes: usize, asks: usize) -> anyhow::Result<UnderWay> {
    strike.shared.models_rest.store(true, Relaxed);
    // A kernel that its one compiler had begun would be all that it ever does.
    strike.fleet.nodes[makes].door.open.store(false, Relaxed);
    for _ in 0..MODELS {
        let compilers = hold(strike, makes).await?;
        let before = taken(strike, makes).await?;
        // None that clients ask for.
        let number = 1 << 20 | strike.chance.below(1 << 20);
        let answer = ask(strike, asks, number);
        while !answer.is_finished() {
            if taken(strike, makes).await? > before {
                strike.fleet.nodes[makes].door.open.store(true, Relaxed);
                return Ok(UnderWay { number, answer, compilers });
            }
            sleep(LOOK).await;
        }
        // Others were faster.
        drop(compilers);
    }
    bail!("of {MODELS} models node {makes} took no piece")
}

/// Holds still the compiler of a node that waits for work. One that works would keep its
/// node from taking a piece.
async fn hold(strike: &Strike<'_>, at: usize) -> anyhow::Result<Compilers> {
    let end = Instant::now() + Duration::from_secs(20);
    let mut idle = 0;
    while idle < IDLE {
        ensure!(Instant::now() < end, "node {at} has no compiler that waits for work");
        let compilers = compilers(&strike.fleet.nodes[at]);
        idle = if compilers.len() == 1 && is_idle(compilers[0]) { idle + 1 } else { 0 };
        sleep(LOOK).await;
    }
    let compilers = Compilers(compilers(&strike.fleet.nodes[at]));
    for pid in &compilers.0 {
        // One that ended meanwhile holds nothing up.
        let _ = kill_process(*pid, Signal::STOP);
    }
    Ok(compilers)
}

fn compilers(node: &Node) -> Vec<Pid> {
    let is_compiler = |pid: &Pid| {
        let started = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        started.is_ok_and(|started| started.contains("\0worker\0"))
    };
    node.children().into_iter().filter(is_compiler).collect()
}

/// Whether no thread of it runs, or would if there were a core.
fn is_idle(pid: Pid) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
    threads.into_iter().flatten().flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat"));
        stat.is_ok_and(|stat| stat.contains(") S "))
    })
}

/// Pieces that a node has taken from lists so far.
async fn taken(strike: &Strike<'_>, at: usize) -> anyhow::Result<u64> {
    strike.fleet.nodes[at].counter("pieces_taken").await.context("no counter of pieces")
}

/// Waits for the whole, and takes down how long that took.
async fn there(strike: &mut Strike<'_>, under_way: UnderWay) -> anyhow::Result<()> {
    let began = Instant::now();
    let UnderWay { answer, compilers, .. } = under_way;
    let answer = timeout(LATEST, answer).await;
    drop(compilers);
    strike.shared.models_rest.store(false, Relaxed);
    let call = answer.context("the whole was not there in time")??;
    ensure!(call.ended == End::Ok, "the whole: {}", call.why);
    strike.note(format!("the whole was there {:.1} s later", began.elapsed().as_secs_f64()));
    Ok(())
}
