//! The simulated network between the machines: who can reach whom, how long it takes, and
//! what gets lost.
//!
//! It is a network of TCP connections as [`crate::transport::Tcp`] makes them: what is sent
//! on one stream arrives in order or not at all, a cut is noticed only when a probe goes
//! unanswered, and a process that ends resets its connections unless its machine lost power.
//!
//! Invariant: nothing reaches or leaves a process after it died, and all delays and losses
//! follow from the seed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{chance::Chance, trace::Trace};
use crate::transport::PROBE;

/// A machine's number.
pub(super) type Host = usize;

/// After this long without an answer to a probe, a connection is given up.
const SILENT: Duration = PROBE.saturating_mul(2);

/// The address of a machine's process.
pub(super) fn address(host: Host) -> String {
    format!("host-{host}:1")
}

fn host_of(address: &str) -> Option<Host> {
    address.strip_prefix("host-")?.strip_suffix(":1")?.parse().ok()
}

/// One run of a process, as the network sees it.
pub(super) struct Process {
    pub host: Host,
    /// Cancelled when it dies.
    pub dead: CancellationToken,
    /// Whether nobody is told when it dies: its machine lost power.
    pub silent: Mutex<bool>,
    routes: Mutex<Option<Routes>>,
}

impl Process {
    pub(super) fn new(host: Host) -> Arc<Self> {
        let (dead, silent) = (CancellationToken::new(), Mutex::new(false));
        Arc::new(Self { host, dead, silent, routes: Mutex::default() })
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }

    pub(super) fn routes(&self) -> Option<Routes> {
        self.routes.lock().clone()
    }
}

/// How the network is just now.
#[derive(Debug, Clone)]
pub(super) struct Weather {
    /// Microseconds that a message takes.
    pub delay: std::ops::Range<u64>,
    /// Of a thousand messages, how many take a second or so longer: a packet was sent again.
    pub resent: u64,
    /// Of a thousand calls, how many lose their request or their answer.
    pub lost: u64,
}

impl Weather {
    pub(super) const fn fair() -> Self {
        Self { delay: 100..2900, resent: 0, lost: 0 }
    }
}

struct Inner {
    chance: Chance,
    weather: Weather,
    processes: BTreeMap<Host, Arc<Process>>,
    /// One-way cuts, each with its beginning.
    cuts: BTreeMap<(Host, Host), Instant>,
    /// Machines without power: they answer nothing, not even that nobody listens.
    off: BTreeMap<Host, bool>,
}

/// The network of one run.
pub(super) struct Network {
    pub trace: Arc<Trace>,
    inner: Mutex<Inner>,
    /// Changes with every cut and every mend.
    changes: watch::Sender<u64>,
    /// Changes with every reset of all connections.
    resets: watch::Sender<u64>,
}

/// The connection is gone.
pub(super) struct Lost;

impl Network {
    pub(super) fn new(chance: Chance, trace: Arc<Trace>) -> Arc<Self> {
        let inner = Inner {
            chance,
            weather: Weather::fair(),
            processes: BTreeMap::new(),
            cuts: BTreeMap::new(),
            off: BTreeMap::new(),
        };
        let (changes, resets) = (watch::Sender::new(0), watch::Sender::new(0));
        Arc::new(Self { trace, inner: Mutex::new(inner), changes, resets })
    }

    /// `process` serves `routes` from now on.
    pub(super) fn listen(&self, process: &Arc<Process>, routes: Routes) {
        *process.routes.lock() = Some(routes);
        let mut inner = self.inner.lock();
        inner.off.remove(&process.host);
        inner.processes.insert(process.host, Arc::clone(process));
    }

    /// `process` ends at this moment.
    pub(super) fn kill(&self, process: &Process, power: bool) {
        *process.silent.lock() = power;
        let mut inner = self.inner.lock();
        inner.processes.remove(&process.host);
        if power {
            inner.off.insert(process.host, true);
        }
        drop(inner);
        process.routes.lock().take();
        process.dead.cancel();
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.inner.lock().weather = weather;
    }

