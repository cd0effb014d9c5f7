#![allow(clippy::unwrap_used)]

use futures::FutureExt;
use proptest::prelude::*;
use redis_protocol::resp2::{encode, types::BytesFrame};

use super::*;
use crate::cache::{Arrivals, conformance::roomy};

const LONGEST: usize = 1 << 20;

/// Feeds `bytes` in pieces of `piece`; every reservation is granted if `grant`.
fn feed(bytes: &[u8], piece: usize, grant: bool) -> Result<Vec<Vec<Vec<u8>>>, DecodeError> {
    let arrivals = Arrivals::new(roomy());
    let mut decoder = Decoder::new(LONGEST);
    let mut requests = Vec::new();
    let mut pieces = bytes.chunks(piece);
    loop {
        match decoder.next()? {
            Step::Read => match pieces.next() {
                Some(piece) => decoder.space().extend_from_slice(piece),
                None => return Ok(requests),
            },
            Step::Admit(bytes) => {
                let admitted = grant.then(|| admit(&arrivals, bytes));
                decoder.admit(admitted)?;
            }
            Step::Request(request) => requests.push(request.args.iter().map(bytes_of).collect()),
        }
    }
}

fn admit(arrivals: &Arrivals, bytes: usize) -> (Charge, Arriving) {
    arrivals.admit(bytes as u64).now_or_never().unwrap().unwrap()
}

fn bytes_of(arg: &Arg) -> Vec<u8> {
    match arg {
        Arg::Bytes(bytes) => bytes.to_vec(),
        Arg::Blob(blob) => blob.to_vec(),
        Arg::Skipped(size) => format!("skipped {size}").into_bytes(),
    }
}

fn encoded(args: &[Vec<u8>]) -> Vec<u8> {
    let words = args.iter().map(|arg| BytesFrame::BulkString(arg.clone().into())).collect();
    let mut buffer = BytesMut::new();
    encode::extend_encode(&mut buffer, &BytesFrame::Array(words), false).unwrap();
    buffer.to_vec()
}

fn refused(bytes: &[u8]) -> String {
    feed(bytes, 7, true).unwrap_err().to_string()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// What another codec wrote is read back, however it is cut.
    #[test]
    fn requests_come_back_whole(
        requests in prop::collection::vec(
            prop::collection::vec((0usize..5, any::<u8>()), 1..6), 1..6,
        ),
        piece in 1usize..100_000,
    ) {
        // Around the length from which an argument is a blob, and well above it.
        const SIZES: [usize; 5] = [0, 3, BLOB_FROM - 1, BLOB_FROM, 3 * BLOB_FROM];
        let arg = |(size, byte): &(usize, u8)| vec![*byte; SIZES[*size]];
        let requests: Vec<Vec<_>> =
            requests.iter().map(|request| request.iter().map(arg).collect()).collect();
        let wire: Vec<u8> = requests.iter().flat_map(|request| encoded(request)).collect();
        prop_assert!(feed(&wire, piece, true).unwrap() == requests);
    }

    /// Whatever comes is a request, an error, or too little of either.
    #[test]
    fn garbage_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..4096), piece in 1usize..64) {
        drop(feed(&bytes, piece, true));
        // The same behind the head of a request.
        drop(feed(&[b"*2\r\n$3\r\nGET\r\n", &bytes[..]].concat(), piece, false));
    }
}

#[test]
fn nesting_is_refused_at_its_first_level() {
    assert_eq!(refused(&b"*1\r\n".repeat(100_000)), "Protocol error: expected '$', got '*'");
}

#[test]
fn what_is_no_request_is_refused_in_the_words_of_redis() {
    for (bytes, why) in [
        ("*9999999999\r\n", "invalid multibulk length"),
        ("*x\r\n", "invalid multibulk length"),
        ("*11111111111111111111111111111111111", "invalid multibulk length"),
        ("*1\r\n:1\r\n", "expected '$', got ':'"),
        ("*1\r\n$-1\r\n", "invalid bulk length"),
        ("*1\r\n$99999999999999\r\n", "invalid bulk length"),
        ("*1\r\n$1\r\nabc", "expected a line end behind an argument"),
        ("POST / HTTP/1.1\r\n", "this is no HTTP server"),
    ] {
        assert_eq!(refused(bytes.as_bytes()), format!("Protocol error: {why}"), "{bytes}");
    }
    assert!(refused(&vec![b'x'; LONGEST_LINE + 1]).contains("too big inline request"));
}

