//! The compiler manager: lookup, lease, compile, publish.
//!
//! The flow of a request, in the fewest hops:
//!
//! 1. [`Manager::compile`] prepares the key and asks the local replica.
//! 2. A hit is fetched from L1, L2, a holder or L3 by the [`Fetcher`], verified.
//! 3. A miss joins this node's flight of the key ([`SingleFlight`]), which acquires
//!    the key at the leader: `Ready`, `Failed`, or `Granted` with a token.
//! 4. Granted: compile in a child, pack, make durable, publish under the token,
//!    answer; the upload to L3 happens behind the answer.
//!
//! Where that ends without an artifact, the [`ladder`] has another one.
//!
//! Invariant: nothing is answered that was not checked against a manifest whose
//! signer the index knows, and the root, where it has to; nothing is published without a live token, nor before it
//! is durable where the settings say; and an entry is retired only when its bytes
//! are proven to be nowhere.

mod answer;
mod attest;
mod belief;
mod bring;
mod check;
mod compile;
mod counters;
mod fetch;
mod hand_over;
mod kept;
mod ladder;
mod latency;
mod learned;
mod misses;
mod observed;
mod pieces;
mod produce;
mod publish;
mod recent;
mod report;
mod restore;
mod route;
mod signing;
mod single_flight;
mod spot;
mod stage;
mod stored;
mod tuned;
mod under_way;
mod wire;

use std::sync::Arc;

use ed25519_dalek::VerifyingKey;
use kiln_cluster::Index;
use kiln_proto::{ArtifactKey, Check, Digest, Manifest};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use self::{
    answer::{Answer, Copies, Outcome, Request, Settings},
    counters::Counters,
    fetch::{Fetched, Fetcher, Origin},
    hand_over::OnlyHere,
    ladder::{Event, Fallback, FallbackPolicy, PieceFallback, Rung, Tried},
    latency::BUCKETS,
    observed::{Observed, Runs, Seen},
    pieces::{PieceReport, PieceStage, Puller},
    recent::{Cause, Miss, Recent, VALUE},
    report::Reporter,
    signing::{Rotated, Signing},
    single_flight::{Progress, SingleFlight},
    spot::{Removed, Skip, Verdict},
    stage::Stage,
    stored::Found,
    under_way::{Flight, FlightStage},
};
pub(crate) use self::{fetch::PUBLICATION, pieces::told};
use self::{
    ladder::{Behind, Events, Remembered},
    learned::Learned,
    pieces::{Made, OwnLists, Whole, all_failed},
    tuned::Tuned,
};
use crate::{
    cache::{Hints, Priority, Tiers},
    check::Checker,
    compiler::{Compilers, Limits},
    emergency::Emergency,
    gate::Gate,
    net::tls::Dialer,
};

/// Verified manifests kept so that a hit costs no signature check: how many of the
/// usual size, and bytes of their encoded form.
const VERIFIED_MANIFESTS: usize = 16_384;
const VERIFIED_BYTES: u64 = 64 << 20;
/// Checked artifacts that are remembered, so that a hit is run once.
const CHECKED: usize = 16_384;

/// A verified manifest, with the bytes that it was signed as.
#[derive(Clone)]
struct Verified {
    manifest: Arc<Manifest>,
    /// The key that signed it.
    by: VerifyingKey,
    bytes: u64,
}

/// Manifests of thousands of files count as what they are.
#[derive(Clone)]
struct Size;

impl quick_cache::Weighter<(ArtifactKey, u64), Verified> for Size {
    fn weight(&self, _: &(ArtifactKey, u64), verified: &Verified) -> u64 {
        verified.bytes.max(VERIFIED_BYTES / VERIFIED_MANIFESTS as u64)
    }
}

/// Joins index, tiers and compilers; they never meet otherwise.
pub struct Manager {
    settings: Settings,
    identity: Signing,
    index: Index,
    tiers: Arc<Tiers>,
    dialer: Dialer,
    fetcher: Arc<Fetcher>,
    compilers: Compilers,
    checker: Checker,
    gate: Gate,
    flights: SingleFlight<ArtifactKey, Stage>,
    own: OwnLists,
    learned: Learned,
    reporter: Reporter,
    counters: Arc<Counters>,
    recent: Arc<Recent>,
    verified: quick_cache::sync::Cache<(ArtifactKey, u64), Verified, Size>,
    /// What came of checks here, by key and pack.
    checked: quick_cache::sync::Cache<(ArtifactKey, Digest), Check>,
    /// Looks for the reason of a miss.
    looking: Arc<Semaphore>,
    /// What is compiled behind fallbacks.
    behind: Behind,
    /// What the ladder tells.
    events: Events,
    /// What died here a moment ago.
    remembered: Remembered,
    stop: CancellationToken,
    emergency: Emergency,
    observed: Observed,
    tuned: Tuned,
    /// Hits that are looked into.
    spot: spot::Queue,
    told: belief::Told,
}

