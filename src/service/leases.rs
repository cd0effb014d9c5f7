//! Leases of clients that compile for themselves.
//!
//! Invariant: a client's lease lives as long as its stream, or as a publication
//! that began before the stream ended, and no longer than its node takes publications; nobody publishes under it who was not
//! told its grant, which goes to its own stream and nowhere else.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kiln_cluster::{Acquired, Index, Lease};
use kiln_proto::{ArtifactKey, Failure, SignedManifest, Token, convert, pb};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::Status;

use super::guard::Asks;
use crate::{
    access::{Access, Denied},
    error::Error,
    manager::Manager,
};

/// Between two looks whether a client may still have its lease.
const AGAIN: Duration = Duration::from_secs(1);
/// In place of a failure's words.
const HIDDEN: &str = "it failed for the one who compiled it; why is told to who may read all \
                      namespaces, and by kiln compile to who asks for it";
/// How often one asks again for a key whose artifact is not believed.
const ATTEMPTS: usize = 4;
/// Bytes of a grant.
const GRANT: usize = 16;

/// Leases granted to streams that are still open, by token.
#[derive(Clone, Default)]
pub(super) struct ClientLeases(Arc<Mutex<HashMap<Token, ClientLease>>>);

struct ClientLease {
    lease: Arc<Lease>,
    /// Of the grant: digests are compared in constant time.
    grant: blake3::Hash,
}

impl ClientLeases {
    /// The lease behind `token`, if its stream is open and `grant` came with it.
    pub(super) fn get(&self, token: Token, grant: &[u8]) -> Result<Arc<Lease>, Error> {
        let leases = self.0.lock();
        let granted = leases.get(&token).filter(|held| held.grant == blake3::hash(grant));
        granted.map(|held| held.lease.clone()).ok_or(Error::StaleToken)
    }

    /// Lets whoever shows the returned grant publish under `lease`.
    fn insert(&self, lease: Arc<Lease>) -> Result<[u8; GRANT], Error> {
        let mut grant = [0; GRANT];
        getrandom::fill(&mut grant).map_err(|e| Error::Storage(format!("random bytes: {e}")))?;
        let held = ClientLease { grant: blake3::hash(&grant), lease };
        self.0.lock().insert(held.lease.token(), held);
        Ok(grant)
    }

    /// Acquires `key` for `client` and tells `events` how it goes, until the client leaves or
    /// may not any more.
    pub(super) async fn serve(
        self,
        client: Client,
        manager: Arc<Manager>,
        index: Index,
        key: ArtifactKey,
        limit: Duration,
        events: mpsc::Sender<Result<pb::LeaseEvent, Status>>,
    ) {
        use pb::lease_event::Event;
        let gate = manager.gate().clone();
        let deadline = tokio::time::Instant::now() + limit;
        let waiting = {
            let events = events.clone();
            move || {
                let told = pb::Waiting { key: key.as_bytes().to_vec().into() };
                // A full channel means that the client does not read: it will see the end.
                let _ = events.try_send(Ok(pb::LeaseEvent { event: Some(Event::Waiting(told)) }));
            }
        };
        let acquired = tokio::select! {
            acquired = acquire(&manager, &index, &key, deadline, waiting) => acquired,
            () = gate.closed() => Err(Error::Leaving),
            denied = client.ended() => Err(denied.into()),
            () = events.closed() => return,
        };
        let tell = |event| pb::LeaseEvent { event: Some(event) };
        let last = match acquired {
            // Who waited may have waited for another's.
            Ok(Acquired::Ready(entry)) => match client.may_read(&key, &entry.manifest) {
                Ok(()) => Ok(tell(Event::Ready((&*entry.manifest).into()))),
                Err(error) => Err(error.into()),
            },
            Ok(Acquired::Failed(failure)) => {
                Ok(tell(Event::Failed((&client.told_of(failure)).into())))
            }
            Err(e) => Err(e.into()),
            Ok(Acquired::Granted(lease)) => {
                let token = lease.token();
                let lease = Arc::new(lease);
                let ended = match self.insert(lease.clone()) {
                    Err(error) => Some(error),
                    Ok(grant) => {
                        let grant = grant.to_vec().into();
                        let granted = tell(Event::Granted(pb::Granted { token: token.0, grant }));
                        match events.send(Ok(granted)).await {
                            Err(_) => None,
                            Ok(()) => tokio::select! {
                                () = events.closed() => None,
                                () = gate.closed() => Some(Error::Leaving),
                                denied = client.ended() => Some(denied.into()),
                                () = lease.lost() => Some(Error::StaleToken),
                            },
                        }
                    }
                };
                self.0.lock().remove(&token);
                match ended {
                    None => return,
                    Some(error) => Err(error.into()),
                }
            }
        };
        // The client may be gone: then nobody is left to tell.
        let _ = events.send(last).await;
    }
}

/// The lease of `key`, or what it has: an artifact that nobody here believes is compiled anew,
/// unless this node's own signature would be no better.
async fn acquire(
    manager: &Manager,
    index: &Index,
    key: &ArtifactKey,
    deadline: tokio::time::Instant,
    waiting: impl Fn() + Send + Sync,
) -> Result<Acquired, Error> {
    let mut instead_of = None;
    for _ in 0..ATTEMPTS {
        let acquired = index.acquire(key, instead_of, deadline, &waiting).await?;
        let Acquired::Ready(entry) = &acquired else { return Ok(acquired) };
        manager.know_signer(entry).await;
        if manager.believes_entry(entry) {
            return Ok(acquired);
        }
        let namespace = entry.manifest.read_unverified()?.namespace;
        manager.may_sign(&namespace).await?;
        instead_of = Some(entry.epoch);
    }
    Err(Error::Unavailable("others put there what is not believed, again and again".into()))
}

/// Who asks for a lease.
pub(super) struct Client {
    access: Arc<Access>,
    asks: Asks,
}

impl Client {
    pub(super) fn new(access: Arc<Access>, asks: Asks) -> Self {
        Self { access, asks }
    }

    fn refused(&self, denied: Denied) -> Denied {
        self.access.refused(denied, "grpc", self.asks.method(), self.asks.grant.who());
        denied
    }

    /// Returns once its grant is good no more.
    async fn ended(&self) -> Denied {
        let mut tick = tokio::time::interval(AGAIN);
        loop {
            tick.tick().await;
            match self.access.still(&self.asks.grant) {
                // Others that it leaves to answer are not what was taken from it.
                Err(denied) if !denied.is_passing() => return self.refused(denied),
                _ => {}
            }
        }
    }

    /// Refuses another's artifact as one that there is not.
    fn may_read(&self, key: &ArtifactKey, signed: &SignedManifest) -> Result<(), Error> {
        if self.asks.reads_all() {
            return Ok(());
        }
        let manifest = signed.read_unverified()?;
        self.asks.reads(&manifest.namespace).map_err(|denied| {
            self.refused(denied);
            Error::NotFound(*key)
        })
    }

    /// A failure as it is told: in whose namespace it was is not known, and its words are of
    /// somebody's program.
    fn told_of(&self, failure: Failure) -> Failure {
        match self.asks.reads_all() {
            true => failure,
            false => Failure::new(failure.kind, HIDDEN),
        }
    }
}

/// Reads a lease request.
pub(super) fn key(request: &pb::LeaseRequest) -> Result<ArtifactKey, Error> {
    Ok(convert::key("key", &request.key)?)
}
