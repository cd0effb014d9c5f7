//! Runs: a cluster, clients, strikes, the end, the checks.
//!
//! Invariant: a run that was no test (no strike, too little that succeeded) fails.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, ensure};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    calls::{Caller, Shared},
    check::Verdict,
    clients,
    fleet::Fleet,
    history::{Call, End, Fault, Head, History, Kind},
    leftovers,
    nemesis::{self, Nemesis, Strike},
    options::Options,
    payload::Chance,
    report::{self, Row},
};

/// Of one run: starting, reading everything in the end, ending.
const AROUND: Duration = Duration::from_secs(18);
/// A run's own bound, beyond which something is stuck.
const STUCK: Duration = Duration::from_secs(300);
/// After a fault was healed, the first write must succeed within this.
const RECOVERY: Duration = Duration::from_secs(20);
/// In the end, every node must have the latest bytes within this.
const CONVERGES: Duration = Duration::from_secs(30);

/// Everything that `options` ask for; whether all of it passed.
pub(crate) async fn all(options: &Options) -> bool {
    let chosen: Vec<Nemesis> = nemesis::all().into_iter().filter(|n| options.chooses(n)).collect();
    if options.list {
        for Nemesis { name, about, .. } in &chosen {
            println!("{name:<18} {about}");
        }
        return true;
    }
    if let Some(file) = &options.replay {
        return replay(file, options.strict);
    }
    if chosen.is_empty() {
        eprintln!("no nemesis has such a name; --list names them");
        return false;
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed = options.seed.unwrap_or(now.as_nanos() as u64 % 1_000_000_000);
    eprintln!("seed {seed}, {} nemeses, {} minutes", chosen.len(), options.minutes);
    let end = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    let mut rows: Vec<Row> = Vec::new();
    for round in 0.. {
        for (at, nemesis) in chosen.iter().enumerate() {
            let left = end.saturating_duration_since(Instant::now());
            let share = left / (chosen.len() - at) as u32;
            if round > 0 && left < AROUND * 2 {
                break;
            }
            let share = share.clamp(AROUND + Duration::from_secs(8), Duration::from_secs(75));
            let row = one(nemesis, seed.wrapping_add(round), share, options).await;
            match rows.get_mut(at) {
                Some(known) => known.add(row),
                None => rows.push(row),
            }
        }
        if end.saturating_duration_since(Instant::now()) < AROUND * 2 {
            break;
        }
    }
    if let Err(e) = report::show(&rows, seed, options.json.as_deref()) {
        eprintln!("the table is not written: {e}");
        return false;
    }
    rows.iter().all(Row::passed)
}

/// Checks a history that was written down.
fn replay(file: &Path, strict: bool) -> bool {
    let history = match History::read(file) {
        Ok(history) => history,
        Err(e) => {
            eprintln!("{}: {e}", file.display());
            return false;
        }
    };
    let verdict = Verdict::of(&history, strict);
    for violation in &verdict.violations {
        println!("VIOLATION of {}, key {}: {}", violation.check, violation.key, violation.what);
    }
    let (histories, calls) = (verdict.histories, history.calls.len());
    println!("{histories} histories, {calls} calls, {} violations", verdict.violations.len());
    verdict.violations.is_empty()
}

/// One run, its history kept where it failed.
async fn one(nemesis: &Nemesis, seed: u64, share: Duration, options: &Options) -> Row {
    let name = nemesis.name;
    let began = Instant::now();
    let shared = Arc::new(Shared::new());
    let mut row = Row { nemesis: name.into(), runs: 1, ..Row::default() };
    let destroys = nemesis.destroys;
    let head = Head { nemesis: name.into(), seed, nodes: nemesis.plan.nodes, destroys };
    let salt = name.bytes().fold(seed, |salt, byte| salt.wrapping_mul(31) + u64::from(byte));
    let chance = Chance::new(salt);
    let run = work(nemesis, &chance, share, &shared, &mut row, &options.failures);
    match timeout(share + STUCK, run).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => row.failed.push(format!("seed {seed}: {e:#}")),
        Err(_) => row.failed.push(format!("seed {seed}: it is stuck")),
    }
    let history = shared.recorder.history(head);
    let strict = options.strict;
    let check = move || (Verdict::of(&history, strict), history);
    let checked = tokio::task::spawn_blocking(check).await;
    if let Ok((verdict, history)) = checked {
        count(&mut row, &history, &verdict);
        row.violations.extend(verdict.violations);
        if row.strikes == 0 || row.during < nemesis.least * row.strikes {
            let (strikes, during) = (row.strikes, row.during);
            row.failed.push(format!("seed {seed}: {strikes} strikes, {during} calls succeeded"));
        }
        if options.keep || !row.passed() {
            keep(&history, &options.failures);
        }
    }
    row.seconds = began.elapsed().as_secs_f64();
    let (during, wrong) = (row.during, row.violations.len());
    let verdict = if row.passed() { "ok" } else { "FAILED" };
    eprintln!(
        "{name:<18} {verdict:<6} {:>5.1} s, {} strikes, {} histories, {} calls, {during} ok during it, {wrong} violations",
        row.seconds, row.strikes, row.histories, row.operations
    );
    for why in &row.failed {
        eprintln!("    {why}");
    }
    for violation in row.violations.iter().take(3) {
        eprintln!("    {}, key {}: {}", violation.check, violation.key, violation.what);
    }
    row
}

