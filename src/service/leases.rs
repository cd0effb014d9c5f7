//! Leases of clients that compile for themselves.
//!
//! Invariant: a client's lease lives as long as its stream, or as a publication
//! that began before the stream ended, and no longer than its node takes publications; nobody publishes under it who was not
//! told its grant, which goes to its own stream and nowhere else.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kiln_cluster::{Acquired, Index, Lease};
use kiln_proto::{ArtifactKey, Token, convert, pb};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::Status;

use crate::{error::Error, gate::Gate};

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

    /// Acquires `key` and tells `events` how it goes, until the client leaves.
    pub(super) async fn serve(
        self,
        index: Index,
        gate: Gate,
        key: ArtifactKey,
        limit: Duration,
        events: mpsc::Sender<Result<pb::LeaseEvent, Status>>,
    ) {
        use pb::lease_event::Event;
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
            acquired = index.acquire(&key, None, deadline, waiting) => acquired.map_err(Error::from),
            () = gate.closed() => Err(Error::Leaving),
            () = events.closed() => return,
        };
        let tell = |event| pb::LeaseEvent { event: Some(event) };
        let last = match acquired {
            Ok(Acquired::Ready(entry)) => Ok(tell(Event::Ready((&*entry.manifest).into()))),
            Ok(Acquired::Failed(failure)) => Ok(tell(Event::Failed((&failure).into()))),
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

/// Reads a lease request.
pub(super) fn key(request: &pb::LeaseRequest) -> Result<ArtifactKey, Error> {
    Ok(convert::key("key", &request.key)?)
}
