//! What clients do all through a run, and what they may rightly expect.
//!
//! Invariant: every call is bounded by what the crate promises; a call whose member died is
//! of unknown outcome, and no other is forgotten.

mod artifacts;
mod leases;
mod pieces;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kiln_proto::{ArtifactKey, Digest, PieceRef, SignedManifest, Token};
use parking_lot::Mutex;
use tokio::time::Instant;

pub(super) use self::artifacts::key_of;
use self::artifacts::manifest;
use super::{
    chance::Chance,
    fleet::{Fleet, Running, timings},
    history::{Ask, History, Pack, Told, Verdict},
    network::Host,
};
use crate::{AccessReport, Asked, ClusterError, Entry, Put, PutMode, Retired};

/// Between two uses of one set of keys and the next.
const KEYS_CHANGE: Duration = Duration::from_secs(4);
/// What a promised bound may be passed by: timers and the last steps.
const SLACK: Duration = Duration::from_millis(500);

/// What all clients of a run share.
pub(super) struct Clients {
    pub fleet: Arc<Fleet>,
    pub history: History,
    seen: Mutex<Seen>,
    packs: AtomicU64,
    clients: AtomicU64,
    start: Instant,
}

/// What was seen, by anyone, of things that must not change.
#[derive(Default)]
struct Seen {
    /// Digests of packs by their numbers.
    packs: BTreeMap<Digest, Pack>,
    /// The pack of each epoch of each key.
    epochs: BTreeMap<(String, u64), Pack>,
    /// The greatest epoch and applied index that each incarnation showed.
    local: BTreeMap<(u64, String), u64>,
    applied: BTreeMap<u64, u64>,
    /// Writes of each incarnation to each key that may not be over.
    open: BTreeMap<(u64, String), u64>,
    /// Tokens that were granted.
    tokens: BTreeSet<(String, Token)>,
    /// The names of wanted pieces.
    pieces: BTreeMap<ArtifactKey, String>,
}

/// How a call of a client ended.
enum Ended<T> {
    Answered(Result<T, ClusterError>),
    /// Its member died.
    Died,
}

/// One client.
pub(super) struct Client {
    all: Arc<Clients>,
    chance: Chance,
    number: u32,
    host: Host,
}

impl Clients {
    pub(super) fn new(fleet: Arc<Fleet>) -> Arc<Self> {
        Arc::new(Self {
            fleet,
            history: History::default(),
            seen: Mutex::default(),
            packs: AtomicU64::new(1),
            clients: AtomicU64::new(0),
            start: Instant::now(),
        })
    }

    /// One more client, of the member on `host`.
    pub(super) fn client(self: &Arc<Self>, host: Host, chance: Chance) -> Client {
        let number = self.clients.fetch_add(1, Ordering::Relaxed);
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        Client { all: Arc::clone(self), chance, number, host }
    }

    /// Bytes that nothing else has.
    fn new_pack(&self) -> (Pack, Digest) {
        let pack = self.packs.fetch_add(1, Ordering::Relaxed);
        let digest = Digest::of(&pack.to_be_bytes());
        self.seen.lock().packs.insert(digest, pack);
        (pack, digest)
    }

    pub(super) fn pack(&self, digest: &Digest) -> Pack {
        self.seen.lock().packs.get(digest).copied().unwrap_or(0)
    }

    /// An entry was shown to someone: an epoch has one artifact, whoever looks.
    fn saw(&self, key: &str, entry: &Entry) {
        let pack = self.pack(&entry.pack);
        let mut seen = self.seen.lock();
        let known = *seen.epochs.entry((key.to_owned(), entry.epoch)).or_insert(pack);
        drop(seen);
        if known != pack || pack == 0 {
            let epoch = entry.epoch;
            self.violation(format!("epoch {epoch} of {key} has packs {known} and {pack}"));
        }
    }

