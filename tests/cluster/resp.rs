//! The RESP port: what one node's client SETs, every node's client GETs, and of
//! those who miss the same key one computes it.

use std::time::Duration;

use kiln_proto::value as naming;
use redis_protocol::resp3::types::OwnedFrame;
use tokio::time::{Instant, timeout};

use crate::{
    harness::{NAMESPACE, TestCluster, eventually},
    redis::{Redis, array, integer, request, text, value},
};

/// Long enough to tell a GET that waits from one that is slow.
const MOMENT: Duration = Duration::from_millis(700);

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_sets_every_node_gets_at_once() {
    let cluster = TestCluster::start(3).await;
    let mut first = Redis::connect3(&cluster.nodes[0]).await;
    let mut others =
        [Redis::connect3(&cluster.nodes[1]).await, Redis::connect(&cluster.nodes[2]).await];
    for n in 0..20 {
        let key = format!("k{n}");
        first.set(&key, format!("v{n}")).await;
        for other in &mut others {
            let got = other.get(&key).await;
            // On an overloaded machine a SET may be answered before it is committed.
            if got.is_none() && cluster.counter("resp_sets_late").await > 0 {
                continue;
            }
            assert_eq!(got.as_deref(), Some(format!("v{n}").as_bytes()));
        }
    }
    // Binary keys and values, empty ones too.
    for (key, data) in [(&b"\0\xff\r\n"[..], &b"\r\n\0"[..]), (b"", b"x"), (b"hex:ff", b"")] {
        assert_eq!(text(first.command([b"SET", key, data]).await), "OK");
        for other in &mut others {
            assert_eq!(value(other.command([b"GET", key]).await).unwrap(), data);
        }
    }
    // Longer than any buffer, through the peers' byte path.
    let big: Vec<u8> =
        (0..64u32 << 20).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    first.set("big", &big).await;
    // A SET is answered within seconds, even where a slow disk needs more for it.
    eventually("the long value in the index", async || {
        (integer(first.command(["STRLEN", "big"]).await) > 0).then_some(())
    })
    .await;
    for other in &mut others {
        assert!(other.get("big").await.unwrap() == big, "other bytes than were SET");
        assert_eq!(integer(other.command(["STRLEN", "big"]).await), big.len() as i64);
    }
    let mut local = Redis::connect_unix(&cluster.nodes[2]).await;
    assert!(local.get("big").await.unwrap() == big, "other bytes than were SET");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overwrite_is_seen_everywhere_and_equal_bytes_change_nothing() {
    let mut cluster = TestCluster::start(3).await;
    let mut first = Redis::connect(&cluster.nodes[0]).await;
    let mut third = Redis::connect(&cluster.nodes[2]).await;
    // The old bytes stay around, since another key has them.
    first.set("twin", "old").await;
    first.set("k", "old").await;
    for redis in [&mut first, &mut third] {
        assert_eq!(redis.get("k").await.unwrap(), b"old");
    }
    let key = naming::components(NAMESPACE, b"k").key();
    let epoch =
        async |cluster: &TestCluster| cluster.nodes[0].lookup(&key).await.unwrap().unwrap().epoch;
    let before = epoch(&cluster).await;
    let applied = cluster.nodes[0].status().await.unwrap().applied;
    for _ in 0..50 {
        first.set("k", "old").await;
    }
    assert_eq!(epoch(&cluster).await, before);
    let after = cluster.nodes[0].status().await.unwrap().applied;
    assert!(after - applied < 25, "equal SETs are written to the log: {applied} to {after}");

    first.set("k", "new").await;
    assert_eq!(first.get("k").await.unwrap(), b"new", "a client reads what it wrote");
    assert_eq!(epoch(&cluster).await, before + 1);
    eventually("the new value on node 3", async || {
        (third.get("k").await.unwrap() == b"new").then_some(())
    })
    .await;
    assert_eq!(cluster.counter("resp_sets_unchanged").await, 50);

    assert_eq!(integer(first.command(["DEL", "k", "none"]).await), 1);
    assert_eq!(integer(first.command(["EXISTS", "k"]).await), 0);
    eventually("the removal on node 3", async || {
        (integer(third.command(["EXISTS", "k"]).await) == 0).then_some(())
    })
    .await;
    first.set("k", "again").await;
    for node in &mut cluster.nodes {
        node.terminate().await;
    }
    for node in &mut cluster.nodes {
        node.spawn();
    }
    for node in &mut cluster.nodes {
        assert!(node.wait_ready().await);
    }
    let mut third = Redis::connect(&cluster.nodes[2]).await;
    eventually("the value after a restart of all", async || third.get("k").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_clients_that_miss_the_same_key_one_computes_it() {
    let cluster = TestCluster::start(3).await;
    let mut holder = Redis::connect3(&cluster.nodes[1]).await;
    let began = Instant::now();
    assert_eq!(holder.get("pt2:x").await, None);
    assert_eq!(holder.get("pt2:x").await, None, "the holder itself never waits");
    assert!(began.elapsed() < Duration::from_secs(5));
    let mut waiting = Vec::new();
    for node in &cluster.nodes {
        let mut other = Redis::connect3(node).await;
        other.send(&request(["GET", "pt2:x"])).await;
        assert!(other.is_silent_for(MOMENT).await, "it should wait for the holder");
        waiting.push(other);
    }
    // Who only looks does not wait.
    let mut looker = Redis::connect(&cluster.nodes[0]).await;
    assert_eq!(integer(looker.command(["EXISTS", "pt2:x"]).await), 0);
    assert_eq!(array(looker.command(["MGET", "pt2:x"]).await), [OwnedFrame::Null]);
    assert_eq!(integer(looker.command(["STRLEN", "pt2:x"]).await), 0);
    holder.set("pt2:x", "value").await;
    for other in &mut waiting {
        assert_eq!(value(other.reply().await).unwrap(), b"value");
    }
    assert_eq!(cluster.counter("resp_leases").await, 1);
    assert_eq!(cluster.counter("resp_wait_hits").await, 3);
    assert_eq!(cluster.counter("resp_sets_stored").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_holder_leaves_exactly_one_waiter_takes_over() {
    let cluster = TestCluster::start(3).await;
    let mut holder = Redis::connect(&cluster.nodes[0]).await;
    assert_eq!(holder.get("pt2:x").await, None);
    let mut waiting = Vec::new();
    for node in &cluster.nodes[1..] {
        let mut other = Redis::connect(node).await;
        other.send(&request(["GET", "pt2:x"])).await;
        assert!(other.is_silent_for(MOMENT).await);
        waiting.push(other);
    }
    // A waiter that leaves is not handed the lease.
    let mut leaver = Redis::connect(&cluster.nodes[1]).await;
    leaver.send(&request(["GET", "pt2:x"])).await;
    assert!(leaver.is_silent_for(MOMENT).await);
    drop(leaver);
    drop(holder);
    let [one, other] = &mut waiting[..] else { panic!("two wait") };
    let (next, last) = tokio::select! {
        got = one.reply() => { assert_eq!(value(got), None); (one, other) }
        got = other.reply() => { assert_eq!(value(got), None); (other, one) }
    };
    assert!(last.is_silent_for(MOMENT).await, "one takes over, the other waits on");
    // SET on any connection ends the wait, and RESET gives a lease back.
    assert_eq!(text(next.command(["RESET"]).await), "RESET");
    assert_eq!(value(last.reply().await), None);
    assert_eq!(cluster.counter("resp_leases").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_in_time_and_a_family_without_sets_is_learned() {
    const WAIT: Duration = Duration::from_secs(3);
    const TOLD: Duration = Duration::from_secs(4);
    let cluster = TestCluster::start_with(1, |_, config| {
        config.resp.wait = WAIT;
        config.resp.families = vec![format!("told:*={}s", TOLD.as_secs()), "never:*=0s".into()];
    })
    .await;
    let node = &cluster.nodes[0];
    let mut holder = Redis::connect(node).await;
    let mut other = Redis::connect(node).await;
    // How many waits there were is what counts: a busy machine is slow without any. Who
    // holds a lease waits for less, so the one that waits is always new.
    let mut missed = async |key: &str| {
        let mut other = Redis::connect(node).await;
        let (began, waits) = (Instant::now(), node.counter("resp_waits").await);
        assert_eq!(holder.get(key).await, None);
        assert_eq!(other.get(key).await, None);
        (node.counter("resp_waits").await - waits, began.elapsed())
    };
    // The wait is the holder's: it ends so long after the holder's miss.
    let (waits, time) = missed("plain:0123456789abcdef").await;
    assert!(waits == 1 && time >= WAIT / 2, "{waits} waits, {time:?}");
    for key in ["plain:fedcba9876543210", "plain:00112233445566778899"] {
        assert_eq!(missed(key).await.0, 0, "{key} waits again");
    }
    let (waits, time) = missed("told:x").await;
    assert!(waits == 1 && time >= (WAIT + TOLD) / 2, "{waits} waits, {time:?}");
    assert_eq!(missed("never:x").await.0, 0);
    // SETs that follow misses are noticed, and waits are worth it again.
    for n in 10..22 {
        let key = format!("plain:{n}00000000000000");
        assert_eq!(holder.get(&key).await, None);
        holder.set(&key, "x").await;
    }
    assert_eq!(holder.get("plain:ffffffff01234567").await, None);
    other.send(&request(["GET", "plain:ffffffff01234567"])).await;
    assert!(other.is_silent_for(MOMENT).await, "the family should wait again");
    holder.set("plain:ffffffff01234567", "y").await;
    assert_eq!(value(other.reply().await).unwrap(), b"y");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_more_does_not_wait() {
    let cluster = TestCluster::start(1).await;
    let mut holder = Redis::connect(&cluster.nodes[0]).await;
    assert_eq!(holder.get("pt2:x").await, None);
    // Two clients, each of which holds what the other one asks for, over one
    // connection each: a GET that waited would keep the SET from being read.
    let mut other = Redis::connect(&cluster.nodes[0]).await;
    assert_eq!(other.get("pt2:y").await, None);
    other.send(&[request(["GET", "pt2:x"]), request(["SET", "pt2:y", "2"])].concat()).await;
    assert_eq!(value(other.reply().await), None);
    assert_eq!(text(other.reply().await), "OK");
    // The same when it comes later.
    other.send(&request(["GET", "pt2:x"])).await;
    assert!(other.is_silent_for(MOMENT).await);
    other.send(&request(["PING"])).await;
    assert_eq!(value(other.reply().await), None);
    assert_eq!(text(other.reply().await), "PONG");
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_are_answered_in_order() {
    let cluster = TestCluster::start(1).await;
    let mut reader = Redis::connect(&cluster.nodes[0]).await;
    let long = vec![7; 300_000];
    let mut wire = Vec::new();
    for n in 0..200 {
        wire.extend(request([
            "SET".as_bytes(),
            format!("k{}", n % 7).as_bytes(),
            format!("{n}").as_bytes(),
        ]));
        wire.extend(request(["GET", &format!("k{}", n % 7)]));
        wire.extend(request(["ECHO", &format!("{n}")]));
    }
    wire.extend(request([&b"SET"[..], b"long", &long]));
    (0..20).for_each(|_| wire.extend(request(["GET", "long"])));
    wire.extend_from_slice(b"PING\r\n");
    let sent = wire.len();
    reader.send(&wire).await;
    for n in 0..200 {
        assert_eq!(text(reader.reply().await), "OK", "{n} of {sent} bytes");
        assert_eq!(text(reader.reply().await), format!("{n}"));
        assert_eq!(text(reader.reply().await), format!("{n}"));
    }
    assert_eq!(text(reader.reply().await), "OK");
    for _ in 0..20 {
        assert!(value(reader.reply().await).unwrap() == long);
    }
    assert_eq!(text(reader.reply().await), "PONG");
}

#[tokio::test(flavor = "multi_thread")]
async fn nulls_and_errors_are_those_of_redis() {
    let cluster = TestCluster::start(1).await;
    let mut two = Redis::connect(&cluster.nodes[0]).await;
    two.send(&request(["GET", "none"])).await;
    assert_eq!(two.bytes(5).await, b"$-1\r\n");
    let mut three = Redis::connect3(&cluster.nodes[0]).await;
    three.send(&request(["GET", "none3"])).await;
    assert_eq!(three.bytes(3).await, b"_\r\n");
    three.send(&request(["MGET", "none", "none"])).await;
    assert_eq!(three.bytes(10).await, b"*2\r\n_\r\n_\r\n");
    for (words, expected) in [
        (
            &["LPUSH", "l", "x"][..],
            "ERR unknown command 'LPUSH', with args beginning with: 'l' 'x' ",
        ),
        (&["GET"], "ERR wrong number of arguments for 'get' command"),
        (&["SET", "k", "v", "EX", "0"], "ERR invalid expire time in 'set' command"),
        (&["SELECT", "1"], "ERR DB index is out of range"),
        (&["HELLO", "4"], "NOPROTO unsupported protocol version"),
    ] {
        assert_eq!(text(two.command(words).await), expected);
    }
    // NX: only the first; its absence is a null.
    assert_eq!(text(two.command(["SET", "n", "1", "NX", "EX", "9"]).await), "OK");
    assert_eq!(two.command(["SET", "n", "2", "NX"]).await, OwnedFrame::Null);
    assert_eq!(integer(two.command(["SETNX", "n", "2"]).await), 0);
    assert_eq!(two.command(["SET", "absent", "2", "XX"]).await, OwnedFrame::Null);
    assert_eq!(text(two.command(["SET", "n", "3", "XX", "GET"]).await), "1");
    assert_eq!(two.get("n").await.unwrap(), b"3");
    assert_eq!(integer(two.command(["TTL", "n"]).await), -1);
    assert_eq!(integer(two.command(["PTTL", "absent"]).await), -2);
    assert_eq!(text(two.command(["TYPE", "n"]).await), "string");
    assert_eq!(text(two.command(["GETRANGE", "n", "0", "-1"]).await), "3");
    // What new clients send at the start.
    for words in [
        &["CLIENT", "SETINFO", "LIB-NAME", "redis-py"][..],
        &["CLIENT", "SETNAME", "me"],
        &["CLIENT", "MAINT_NOTIFICATIONS", "OFF"],
    ] {
        assert_eq!(text(three.command(words).await), "OK");
    }
    // What would wait for notifications in vain is told so.
    for words in [
        &["CLIENT", "MAINT_NOTIFICATIONS", "ON", "moving-endpoint-type", "internal-ip"][..],
        &["CLIENT", "TRACKING", "ON"],
        &["SUBSCRIBE", "news"],
        &["CONFIG", "SET", "notify-keyspace-events", "KEA"],
    ] {
        assert!(text(three.command(words).await).starts_with("ERR"), "{words:?}");
    }
    assert_eq!(text(three.command(["CLIENT", "GETNAME"]).await), "me");
    let keys = array(two.command(["SCAN", "0", "MATCH", "n*", "COUNT", "1000"]).await);
    assert_eq!(array(keys[1].clone()).len(), 1);
    assert_eq!(integer(two.command(["DBSIZE"]).await), 1);
    let info = value(two.command(["INFO", "keyspace"]).await).unwrap();
    assert!(String::from_utf8_lossy(&info).contains("db0:keys=1,"), "as DBSIZE has it");
    assert_eq!(text(two.command(["QUIT"]).await), "OK");
    assert!(two.try_reply().await.is_none());
}

/// As a pipeline of redis-py sends it, in one packet.
async fn transaction(redis: &mut Redis, commands: &[&[&str]]) -> Vec<OwnedFrame> {
    let all = [&[&["MULTI"][..]], commands, &[&["EXEC"]]].concat();
    redis.send(&all.iter().flat_map(|words| request(*words)).collect::<Vec<u8>>()).await;
    let mut replies = Vec::new();
    for _ in &all {
        replies.push(redis.reply().await);
    }
    replies
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_runs_as_a_whole_or_not_at_all() {
    let cluster = TestCluster::start_with(1, |_, config| config.memory.bytes = 64 << 20).await;
    let mut redis = Redis::connect(&cluster.nodes[0]).await;
    let commands: [&[&str]; 4] =
        [&["SET", "a", "1"], &["GET", "a"], &["MGET", "a", "none"], &["STRLEN", "a"]];
    let mut replies = transaction(&mut redis, &commands).await;
    let done = array(replies.pop().unwrap());
    let said: Vec<String> = replies.into_iter().map(text).collect();
    assert_eq!(said, ["OK", "QUEUED", "QUEUED", "QUEUED", "QUEUED"]);
    assert_eq!(text(done[0].clone()), "OK");
    assert_eq!(value(done[1].clone()).unwrap(), b"1");
    assert_eq!(array(done[2].clone())[1], OwnedFrame::Null);
    assert_eq!(integer(done[3].clone()), 1);

    // One that cannot run: nothing of it did.
    for wrong in [&["LPUSH", "l", "x"][..], &["GET"], &["HELLO", "3"]] {
        let replies = transaction(&mut redis, &[&["SET", "b", "1"], wrong]).await;
        let [began, kept, refused, ended] = &replies.into_iter().map(text).collect::<Vec<_>>()[..]
        else {
            panic!("four replies")
        };
        assert_eq!((began.as_str(), kept.as_str()), ("OK", "QUEUED"));
        assert!(refused.starts_with("ERR"), "{refused}");
        assert!(ended.starts_with("EXECABORT"), "{ended}");
        assert_eq!(redis.get("b").await, None, "{wrong:?}");
    }
    assert_eq!(text(redis.command(["MULTI"]).await), "OK");
    assert_eq!(text(redis.command(["SET", "b", "1"]).await), "QUEUED");
    assert_eq!(text(redis.command(["DISCARD"]).await), "OK");
    assert_eq!(redis.get("b").await, None);
    assert_eq!(array(transaction(&mut redis, &[]).await.pop().unwrap()), []);
    for (words, refused) in [
        (["EXEC"].as_slice(), "ERR EXEC without MULTI"),
        (&["DISCARD"], "ERR DISCARD without MULTI"),
        (&["WATCH", "a"], "ERR WATCH is not supported"),
    ] {
        assert!(text(redis.command(words).await).starts_with(refused), "{words:?}");
    }

    // More than there is memory for is refused, and what it held is free again.
    let half = "x".repeat(24 << 20);
    let commands: [&[&str]; 3] = [&["SET", "c", &half], &["SET", "d", &half], &["SET", "e", &half]];
    let replies = transaction(&mut redis, &commands).await;
    assert_eq!(replies.len(), 5, "each command has its reply");
    drop(replies);
    redis.set("f", &half).await;
    eventually("room for a value", async || redis.get("f").await).await;
}

/// A GET that another client's SET may answer is not waited for while more is due.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_waits_for_no_other_client() {
    let cluster = TestCluster::start(1).await;
    let mut holder = Redis::connect(&cluster.nodes[0]).await;
    assert_eq!(holder.get("pt2:x").await, None, "it is to compute it");
    let mut other = Redis::connect(&cluster.nodes[0]).await;
    let commands: [&[&str]; 2] = [&["GET", "pt2:x"], &["SET", "y", "1"]];
    let done = array(transaction(&mut other, &commands).await.pop().unwrap());
    assert_eq!(done[0], OwnedFrame::Null);
    holder.set("pt2:x", "made").await;
    assert_eq!(holder.get("y").await.unwrap(), b"1");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_its_connection_and_nothing_else() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.resp.max_value = 1 << 20;
        config.resp.max_connections = 3;
    })
    .await;
    let node = &cluster.nodes[0];
    let mut good = Redis::connect(node).await;
    good.set("k", "v").await;
    for garbage in [
        &b"*1\r\n*1\r\n"[..],
        b"*-5x\r\n",
        b"\x16\x03\x01\x00\n*1\r\n:",
        b"*1\r\n$9999999999999\r\n",
    ] {
        let mut bad = Redis::connect(node).await;
        bad.send(garbage).await;
        let mut last = None;
        while let Some(reply) = bad.try_reply().await {
            last = Some(text(reply));
        }
        let told = last.unwrap();
        assert!(told.starts_with("ERR Protocol error"), "{told}");
    }
    // Too large is answered like any SET, and not stored.
    let large = vec![1; (1 << 20) + 1];
    good.set("large", &large).await;
    assert_eq!(integer(good.command(["EXISTS", "large"]).await), 0);
    assert_eq!(good.get("k").await.unwrap(), b"v");
    assert_eq!(node.counter("resp_sets_failed").await, 1);
    let _second = Redis::connect(node).await;
    let mut third = Redis::connect(node).await;
    assert_eq!(text(third.command(["PING"]).await), "PONG");
    eventually("a refusal at the limit", async || {
        let mut fourth = Redis::connect(node).await;
        let refused = fourth.try_reply();
        let refused = timeout(MOMENT, refused).await.ok()??;
        assert_eq!(text(refused), "ERR max number of clients reached");
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_opens_its_namespace_alone() {
    let cluster = TestCluster::start_with(1, |_, config| {
        let users = config.data_dir.with_file_name("users");
        std::fs::write(&users, "default secret\nteam other\n").unwrap();
        config.resp.users = Some(users);
    })
    .await;
    let node = &cluster.nodes[0];
    let mut redis = Redis::connect(node).await;
    assert_eq!(text(redis.command(["GET", "k"]).await), "NOAUTH Authentication required.");
    assert!(text(redis.command(["HELLO", "3"]).await).starts_with("NOAUTH"));
    assert!(text(redis.command(["AUTH", "team", "secret"]).await).starts_with("WRONGPASS"));
    assert_eq!(text(redis.command(["AUTH", "secret"]).await), "OK");
    redis.set("k", "ours").await;
    let mut team = Redis::connect(node).await;
    team.hello(&["HELLO", "3", "AUTH", "team", "other", "SETNAME", "t"]).await;
    assert_eq!(team.get("k").await, None);
    team.set("k", "theirs").await;
    assert_eq!(redis.get("k").await.unwrap(), b"ours");
    assert_eq!(integer(team.command(["DBSIZE"]).await), 1);
    assert_eq!(text(team.command(["RESET"]).await), "RESET");
    assert_eq!(text(team.command(["GET", "k"]).await), "NOAUTH Authentication required.");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_hangs_and_nothing_fails() {
    let mut cluster = TestCluster::start(3).await;
    let mut redis = Redis::connect(&cluster.nodes[2]).await;
    redis.set("known", "v").await;
    cluster.nodes[0].kill().await;
    cluster.nodes[1].kill().await;
    let mut within = async |words: &[&str], seconds| {
        let bound = Duration::from_secs(seconds);
        timeout(bound, redis.command(words)).await.unwrap_or_else(|_| panic!("{words:?} hangs"))
    };
    assert_eq!(value(within(&["GET", "unknown"], 15).await), None);
    assert_eq!(value(within(&["GET", "other"], 2).await), None, "later ones are quick");
    assert_eq!(value(within(&["GET", "known"], 2).await).unwrap(), b"v");
    assert_eq!(text(within(&["SET", "known", "w"], 15).await), "OK");
    assert_eq!(within(&["SET", "fresh", "w", "NX"], 15).await, OwnedFrame::Null);
    assert_eq!(integer(within(&["EXISTS", "unknown", "known"], 5).await), 1);
    eventually("failed SETs in the counters", async || {
        (cluster.nodes[2].counter("resp_sets_failed").await >= 2).then_some(())
    })
    .await;
}
