//! What stays when a node refuses some removals.
//!
//! Invariant: the node that is asked knows nothing but which keys it refuses, and keeps what it
//! was asked for.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use kiln_proto::{ArtifactKey, pb};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{Service, http},
    server::{Grpc, NamedService, UnaryService},
    transport::Server,
};
use tonic_prost::ProstCodec;

use super::removal::{Chosen, Removal};
use crate::cli::{CliError, client::Endpoints};

/// Answers removals, and refuses that of one key.
#[derive(Debug, Clone)]
struct Node {
    refused: ArtifactKey,
    asked: Arc<Mutex<Vec<ArtifactKey>>>,
}

impl NamedService for Node {
    const NAME: &'static str = "kiln.v1.Kiln";
}

impl Service<http::Request<Body>> for Node {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        assert!(request.uri().path().ends_with("/Tombstone"), "{}", request.uri());
        let node = self.clone();
        Box::pin(async move { Ok(Grpc::new(ProstCodec::default()).unary(node, request).await) })
    }
}

impl UnaryService<pb::TombstoneRequest> for Node {
    type Response = pb::TombstoneResponse;
    type Future = Ready<Result<Response<pb::TombstoneResponse>, Status>>;

    fn call(&mut self, request: Request<pb::TombstoneRequest>) -> Self::Future {
        let key = ArtifactKey::try_from(&request.get_ref().key[..]).unwrap();
        self.asked.lock().push(key);
        ready(match key == self.refused {
            true => Err(Status::permission_denied("not this one")),
            false => Ok(Response::new(pb::TombstoneResponse { existed: true })),
        })
    }
}

fn chosen(key: ArtifactKey) -> Chosen {
    let text = || String::from("x");
    let (label, target, compiler, namespace) = (text(), text(), text(), text());
    Chosen { key, label, target, compiler, namespace, bytes: 1, pinned: false }
}

/// By an artifact that is gone nobody finds the request that is kept beside it.
#[tokio::test]
async fn an_artifact_stays_while_its_request_does() {
    let artifacts = [1, 2].map(|byte| chosen(ArtifactKey::from_bytes([byte; 32])));
    let requests = [0, 1].map(|at| chosen(artifacts[at].kept()));
    let node = Node { refused: requests[0].key, asked: Arc::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = Server::builder()
        .add_service(node.clone())
        .serve_with_incoming(TcpListenerStream::new(listener));
    let _serving = AbortOnDropHandle::new(tokio::spawn(serving));
    let client = Endpoints::one(&address.to_string()).unwrap().connect().await.unwrap();
    let removal = Removal { reason: "", json: true };
    let all = (artifacts.to_vec(), requests.to_vec());
    let done = removal.run(client, all.0, all.1).await;
    let Err(CliError::Local(why)) = done else { panic!("{done:?}") };
    assert!(why.to_string().starts_with("1 of 4 entries were not removed"), "{why}");
    assert!(why.to_string().contains("1 more"), "{why}");
    let asked = node.asked.lock().clone();
    let [first, second] = [&artifacts[0].key, &artifacts[1].key];
    assert!(!asked.contains(first) && asked.last() == Some(second), "{asked:?}");
    assert_eq!(asked.len(), 3, "{asked:?}");
}