    /// The operations, and what no order explains.
    pub(super) fn check(&self) -> Verdict {
        let seen = self.seen.lock();
        self.history.check(|key| {
            let epochs = seen.epochs.range((key.to_owned(), 0)..=(key.to_owned(), u64::MAX));
            Arc::new(epochs.map(|((_, epoch), pack)| (*epoch, *pack)).collect())
        })
    }

    fn violation(&self, what: String) {
        self.fleet.trace.violation(what);
    }

    /// What one member shows never goes back while it runs.
    async fn look(&self, member: &Running, key: &str) {
        let (of, name) = (member.incarnation, key.to_owned());
        let found = member.index.lookup(&key_of(key)).await;
        let applied = member.index.applied();
        let entry = match found {
            Ok(entry) => entry,
            Err(e) => return self.violation(format!("a local read failed: {e}")),
        };
        let mut seen = self.seen.lock();
        let last = seen.applied.insert(of, applied).unwrap_or(0);
        let epoch = entry.as_ref().map(|entry| entry.epoch);
        let shown = seen.local.entry((of, name)).or_default();
        let before = *shown;
        *shown = before.max(epoch.unwrap_or(0));
        drop(seen);
        if last > applied || epoch.is_some_and(|epoch| epoch < before) {
            self.violation(format!(
                "incarnation {of} went back: index {last} to {applied}, {key} {before} to {epoch:?}"
            ));
        }
        if let Some(entry) = entry {
            self.saw(key, &entry);
        }
    }
}

/// The longest that one request for the leader takes, by the router's own promise: a try
/// that begins just before it gives up takes as long again.
fn longest_ask() -> Duration {
    (timings().patience + timings().election_max) * 2
}

impl Client {
    /// Works until `until`.
    pub(super) async fn work(mut self, until: Instant) {
        while Instant::now() < until {
            tokio::time::sleep(self.chance.millis(5..250)).await;
            let Some(member) = self.all.fleet.running(self.host) else { continue };
            if member.identity().is_some() && !member.process.is_dead() {
                self.one(&member).await;
            }
        }
    }

    async fn one(&mut self, member: &Arc<Running>) {
        let phase = self.all.start.elapsed().as_secs() / KEYS_CHANGE.as_secs();
        let slot = self.chance.within(0..2);
        let value = format!("v{phase}.{slot}");
        let compiled = match self.chance.permille(600) {
            true => format!("c{phase}.{slot}"),
            // A piece is an artifact as any other.
            false => format!("p{phase}.{}", slot + self.chance.within(0..3)),
        };
        self.all.look(member, &value).await;
        self.all.look(member, &compiled).await;
        self.all.look(member, &format!("w{phase}.{slot}")).await;
        self.all.stitching_holds(member);
        match self.chance.within(0..100) {
            0..12 => self.put(member, &value, PutMode::Replace).await,
            12..17 => self.put(member, &value, PutMode::Create).await,
            17..21 => self.remove(member, &value).await,
            21..26 => self.remove(member, &compiled).await,
            26..44 => self.compile(member, &compiled).await,
            44..64 => {
                let key = if self.chance.permille(500) { value } else { compiled };
                self.read(member, &key).await;
            }
            64..67 => self.retire(member, &compiled).await,
            67..74 => self.collect(member, &compiled).await,
            74..79 => self.report(member, &compiled).await,
            79..86 => self.stitch(member, phase, slot).await,
            _ => self.pull(member).await,
        }
    }

