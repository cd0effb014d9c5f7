//! What the API answers from.
//!
//! Invariant: a caller that names no namespace or no bound gets the configured
//! one, in whichever call.

use std::{sync::Arc, time::Duration};

use kiln_cluster::{Cluster, Index};
use kiln_proto::{ArtifactKey, Manifest, pb};
use tokio::time::Instant;

use super::{departure::Departure, guard::Asks, meters::Meters, wire};
use crate::{
    access::{Access, Denied, Held},
    audit::Event,
    cache::{Arrivals, Tiers},
    counters::CounterSource,
    dashboard::Dashboard,
    error::{Error, MissingPiece, NoPiece},
    manager::{Manager, Request},
    monitor::Monitor,
    net::tls::Dialer,
};

/// The parts of the node that calls ask.
pub struct Parts {
    /// This node's id.
    pub node: u64,
    /// Who may ask for what.
    pub access: Arc<Access>,
    /// Compile, load, save.
    pub manager: Arc<Manager>,
    /// The replicated index.
    pub index: Index,
    /// Membership.
    pub cluster: Arc<Cluster>,
    /// The way to the other members.
    pub dialer: Dialer,
    /// The way out of the cluster.
    pub departure: Arc<Departure>,
    /// For their usage.
    pub tiers: Arc<Tiers>,
    /// Memory for what clients send.
    pub arrivals: Arrivals,
    /// In which who publishes must send 64 KiB.
    pub patience: Duration,
    /// Bound on a call whose caller names none.
    pub default_deadline: Duration,
    /// Tenant of a call whose caller names none.
    pub default_namespace: String,
    /// The metrics.
    pub meters: Meters,
    /// What the status call adds up.
    pub counters: Vec<Arc<dyn CounterSource>>,
    /// What is shown of the cluster.
    pub dashboard: Arc<Dashboard>,
    /// What the node sees of itself.
    pub monitor: Monitor,
}

impl Parts {
    /// One request per target, for the tenant that the caller names.
    pub(super) fn requests(&self, mut wire: pb::CompileRequest) -> Result<Vec<Request>, Error> {
        if wire.namespace.is_empty() {
            wire.namespace.clone_from(&self.default_namespace);
        }
        let bound = wire::bound(wire.deadline_ms, self.default_deadline);
        Request::read(wire, Instant::now() + bound)
    }

    /// Notes in the audit log what `asks` did.
    pub(super) fn did(&self, asks: &Asks, what: &'static str, with: impl FnOnce(Event) -> Event) {
        self.access.audit().record(with(Event::new(what, asks.grant.who())));
    }

    /// Notes in the audit log what `asks` has compiled, key by key: a hit is no deed.
    pub(super) fn compiles(
        &self,
        asks: &Asks,
        what: &'static str,
        namespace: &str,
    ) -> super::compile::Begun {
        let (access, who) = (self.access.clone(), asks.grant.who().clone());
        let namespace = namespace.to_owned();
        Arc::new(move |key| {
            access.audit().record(Event::new(what, &who).of(key).within(&namespace));
        })
    }

    /// Refuses who may not, and counts that.
    pub(super) fn may(&self, asks: &Asks, allowed: Result<(), Denied>) -> Result<(), Error> {
        allowed.map_err(|denied| {
            self.access.refused(denied, "grpc", asks.method(), asks.grant.who());
            denied.into()
        })
    }

    /// Counts bytes that `asks` has on their way, until what is returned is dropped.
    pub(super) fn hold(&self, asks: &Asks, bytes: u64) -> Result<Held, Error> {
        let held = self.access.hold(asks.grant.who(), asks.from, bytes);
        held.map_err(|denied| {
            self.access.refused(denied, "grpc", asks.method(), asks.grant.who());
            denied.into()
        })
    }

    /// How many bytes the artifact of a key in `namespace` has; `None`: this replica knows none.
    pub(super) async fn size(
        &self,
        key: &ArtifactKey,
        namespace: &str,
    ) -> Result<Option<u64>, Error> {
        let Some(entry) = self.index.lookup(key).await? else { return Ok(None) };
        let manifest = entry.manifest.read_unverified()?;
        Ok((manifest.namespace == namespace).then_some(manifest.pack_size))
    }

    /// Refuses the key of an artifact that its caller may not read as one that there is not:
    /// who knows a key by itself learns nothing more.
    pub(super) async fn not_anothers(&self, asks: &Asks, key: &ArtifactKey) -> Result<(), Error> {
        if asks.reads_all() {
            return Ok(());
        }
        let Some(entry) = self.index.lookup(key).await? else { return Ok(()) };
        let manifest = entry.manifest.read_unverified()?;
        let readable = self.may(asks, asks.reads(&manifest.namespace));
        readable.map_err(|_| Error::NotFound(*key))
    }

    /// Refuses a key whose artifact its caller may not change; returns its namespace, empty
    /// where who may change all has named a key that this replica does not know. Whose a key
    /// is follows from what it is of, and stays so.
    pub(super) async fn own(&self, asks: &Asks, key: &ArtifactKey) -> Result<String, Error> {
        if asks.reads_all() {
            let found = self.index.lookup(key).await?;
            let manifest = found.and_then(|entry| entry.manifest.read_unverified().ok());
            return Ok(manifest.map_or_else(String::new, |manifest| manifest.namespace));
        }
        // What this replica has not heard of yet may be another's.
        let found = self.index.lookup_linearizable(key).await?;
        let entry = found.ok_or(Error::NotFound(*key))?;
        let manifest = entry.manifest.read_unverified()?;
        if !asks.may_read(&manifest.namespace) {
            let refused = self.may(asks, Err(Denied::Namespace));
            refused.map_err(|_| Error::NotFound(*key))?;
        }
        self.may(asks, asks.writes(&manifest.namespace))?;
        Ok(manifest.namespace)
    }

    /// Refuses a whole with a piece of another namespace, as of one that there is not.
    pub(super) async fn has_own_pieces(&self, whole: &Manifest) -> Result<(), Error> {
        for (index, piece) in whole.pieces.iter().enumerate() {
            let Some(entry) = self.index.lookup(&piece.key).await? else { continue };
            if entry.manifest.read_unverified()?.namespace != whole.namespace {
                let (key, pack, why) = (piece.key, piece.pack, NoPiece::Absent);
                return Err(Error::MissingPiece(MissingPiece { index, key, pack, why }));
            }
        }
        Ok(())
    }

    /// The namespace that a caller names, or the configured one.
    pub(super) fn namespace<'a>(&'a self, named: &'a str) -> &'a str {
        if named.is_empty() { &self.default_namespace } else { named }
    }
}
