#![allow(clippy::unwrap_used)]

use ed25519_dalek::SigningKey;
use kiln_cluster::{Cluster, NodeFacts, PutMode, Settings, Start, Timings};
use kiln_proto::{Digest, value};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::transport::{Server, server::TcpIncoming};

use super::*;

/// A cluster of one member in this process, with entries `name-0`, `name-1`...
pub(crate) struct Filled {
    pub(crate) index: Index,
    cluster: Cluster,
    server: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Filled {
    pub(crate) async fn start(entries: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let settings = Settings {
            data_dir: folder.path().to_owned(),
            start: Start::Expect { voters: 1, peers: vec![address.clone()] },
            facts: NodeFacts { grpc: address, ..NodeFacts::default() },
            voter: true,
            log_entries: kiln_cluster::LOG_ENTRIES,
            timings: Timings::default(),
            context: || None,
            dial: None,
            joining: kiln_cluster::Joining::default(),
        };
        let (cluster, routes) = Cluster::open(settings, SigningKey::from_bytes(&[1; 32])).unwrap();
        let serving = Server::builder().add_routes(routes);
        let serving = serving.serve_with_incoming(TcpIncoming::from(listener));
        let server = tokio::spawn(async move { serving.await.unwrap() });
        let identity = cluster.start().await.unwrap();
        let index = cluster.index();
        for n in 0..entries {
            let name = format!("name-{n}");
            let digest = Digest::of(name.as_bytes());
            let manifest = value::manifest("test", name.as_bytes(), digest, 1, 0.0);
            let turn = index.turn(&manifest.key, PutMode::Replace).unwrap();
            let signed = identity.sign(manifest).unwrap();
            index.put(turn, signed, PutMode::Replace, Vec::new()).await.unwrap();
        }
        Self { index, cluster, server, _folder: folder }
    }

    pub(crate) async fn stop(self) {
        self.cluster.shutdown().await;
        self.server.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_entry_is_seen_once_whatever_the_page() {
    let filled = Filled::start(10).await;
    let stop = CancellationToken::new();
    for page in [1, 3, 10, 11] {
        let bounds = Bounds { page, time: Duration::MAX };
        let mut seen = Vec::new();
        let scanned = each(&filled.index, bounds, &stop, |entry| seen.push(entry.key)).unwrap();
        assert_eq!(scanned, Scanned { entries: 10, complete: true });
        seen.dedup();
        assert!(seen.is_sorted() && seen.len() == 10, "pages of {page}");
    }
    stop.cancel();
    let scanned = each(&filled.index, Bounds::default(), &stop, |_| {}).unwrap();
    assert_eq!(scanned, Scanned { entries: 0, complete: false });
    filled.stop().await;
}