    /// Waits for a call, for as long as its member lives. It ends within `bound`.
    async fn call<T>(
        &self,
        member: &Running,
        what: &str,
        bound: Duration,
        call: impl Future<Output = Result<T, ClusterError>>,
    ) -> Ended<T> {
        let began = Instant::now();
        let (trace, number) = (&self.all.fleet.trace, self.number);
        trace.event(format_args!("client {number}: {what}"));
        let answer = tokio::select! {
            biased;
            () = member.process.dead.cancelled() => {
                trace.event(format_args!("client {number}: its member died"));
                return Ended::Died;
            }
            answer = tokio::time::timeout(bound * 4, call) => answer,
        };
        let took = began.elapsed();
        if took > bound + SLACK {
            self.all.violation(format!("{what} took {took:?}, and is to end in {bound:?}"));
        }
        let answer = answer.unwrap_or(Err(ClusterError::Deadline));
        trace.count(if answer.is_ok() { "answered" } else { "refused" });
        if answer.is_ok() && trace.in_trouble() {
            trace.count("answered meanwhile");
        }
        match &answer {
            Ok(_) => trace.event(format_args!("client {number}: answered")),
            Err(e) => trace.event(format_args!("client {number}: {e}")),
        }
        if let Err(e @ (ClusterError::Storage(_) | ClusterError::Invalid(_))) = &answer {
            let raced = ["another process writes"];
            let raced = raced.iter().any(|known| e.to_string().contains(known));
            if !raced && !member.is_going() && !member.disk.has_failed() {
                self.all.violation(format!("{what}: {e}"));
            }
        }
        Ended::Answered(answer)
    }

    fn sign(&self, member: &Running, name: &str, digest: Digest) -> Option<(SignedManifest, u64)> {
        self.sign_whole(member, name, digest, Vec::new())
    }

    fn sign_whole(
        &self,
        member: &Running,
        name: &str,
        digest: Digest,
        pieces: Vec<PieceRef>,
    ) -> Option<(SignedManifest, u64)> {
        let identity = member.identity()?;
        match identity.sign(manifest(name, digest, pieces)) {
            Ok(signed) => Some((signed, identity.node)),
            Err(e) => {
                self.all.violation(format!("the simulation's own manifest: {e}"));
                None
            }
        }
    }

    /// A write of a member begins.
    fn opens(&self, member: &Running, key: &str) {
        let mut seen = self.all.seen.lock();
        *seen.open.entry((member.incarnation, key.to_owned())).or_default() += 1;
    }

    /// It ended. If it was given up while an earlier one may be open still, the member takes
    /// back what that one wrote, some time.
    fn settle(&self, member: &Running, key: &str, node: u64, told: Told) {
        let mut seen = self.all.seen.lock();
        let open = seen.open.entry((member.incarnation, key.to_owned())).or_default();
        let others = *open > 1;
        if told != Told::Unknown {
            *open -= 1;
        }
        drop(seen);
        // A member that died takes nothing back.
        if told == Told::Unknown && others && !member.process.is_dead() {
            drop(self.all.history.begin(self.number, key, Ask::Withdraw { node }));
        }
    }

    async fn put(&mut self, member: &Arc<Running>, key: &str, mode: PutMode) {
        let (pack, digest) = self.all.new_pack();
        let Some((manifest, node)) = self.sign(member, key, digest) else { return };
        let Ok(turn) = member.index.turn(&key_of(key), mode) else { return };
        self.opens(member, key);
        let ask = match mode {
            PutMode::Replace => Ask::Put { pack, node },
            PutMode::Create => Ask::Create { pack, node },
        };
        let pending = self.all.history.begin(self.number, key, ask);
        // For its turn, a session, the write itself, and this replica.
        let bound = timings().patience * 2 + longest_ask() * 2;
        let what = format!("{ask:?} {key}");
        let call = member.index.put(turn, manifest, mode, Vec::new());
        let told = match self.call(member, &what, bound, call).await {
            Ended::Answered(Ok(Put::Committed(entry))) => {
                self.all.fleet.trace.count("put");
                self.all.saw(key, &entry);
                Told::Committed
            }
            Ended::Answered(Ok(Put::Unchanged(_))) => Told::Unchanged,
            Ended::Answered(Ok(Put::Existing(_))) => Told::Existing,
            Ended::Answered(Ok(Put::Superseded) | Err(_)) | Ended::Died => Told::Unknown,
        };
        self.all.history.end(&pending, told);
        self.settle(member, key, node, told);
    }