#[test]
fn lines_of_words_are_requests_and_empty_ones_are_none() {
    let got = feed(b"\r\n*0\r\n*-1\r\n  PING \r\nget  a\n", 3, true).unwrap();
    assert_eq!(got, [vec![b"PING".to_vec()], vec![b"get".to_vec(), b"a".to_vec()]]);
}

#[test]
fn too_long_or_unaffordable_values_are_skipped_and_the_next_request_is_read() {
    let request = |size: usize| encoded(&[b"SET".to_vec(), b"k".to_vec(), vec![1; size]]);
    let wire = [request(LONGEST + 1), request(LONGEST), request(3)].concat();
    let skipped = |size: usize| format!("skipped {size}").into_bytes();
    let poor = feed(&wire, 5000, false).unwrap();
    let values: Vec<_> = poor.iter().map(|request| request[2].clone()).collect();
    // Not assert_eq: it would print a MiB.
    assert!(values == [skipped(LONGEST + 1), skipped(LONGEST), vec![1; 3]]);
    let rich = feed(&wire, 5000, true).unwrap();
    assert!(rich[0][2] == skipped(LONGEST + 1));
    assert!(rich[1][2] == vec![1; LONGEST]);
}

#[test]
fn an_announcement_costs_nothing() {
    let mut decoder = Decoder::new(usize::MAX);
    decoder.space().extend_from_slice(b"*2\r\n$3\r\nSET\r\n$4000000000\r\n");
    let Step::Admit(bytes) = decoder.next().unwrap() else { panic!("no admission") };
    assert_eq!(bytes, 4_000_000_000);
    decoder.admit(Some(admit(&Arrivals::new(roomy()), bytes))).unwrap();
    assert!(matches!(decoder.next().unwrap(), Step::Read));
    assert!(decoder.space().capacity() < 1 << 20);
}

#[test]
fn nothing_is_set_aside_for_who_is_not_known() {
    let mut decoder = Decoder::new(LONGEST);
    decoder.trust(false);
    let long = encoded(&[b"SET".to_vec(), b"a".to_vec(), vec![0; 100 << 10]]);
    decoder.space().extend_from_slice(&long);
    // One admission would be one too many.
    let Step::Request(request) = decoder.next().unwrap() else { panic!("no request") };
    assert!(matches!(request.args[2], Arg::Skipped(_)) && request.admitted.is_empty());
    // Many short ones are as long.
    let many = encoded(&vec![vec![0; 10 << 10]; MOST_UNKNOWN + 1]);
    decoder.space().extend_from_slice(&many);
    assert!(decoder.next().unwrap_err().to_string().contains("unauthenticated"));

    let mut decoder = Decoder::new(LONGEST);
    decoder.trust(false);
    decoder.space().extend_from_slice(&encoded(&vec![vec![0; LONGEST_UNKNOWN]; MOST_UNKNOWN]));
    assert!(matches!(decoder.next().unwrap(), Step::Request(_)), "nor for many short ones");

    // Once it has said who it is, it is as any other.
    let mut decoder = Decoder::new(LONGEST);
    decoder.trust(false);
    decoder.space().extend_from_slice(&encoded(&[b"AUTH".to_vec(), b"x".to_vec()]));
    assert!(matches!(decoder.next().unwrap(), Step::Request(_)));
    decoder.trust(true);
    decoder.space().extend_from_slice(&long);
    assert!(matches!(decoder.next().unwrap(), Step::Admit(_)));
}

#[test]
fn arrays_of_many_arguments_are_read_once() {
    // Quadratic reading would take minutes for this.
    let args = vec![b"abcdefgh".to_vec(); MOST_ARGUMENTS];
    assert!(feed(&encoded(&args), 64, true).unwrap() == [args]);
}
