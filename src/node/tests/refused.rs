//! Lists of wanted pieces that are not what they say.

use kiln_cluster::{Tried, Wanted, WantedPiece};
use kiln_proto::pb;
use prost::Message;

use super::*;
use crate::{cache::Hints, counters::CounterSource, manager::Request};

pub(super) fn request() -> pb::CompileRequest {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models");
    let archive = std::fs::read(format!("{folder}/llama_block_f32_static.new.pt2")).unwrap();
    let program = pb::ExportedProgram { name: "block".into(), archive: archive.into() };
    pb::CompileRequest {
        source: Some(pb::compile_request::Source::Program(program)),
        targets: vec![Target::any().into()],
        namespace: NAMESPACE.into(),
        backend: "eager".into(),
        piecewise: pb::Piecewise::Always.into(),
        ..Default::default()
    }
}

fn refused(at: &Running) -> u64 {
    let counters = at.node.manager.counters().snapshot();
    counters.iter().find(|(name, _)| *name == "piece_lists_refused").unwrap().1
}

/// As of a node of another version, which splits otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_whose_pieces_have_other_keys_is_refused_once_and_nothing_of_it_is_compiled() {
    let asks = Running::start(None, 1 << 30).await;
    let helps = Running::start(Some(&asks), 1 << 30).await;
    let mut requests = Request::read(request(), Instant::now() + SOON).unwrap();
    let whole = asks.node.manager.prepare(&requests.remove(0)).await.unwrap();
    let wanted = |key| WantedPiece { key, seconds: 1.0, memory: 1 };
    let pieces = &whole.stitch().unwrap().pieces;
    let mut pieces: Vec<_> = pieces.iter().map(|piece| wanted(piece.key())).collect();
    assert!(pieces.len() > 1);
    pieces.last_mut().unwrap().key = piece("of another version").key;

    let encoded = Blob::copy_of(&request().encode_to_vec()).unwrap();
    let _served = asks.node.manager.tiers().insert(&encoded, Hints::default()).await;
    let lease = asks.lease(&whole.components.key()).await;
    let list = Wanted {
        whole: *lease.key(),
        token: lease.token(),
        node: asks.node.ready.id,
        request: encoded.digest(),
        request_bytes: encoded.size(),
        pieces: pieces.clone(),
        fingerprint: whole.fingerprint.clone(),
    };
    asks.index().want(&lease, list).await.unwrap();
    eventually("the list to be refused", async || (refused(&helps) > 0).then_some(())).await;
    // A change of the cluster has it look at all lists again.
    let third = Running::start(Some(&asks), 1 << 30).await;
    eventually("the third node to refuse it", async || (refused(&third) > 0).then_some(())).await;
    assert_eq!(refused(&helps), 1, "told once");
    for piece in pieces {
        assert!(asks.index().lookup(&piece.key).await.unwrap().is_none());
        let free = asks.index().try_acquire(&piece.key).await.unwrap();
        assert!(matches!(free, Tried::Granted(_)), "nobody began with it: {free:?}");
    }
    drop(lease);
    for node in [third, helps, asks] {
        node.stop().await;
    }
}
