//! What nodes hold when their clients are gone: nothing that only clients needed.
//!
//! Invariant: each bound is one that a node's settings promise, with room for what the
//! runtime and RocksDB have of their own.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use kiln_proto::pb;
use tokio::time::{Instant, sleep};

use crate::{
    calls::Caller,
    check::Violation,
    clients::DEADLINE,
    fleet::{Fleet, files},
    history::{End, Kind, Recorder},
};

/// Descriptors beside those at the start: L1's entries, connections.
const DESCRIPTORS: usize = 256 + 200;
/// Memory beside that at the start, in MiB: L1, and what allocators and RocksDB keep.
const MEMORY: usize = 64 + 256;
const THREADS: usize = 40;
/// How long collectors and sweepers are waited for.
const SETTLES: Duration = Duration::from_secs(25);

/// What a process takes of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) descriptors: usize,
    pub(crate) memory: usize,
    pub(crate) threads: usize,
}

/// Of each node, 0 where none runs.
pub(crate) fn usage(fleet: &Fleet) -> Vec<Usage> {
    let of = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let number = |field: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(field));
            line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        Usage { descriptors, memory: number("VmRSS:") / 1024, threads: number("Threads:") }
    };
    fleet.nodes.iter().map(|node| node.pid().map_or(Usage::default(), of)).collect()
}

/// What is left over, compared with `before`.
pub(crate) async fn check(fleet: &Fleet, caller: &Caller, before: &[Usage]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut breaks = |check, what: String| {
        found.push(Violation { check, key: String::new(), what });
    };
    if let Some(key) = held(fleet, caller).await {
        breaks("leftover lease", format!("nobody has a lease of {key}, and nobody gets it"));
    }
    let end = Instant::now() + SETTLES;
    while (!temporary(fleet).is_empty() || !orphans(fleet).await.is_empty()) && Instant::now() < end
    {
        sleep(Duration::from_millis(500)).await;
    }
    if !temporary(fleet).is_empty() {
        breaks("leftover file", format!("{:?}", temporary(fleet)));
    }
    let orphans = orphans(fleet).await;
    if !orphans.is_empty() {
        let (count, some) = (orphans.len(), orphans.iter().take(3).collect::<Vec<_>>());
        breaks("orphan", format!("{count} objects that no entry names, such as {some:?}"));
    }
    for (at, (now, before)) in usage(fleet).iter().zip(before).enumerate() {
        let grew = now.descriptors > before.descriptors + DESCRIPTORS
            || now.memory > before.memory + MEMORY
            || now.threads > before.threads + THREADS;
        if grew {
            breaks("growth", format!("node {at}: {before:?} before, {now:?} after"));
        }
    }
    found
}

/// An artifact's key whose lease nobody holds and yet nobody gets.
async fn held(fleet: &Fleet, caller: &Caller) -> Option<String> {
    let door = &fleet.nodes.iter().find(|node| node.pid().is_some())?.door;
    for name in caller.shared.recorder.keys('a') {
        let (call, held) = caller.lease(door, &name, DEADLINE.as_millis() as u64).await;
        drop(held);
        if call.ended != End::Ok {
            return Some(format!("{name}: {}", call.why));
        }
    }
    None
}

/// Files that are still being written, by their names.
pub(crate) fn temporary(fleet: &Fleet) -> Vec<PathBuf> {
    let tmp = fleet.nodes.iter().flat_map(|node| files(&node.config.disk_path().join("tmp")));
    let parts = files(&fleet.objects()).into_iter();
    tmp.chain(parts.filter(|file| partial(file))).collect()
}

/// Whether it is a folder store's file that is not whole yet.
fn partial(file: &std::path::Path) -> bool {
    file.to_string_lossy().contains('#')
}

/// Objects of a folder store whose pack no entry names.
async fn orphans(fleet: &Fleet) -> Vec<String> {
    let mut objects = files(&fleet.objects().join("packs"));
    objects.retain(|file| !partial(file));
    let names = objects.iter().filter_map(|file| Some(file.file_name()?.to_str()?.to_owned()));
    let Some(needed) = packs(fleet).await else { return Vec::new() };
    names.filter(|name| !needed.iter().any(|pack| name.starts_with(pack))).collect()
}

/// The packs that the index names.
async fn packs(fleet: &Fleet) -> Option<BTreeSet<String>> {
    let node = fleet.nodes.iter().find(|node| node.pid().is_some())?;
    let (mut packs, mut after) = (BTreeSet::new(), prost::bytes::Bytes::new());
    loop {
        let request = pb::ListRequest { limit: 500, after: after.clone(), ..Default::default() };
        let page = node.door.client().list(request).await.ok()?.into_inner();
        for entry in page.entries.iter().filter_map(|entry| entry.manifest.clone()) {
            let manifest = kiln_proto::SignedManifest::from(entry).read_unverified().ok()?;
            packs.insert(manifest.pack_digest.to_string());
            after = prost::bytes::Bytes::copy_from_slice(manifest.key.as_bytes());
        }
        if !page.more {
            return Some(packs);
        }
    }
}

impl Recorder {
    /// The keys with this first letter that were leased or published.
    fn keys(&self, family: char) -> BTreeSet<String> {
        let calls = self.calls();
        let leased = calls.into_iter().filter(|call| call.kind == Kind::Lease);
        leased.map(|call| call.key).filter(|key| key.starts_with(family)).collect()
    }
}
