//! One cluster, its clients, and the strikes at it, up to the reading of all keys.
//!
//! Invariant: when it returns, every node that clients may ask has been asked for every
//! key, until it had the latest bytes or time was up.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::time::{Instant, sleep};

use crate::{
    calls::{Caller, Shared},
    check::Violation,
    clients,
    fleet::Fleet,
    history::{End, Fault},
    leftovers::{self, Usage},
    nemesis::{Nemesis, Strike},
    options::Options,
    payload::Chance,
    report::Row,
};

/// Of one run: starting, reading everything in the end, ending.
pub(crate) const AROUND: Duration = Duration::from_secs(18);
/// After a fault was healed, the first write must succeed within this.
const RECOVERY: Duration = Duration::from_secs(20);
/// In the end, every node must have the latest bytes within this.
const CONVERGES: Duration = Duration::from_secs(30);

/// The cluster, the clients and the strikes.
pub(crate) async fn work(
    nemesis: &Nemesis,
    chance: &Chance,
    share: Duration,
    shared: &Arc<Shared>,
    row: &mut Row,
    options: &Options,
) -> anyhow::Result<()> {
    let until = Instant::now() + share.saturating_sub(AROUND);
    let mut fleet = Fleet::start(nemesis.plan).await.context("start the cluster")?;
    let done = strikes(nemesis, chance, until, shared, row, &mut fleet).await;
    keep_logs(&fleet, nemesis.name, &options.failures)?;
    done
}

/// Kept only where the checks, which come later, find something.
pub(crate) fn keep_logs(fleet: &Fleet, name: &str, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (at, node) in fleet.nodes.iter().enumerate() {
        std::fs::write(folder.join(format!("{name}-node-{at}.log")), node.log())?;
    }
    Ok(())
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
        if nemesis.once && n > 0 {
            sleep(until - Instant::now()).await;
            break;
        }
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
    end(fleet, shared, &before, &mut row.violations).await
}

/// What is true when the clients have ended: every key is read at every node, and nothing is
/// left over.
pub(crate) async fn end(
    fleet: &mut Fleet,
    shared: &Arc<Shared>,
    before: &[Usage],
    found: &mut Vec<Violation>,
) -> anyhow::Result<()> {
    for (at, node) in fleet.nodes.iter_mut().enumerate() {
        if node.door.open.load(Relaxed) && node.has_ended() {
            let what = format!("node {at} ended by itself: {}", node.last_words());
            found.push(Violation { check: "died", key: String::new(), what });
            node.start().await.context("start it again")?;
        }
    }
    shared.recorder.fault(Fault::Final { at: shared.recorder.now() });
    read_all(fleet, shared).await?;
    let caller = Caller::new(100, Arc::clone(shared));
    found.extend(leftovers::check(fleet, &caller, before).await);
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
    for (at, node) in fleet.nodes.iter().enumerate().filter(|(_, node)| node.serves()) {
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
