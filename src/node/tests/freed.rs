//! Pieces that come free while no list asks for them.

use kiln_cluster::{Wanted, WantedPiece};
use prost::Message;

use super::{refused::request, *};
use crate::{cache::Hints, compiler::Prepared, manager::Request};

/// Nobody tells that such a piece came free: whoever is asked again finds it so.
#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_came_free_between_two_lists_is_taken() {
    let node = Running::start(None, 1 << 30).await;
    let helps = Running::start(Some(&node), 1 << 30).await;
    let mut requests = Request::read(request(), Instant::now() + SOON).unwrap();
    let whole = node.node.manager.prepare(&requests.remove(0)).await.unwrap();
    let pieces: Vec<_> = whole.stitch().unwrap().pieces.iter().map(|p| p.key()).collect();
    let encoded = Blob::copy_of(&request().encode_to_vec()).unwrap();
    let _served = node.node.manager.tiers().insert(&encoded, Hints::default()).await;

    // There is a list all the time: without any, what is held is forgotten in any case.
    let other = node.lease(&piece("another whole").key).await;
    want(&node, &other, &whole, &encoded, &[piece("never made").key]).await;

    let held = node.lease(&pieces[0]).await;
    let asked = node.lease(&whole.components.key()).await;
    want(&node, &asked, &whole, &encoded, &pieces).await;
    for piece in &pieces[1..] {
        helps.entry(piece).await;
    }
    for lease in [asked, held] {
        let (key, token) = (*lease.key(), lease.token());
        drop(lease);
        let ended = async || (!node.index().is_live(&key, token)).then_some(());
        eventually("the lease to end", ended).await;
    }

    let again = node.lease(&whole.components.key()).await;
    want(&node, &again, &whole, &encoded, &pieces).await;
    node.entry(&pieces[0]).await;
    drop((again, other));
    for node in [helps, node] {
        node.stop().await;
    }
}

/// Asks every node for pieces, as the holder of the whole's lease.
async fn want(
    node: &Running,
    lease: &Lease,
    whole: &Prepared,
    request: &Blob,
    keys: &[ArtifactKey],
) {
    let wanted = |key: &ArtifactKey| WantedPiece { key: *key, seconds: 1.0, memory: 1 };
    let list = Wanted {
        whole: *lease.key(),
        token: lease.token(),
        node: node.node.ready.id,
        request: request.digest(),
        request_bytes: request.size(),
        pieces: keys.iter().map(wanted).collect(),
        fingerprint: whole.fingerprint.clone(),
    };
    node.index().want(lease, list).await.unwrap();
}
