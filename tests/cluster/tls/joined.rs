//! Certificates of the members' authority whose nodes have not joined, and nodes that joined
//! while a member was away: these prove that they did.

use std::time::Duration;

use kiln_proto::pb::kiln_client::KilnClient;

use super::*;

/// Raft's messages, and what else members alone send.
const OF_MEMBERS: [&str; 7] =
    ["Vote", "PreVote", "TransferLeader", "Append", "Snapshot", "Ask", "Acquire"];

/// Such a certificate could speak for any node that there is not yet: end terms, or pass for a
/// leader and write the log anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_sends_no_messages_before_its_node_joins() {
    let mut cluster = TestCluster::start(3).await;
    let authority = in_tls(&mut cluster).await;
    let data = cluster.folder.path().join("to-come");
    std::fs::create_dir(&data).unwrap();
    let by_key = authority.member("by-key", &format!(" --data-dir {}", data.display()));
    let by_id = authority.member("by-id", " --node 99");
    let leader = cluster.leader(&[0, 1, 2]).await;
    for node in [&cluster.nodes[leader], &cluster.nodes[(leader + 1) % 3]] {
        eventually("a leader that it hears", async || {
            node.status().await.ok().filter(|status| status.quorum).map(drop)
        })
        .await;
        for (cert, key) in [&by_key, &by_id] {
            for method in OF_MEMBERS {
                let channel = encrypted(node, &authority.ca(), Some((cert, key)));
                let refused = call(channel, method, Some(99)).await.unwrap_err();
                assert_eq!(refused.code(), Code::PermissionDenied, "{method}: {refused}");
                assert!(refused.message().contains("has not joined"), "{method}: {refused}");
            }
        }
        let counted = metric(node, "kiln_refused_peers_total", &[("why", "not_joined")]).await;
        assert!(counted >= 14.0, "{counted}");
        // Nor does it ask for what members ask each other to compile, or to tell.
        for (cert, key) in [&by_key, &by_id] {
            let channel = encrypted(node, &authority.ca(), Some((cert, key)));
            let refused = KilnClient::new(channel).status(pb::StatusRequest::default()).await;
            let refused = refused.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "{refused}");
            assert!(refused.message().contains("has not joined"), "{refused}");
        }
        let file = |end: &str| authority.0.join(format!("node-2-member.{end}"));
        let channel = encrypted(node, &authority.ca(), Some((&file("pem"), &file("key"))));
        KilnClient::new(channel).status(pb::StatusRequest::default()).await.unwrap();
    }
    is_shared(&cluster.nodes[0], &cluster.nodes[1], "none was disturbed").await;
}

/// Nobody tells the last one of three that nobody else joined: it hears whoever proves to have.
#[tokio::test(flavor = "multi_thread")]
async fn who_hears_no_leader_takes_no_message_of_a_node_that_nobody_let_in() {
    let mut cluster = TestCluster::start(3).await;
    let authority = in_tls(&mut cluster).await;
    let data = cluster.folder.path().join("to-come");
    std::fs::create_dir(&data).unwrap();
    let by_key = authority.member("by-key", &format!(" --data-dir {}", data.display()));
    let by_id = authority.member("by-id", " --node 99");
    for i in [1, 2] {
        cluster.nodes[i].kill().await;
    }
    let node = &cluster.nodes[0];
    eventually("a node without a leader", async || {
        node.status().await.ok().filter(|status| !status.quorum).map(drop)
    })
    .await;
    for (cert, key) in [&by_key, &by_id] {
        for method in OF_MEMBERS {
            let channel = encrypted(node, &authority.ca(), Some((cert, key)));
            let refused = call(channel, method, Some(99)).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{method}: {refused}");
            assert!(refused.message().contains("has not joined"), "{method}: {refused}");
        }
    }
    let counted = metric(node, "kiln_refused_peers_total", &[("why", "not_joined")]).await;
    assert!(counted >= 14.0, "{counted}");
    eventually("the refusals in the audit log", async || {
        let told = |who| !told_of(node, who, "not_joined at members").is_empty();
        (told("node 99") && told("a member")).then_some(())
    })
    .await;
    // A member that is not there, and one that comes back, are heard.
    let file = |end: &str| authority.0.join(format!("node-1-member.{end}"));
    let (cert, key) = (file("pem"), file("key"));
    let channel = encrypted(node, &authority.ca(), Some((&cert, &key)));
    let answered = call(channel, "Vote", Some(cluster.nodes[1].id)).await.unwrap_err();
    assert_ne!(answered.code(), Code::PermissionDenied, "{answered}");
    cluster.nodes[1].restart().await;
    is_shared(&cluster.nodes[1], &cluster.nodes[0], "two of three").await;
}

