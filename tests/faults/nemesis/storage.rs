//! Disks: full, failing, damaged.
//!
//! Invariant: when a strike ends, each node runs on a disk that works; what was damaged
//! is either replaced or the node's own to find.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use anyhow::{Context, ensure};
use tokio::time::{Instant, sleep};

use super::{Done, Nemesis, Strike, THREE, nemesis};
use crate::{
    disk::{Failing, damage},
    fleet::{Plan, Small, files},
};

const SMALL_TIER: Plan = Plan { small: Some(Small::Tier), ..THREE };
const SMALL_DATA: Plan = Plan { small: Some(Small::Data), ..THREE };
/// For a node to notice that its disk failed, so that it stops.
const NOTICES: Duration = Duration::from_secs(2);

pub(super) fn all() -> Vec<Nemesis> {
    let on = |plan, nemesis| Nemesis { plan, ..nemesis };
    let destroying = |nemesis| Nemesis { destroys: true, ..nemesis };
    vec![
        on(SMALL_TIER, nemesis("full-tier", "a node's disk tier is full", 20, full)),
        on(SMALL_DATA, nemesis("full-disk", "a node's whole disk is full, its log too", 20, full)),
        nemesis("fsync-fails", "every fsync of a node fails with EIO", 20, fsync_fails),
        nemesis("read-fails", "reads of a node's files fail with EIO", 20, read_fails),
        destroying(nemesis("torn-l2", "a node's packs are damaged while it is down", 20, torn_l2)),
        destroying(nemesis(
            "torn-l3",
            "objects are damaged, and a node lost its packs",
            20,
            torn_l3,
        )),
        Nemesis {
            once: true,
            ..nemesis(
                "torn-index",
                "a table of a stopped node's RocksDB is damaged",
                20,
                torn_table,
            )
        },
        nemesis("torn-manifest", "RocksDB's list of its tables is damaged", 20, |strike| {
            Box::pin(async {
                torn_index(strike, |name| name.starts_with("MANIFEST")).await.map(drop)
            })
        }),
        nemesis("torn-wal", "the log of a stopped node's RocksDB is damaged", 20, |strike| {
            Box::pin(async { torn_index(strike, |name| name.ends_with(".log")).await.map(drop) })
        }),
    ]
}

fn full<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let disk = || "no small disk";
        let logged = strike.fleet.nodes[0].log().len();
        strike.fleet.small.as_ref().with_context(disk)?.fill()?;
        strike.struck("the disk of node 0 is full");
        strike.hold(5.0).await;
        strike.fleet.small.as_ref().with_context(disk)?.free()?;
        let ended = runs_again(strike, 0, logged).await?;
        strike.note(format!("it ended by itself: {ended}"));
        strike.heal()
    })
}

/// Starts a node that ended by itself, as a node may whose disk fails, or that is about to:
/// its log was `logged` bytes long before.
async fn runs_again(strike: &mut Strike<'_>, at: usize, logged: usize) -> anyhow::Result<bool> {
    let end = Instant::now() + NOTICES;
    let node = &mut strike.fleet.nodes[at];
    while !node.has_ended() {
        if node.log()[logged..].contains("kiln::node: stopping") {
            node.ended().await?;
            break;
        }
        if Instant::now() > end {
            return Ok(false);
        }
        sleep(Duration::from_millis(50)).await;
    }
    ensure!(!node.log().contains("panicked"), "node {at} panicked: {}", node.last_words());
    node.start().await?;
    Ok(true)
}

fn fsync_fails<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(failing(strike, "fsync,fdatasync,sync_file_range:error=EIO"))
}

fn read_fails<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(failing(strike, "pread64,preadv:error=EIO"))
}

async fn failing(strike: &mut Strike<'_>, inject: &str) -> anyhow::Result<()> {
    let (leader, others) = strike.roles().await?;
    let at = if strike.chance.percent(50) { leader } else { others[0] };
    let pid = strike.fleet.nodes[at].pid().context("it does not run")?;
    let logged = strike.fleet.nodes[at].log().len();
    let failing = Failing::attach(pid, inject).await?;
    strike.struck(format!("{inject} at node {at}"));
    strike.hold(4.0).await;
    let failed = failing.detach().await?;
    ensure!(failed > 0, "no call of node {at} failed");
    let ended = runs_again(strike, at, logged).await?;
    strike.note(format!("{failed} calls failed; it ended by itself: {ended}"));
    strike.heal()
}

