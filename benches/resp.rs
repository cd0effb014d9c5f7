//! GETs per second through the RESP port of a real node, beside redis-server.
//!
//! `cargo bench --bench resp` starts one node and one `redis-server`, gives both
//! the same values, and lets the same client ask them in turns: blocking sockets,
//! a thread and a reused buffer for each connection. Prints a table of GETs per
//! second and of p99, with Kiln's as ratios of Redis's in the same round, and of
//! what a GET costs each server in time on a core, which other load on the
//! machine does not change as much.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/served.rs"]
mod served;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::Barrier,
    time::{Duration, Instant},
};

use self::served::{GET, Server};

/// Bytes of a value and the connections that GET it, with GETs of each in a round.
const CASES: [(usize, usize, usize); 4] =
    [(16 << 10, 1, 4000), (16 << 10, 16, 400), (1 << 20, 1, 300), (1 << 20, 16, 25)];
/// Short rounds in which both have their turn: noise hits them alike.
const ROUNDS: usize = 15;
fn main() {
    let dir = tempfile::tempdir().unwrap();
    let servers = [redis(dir.path()), kiln(dir.path())];
    println!(
        "| value | connections | Redis GET/s | Kiln GET/s | ratio | Redis p99 us | Kiln p99 us | ratio |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (size, connections, gets) in CASES {
        let value: Vec<u8> = (0..size).map(|at| ((at * 2_654_435_761) >> 7) as u8).collect();
        for server in &servers {
            server.set(&value);
            server.round(&value, connections, gets / 4);
        }
        let mut rounds: Vec<[Sample; 2]> = Vec::new();
        let before = servers.each_ref().map(Server::core_seconds);
        for round in 0..ROUNDS {
            let mut samples = [Sample::default(), Sample::default()];
            for turn in 0..2 {
                let at = (round + turn) % 2;
                samples[at] = servers[at].round(&value, connections, gets);
            }
            rounds.push(samples);
        }
        let all = (ROUNDS * connections * gets) as f64;
        let cores = [0, 1].map(|at| (servers[at].core_seconds() - before[at]) / all * 1e6);
        print(size, connections, &rounds, cores);
    }
}

fn print(size: usize, connections: usize, rounds: &[[Sample; 2]], cores: [f64; 2]) {
    let per_second = |at: usize| median(rounds.iter().map(|round| round[at].per_second()));
    let p99 = |at: usize| {
        let mut times: Vec<_> = rounds.iter().flat_map(|round| &round[at].times).collect();
        times.sort();
        times[times.len() * 99 / 100].as_secs_f64() * 1e6
    };
    let ratio = median(rounds.iter().map(|[redis, kiln]| kiln.per_second() / redis.per_second()));
    println!(
        "| {} KiB | {connections} | {:.0} | {:.0} | {ratio:.2} | {:.0} | {:.0} | {:.2} | {:.1} | {:.1} |",
        size >> 10,
        per_second(0),
        per_second(1),
        p99(0),
        p99(1),
        p99(1) / p99(0),
        cores[0],
        cores[1],
    );
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What one server did in one round.
#[derive(Default)]
struct Sample {
    times: Vec<Duration>,
    wall: Duration,
}

impl Sample {
    fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.wall.as_secs_f64()
    }
}

impl Server {
    /// `gets` GETs on each of `connections`.
    fn round(&self, value: &[u8], connections: usize, gets: usize) -> Sample {
        let start = Barrier::new(connections);
        let began = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..connections)
                .map(|_| {
                    let (stream, start) = (self.connect(), &start);
                    scope.spawn(move || client(stream, value, gets, start))
                })
                .collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
        });
        let first = began.iter().map(|(begin, ..)| *begin).min().unwrap();
        let last = began.iter().map(|(_, end, _)| *end).max().unwrap();
        let times = began.into_iter().flat_map(|(.., times)| times).collect();
        Sample { times, wall: last - first }
    }
}

fn client(
    mut stream: TcpStream,
    value: &[u8],
    gets: usize,
    start: &Barrier,
) -> (Instant, Instant, Vec<Duration>) {
    let head = format!("${}\r\n", value.len());
    let mut buffer = vec![0; head.len() + value.len() + 2];
    let mut times = Vec::with_capacity(gets);
    start.wait();
    let begin = Instant::now();
    for _ in 0..gets {
        let asked = Instant::now();
        stream.write_all(GET).unwrap();
        stream.read_exact(&mut buffer).unwrap();
        times.push(asked.elapsed());
    }
    let end = Instant::now();
    assert!(buffer.starts_with(head.as_bytes()));
    assert!(buffer[head.len()..].starts_with(value), "other bytes than were SET");
    (begin, end, times)
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn redis(dir: &Path) -> Server {
    let address = free_address();
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", ""]);
    command.args(["--appendonly", "no", "--dir"]).arg(dir).stdout(Stdio::piped());
    let mut process = command.spawn().expect("apt-get install redis-server");
    let mut log = BufReader::new(process.stdout.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("Ready to accept connections")));
    Server { name: "redis", process, address }
}

fn kiln(dir: &Path) -> Server {
    let program = std::env::var("KILN_BENCH_BINARY")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_kiln").to_owned());
    Server::kiln("kiln", &program, &dir.join("kiln"), &[])
}
