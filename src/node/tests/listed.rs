//! What a listing shows: of which entries, in which order, and how often they were used.

use kiln_proto::pb::{FetchRequest, ListOrder, ListRequest, kiln_client::KilnClient};

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

fn labels(page: &kiln_proto::pb::ListResponse) -> Vec<String> {
    let label = |entry: &kiln_proto::pb::Entry| {
        let signed = kiln_proto::SignedManifest::from(entry.manifest.clone().unwrap());
        signed.read_unverified().unwrap().label
    };
    page.entries.iter().map(label).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_is_filtered_ordered_and_counted_at_the_node() {
    let node = Running::start(None, 1 << 30).await;
    for name in ["gemm aa", "gemm b", "norm c", "gemm dddd"] {
        put(&node, NAMESPACE, name).await;
    }
    let mut client = KilnClient::connect(format!("http://{}", node.node.ready.grpc)).await.unwrap();
    let mut list = async |request: ListRequest| client.list(request).await.map(|r| r.into_inner());
    let all = list(ListRequest::default()).await.unwrap();
    assert_eq!((all.entries.len(), all.matching), (4, None), "counted where it is asked for");

    let gemm = ListRequest { label: "gemm".into(), count: true, limit: 2, ..Default::default() };
    let by_label = ListRequest { order: ListOrder::Label.into(), ..gemm.clone() };
    let first = list(by_label.clone()).await.unwrap();
    assert_eq!(labels(&first), ["gemm aa", "gemm b"]);
    assert!(first.more);
    let matching = first.matching.unwrap();
    let bytes_of = |name: &str| bytes(name).len() as u64;
    let expected = bytes_of("gemm aa") + bytes_of("gemm b") + bytes_of("gemm dddd");
    assert_eq!((matching.entries, matching.bytes), (3, expected));
    let last = list(ListRequest { reverse: true, ..by_label.clone() }).await.unwrap();
    assert_eq!(labels(&last), ["gemm dddd", "gemm b"]);
    let in_turn = list(gemm.clone()).await.unwrap();
    assert!(in_turn.entries.len() == 2 && in_turn.more);
    assert_eq!(in_turn.matching.unwrap().entries, 3, "beyond the page, too");

    let compiler = |name: &str| ListRequest { compiler: name.into(), ..Default::default() };
    assert_eq!(list(compiler(value::FAMILY)).await.unwrap().entries.len(), 4);
    assert_eq!(list(compiler("cuda")).await.unwrap().entries.len(), 0);
    let before = |time| ListRequest { created_before_unix_ms: time, ..Default::default() };
    assert_eq!(list(before(1)).await.unwrap().entries.len(), 0);
    assert_eq!(list(before(all.now_unix_ms + 60_000)).await.unwrap().entries.len(), 4);

    // What cannot be meant is refused, and says why.
    let after = bytes_of("x").to_le_bytes().repeat(4).into();
    for wrong in [
        ListRequest { after, ..by_label },
        ListRequest { order: 99, ..Default::default() },
        ListRequest { label: "x".repeat(5000), ..Default::default() },
    ] {
        let refused = list(wrong).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_looks_at_an_artifact_does_not_use_it() {
    let node = Running::start(None, 1 << 30).await;
    put(&node, NAMESPACE, "used").await;
    put(&node, NAMESPACE, "looked at").await;
    let mut client = KilnClient::connect(format!("http://{}", node.node.ready.grpc)).await.unwrap();
    let key_of = |name: &str| value::components(NAMESPACE, name.as_bytes()).key();
    for (name, look) in [("looked at", true), ("used", false), ("used", false)] {
        let (key, namespace) = (key_of(name).as_bytes().to_vec().into(), NAMESPACE.to_owned());
        let mut chunks =
            client.fetch(FetchRequest { key, namespace, look }).await.unwrap().into_inner();
        while chunks.message().await.unwrap().is_some() {}
    }
    let by_hits = ListRequest { order: ListOrder::Hits.into(), ..Default::default() };
    let listed = eventually("hits", async || {
        let page = client.list(by_hits.clone()).await.unwrap().into_inner();
        (page.entries[0].hits > 0).then_some(page)
    });
    let listed = listed.await;
    let hits: Vec<u64> = listed.entries.iter().map(|entry| entry.hits).collect();
    assert_eq!((labels(&listed), hits), (vec!["used".into(), "looked at".into()], vec![2, 0]));
    assert!(listed.entries[0].last_used_unix_ms > 0);
    assert_eq!(listed.entries[1].last_used_unix_ms, 0);
    node.stop().await;
}