/// What a [`Manager`] is made of.
pub struct Parts {
    /// Limits, and what an acknowledgement promises.
    pub settings: Settings,
    /// Signs what this node publishes.
    pub identity: Signing,
    /// The replicated index.
    pub index: Index,
    /// L1, L2, L3.
    pub tiers: Arc<Tiers>,
    /// The way to other nodes.
    pub dialer: Dialer,
    /// Bytes from other nodes.
    pub fetcher: Arc<Fetcher>,
    /// The compilers of this node.
    pub compilers: Compilers,
    /// Runs what was compiled, to see whether it is right.
    pub checker: Checker,
    /// Whether this node takes publications and leases.
    pub gate: Gate,
    /// Where hits are reported.
    pub reporter: Reporter,
    /// Where it is counted what happened.
    pub counters: Arc<Counters>,
    /// Ends compiles in progress.
    pub stop: CancellationToken,
    /// What this node does without at present.
    pub emergency: Emergency,
}

impl Manager {
    /// A manager over its parts.
    pub fn new(parts: Parts) -> Self {
        let Parts { settings, identity, index, tiers, fetcher, compilers, checker, .. } = parts;
        let Parts { gate, reporter, counters, stop, emergency, dialer, .. } = parts;
        let tuned = Tuned::new(&settings.limits);
        let verified =
            quick_cache::sync::Cache::with_weighter(VERIFIED_MANIFESTS, VERIFIED_BYTES, Size);
        let flights = SingleFlight::default();
        let spot = spot::Queue::new(settings.spot_checks);
        Self {
            settings,
            identity,
            index,
            tiers,
            dialer,
            fetcher,
            compilers,
            checker,
            gate,
            flights,
            own: OwnLists::default(),
            learned: Learned::default(),
            reporter,
            counters,
            recent: Arc::default(),
            verified,
            checked: quick_cache::sync::Cache::new(CHECKED),
            looking: misses::one_at_a_time(),
            behind: Behind::default(),
            events: Events::default(),
            remembered: Remembered::default(),
            stop,
            emergency,
            observed: Observed::default(),
            tuned,
            spot,
            told: belief::Told::default(),
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What happened lately.
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// A client publishes a key, whatever comes of that.
    pub fn note_publication(&self, key: &ArtifactKey) {
        self.observed.published(self.reporter.was_hit_lately(key));
    }

    /// A client restored a key, and made no use of it. For the monitor it is as if it had
    /// published the key anew: who restores folders says so itself.
    pub fn note_unused(&self, key: &ArtifactKey, moved: &str) {
        tracing::info!(key = %key.short(), "what was restored was not used");
        // The words are a client's.
        tracing::debug!(key = %key.short(), moved, "why it was not used");
        self.counters.unused();
        self.observed.published(true);
    }

    /// The limits of a compile that begins now.
    pub fn limits(&self) -> Limits {
        self.tuned.apply(&self.settings.limits)
    }

    /// Bytes of memory that a compile may have from now on.
    pub fn set_compile_memory(&self, bytes: u64) {
        self.tuned.set_memory(bytes);
    }

    /// What was seen since it was last taken.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// What this node does without at present.
    pub fn emergency(&self) -> &Emergency {
        &self.emergency
    }

    /// The compilers of this node.
    pub fn compilers(&self) -> &Compilers {
        &self.compilers
    }

    /// What happens on the failure ladder from now on.
    pub fn events(&self) -> tokio::sync::broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Whether this node takes publications and leases.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The tiers, for tests that look into them.
    #[cfg(test)]
    pub(crate) fn tiers(&self) -> &Arc<Tiers> {
        &self.tiers
    }

    /// Keys that are being compiled or waited for.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }
}

fn hints(manifest: &Manifest, pinned: bool) -> Hints {
    Hints { compile_seconds: manifest.compile_seconds, priority: Priority::Normal, pinned }
}
