//! A cluster without a fault, under load for long, and what its processes take meanwhile.
//!
//! Invariant: a line of the table was read of running processes; the checks of a run with
//! faults hold here as well.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep};

use crate::{
    calls::Shared,
    check::{Verdict, Violation},
    clients,
    fleet::Fleet,
    history::Head,
    leftovers::{self, Usage},
    nemesis::THREE,
    options::Options,
    payload::Chance,
    run, session,
};

/// What is alive, at one time.
struct Line {
    at: Duration,
    calls: usize,
    temporary: usize,
    nodes: Vec<Usage>,
}

/// Clients work for so many minutes; whether everything held.
pub(crate) async fn soak(minutes: f64, options: &Options) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed = options.seed.unwrap_or(now.as_nanos() as u64 % 1_000_000_000);
    let shared = Arc::new(Shared::new());
    let mut found = Vec::new();
    let length = Duration::from_secs_f64(minutes * 60.0);
    if let Err(e) = work(length, seed, &shared, &mut found, options).await {
        println!("FAILED: {e:#}");
        return false;
    }
    let head = Head { nemesis: "soak".into(), seed, nodes: THREE.nodes, destroys: false };
    let history = shared.recorder.history(head);
    let checked = tokio::task::spawn_blocking(move || (Verdict::of(&history), history)).await;
    let Ok((verdict, history)) = checked else { return false };
    let (histories, calls) = (verdict.histories, history.calls.len());
    found.extend(verdict.violations);
    for Violation { check, key, what } in &found {
        println!("VIOLATION of {check}, key {key}: {what}");
    }
    println!("seed {seed}: {histories} histories, {calls} calls, {} violations", found.len());
    if options.keep || !found.is_empty() {
        run::keep(&history, &options.failures);
    }
    found.is_empty()
}

async fn work(
    length: Duration,
    seed: u64,
    shared: &Arc<Shared>,
    found: &mut Vec<Violation>,
    options: &Options,
) -> anyhow::Result<()> {
    let mut fleet = Fleet::start(THREE).await?;
    let (work, mut clients) = clients::start(&fleet.doors, shared, &Chance::new(seed));
    sleep(Duration::from_secs(2)).await;
    let (began, before) = (Instant::now(), leftovers::usage(&fleet));
    println!("| minute | calls | temporary files | node: memory, descriptors, threads |");
    println!("|---|---|---|---|");
    let every = (length / 15).max(Duration::from_secs(1));
    let mut next = began;
    while began.elapsed() < length {
        line(&fleet, shared, began).show();
        next += every;
        tokio::time::sleep_until(next.min(began + length)).await;
    }
    line(&fleet, shared, began).show();
    work.stop.cancel();
    while clients.join_next().await.is_some() {}
    let ended = session::end(&mut fleet, shared, &before, found).await;
    line(&fleet, shared, began).show();
    session::keep_logs(&fleet, "soak", &options.failures)?;
    ended
}

fn line(fleet: &Fleet, shared: &Shared, began: Instant) -> Line {
    let (calls, temporary) = (shared.recorder.calls().len(), leftovers::temporary(fleet).len());
    Line { at: began.elapsed(), calls, temporary, nodes: leftovers::usage(fleet) }
}

impl Line {
    fn show(&self) {
        let of = |u: &Usage| format!("{} MiB, {}, {}", u.memory, u.descriptors, u.threads);
        let nodes: Vec<_> = self.nodes.iter().map(of).collect();
        let minute = self.at.as_secs_f64() / 60.0;
        println!("| {minute:.1} | {} | {} | {} |", self.calls, self.temporary, nodes.join("; "));
    }
}
