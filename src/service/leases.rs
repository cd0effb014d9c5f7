//! Leases of clients that compile for themselves.
//!
//! Invariant: a client's lease lives exactly as long as its stream: a client
//! that goes away, in whatever way, holds nothing.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kiln_cluster::{Acquired, Index, Lease};
use kiln_proto::{ArtifactKey, Token, convert, pb};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::Status;

use crate::error::Error;

/// Leases granted to streams that are still open, by token.
#[derive(Clone, Default)]
pub(super) struct ClientLeases(Arc<Mutex<HashMap<Token, Arc<Lease>>>>);

impl ClientLeases {
    /// The lease behind `token`, if its stream is open.
    pub(super) fn get(&self, token: Token) -> Result<Arc<Lease>, Error> {
        self.0.lock().get(&token).cloned().ok_or(Error::StaleToken)
    }

    /// Acquires `key` and tells `events` how it goes, until the client leaves.
    pub(super) async fn serve(
        self,
        index: Index,
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
            acquired = index.acquire(&key, None, deadline, waiting) => acquired,
            () = events.closed() => return,
        };
        let tell = |event| pb::LeaseEvent { event: Some(event) };
        let last = match acquired {
            Ok(Acquired::Ready(entry)) => Ok(tell(Event::Ready((&*entry.manifest).into()))),
            Ok(Acquired::Failed(failure)) => Ok(tell(Event::Failed((&failure).into()))),
            Err(e) => Err(Error::from(e).into()),
            Ok(Acquired::Granted(lease)) => {
                let token = lease.token();
                let lease = Arc::new(lease);
                self.0.lock().insert(token, lease.clone());
                let granted = tell(Event::Granted(pb::Granted { token: token.0 }));
                let told = events.send(Ok(granted)).await;
                let ended = match told {
                    Err(_) => None,
                    Ok(()) => tokio::select! {
                        () = events.closed() => None,
                        () = lease.lost() => Some(Status::from(Error::StaleToken)),
                    },
                };
                self.0.lock().remove(&token);
                match ended {
                    None => return,
                    Some(status) => Err(status),
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
