//! What a listing shows of several namespaces.

use kiln_proto::pb::{ListRequest, kiln_client::KilnClient};

use super::*;

async fn put(at: &Running, namespace: &str, name: &str) {
    let bytes = bytes(name);
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let manifest = value::manifest(namespace, name.as_bytes(), digest, size, 0.0);
    let turn = at.index().turn(&manifest.key, PutMode::Replace).unwrap();
    let pack = Blob::copy_of(&bytes).unwrap();
    let inside = at.node.manager.gate().enter().unwrap();
    at.node.manager.put(&inside, turn, manifest, &pack, PutMode::Replace).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_of_a_namespace_has_all_of_it_and_nothing_else() {
    let node = Running::start(None, 1 << 30).await;
    for n in 0..12 {
        put(&node, NAMESPACE, &format!("ours {n}")).await;
    }
    for n in 0..3 {
        put(&node, "team-a", &format!("theirs {n}")).await;
    }
    let mut client = KilnClient::connect(format!("http://{}", node.node.ready.grpc)).await.unwrap();
    let mut listed = async |namespace: &str, limit: u32| {
        let (mut keys, mut after) = (Vec::new(), Default::default());
        loop {
            let namespace = namespace.to_owned();
            let request = ListRequest { namespace, limit, after, ..Default::default() };
            let page = client.list(request).await.unwrap().into_inner();
            assert!(!page.more || page.entries.len() == limit as usize, "a full page");
            for entry in page.entries {
                let signed = kiln_proto::SignedManifest::from(entry.manifest.unwrap());
                let manifest = signed.read_unverified().unwrap();
                keys.push((manifest.namespace, manifest.key));
            }
            after = keys
                .last()
                .map_or_else(Default::default, |(_, key)| key.as_bytes().to_vec().into());
            if !page.more {
                return keys;
            }
        }
    };
    for limit in [1, 2, 500] {
        let theirs = listed("team-a", limit).await;
        assert_eq!(theirs.len(), 3, "limit {limit}");
        assert!(theirs.iter().all(|(namespace, _)| namespace == "team-a"));
        assert_eq!(listed("", limit).await.len(), 15);
        assert_eq!(listed("nobody", limit).await, []);
    }
    node.stop().await;
}
