//! Runs: a cluster, clients, strikes, the end, the checks.
//!
//! Invariant: a run that was no test (no strike, too little that succeeded) fails.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, timeout};

use crate::{
    calls::Shared,
    check::Verdict,
    fleet::files,
    history::{Call, End, Fault, Head, History, Kind},
    nemesis::{self, Nemesis},
    options::Options,
    payload::Chance,
    report::{self, Row},
    session,
};

/// A run's own bound, beyond which something is stuck.
const STUCK: Duration = Duration::from_secs(300);

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
        return replay(file);
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
            if round > 0 && left < session::AROUND * 2 {
                break;
            }
            let share =
                share.clamp(session::AROUND + Duration::from_secs(8), Duration::from_secs(75));
            let row = one(nemesis, seed.wrapping_add(round), share, options).await;
            match rows.get_mut(at) {
                Some(known) => known.add(row),
                None => rows.push(row),
            }
        }
        let nothing = rows.iter().all(|row| row.strikes == 0);
        if nothing || end.saturating_duration_since(Instant::now()) < session::AROUND * 2 {
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
fn replay(file: &Path) -> bool {
    let history = match History::read(file) {
        Ok(history) => history,
        Err(e) => {
            eprintln!("{}: {e}", file.display());
            return false;
        }
    };
    let verdict = Verdict::of(&history);
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
    let run = session::work(nemesis, &chance, share, &shared, &mut row, options);
    match timeout(share + STUCK, run).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => row.failed.push(format!("seed {seed}: {e:#}")),
        Err(_) => row.failed.push(format!("seed {seed}: it is stuck")),
    }
    let history = shared.recorder.history(head);
    let check = move || (Verdict::of(&history), history);
    let checked = tokio::task::spawn_blocking(check).await;
    if let Ok((verdict, history)) = checked {
        count(&mut row, &history, &verdict);
        row.violations.extend(verdict.violations);
        if row.strikes == 0 || row.during < nemesis.least * row.strikes {
            let (strikes, during) = (row.strikes, row.during);
            row.failed.push(format!("seed {seed}: {strikes} strikes, {during} calls succeeded"));
        }
        match options.keep || !row.passed() {
            true => keep(&history, &options.failures),
            false => forget_logs(name, &options.failures),
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

fn forget_logs(nemesis: &str, folder: &Path) {
    for file in files(folder) {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&format!("{nemesis}-node-")) {
            // A log too many does no harm.
            let _ = std::fs::remove_file(file);
        }
    }
}

pub(crate) fn keep(history: &History, folder: &Path) {
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
