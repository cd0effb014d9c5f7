//! What a change of a toolchain will make miss.
//!
//! An artifact misses after the change if its key names another version of the tool, and
//! no stored artifact differs from it in nothing but the toolchain and has the new one.
//!
//! Invariant: looks at all entries, or says at how many; in memory are one page, the digests of
//! what has the new toolchain, and no artifact.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use kiln_cluster::{Cluster, Entry, Index};
use kiln_proto::{ArtifactKey, Component, Components, Manifest, Target, component, pb, value};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::wire;
use crate::{
    clock,
    error::Error,
    manager::Manager,
    prewarm::{Forecast, History, Range},
    scan::{self, Bounds, Scanned},
};

/// A toolchain that is to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// Tools with their new versions, or the first parts of these: `nvrtc` -> `13.1`.
    pub(super) tools: Vec<(String, String)>,
    /// On what it is; empty: everywhere.
    pub(super) targets: Vec<Target>,
    /// Whose artifacts.
    pub(super) namespace: String,
}

/// An artifact that will not be had.
#[derive(Debug)]
pub(super) struct Miss {
    pub(super) entry: Entry,
    pub(super) manifest: Manifest,
}

/// What was looked at.
#[derive(Debug, Default)]
pub(super) struct Planned {
    pub(super) scanned: Scanned,
    /// Tools that some artifact names.
    pub(super) tools: BTreeSet<String>,
    /// Artifacts that the change does not concern, or that are there for it already.
    pub(super) unaffected: u64,
    pub(super) forecast: Option<Forecast>,
}

/// What a plan is made from.
pub(super) struct Planner {
    pub(super) index: Index,
    pub(super) manager: Arc<Manager>,
    pub(super) cluster: Arc<Cluster>,
}

type Sender = mpsc::Sender<Result<pb::PlanEvent, Status>>;

/// Artifacts on their way to a client that reads slowly.
const DEPTH: usize = 64;

impl Planned {
    fn end(self, entries: u64) -> pb::PlanEnd {
        let range = |range: Range| pb::ForecastRange {
            least: range.least,
            middle: range.middle,
            most: range.most,
        };
        pb::PlanEnd {
            looked_at: self.scanned.entries,
            entries,
            cut: !self.scanned.complete,
            unaffected: self.unaffected,
            tools: self.tools.into_iter().collect(),
            forecast: self.forecast.map(|forecast| pb::Forecast {
                days: forecast.days as u32,
                bytes: Some(range(forecast.bytes)),
                seconds: Some(range(forecast.seconds)),
            }),
        }
    }
}

impl Change {
    /// Reads a request. A tool that is named twice could mean two things.
    pub(super) fn read(request: &pb::PlanRequest, namespace: &str) -> Result<Self, Error> {
        let mut tools: Vec<(String, String)> = Vec::new();
        for field in &request.toolchain {
            let name = match field.name.as_str() {
                // What people call it.
                "cuda" => "nvrtc",
                other => other,
            };
            if name.is_empty() || field.value.is_empty() {
                return Err(Error::Invalid("a tool and its version: nvrtc=13.1".into()));
            }
            if tools.iter().any(|(known, _)| known == name) {
                return Err(Error::Invalid(format!("the tool {name} is given twice")));
            }
            tools.push((name.to_owned(), field.value.clone()));
        }
        let targets = request.targets.iter().map(kiln_proto::convert::target);
        let targets = targets.collect::<Result<_, _>>()?;
        Ok(Self { tools, targets, namespace: namespace.to_owned() })
    }

    /// Whether some artifact names one of the tools, or there is none that could.
    fn is_known(&self, planned: &Planned) -> bool {
        let known = |(tool, _): &(String, String)| planned.tools.contains(tool);
        !planned.scanned.complete || planned.tools.is_empty() || self.tools.iter().all(known)
    }

    fn unknown(&self, planned: &Planned) -> String {
        let unknown = self.tools.iter().filter(|(tool, _)| !planned.tools.contains(tool));
        let unknown: Vec<&str> = unknown.map(|(tool, _)| tool.as_str()).collect();
        let known: Vec<&str> = planned.tools.iter().map(String::as_str).collect();
        let (unknown, known) = (unknown.join(", "), known.join(", "));
        format!("no artifact's toolchain names {unknown}; they name {known}")
    }

    /// Whether an artifact names one of the tools, and if so whether all of those that it
    /// names have the new version.
    fn concerns(&self, manifest: &Manifest) -> Option<bool> {
        let versions = &manifest.fingerprint.versions;
        let named = self.tools.iter().filter_map(|(tool, new)| Some((versions.get(tool)?, new)));
        let new: Vec<bool> = named.map(|(has, new)| is_version(has, new)).collect();
        let meant = self.targets.is_empty() || self.targets.contains(&manifest.target);
        (meant && !new.is_empty() && manifest.namespace == self.namespace)
            .then(|| new.iter().all(|new| *new))
    }
}

