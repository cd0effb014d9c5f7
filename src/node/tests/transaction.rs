//! Redis transactions, and counts, for which there is no time.

use std::sync::Arc;

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

use super::*;
use crate::{
    access::Access, audit::Audit, cache::Arrivals, counters::CounterSource, manager::Reporter, resp,
};

/// A port for Redis clients beside a node, and a client of it.
struct Redis {
    client: BufReader<UnixStream>,
    counters: Arc<resp::Counters>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Redis {
    /// A port where a command, or a transaction, may take so long.
    async fn start(node: &Running, longest: Duration) -> Self {
        let config = Config::default();
        let tiers = node.node.manager.tiers().clone();
        let counters = Arc::<resp::Counters>::default();
        let parts = resp::Parts {
            index: node.index(),
            cluster: node.node.cluster.clone(),
            manager: node.node.manager.clone(),
            arrivals: Arrivals::new(tiers.budget().clone()),
            tiers,
            reporter: Reporter::default(),
            counters: counters.clone(),
        };
        let settings = resp::Settings { longest, ..parts::resp(&config) };
        let access = Arc::new(Access::new(config.access.settings(), Audit::off()));
        let port = Arc::new(resp::Resp::new(parts, settings, access).unwrap());
        let path = node.folder.path().join(format!("resp-{}", longest.as_millis()));
        let (listener, stop) = (UnixListener::bind(&path).unwrap(), CancellationToken::new());
        let serving = tokio::spawn(port.serve_unix(listener, stop.clone()));
        let client = BufReader::new(UnixStream::connect(&path).await.unwrap());
        Self { client, counters, stop, serving }
    }

    async fn send(&mut self, commands: &[&str]) {
        let text: String = commands.iter().map(|command| format!("{command}\r\n")).collect();
        self.client.get_mut().write_all(text.as_bytes()).await.unwrap();
    }

    /// The next lines of replies.
    async fn lines(&mut self, number: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < number {
            let mut line = String::new();
            let read = tokio::time::timeout(SOON, self.client.read_line(&mut line)).await;
            assert_ne!(read.unwrap().unwrap(), 0, "the connection ended after {lines:?}");
            lines.push(line.trim_end().to_owned());
        }
        lines
    }

    fn counted(&self, name: &str) -> u64 {
        self.counters.snapshot().iter().find(|(of, _)| *of == name).unwrap().1
    }

    async fn stop(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
    }
}

async fn is_stored(node: &Running, name: &str) -> bool {
    let key = value::components(NAMESPACE, name.as_bytes()).key();
    node.index().lookup_linearizable(&key).await.unwrap().is_some()
}

const LEFT_OUT: &str = "-ERR left out after";

#[tokio::test(flavor = "multi_thread")]
async fn of_a_transaction_whose_time_is_over_nothing_is_begun_and_each_command_says_so() {
    let node = Running::start(None, 1 << 30).await;
    let mut redis = Redis::start(&node, Duration::ZERO).await;
    redis.send(&["MULTI", "SET a 1", "MSET b 2 c 3", "GET a", "EXEC", "PING"]).await;
    let lines = redis.lines(9).await;
    assert_eq!(lines[..5], ["+OK", "+QUEUED", "+QUEUED", "+QUEUED", "*3"]);
    assert!(lines[5..8].iter().all(|line| line.starts_with(LEFT_OUT)), "{lines:?}");
    assert_eq!(lines[8], "+PONG", "and the connection goes on");
    assert_eq!(redis.counted("resp_sets_failed"), 3, "each value, and no GET");
    for name in ["a", "b", "c"] {
        assert!(!is_stored(&node, name).await, "{name}");
    }
    redis.send(&["DBSIZE"]).await;
    assert!(redis.lines(1).await[0].starts_with("-ERR there are too many keys to count"));
    redis.stop().await;

    let mut redis = Redis::start(&node, Duration::from_secs(60)).await;
    redis.send(&["MULTI", "SET a 1", "MSET b 2 c 3", "DBSIZE", "EXEC", "DBSIZE"]).await;
    let lines = redis.lines(9).await;
    assert_eq!(lines[4..], ["*3", "+OK", "+OK", ":3", ":3"]);
    redis.stop().await;
    node.stop().await;
}

/// What was begun before the time was over is whole.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_long_transaction_what_was_begun_is_stored_and_the_rest_is_left_out() {
    const SETS: usize = 400;
    let node = Running::start(None, 1 << 30).await;
    // Each of them is committed by itself. The shortest time that is enough for any is not enough for
    // all, however fast this machine is.
    let mut longest = Duration::from_millis(1);
    let (redis, replies, begun) = loop {
        let mut redis = Redis::start(&node, longest).await;
        let of = longest.as_millis();
        let sets: Vec<String> = (0..SETS).map(|n| format!("SET {of}k{n} {n}")).collect();
        let sets = sets.iter().map(String::as_str);
        let all: Vec<&str> = ["MULTI"].into_iter().chain(sets).chain(["EXEC"]).collect();
        redis.send(&all).await;
        let mut lines = redis.lines(1 + SETS + 1 + SETS).await;
        let replies = lines.split_off(SETS + 2);
        let begun = replies.iter().take_while(|line| *line == "+OK").count();
        if begun > 0 {
            break (redis, replies, begun);
        }
        redis.stop().await;
        longest *= 2;
    };
    let of = longest.as_millis();
    assert!(begun < SETS, "it took no time at all");
    assert!(replies[begun..].iter().all(|line| line.starts_with(LEFT_OUT)), "{replies:?}");
    assert_eq!(redis.counted("resp_sets_failed"), (SETS - begun) as u64);
    assert_eq!(redis.counted("resp_sets_stored"), begun as u64);
    for n in [begun.saturating_sub(1), begun, SETS - 1] {
        assert_eq!(is_stored(&node, &format!("{of}k{n}")).await, n < begun, "k{n} of {begun}");
    }
    redis.stop().await;
    node.stop().await;
}
