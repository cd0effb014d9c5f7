//! Whether this node serves clients: the one answer behind `/readyz` and behind gRPC's
//! own health service.
//!
//! Invariant: the two agree at any moment, since neither keeps a copy. A node that lost
//! quorum serves what it has; one that still joins or that left serves nothing. One that
//! leaves serves reads to whoever asks it, and is no place to send new clients to.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use kiln_cluster::Cluster;
use kiln_proto::pb::kiln_server::SERVICE_NAME;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

use crate::{emergency::Emergency, error::Error, gate::Gate};

/// How soon who watches hears of a change.
const LOOK: Duration = Duration::from_secs(1);

/// Whether this node serves clients.
#[derive(Clone, Default)]
pub struct Readiness {
    cluster: Arc<OnceLock<Arc<Cluster>>>,
    opened: Arc<AtomicBool>,
    gate: Gate,
    emergency: Emergency,
}

impl Readiness {
    /// The data folder is open.
    pub fn has_storage(&self, cluster: Arc<Cluster>) {
        // A second call would be a second node in one process: the first one stays.
        let _ = self.cluster.set(cluster);
    }

    /// The services answer from now on.
    pub fn has_services(&self) {
        self.opened.store(true, Ordering::Release);
    }

    /// Whether this node takes publications.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What this node does without at present.
    pub fn emergency(&self) -> &Emergency {
        &self.emergency
    }

    /// This member, once its data folder is open.
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.get().map(|cluster| &**cluster)
    }

    /// Why it serves no client; `None` where it does.
    pub(super) fn why_not(&self) -> Option<String> {
        match self.cluster() {
            Some(cluster) if cluster.has_left() => Some(Error::Left.to_string()),
            Some(_) if self.opened.load(Ordering::Acquire) => {
                self.gate.check().err().map(|leaving| leaving.to_string())
            }
            _ => Some("this node is still joining".to_owned()),
        }
    }

    /// gRPC's health service, of this node as a whole and of its API; who watches is let
    /// go at `stop`.
    pub fn service(&self, stop: CancellationToken) -> HealthServer<impl Health + use<>> {
        HealthServer::new(Service { readiness: self.clone(), stop })
    }
}

struct Service {
    readiness: Readiness,
    stop: CancellationToken,
}

impl Service {
    fn status_of(readiness: &Readiness, service: &str) -> ServingStatus {
        match service {
            "" | SERVICE_NAME if readiness.why_not().is_none() => ServingStatus::Serving,
            "" | SERVICE_NAME => ServingStatus::NotServing,
            _ => ServingStatus::ServiceUnknown,
        }
    }
}

type Statuses =
    std::pin::Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

#[tonic::async_trait]
impl Health for Service {
    type WatchStream = Statuses;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match Self::status_of(&self.readiness, &request.get_ref().service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("there is no such service")),
            status => Ok(Response::new(HealthCheckResponse { status: status.into() })),
        }
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (readiness, service) = (self.readiness.clone(), request.into_inner().service);
        let changes = stream::unfold(None, move |told| {
            let (readiness, service) = (readiness.clone(), service.clone());
            async move {
                let mut status = Self::status_of(&readiness, &service);
                while told == Some(status) {
                    tokio::time::sleep(LOOK).await;
                    status = Self::status_of(&readiness, &service);
                }
                Some((Ok(HealthCheckResponse { status: status.into() }), Some(status)))
            }
        });
        let stopped = self.stop.clone().cancelled_owned();
        Ok(Response::new(Box::pin(changes.take_until(stopped))))
    }
}