/// Whether `has` is the version `wanted`, or one that begins with its parts.
fn is_version(has: &str, wanted: &str) -> bool {
    has.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The key without what its toolchain is, beside the compiler's name.
fn without_toolchain(manifest: &Manifest) -> ArtifactKey {
    let other = |part: &Component| match part.name.as_str() {
        component::FINGERPRINT => {
            let compiler = part.fields.iter().filter(|field| field.name == "compiler");
            Component::new(component::FINGERPRINT, compiler.cloned().collect())
        }
        _ => part.clone(),
    };
    Components::new(manifest.components.iter().map(other).collect()).key()
}

/// Answers a request: what misses in key order, and then what was looked at.
pub(super) async fn serve(parts: Planner, change: Change, events: Sender) {
    let (sender, mut misses) = mpsc::channel::<Miss>(DEPTH);
    let (index, stop) = (parts.index.clone(), CancellationToken::new());
    let (_ended, stopped, asked) = (stop.clone().drop_guard(), stop, change.clone());
    let planning = tokio::task::spawn_blocking(move || {
        plan(&index, &asked, Bounds::default(), &stopped, |miss| sender.blocking_send(miss).is_ok())
    });
    while let Some(miss) = misses.recv().await {
        let kept = parts.manager.keeps_request(&miss.entry.key, &change.namespace).await;
        let miss = pb::PlannedMiss { kept: kept.unwrap_or(false), ..miss.into() };
        // The client left.
        if events.send(Ok(event(pb::plan_event::Event::Miss(miss)))).await.is_err() {
            return;
        }
    }
    let planned = planning.await.map_err(|e| Error::Storage(e.to_string()));
    let last = match planned.and_then(|planned| planned) {
        Ok(planned) if !change.tools.is_empty() && !change.is_known(&planned) => {
            Err(Error::Invalid(change.unknown(&planned)).into())
        }
        Ok(planned) => {
            Ok(event(pb::plan_event::Event::End(planned.end(parts.cluster.status().entries))))
        }
        Err(e) => Err(e.into()),
    };
    let _ = events.send(last).await;
}

const fn event(event: pb::plan_event::Event) -> pb::PlanEvent {
    pb::PlanEvent { event: Some(event) }
}

/// Calls `tell` for each artifact that the change makes miss, in key order, until it
/// returns false. Blocks: not for runtime threads.
pub(super) fn plan(
    index: &Index,
    change: &Change,
    bounds: Bounds,
    stop: &CancellationToken,
    mut tell: impl FnMut(Miss) -> bool,
) -> Result<Planned, Error> {
    let mut planned = Planned::default();
    let (mut there, mut history) = (HashSet::new(), History::until(clock::unix_ms()));
    scan::each(index, bounds, stop, |entry| {
        let Ok(manifest) = entry.manifest.read_unverified() else { return };
        history.count(manifest.created_unix_ms, manifest.pack_size, manifest.compile_seconds);
        planned.tools.extend(manifest.fingerprint.versions.keys().cloned());
        if change.concerns(&manifest) == Some(true) {
            there.insert(without_toolchain(&manifest));
        }
    })?;
    planned.forecast = history.forecast();
    let stopped = stop.child_token();
    planned.scanned = scan::each(index, bounds, &stopped, |entry| {
        let Ok(manifest) = entry.manifest.read_unverified() else { return };
        if stopped.is_cancelled() {
            return;
        }
        match change.concerns(&manifest) {
            Some(false) if !there.contains(&without_toolchain(&manifest)) => {
                if !tell(Miss { entry, manifest }) {
                    stopped.cancel();
                }
            }
            // What is kept for the change itself is no artifact of anybody.
            _ if manifest.fingerprint.compiler == value::REQUEST_FAMILY => {}
            _ => planned.unaffected += 1,
        }
    })?;
    Ok(planned)
}

impl From<Miss> for pb::PlannedMiss {
    fn from(miss: Miss) -> Self {
        let Miss { entry, manifest } = miss;
        Self {
            key: wire::key(&entry.key),
            label: manifest.label,
            target: Some(manifest.target.into()),
            fingerprint: Some((&manifest.fingerprint).into()),
            compile_seconds: entry.compile_seconds,
            pack_size: entry.pack_size,
            hits: entry.hits,
            pieces: manifest.pieces.len() as u32,
            kept: false,
        }
    }
}
