//! One seed from beginning to end: found, disturb, calm down, check.
//!
//! Invariant: a run passes only if every check does, most of its faults struck, and enough
//! was answered meanwhile.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kiln_proto::Digest;
use tokio::time::Instant;

use super::{
    chance::{Chance, seed_this_thread},
    client::{Clients, key_of},
    disk::Unsynced,
    fleet::{Fleet, Running},
    history::{Ask, Told, Verdict},
    nemesis::{Fault, Nemesis, mend},
    trace::Trace,
};
use crate::table::{BlobRecord, EntryRecord, SessionRecord, Table, View};

/// How long things go wrong.
const TROUBLE: Duration = Duration::from_secs(30);
/// How long the cluster may take to be whole again.
const RECOVERY: Duration = Duration::from_secs(90);
/// Clients of one member.
const CLIENTS: usize = 3;
/// Fewer answers than this while something is wrong prove nothing.
const LEAST_ANSWERS: u64 = 20;

/// What a run was.
pub(super) struct Outcome {
    pub events: u64,
    pub trace: Digest,
    pub counts: BTreeMap<&'static str, u64>,
    pub violations: Vec<String>,
}

/// Runs `seed` in a thread of its own. `shown`: print each event.
pub(super) fn run(seed: u64, shown: bool) -> Outcome {
    let running = std::thread::spawn(move || {
        seed_this_thread(seed);
        crate::blocking::simulated::IN_PLACE.set(true);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(simulate(seed, shown))
    });
    running.join().unwrap()
}

async fn simulate(seed: u64, shown: bool) -> Outcome {
    let mut chance = Chance::new(seed);
    let trace = Arc::new(Trace::new(shown));
    let fleet = Fleet::new(seed, chance.fork(), Arc::clone(&trace), 3);
    for host in 0..fleet.size() {
        fleet.boot(host);
    }
    let clients = Clients::new(Arc::clone(&fleet));
    let founded = wait_for(|| {
        let all = fleet.all();
        all.len() == 3 && all.iter().all(|member| member.identity().is_some())
    });
    if !founded.await {
        trace.violation("the cluster was not founded".into());
    } else {
        let until = Instant::now() + TROUBLE;
        let mut working: Vec<_> = (0..5 * CLIENTS)
            .map(|n| tokio::spawn(clients.client(n % 5, chance.fork()).work(until)))
            .collect();
        for faults in [&Fault::OUTSIDE[..], &Fault::INSIDE[..]] {
            let nemesis = Nemesis { fleet: Arc::clone(&fleet), chance: chance.fork(), faults };
            working.push(tokio::spawn(nemesis.rage(until)));
        }
        for work in working {
            if let Err(e) = work.await {
                trace.violation(format!("the simulation itself failed: {e}"));
            }
        }
        mend(&fleet);
        enough(&trace);
        recovered(&fleet, &clients).await;
    }
    let Verdict { operations, undecided, wrong } = clients.check();
    trace.add("undecided keys", undecided);
    trace.add("operations in histories", operations as u64);
    trace.event(format_args!("{operations} operations of {} keys", clients.history.keys().len()));
    wrong.into_iter().for_each(|wrong| trace.violation(wrong));
    let (events, digest) = trace.digest();
    Outcome { events, trace: digest, counts: trace.counts(), violations: trace.violations() }
}

/// A run in which little went wrong, or little went on meanwhile, proves nothing.
fn enough(trace: &Trace) {
    let [faults, struck, answered] =
        ["faults", "struck", "answered meanwhile"].map(|what| trace.counted(what));
    if answered < LEAST_ANSWERS {
        trace.violation(format!("only {answered} calls were answered in {faults} faults"));
    }
    // Of each kind of work, some was done.
    for what in ["put", "published", "wanted", "taken"] {
        if trace.counted(what) == 0 {
            trace.violation(format!("nothing was {what}"));
        }
    }
    // A few miss: half of the machines may be none, and a machine may be off already.
    if struck * 2 < faults {
        trace.violation(format!("of {faults} faults only {struck} struck"));
    }
}

