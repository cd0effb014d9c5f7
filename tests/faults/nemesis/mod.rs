//! What goes wrong, and when.
//!
//! Invariant: a strike records when its fault held, and ends with everything healed.

mod machine;
mod members;
mod network;
mod objects;
mod pieces;
mod process;
mod storage;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context;
use futures::future::BoxFuture;
use kiln::config::Config;
use tokio::time::sleep;

use crate::{
    calls::Shared,
    fleet::{Fleet, Ground, Plan},
    history::Fault,
    network::Network,
    payload::Chance,
};

/// One way in which things go wrong.
pub(crate) struct Nemesis {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) plan: Plan,
    /// Fewest calls that must succeed during each strike, on average.
    pub(crate) least: usize,
    /// Whether copies of bytes are destroyed, so that some may be gone by rights.
    pub(crate) destroys: bool,
    /// Whether a run has one strike: two lose more than was promised.
    pub(crate) once: bool,
    pub(crate) strike: for<'a> fn(&'a mut Strike<'_>) -> Done<'a>,
}

type Done<'a> = BoxFuture<'a, anyhow::Result<()>>;

/// Three nodes of this machine, with a folder for objects.
pub(crate) const THREE: Plan = Plan {
    nodes: 3,
    ground: Ground::Loopback,
    small: None,
    s3: false,
    clocks: false,
    earlier: false,
    configure: plain,
};

fn nemesis(
    name: &'static str,
    about: &'static str,
    least: usize,
    strike: for<'a> fn(&'a mut Strike<'_>) -> Done<'a>,
) -> Nemesis {
    Nemesis { name, about, plan: THREE, least, destroys: false, once: false, strike }
}

fn plain(_: usize, _: &mut Config) {}

/// All of them.
pub(crate) fn all() -> Vec<Nemesis> {
    let families = [
        process::all(),
        network::all(),
        storage::all(),
        objects::all(),
        members::all(),
        machine::all(),
        pieces::all(),
    ];
    families.into_iter().flatten().collect()
}

/// One strike of a nemesis at a cluster.
pub(crate) struct Strike<'r> {
    pub(crate) fleet: &'r mut Fleet,
    pub(crate) shared: &'r Arc<Shared>,
    pub(crate) chance: Chance,
    began: Option<(String, i64)>,
    away: BTreeMap<usize, i64>,
    /// When each fault of this strike was healed.
    pub(crate) healed: Vec<i64>,
}

impl<'r> Strike<'r> {
    pub(crate) fn new(fleet: &'r mut Fleet, shared: &'r Arc<Shared>, chance: Chance) -> Self {
        let (began, away, healed) = Default::default();
        Self { fleet, shared, chance, began, away, healed }
    }

    /// The fault holds from now on.
    fn struck(&mut self, what: impl Into<String>) {
        self.began = Some((what.into(), self.shared.recorder.now()));
    }

    /// What came of it.
    fn note(&mut self, what: impl AsRef<str>) {
        if let Some((began, _)) = &mut self.began {
            began.push_str("; ");
            began.push_str(what.as_ref());
        }
    }

    /// The fault is over.
    fn heal(&mut self) -> anyhow::Result<()> {
        let (what, start) = self.began.take().context("nothing struck")?;
        let end = self.shared.recorder.now();
        self.shared.recorder.fault(Fault::Strike { what, start, end });
        self.healed.push(end);
        Ok(())
    }

    /// Clients work for so long meanwhile.
    async fn hold(&self, seconds: f64) {
        sleep(Duration::from_secs_f64(seconds)).await;
    }

    async fn pause(&mut self, at: usize) -> anyhow::Result<()> {
        self.away(at);
        self.fleet.pause(at).await
    }

    fn resume(&mut self, at: usize) -> anyhow::Result<()> {
        self.fleet.resume(at)?;
        self.back(at);
        Ok(())
    }

    /// Clients get no answer of a node from now on.
    fn away(&mut self, node: usize) {
        self.away.insert(node, self.shared.recorder.now());
        self.fleet.nodes[node].door.away.store(true, Relaxed);
    }

    /// They do again.
    fn back(&mut self, node: usize) {
        self.fleet.nodes[node].door.away.store(false, Relaxed);
        let end = self.shared.recorder.now();
        if let Some(start) = self.away.remove(&node) {
            self.shared.recorder.fault(Fault::Away { node, start, end });
        }
    }

    /// The same of the nodes that run.
    async fn members(&mut self) -> anyhow::Result<(usize, Vec<usize>)> {
        let (leader, mut others) = self.roles().await?;
        others.retain(|at| self.fleet.nodes[*at].pid().is_some());
        Ok((leader, others))
    }

    fn network(&self) -> anyhow::Result<&Network> {
        self.fleet.network.as_ref().context("no network of its own")
    }

    /// The leader and the others, in random order.
    async fn roles(&mut self) -> anyhow::Result<(usize, Vec<usize>)> {
        let leader = self.fleet.leader().await?;
        let mut others: Vec<_> = (0..self.fleet.nodes.len()).filter(|at| *at != leader).collect();
        for at in (1..others.len()).rev() {
            others.swap(at, self.chance.below(at + 1));
        }
        Ok((leader, others))
    }
}
