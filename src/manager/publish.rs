//! Publishing: signed, durable, committed, then queued for L3.
//!
//! Invariant: an entry is committed after its bytes are durable on a disk, this node's
//! or, where that one is full or fails, another's; nothing removes them meanwhile. What
//! is acknowledged is durable where `publish.copies` says; else the caller is told that
//! it is not.

use std::{sync::Arc, time::Duration};

use fail::fail_point;
use kiln_cluster::{Entry, IndexEvent, Lease, NodeInfo, Published, Put, PutMode, Turn};
use kiln_proto::{Digest, Manifest, NodeId, SignedManifest, value};
use tokio::time::{sleep_until, timeout};

use super::{Copies, Made, Manager, hints};
use crate::{
    artifact::{self, Packing},
    cache::{Blob, BlobWriter, Guard, Inserted, Kept, TierError},
    clock,
    compiler::Prepared,
    error::Error,
    gate::Inside,
    transfer::PeerAddress,
};

/// What the copies of one publication may take, however long the bytes are on their way.
const COPYING: Duration = Duration::from_secs(60);

/// Bytes that are durable where the settings want them.
struct Stored {
    /// Keeps them here until an entry refers to them.
    guard: Guard,
    /// Other nodes on whose disks they are.
    also: Vec<NodeId>,
}

/// Packs from here on are hashed on a blocking thread.
const HASHED_AT_ONCE: u64 = 1 << 20;

impl Manager {
    /// Publishes an artifact that a client compiled under `lease`: durable first, then
    /// committed. The manifest's producer becomes this node.
    pub async fn save(
        &self,
        inside: &Inside,
        lease: &Lease,
        manifest: Manifest,
        pack: Blob,
    ) -> Result<(bool, Arc<SignedManifest>), Error> {
        if manifest.key != *lease.key() {
            return Err(Error::Invalid("the manifest is for another key than the lease".into()));
        }
        let refuse = |e: kiln_proto::ManifestError| Error::Invalid(e.to_string());
        // This node did not run it, whatever the client says of that.
        let signed =
            self.signing().await?.sign(Manifest { check: None, ..manifest }).map_err(refuse)?;
        let manifest = signed.read_unverified().map_err(refuse)?;
        verify_files(&manifest, &pack).await?;
        let published = self.commit(inside, lease, &signed, &manifest, &pack).await?;
        Ok(match published {
            Published::Committed(_) => (true, Arc::new(signed)),
            Published::Existing(entry) => (false, entry.manifest),
        })
    }

    /// Commits what another tool stores under a key of its own, in its turn: durable
    /// first. The manifest's producer and time become this node's.
    pub async fn put(
        &self,
        inside: &Inside,
        turn: Turn,
        manifest: Manifest,
        pack: &Blob,
        mode: PutMode,
    ) -> Result<Put, Error> {
        if !manifest.replaceable() {
            return Err(Error::Invalid("only a lease's holder may publish this key".into()));
        }
        let refuse = |e: kiln_proto::ManifestError| Error::Invalid(e.to_string());
        let now = clock::unix_ms();
        let signed = Manifest { created_unix_ms: now, check: None, ..manifest };
        let signed = self.signing().await?.sign(signed).map_err(refuse)?;
        let manifest = signed.read_unverified().map_err(refuse)?;
        verify_files(&manifest, pack).await?;
        let _writing = inside.write()?;
        let stored = tokio::select! {
            stored = self.store(&manifest, pack) => stored?,
            () = turn.superseded() => return Ok(Put::Superseded),
        };
        let put = self.index.put(turn, signed, mode, stored.also).await?;
        fail_point!("publish.put");
        // What is kept beside an artifact is none.
        let is_request = manifest.fingerprint.compiler == value::REQUEST_FAMILY;
        if let (Put::Committed(_), false) = (&put, is_request) {
            self.counters.saved();
        }
        if let Put::Committed(entry) | Put::Unchanged(entry) = &put {
            self.upload(entry, stored.guard).await?;
        }
        Ok(put)
    }

    /// Durable first, then committed, then queued for L3.
    pub(super) async fn commit(
        &self,
        inside: &Inside,
        lease: &Lease,
        signed: &SignedManifest,
        manifest: &Manifest,
        pack: &Blob,
    ) -> Result<Published, Error> {
        let _writing = inside.write()?;
        let stored = self.store(manifest, pack).await?;
        let published = self.index.publish(lease, signed.clone(), stored.also).await?;
        fail_point!("publish.committed");
        if let Published::Committed(entry) = &published {
            self.counters.saved();
            self.upload(entry, stored.guard).await?;
        }
        Ok(published)
    }

    /// Makes the bytes durable on as many disks as the settings want.
    async fn store(&self, manifest: &Manifest, pack: &Blob) -> Result<Stored, Error> {
        self.tiers.upload_room().await;
        let Inserted { kept, guard } = self.tiers.insert(pack, hints(manifest, false)).await;
        let why_not_here = match kept {
            Kept::Disk => None,
            Kept::Memory(why) | Kept::Nowhere(why) => Some(why),
        };
        let disks = match self.settings.copies {
            Copies::Nodes(nodes) => nodes.get(),
            Copies::Object => 1,
        };
        let also = match disks - usize::from(why_not_here.is_none()) {
            0 => Vec::new(),
            others => self.copy(pack, why_not_here, others).await?,
        };
        fail_point!("publish.stored");
        Ok(Stored { guard, also })
    }

