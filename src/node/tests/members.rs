//! Who is given bytes on the members' port.

use std::sync::Arc;

use futures::FutureExt;
use kiln_cluster::Caller;

use super::{super::standing::Standing, *};
use crate::{access::Access, audit::Audit};

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_for_those_that_joined_as_soon_as_this_node_knows_it() {
    let first = Running::start(None, 1 << 30).await;
    let access = Access::new(Config::default().access.settings(), Audit::off());
    let standing = Arc::new(Standing::new(first.node.cluster.clone(), Arc::new(access)));
    let caller = |node, key| Caller { node, key, ..Caller::default() };
    let id = first.node.ready.id;
    let own = first.index().node(id).unwrap().key.to_bytes();
    for good in [(Some(id), None), (None, Some(own)), (Some(id), Some(own)), (None, None)] {
        assert!(standing.joined(&caller(good.0, good.1)).now_or_never().is_some(), "{good:?}");
    }
    let (other, to_come) = ([7; 32], id + 1);
    for bad in [
        (Some(to_come), None),
        (None, Some(other)),
        (Some(id), Some(other)),
        (Some(to_come), Some(own)),
    ] {
        assert!(standing.joined(&caller(bad.0, bad.1)).now_or_never().is_none(), "{bad:?}");
    }

    let (stop, following) = (CancellationToken::new(), standing.clone());
    let stopped = stop.clone();
    let following = tokio::spawn(async move { following.follow(stopped).await });
    let waits = caller(Some(to_come), None);
    let waiting = tokio::spawn(async move { standing.joined(&waits).await });
    let second = Running::start(Some(&first), 1 << 30).await;
    assert_eq!(second.node.ready.id, to_come);
    tokio::time::timeout(SOON, waiting).await.unwrap().unwrap();
    stop.cancel();
    following.await.unwrap();
    for node in [second, first] {
        node.stop().await;
    }
}
