//! Artifacts compiled again by nodes that have another toolchain.
//!
//! Invariant: each is asked of one node, so many at once as asked for; what fails leaves
//! the rest, and is named. An artifact counts that the command believes, and that is of the
//! namespace and the target of the one that it takes the place of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{IsTerminal, stderr},
};

use futures::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use kiln_proto::{ArtifactKey, FailureKind, Fingerprint, Manifest, pb};
use serde::Serialize;

use super::{
    CliError,
    belief::Belief,
    client::{Client, Endpoints},
    error::FailureView,
    misses::{MissView, Tool},
    output::seconds,
};

/// Nodes that have the toolchain, by the compilers of theirs that do.
pub(crate) struct Nodes(Vec<(u64, Client, BTreeSet<String>)>);

/// What is to be compiled.
pub(crate) struct Work {
    pub(crate) misses: Vec<MissView>,
    pub(crate) jobs: usize,
    pub(crate) namespace: String,
}

/// `kiln plan --prewarm --json`: one for each artifact, as they end.
#[derive(Debug, Serialize)]
pub(crate) struct PrewarmedView {
    /// Of the artifact that will miss.
    key: String,
    label: String,
    target: String,
    /// Of the one that takes its place; null where there is none.
    new_key: Option<String>,
    node: u64,
    /// `compiled`, `hit`, `coalesced` or `failed`.
    outcome: &'static str,
    compile_seconds: Option<f64>,
    error: Option<FailureView>,
}

impl Nodes {
    /// Asks a node which ones of the cluster have that toolchain, and connects to them.
    pub(crate) async fn having(endpoints: &Endpoints, tools: &[Tool]) -> Result<Self, CliError> {
        let mut client = endpoints.connect().await?;
        let status = client.status(pb::StatusRequest::default()).await;
        let status = status.map_err(|e| CliError::from_status(&e))?.into_inner();
        let (mut found, mut all) = (Vec::new(), BTreeSet::new());
        for node in status.nodes {
            let compilers = node.compilers.into_iter().map(|wire| {
                let versions = wire.versions.into_iter().map(|field| (field.name, field.value));
                Fingerprint::new(wire.compiler, versions)
            });
            let compilers: Vec<Fingerprint> = compilers.collect();
            all.extend(compilers.iter().map(ToString::to_string));
            let having = compilers.iter().filter(|has| tools.iter().any(|tool| tool.is_in(has)));
            let names: BTreeSet<String> = having.map(|has| has.compiler.clone()).collect();
            if names.is_empty() {
                continue;
            }
            match endpoints.at(&node.grpc).await {
                Ok(client) => found.push((node.id, client, names)),
                Err(why) => eprintln!("node {} has it and does not answer: {why}", node.id),
            }
        }
        if found.is_empty() {
            let all: Vec<_> = all.into_iter().collect();
            return Err(CliError::Refused(format!(
                "no node that answers has that toolchain; they have {}: start one with it, which \
                 may be a learner (cluster.voter = false)",
                all.join("; ")
            )));
        }
        Ok(Self(found))
    }

    /// Compiles all of which the request was kept; returns how many failed.
    pub(crate) async fn compile(
        &self,
        work: Work,
        endpoints: &Endpoints,
        mut told: impl FnMut(&PrewarmedView) -> Result<(), CliError>,
    ) -> Result<usize, CliError> {
        let kept: Vec<MissView> = work.misses.into_iter().filter(|miss| miss.kept).collect();
        let bar = bar(kept.len() as u64);
        // One node for each target, as long as there are so many.
        let mut turns: BTreeMap<(String, String), usize> = BTreeMap::new();
        let mut jobs = Vec::new();
        for miss in kept {
            let able: Vec<_> =
                self.0.iter().filter(|(_, _, names)| names.contains(&miss.compiler)).collect();
            let next = turns.len();
            let turn = *turns.entry((miss.compiler.clone(), miss.target.clone())).or_insert(next);
            // Another compiler's: a change of several tools, of which no node has this one.
            let Some((node, client, _)) = able.get(turn % able.len().max(1)) else { continue };
            jobs.push(one(*node, client.clone(), miss, work.namespace.clone(), endpoints));
        }
        let (mut ended, mut failed) = (stream::iter(jobs).buffer_unordered(work.jobs), 0);
        while let Some(one) = ended.next().await {
            failed += usize::from(one.error.is_some());
            bar.inc(1);
            bar.suspend(|| told(&one))?;
        }
        bar.finish_and_clear();
        Ok(failed)
    }
}

/// Nothing where nobody watches.
fn bar(all: u64) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} compiled, {eta} to go");
    ProgressBar::new(all).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

async fn one(
    node: u64,
    client: Client,
    miss: MissView,
    namespace: String,
    endpoints: &Endpoints,
) -> PrewarmedView {
    let done = recompile(client, &miss, namespace, endpoints).await;
    let MissView { key, label, target, .. } = miss;
    let failed = |error: CliError| (None, "failed", None, Some(error.fields()));
    let (new_key, outcome, compile_seconds, error) = match done {
        Ok((outcome, manifest)) => {
            let outcome = match outcome {
                pb::Outcome::Compiled => "compiled",
                pb::Outcome::Coalesced => "coalesced",
                _ => "hit",
            };
            (Some(manifest.key.to_string()), outcome, Some(manifest.compile_seconds), None)
        }
        Err(e) => failed(e),
    };
    PrewarmedView { key, label, target, new_key, node, outcome, compile_seconds, error }
}

async fn recompile(
    mut client: Client,
    miss: &MissView,
    namespace: String,
    endpoints: &Endpoints,
) -> Result<(pb::Outcome, Manifest), CliError> {
    let key: ArtifactKey = miss.key.parse().map_err(|e| anyhow::anyhow!("{}: {e}", miss.key))?;
    let key = key.as_bytes().to_vec().into();
    let request = pb::RecompileRequest { key, namespace: namespace.clone(), deadline_ms: 0 };
    let answer = client.recompile(request).await.map_err(|e| CliError::from_status(&e))?;
    let mut events = answer.into_inner();
    while let Some(event) = events.message().await.map_err(|e| CliError::from_status(&e))? {
        if let Some(pb::compile_event::Event::Done(done)) = event.event {
            let manifest = judge(&done, miss, &namespace, &endpoints.belief().await?)?;
            return Ok((done.outcome(), manifest));
        }
    }
    Err(CliError::Unreachable("the node ended its answer early".into()))
}

/// The manifest of what takes the place of `miss`, if it is believed and may do that.
fn judge(
    done: &pb::Done,
    miss: &MissView,
    namespace: &str,
    belief: &Belief,
) -> Result<Manifest, CliError> {
    let manifest = belief.read_told(done.manifest.clone(), namespace)?;
    match manifest.target.to_string() == miss.target {
        true => Ok(manifest),
        false => Err(CliError::failed(
            FailureKind::Corrupt,
            format!("the node answered with an artifact for {}: it is not taken", manifest.target),
        )),
    }
}

impl fmt::Display for PrewarmedView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, label, target, node, outcome, .. } = self;
        write!(f, "{outcome}  {label}  {target}  on node {node}  instead of {}", &key[..16])?;
        if let Some(took) = self.compile_seconds {
            write!(f, "  {}", seconds(took))?;
        }
        match &self.error {
            Some(FailureView { message, .. }) => write!(f, ": {message}"),
            None => Ok(()),
        }
    }
}