/// Damages some of `paths`; how many.
fn damage_some(strike: &mut Strike<'_>, paths: &[std::path::PathBuf]) -> anyhow::Result<usize> {
    let mut damaged = 0;
    for path in paths {
        let whole = std::fs::metadata(path).is_ok_and(|meta| meta.len() > 0);
        if whole && (damaged == 0 || strike.chance.percent(40)) {
            damage(path, &mut strike.chance)?;
            damaged += 1;
        }
    }
    Ok(damaged)
}

fn torn_l2<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (_, others) = strike.roles().await?;
        let at = others[0];
        strike.fleet.nodes[at].kill().await?;
        let packs = files(&strike.fleet.nodes[at].config.disk_path().join("blobs"));
        let damaged = damage_some(strike, &packs)?;
        ensure!(damaged > 0, "nothing to damage");
        strike.struck(format!("{damaged} packs of node {at} damaged"));
        strike.fleet.nodes[at].start().await?;
        strike.hold(4.0).await;
        strike.heal()
    })
}

fn torn_l3<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (_, others) = strike.roles().await?;
        let at = others[0];
        strike.fleet.nodes[at].kill().await?;
        let objects = files(&strike.fleet.objects().join("packs"));
        let damaged = damage_some(strike, &objects)?;
        ensure!(damaged > 0, "nothing to damage");
        for pack in files(&strike.fleet.nodes[at].config.disk_path().join("blobs")) {
            std::fs::remove_file(pack)?;
        }
        strike.struck(format!("{damaged} objects damaged, the packs of node {at} gone"));
        strike.fleet.nodes[at].start().await?;
        strike.hold(4.0).await;
        strike.heal()
    })
}

fn torn_table<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let Some(at) = torn_index(strike, |name| name.ends_with(".sst")).await? else {
            return Ok(());
        };
        // It ends by itself when it reads what is damaged, at whatever time.
        let node = &mut strike.fleet.nodes[at];
        node.door.open.store(false, Relaxed);
        if !node.has_ended() {
            node.kill().await?;
        }
        Ok(())
    })
}

/// A node whose index is damaged refuses to start and says so, or serves nothing wrong.
///
/// The node, where it runs on what is damaged.
async fn torn_index(
    strike: &mut Strike<'_>,
    damaged: fn(&str) -> bool,
) -> anyhow::Result<Option<usize>> {
    let (_, others) = strike.roles().await?;
    let at = others[0];
    let data = strike.fleet.nodes[at].config.data_dir.clone();
    let node = &mut strike.fleet.nodes[at];
    node.terminate().await?;
    if !files(&data.join("index/index")).iter().any(|file| damaged(&name_of(file))) {
        // At a second start, what was in the log goes to tables.
        node.start().await?;
        node.terminate().await?;
    }
    let saved = strike.fleet.folder.path().join("saved");
    copy(&data, &saved)?;
    let index = data.join("index/index");
    let tables = |file: &std::path::PathBuf| damaged(&name_of(file));
    let tables: Vec<_> = files(&index).into_iter().filter(tables).collect();
    let whole = |file: &&std::path::PathBuf| file.metadata().is_ok_and(|m| m.len() > 0);
    let tables: Vec<_> = tables.iter().filter(whole).collect();
    ensure!(!tables.is_empty(), "no table to damage in {}", index.display());
    let file = tables[strike.chance.below(tables.len())].clone();
    let how = damage(&file, &mut strike.chance)?;
    let name = name_of(&file);
    let before = strike.fleet.nodes[at].log().len();
    let started = strike.fleet.nodes[at].start().await.is_ok();
    strike.struck(format!("{name} of node {at}: {how}; it starts: {started}"));
    strike.hold(3.0).await;
    let node = &mut strike.fleet.nodes[at];
    let refused = !started || node.has_ended();
    if refused {
        let says = node.log()[before..].to_owned();
        ensure!(says.contains("error"), "{name}, {how}: it ends without an error: {says}");
        ensure!(!says.contains("panicked"), "{name}, {how}: it panics: {says}");
        node.ended().await.ok();
        std::fs::remove_dir_all(&data)?;
        copy(&saved, &data)?;
        node.start().await?;
    }
    std::fs::remove_dir_all(&saved)?;
    strike.heal()?;
    Ok((!refused).then_some(at))
}

fn name_of(file: &std::path::Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn copy(from: &std::path::Path, to: &std::path::Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    let done = std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to).output()?;
    ensure!(done.status.success(), "cp: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}