/// Two of five voters are gone, and one of the others has never heard of the last two: they need
/// its vote, and the log was shortened meanwhile, so one of them has to send it a snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_follows_voters_that_joined_without_it() {
    const LOG: u64 = 64;
    let mut cluster = TestCluster::start_with(3, |_, config| {
        config.resp.wait = Duration::ZERO;
        config.cluster.log_entries = LOG;
        // Nobody takes the place of who is away.
        config.cluster.dead_after = Duration::from_secs(600);
    })
    .await;
    let authority = in_tls(&mut cluster).await;
    is_shared(&cluster.nodes[0], &cluster.nodes[2], "all three").await;
    cluster.nodes[2].terminate().await;
    for _ in 0..2 {
        let i = cluster.newcomer(|_, _| {});
        let data = cluster.nodes[i].config.data_dir.clone();
        let more = format!(" --data-dir {}", data.display());
        let (cert, key) = authority.member(&format!("node-{i}"), &more);
        let members = &mut cluster.nodes[i].config.tls.members;
        (members.cert, members.key) = (Some(cert), Some(key));
        cluster.nodes[i].restart().await;
    }
    let voters = pb::SetVotersRequest { voters: 5 };
    eventually("five voters", async || {
        let mut client = cluster.nodes[0].client().await;
        client.set_voters(voters).await.ok()?;
        let status = cluster.nodes[0].status().await.ok()?;
        let voting = status.nodes.iter().filter(|node| node.voter);
        (voting.count() == 5).then_some(())
    })
    .await;
    for n in 0..LOG + LOG / 2 {
        is_shared(&cluster.nodes[0], &cluster.nodes[0], &format!("without it {n}")).await;
    }
    is_shared(&cluster.nodes[0], &cluster.nodes[3], "without it").await;
    for i in [0, 1] {
        cluster.nodes[i].kill().await;
    }
    cluster.nodes[2].spawn();
    assert!(cluster.nodes[2].wait_ready().await);
    is_shared(&cluster.nodes[3], &cluster.nodes[2], "with it").await;
    is_shared(&cluster.nodes[2], &cluster.nodes[4], "by it").await;
    let log = cluster.nodes[2].log();
    assert!(log.contains("a snapshot of the index came"), "{log}");
}

/// Where proofs are only reported, who cannot prove that it joined is heard by a node without a
/// leader, as before there were proofs, and is counted; who hears a leader refuses it in any case.
#[tokio::test(flavor = "multi_thread")]
async fn who_proves_nothing_is_counted_and_served_where_proofs_are_only_reported() {
    let mut cluster = TestCluster::start(3).await;
    let authority = in_tls_with(&mut cluster, Proofs::Report).await;
    let (cert, key) = authority.member("by-id", " --node 99");
    let unproved = async |node: &TestNode, door| {
        metric(node, "kiln_unproved_peers_total", &[("door", door)]).await
    };
    let node = &cluster.nodes[0];
    eventually("a leader that it hears", async || {
        node.status().await.ok().filter(|status| status.quorum).map(drop)
    })
    .await;
    let channel = || encrypted(node, &authority.ca(), Some((&cert, &key)));
    let refused = call(channel(), "Vote", Some(99)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    KilnClient::new(channel()).status(pb::StatusRequest::default()).await.unwrap();
    assert!(unproved(node, "api").await >= 1.0);
    for i in [1, 2] {
        cluster.nodes[i].kill().await;
    }
    let node = &cluster.nodes[0];
    eventually("a node without a leader", async || {
        node.status().await.ok().filter(|status| !status.quorum).map(drop)
    })
    .await;
    let before = unproved(node, "messages").await;
    let channel = encrypted(node, &authority.ca(), Some((&cert, &key)));
    let answered = call(channel, "Vote", Some(99)).await.unwrap_err();
    assert_ne!(answered.code(), Code::PermissionDenied, "{answered}");
    assert!(unproved(node, "messages").await > before);
}