    async fn remove(&mut self, member: &Arc<Running>, key: &str) {
        let Some(node) = member.identity().map(|identity| identity.node) else { return };
        self.opens(member, key);
        let pending = self.all.history.begin(self.number, key, Ask::Remove);
        let bound = timings().patience + longest_ask() * 2;
        let found = key_of(key);
        let call = member.index.tombstone(&found, "wrong".into());
        let told = match self.call(member, &format!("remove {key}"), bound, call).await {
            Ended::Answered(Ok(true)) => {
                self.all.fleet.trace.count("removed from the index");
                Told::Removed(true)
            }
            // Not there, or a later write of this node took its place.
            _ => Told::Unknown,
        };
        self.all.history.end(&pending, told);
        self.settle(member, key, node, told);
    }

    async fn read(&mut self, member: &Arc<Running>, key: &str) {
        let pending = self.all.history.begin(self.number, key, Ask::Read);
        let found = key_of(key);
        let call = member.index.lookup_linearizable(&found);
        let bound = longest_ask() + timings().patience;
        let told = match self.call(member, &format!("read {key}"), bound, call).await {
            Ended::Answered(Ok(None)) => Told::Found(None),
            Ended::Answered(Ok(Some(entry))) => {
                self.all.saw(key, &entry);
                Told::Found(Some((entry.epoch, self.all.pack(&entry.pack))))
            }
            _ => Told::Unknown,
        };
        self.all.history.end(&pending, told);
    }

    /// Whoever finds the bytes nowhere ends the epoch.
    async fn retire(&mut self, member: &Arc<Running>, key: &str) {
        let Ok(Some(entry)) = member.index.lookup(&key_of(key)).await else { return };
        let pending = self.all.history.begin(self.number, key, Ask::Retire { epoch: entry.epoch });
        let nodes = match self.chance.permille(600) {
            true => entry.holders.clone(),
            false => Vec::new(),
        };
        let asked = Asked { nodes, object: true };
        let found = key_of(key);
        let call = member.index.retire(&found, entry.epoch, asked);
        let bound = longest_ask() + timings().patience;
        let told = match self.call(member, &format!("retire {key}"), bound, call).await {
            Ended::Answered(Ok(Retired::Over)) => Told::Removed(true),
            _ => Told::Unknown,
        };
        self.all.history.end(&pending, told);
    }

    /// The collector of the object store: stored, condemned, deleted, forgotten.
    async fn collect(&mut self, member: &Arc<Running>, key: &str) {
        let packs: Vec<(Pack, Digest)> = {
            let seen = self.all.seen.lock();
            let last = seen.packs.iter().map(|(digest, pack)| (*pack, *digest));
            last.collect()
        };
        let Some((pack, digest)) = self.chance.pick(&packs) else { return };
        let Ok(Some(state)) = member.index.pack(&digest).await else {
            return self.report(member, key).await;
        };
        let (index, generation) = (&member.index, state.generation);
        let what = format!("collect {pack}.{generation}");
        if !state.stored && !state.condemned {
            let call = index.mark_stored(&digest, generation);
            drop(self.call(member, &what, longest_ask(), call).await);
        }
        if !state.referenced || self.chance.permille(200) {
            let call = index.condemn(&digest, generation);
            let condemned = self.call(member, &what, longest_ask(), call).await;
            if matches!(condemned, Ended::Answered(Ok(true))) {
                self.all.fleet.trace.count("condemned");
                tokio::time::sleep(self.chance.millis(5..900)).await;
                let call = index.forget(&digest, generation);
                drop(self.call(member, &what, longest_ask(), call).await);
            }
        }
    }

    async fn report(&mut self, member: &Arc<Running>, key: &str) {
        let found = key_of(key);
        let pinned = self.chance.permille(500);
        let call = member.index.set_pinned(&found, pinned);
        drop(self.call(member, &format!("pin {key} {pinned}"), longest_ask(), call).await);
        let Ok(Some(entry)) = member.index.lookup(&found).await else { return };
        let report =
            AccessReport { hits: vec![(found, 1)], gained: vec![entry.pack], lost: Vec::new() };
        let call = member.index.report(report);
        drop(self.call(member, &format!("report {key}"), longest_ask(), call).await);
    }
}