    /// Makes `wanted` other nodes keep the pack, which is on this node's disk or, for the
    /// reason given, is not; which did.
    async fn copy(
        &self,
        pack: &Blob,
        why_not_here: Option<TierError>,
        wanted: usize,
    ) -> Result<Vec<NodeId>, Error> {
        let me = self.identity.node;
        let (own, others) = self.others_for(&pack.digest());
        let mut kept = Vec::new();
        let here = usize::from(why_not_here.is_none());
        let mut refusals: Vec<String> =
            why_not_here.iter().map(|why| format!("this node: {why}")).collect();
        let copying = async {
            for (id, node) in &others {
                if kept.len() == wanted {
                    return;
                }
                let to = PeerAddress { node: *id, address: &node.facts.transfer };
                let from = PeerAddress { node: me, address: &own };
                match self.fetcher.keep_at(to, &pack.digest(), pack.size(), from).await {
                    Ok(()) => kept.push(*id),
                    Err(e) => refusals.push(format!("node {id}: {e}")),
                }
            }
        };
        let in_time = timeout(COPYING, copying).await.is_ok();
        if kept.len() == wanted {
            return Ok(kept);
        }
        if !in_time {
            refusals.push(format!("not copied within {COPYING:?}"));
        }
        let (copies, wanted) = (kept.len() + here, wanted + here);
        let why = refusals.join("; ");
        Err(Error::NotStored(format!("{copies} of {wanted} copies on disks of nodes: {why}")))
    }

    /// Where this node's bytes are fetched, and the other members with their addresses, in
    /// the order in which they are asked to keep `pack`: each has its share of all packs.
    pub(super) fn others_for(&self, pack: &Digest) -> (String, Vec<(NodeId, NodeInfo)>) {
        let me = self.identity.node;
        let nodes = self.index.nodes();
        let own = nodes.iter().find(|(id, _)| *id == me);
        let own = own.map(|(_, node)| node.facts.transfer.clone()).unwrap_or_default();
        let mut others: Vec<_> = nodes.into_iter().filter(|(id, _)| *id != me).collect();
        others.sort_by_cached_key(|(id, _)| {
            let mut hasher = kiln_proto::Hasher::new();
            *hasher.update(&id.to_le_bytes()).update(pack.as_bytes()).finalize().as_bytes()
        });
        (own, others)
    }

    /// Queues the upload of a committed entry; waits for it where the settings say so.
    /// What is queued is evicted last: the guard is for the time until then.
    async fn upload(&self, entry: &Entry, guard: Guard) -> Result<(), Error> {
        if entry.stored {
            return Ok(());
        }
        let mut events = self.index.events();
        if let Err(e) = self.tiers.enqueue_upload(&entry.pack).await {
            tracing::warn!(pack = %entry.pack, error = %e, "the upload is not queued");
        }
        drop(guard);
        let Copies::Object = self.settings.copies else { return Ok(()) };
        let deadline = tokio::time::Instant::now() + COPYING;
        loop {
            if self.index.pack(&entry.pack).await?.is_some_and(|pack| pack.stored) {
                return Ok(());
            }
            tokio::select! {
                // A lagging subscriber looks again, too.
                event = events.recv() => match event {
                    Ok(IndexEvent::Stored { .. } | IndexEvent::Reset) | Err(_) => {}
                    Ok(_) => continue,
                },
                () = sleep_until(deadline) => {
                    let why = "committed, but the object store does not have its bytes yet";
                    return Err(Error::NotStored(why.into()));
                }
            }
        }
    }

    pub(super) async fn sign(
        &self,
        prepared: &Prepared,
        made: Made,
    ) -> Result<(Arc<SignedManifest>, Arc<Manifest>, Blob), Error> {
        let Made { output, pieces, check, .. } = made;
        // What is wrong is not even signed.
        let check = check.map_err(Error::Unsound)?;
        let packing = Packing::new(output.files).map_err(|e| Error::Storage(e.to_string()))?;
        let writer = BlobWriter::within(self.tiers.budget(), packing.size()).await?;
        let packed = match packing.size() < HASHED_AT_ONCE {
            true => packing.write(writer),
            false => {
                let packed = tokio::task::spawn_blocking(move || packing.write(writer)).await;
                packed.map_err(|e| Error::Storage(e.to_string()))?
            }
        };
        let (pack, files) = packed.map_err(|e| Error::Storage(e.to_string()))?;
        let manifest = Manifest {
            key: prepared.components.key(),
            namespace: prepared.namespace.clone(),
            components: prepared.components.clone(),
            fingerprint: prepared.fingerprint.clone(),
            target: prepared.target,
            files,
            pack_digest: pack.digest(),
            pack_size: pack.size(),
            producer: self.identity.node,
            compile_seconds: output.compile_seconds,
            created_unix_ms: clock::unix_ms(),
            label: prepared.label.clone(),
            pieces,
            check,
        };
        if let Some(check) = &manifest.check {
            self.checked.insert((manifest.key, manifest.pack_digest), check.clone());
        }
        let signed = self.signing().await?.sign(manifest)?;
        let manifest = signed.read_unverified()?;
        Ok((Arc::new(signed), Arc::new(manifest), pack))
    }
}

/// Whether `pack` holds the files of `manifest`; a large one is not hashed on a
/// runtime thread.
async fn verify_files(manifest: &Manifest, pack: &Blob) -> Result<(), Error> {
    let verified = match pack.size() < HASHED_AT_ONCE {
        true => artifact::verify_files(manifest, pack),
        false => {
            let (manifest, pack) = (manifest.clone(), pack.clone());
            let hashing = move || artifact::verify_files(&manifest, &pack);
            let hashed = tokio::task::spawn_blocking(hashing).await;
            hashed.map_err(|e| Error::Storage(e.to_string()))?
        }
    };
    verified.map_err(|e| Error::Invalid(e.to_string()))
}