    /// Nothing from `from` reaches `to` until it is mended.
    pub(super) fn cut(&self, from: Host, to: Host) {
        self.inner.lock().cuts.entry((from, to)).or_insert_with(Instant::now);
        self.changes.send_modify(|n| *n += 1);
    }

    pub(super) fn mend(&self, from: Host, to: Host) {
        self.inner.lock().cuts.remove(&(from, to));
        self.changes.send_modify(|n| *n += 1);
    }

    /// Every connection breaks, and can be made again at once.
    pub(super) fn reset_all(&self) {
        self.resets.send_modify(|n| *n += 1);
    }

    /// Who serves at `address`; `Err` where not even the machine answers.
    pub(super) fn process_at(&self, address: &str) -> Result<Option<Arc<Process>>, Lost> {
        let inner = self.inner.lock();
        let host = host_of(address).ok_or(Lost)?;
        match inner.off.contains_key(&host) {
            true => Err(Lost),
            false => Ok(inner.processes.get(&host).cloned()),
        }
    }

    pub(super) fn host_of(&self, address: &str) -> Result<Host, Lost> {
        host_of(address).ok_or(Lost)
    }

    /// How long one message takes that is sent now.
    pub(super) fn delay(&self) -> Duration {
        let mut inner = self.inner.lock();
        let Weather { delay, resent, .. } = inner.weather.clone();
        let mut takes = inner.chance.micros(delay);
        if inner.chance.permille(resent) {
            takes += inner.chance.millis(200..1500);
            self.trace.count("resent");
        }
        takes
    }

    /// Whether the weather swallows one message of a call.
    pub(super) fn loses(&self) -> bool {
        let mut inner = self.inner.lock();
        let lost = inner.weather.lost;
        let loses = inner.chance.permille(lost);
        if loses {
            self.trace.count("lost");
        }
        loses
    }

    fn cut_since(&self, from: Host, to: Host) -> Option<Instant> {
        self.inner.lock().cuts.get(&(from, to)).copied()
    }

    /// Returns when a message of `from` that is under way may arrive at `to`.
    pub(super) async fn passes(&self, from: Host, to: Host) -> Result<(), Lost> {
        let mut changes = self.changes.subscribe();
        let mut held = false;
        loop {
            let Some(since) = self.cut_since(from, to) else { return Ok(()) };
            if !held {
                held = true;
                self.trace.count("held");
            }
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(since + SILENT) => return Err(Lost),
            }
        }
    }

    /// One message's way from `from` to `to`.
    pub(super) async fn transit(&self, from: Host, to: Host) -> Result<(), Lost> {
        tokio::time::sleep(self.delay()).await;
        self.passes(from, to).await
    }

    /// Returns when a connection between the two is no more, as its ends find out.
    pub(super) async fn broken(&self, a: &Process, b: &Process) {
        let mut resets = self.resets.subscribe();
        tokio::select! {
            biased;
            () = self.ended(a, b) => {}
            () = self.ended(b, a) => {}
            () = self.cut_for_long(a.host, b.host) => {}
            _ = resets.changed() => {}
        }
    }

    /// Returns when `to` finds out that `process` died.
    async fn ended(&self, process: &Process, to: &Process) {
        process.dead.cancelled().await;
        let silent = *process.silent.lock();
        if silent {
            tokio::time::sleep(SILENT).await;
        } else {
            // Lost or not: it is noticed at the latest when a probe is not answered.
            drop(self.transit(process.host, to.host).await);
        }
    }

    /// Returns when probes between the two went unanswered for too long.
    async fn cut_for_long(&self, a: Host, b: Host) {
        let mut changes = self.changes.subscribe();
        loop {
            let since = [self.cut_since(a, b), self.cut_since(b, a)].into_iter().flatten().min();
            match since {
                None => drop(changes.changed().await),
                Some(since) => tokio::select! {
                    biased;
                    _ = changes.changed() => {}
                    () = tokio::time::sleep_until(since + SILENT) => return,
                },
            }
        }
    }
}