async fn wait_for(holds: impl Fn() -> bool) -> bool {
    let give_up = Instant::now() + RECOVERY;
    while !holds() {
        if Instant::now() > give_up {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// After the trouble: one leader, no lease, no failure, and equal replicas.
async fn recovered(fleet: &Arc<Fleet>, clients: &Clients) {
    let trace = &fleet.trace;
    if tokio::time::timeout(RECOVERY, part_with_the_leaving(fleet)).await.is_err() {
        trace.violation(format!("{:?} cannot leave", fleet.leaving()));
    }
    let whole = wait_for(|| {
        let all = fleet.all();
        let placed = all.iter().all(|member| member.identity().is_some());
        placed && all.iter().all(|member| member.cluster.status().quorum)
    });
    if !whole.await {
        for member in fleet.all() {
            trace.event(format_args!("host {}: {:?}", member.host(), member.cluster.status()));
        }
        return trace.violation("no leader that all members follow".into());
    }
    let quiet = wait_for(|| fleet.all().iter().all(|member| left_over(member).is_none()));
    if !quiet.await {
        for member in fleet.all() {
            if let Some(left) = left_over(&member) {
                trace.violation(format!("host {} still has {left}", member.host()));
            }
        }
    }
    let equal = wait_for(|| {
        let states: Vec<_> =
            fleet.all().iter().map(|m| m.cluster.state_digest().unwrap()).collect();
        states.iter().all(|state| *state == states[0])
    });
    if !equal.await {
        for member in fleet.all() {
            trace.event(format_args!(
                "host {}: {:?}",
                member.host(),
                member.cluster.state_digest()
            ));
        }
        trace.violation("the replicas differ".into());
    }
    for member in fleet.all() {
        whole_state(trace, &member);
        clients.stitching_holds(&member);
        for key in clients.history.keys() {
            let pending = clients.history.begin(1000, &key, Ask::Read);
            match member.index.lookup_linearizable(&key_of(&key)).await {
                Ok(found) => {
                    let found = found.map(|entry| (entry.epoch, clients.pack(&entry.pack)));
                    clients.history.end(&pending, Told::Found(found));
                }
                Err(e) => trace.violation(format!("the last read of {key}: {e}")),
            }
        }
    }
}

/// Removes the nodes whose removal was asked for and not answered.
async fn part_with_the_leaving(fleet: &Arc<Fleet>) {
    for (host, node) in fleet.leaving() {
        loop {
            let by = fleet.all().into_iter().find(|m| !m.is_going() && m.identity().is_some());
            if let Some(by) = by
                && by.cluster.remove(node).await.is_ok()
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        fleet.retire(host);
        fleet.crash(host, false, Unsynced::Kept);
    }
}

/// What a member has that should be gone when nobody works.
fn left_over(member: &Running) -> Option<String> {
    let count = |table| member.cluster.store.scan(table, &[], 1000).unwrap().len();
    let lists = count(Table::Wanted) + member.index.wanted().len();
    match (count(Table::Leases), count(Table::Failures), lists) {
        (0, 0, 0) => None,
        (leases, failures, lists) => {
            Some(format!("{leases} leases, {failures} failures and {lists} lists"))
        }
    }
}

/// What must hold between the records of one replica.
fn whole_state(trace: &Trace, member: &Running) {
    let store = &member.cluster.store;
    let mut named: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for (_, value) in store.all(Table::Entries).unwrap() {
        let entry: EntryRecord = crate::codec::decode(&value).unwrap();
        *named.entry(entry.pack.as_bytes().to_vec()).or_default() += 1;
    }
    for (pack, value) in store.all(Table::Blobs).unwrap() {
        let blob: BlobRecord = crate::codec::decode(&value).unwrap();
        let entries = named.remove(&pack).unwrap_or(0);
        if blob.entries != entries || blob.leases != 0 || (blob.condemned && entries > 0) {
            trace.violation(format!("{entries} entries name a pack with {blob:?}"));
        }
    }
    if !named.is_empty() {
        trace.violation(format!("{} packs are named and have no record", named.len()));
    }
    for (_, value) in store.all(Table::Sessions).unwrap() {
        let session: SessionRecord = crate::codec::decode(&value).unwrap();
        if session.done.len() > 64 {
            trace.violation(format!("a session remembers {} writes", session.done.len()));
        }
    }
}