fn keep(history: &History, folder: &Path) {
    let Head { nemesis, seed, .. } = &history.head;
    let file = folder.join(format!("{nemesis}-{seed}.jsonl"));
    let written = std::fs::create_dir_all(folder).map_err(Into::into);
    match written.and_then(|()| history.write(&file)) {
        Ok(()) => eprintln!("    its history: {}", file.display()),
        Err(e) => eprintln!("    its history is not written: {e}"),
    }
}

fn count(row: &mut Row, history: &History, verdict: &Verdict) {
    let during = |call: &&Call| {
        history.faults.iter().any(|fault| {
            matches!(fault, Fault::Strike { start, end, .. } if *start <= call.start && call.end <= *end)
        })
    };
    let succeeded = || {
        let fine =
            |call: &&Call| call.ended == End::Ok || (call.kind == Kind::Set && call.why.is_empty());
        history.calls.iter().filter(fine)
    };
    row.histories = verdict.histories;
    row.operations = history.calls.len();
    row.succeeded = succeeded().count();
    row.during = succeeded().filter(during).count();
    row.lost = verdict.count("lost");
    row.wrong = verdict.count("wrong bytes");
}

/// The cluster, the clients and the strikes.
async fn work(
    nemesis: &Nemesis,
    chance: &Chance,
    share: Duration,
    shared: &Arc<Shared>,
    row: &mut Row,
    logs: &Path,
) -> anyhow::Result<()> {
    let until = Instant::now() + share.saturating_sub(AROUND);
    let mut fleet = Fleet::start(nemesis.plan).await.context("start the cluster")?;
    let done = strikes(nemesis, chance, until, shared, row, &mut fleet).await;
    if done.is_err() || !row.violations.is_empty() {
        for (at, node) in fleet.nodes.iter().enumerate() {
            std::fs::create_dir_all(logs)?;
            std::fs::write(logs.join(format!("{}-node-{at}.log", nemesis.name)), node.log())?;
        }
    }
    done
}

async fn strikes(
    nemesis: &Nemesis,
    chance: &Chance,
    until: Instant,
    shared: &Arc<Shared>,
    row: &mut Row,
    fleet: &mut Fleet,
) -> anyhow::Result<()> {
    let (work, mut clients) = clients::start(&fleet.doors, shared, chance);
    sleep(Duration::from_secs(2)).await;
    let before = leftovers::usage(fleet);
    let mut n = 0;
    while row.strikes == 0 || Instant::now() < until {
        n += 1;
        let mut strike = Strike::new(fleet, shared, chance.part(1000 + n));
        (nemesis.strike)(&mut strike).await.context("strike")?;
        for healed in strike.healed {
            row.strikes += 1;
            row.recoveries.push(recovered(shared, healed).await?);
        }
        sleep(Duration::from_secs(1)).await;
    }
    work.stop.cancel();
    while clients.join_next().await.is_some() {}
    shared.recorder.fault(Fault::Final { at: shared.recorder.now() });
    read_all(fleet, shared).await?;
    let caller = Caller::new(100, Arc::clone(shared));
    row.violations.extend(leftovers::check(fleet, &caller, &before).await);
    Ok(())
}

/// Seconds from `healed` to the first write that began later and succeeded.
async fn recovered(shared: &Shared, healed: i64) -> anyhow::Result<f64> {
    let end = Instant::now() + RECOVERY;
    loop {
        if let Some(written) = shared.recorder.first_write_after(healed) {
            return Ok((written - healed) as f64 / 1e9);
        }
        ensure!(Instant::now() < end, "no write succeeds {RECOVERY:?} after the fault was healed");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Reads every key at every node, until it has the latest bytes or time is up.
async fn read_all(fleet: &Fleet, shared: &Arc<Shared>) -> anyhow::Result<()> {
    let keys = shared.recorder.all_keys();
    let end = Instant::now() + CONVERGES;
    let mut readers = tokio::task::JoinSet::new();
    for (at, node) in fleet.nodes.iter().enumerate().filter(|(_, node)| node.pid().is_some()) {
        for part in 0..2 {
            let caller = Caller::new(50 + (at * 2 + part) as u32, Arc::clone(shared));
            let keys: Vec<_> = keys.iter().skip(part).step_by(2).cloned().collect();
            let door = Arc::clone(&node.door);
            readers.spawn(async move {
                for key in keys {
                    loop {
                        let latest = caller.lookup(&door, &key, true).await;
                        let there = latest.ended == End::Ok && latest.read.is_none();
                        let there = there || {
                            let fetch = caller.fetch(&door, &key).await;
                            fetch.ended == End::Ok && fetch.read == latest.read
                        };
                        if there || Instant::now() > end {
                            break;
                        }
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            });
        }
    }
    while let Some(read) = readers.join_next().await {
        read?;
    }
    Ok(())
}
