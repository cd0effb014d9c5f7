use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::{
    cache::BlobError,
    transfer::frame::{self, MAX_REQUEST, MAX_RESPONSE, Patience},
};

const SOON: Patience = Patience { first: Duration::from_secs(10), rest: Duration::from_secs(10) };

/// A peer that reads one request on each connection and then acts as `script` says.
async fn scripted<F>(
    script: impl Fn(TcpStream, pb::TransferRequest) -> F + Send + 'static,
) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = frame::read(&mut stream, MAX_REQUEST, SOON).await.unwrap();
            tokio::spawn(script(stream, request.unwrap()));
        }
    });
    address
}

fn header(blob: &Blob, offset: u64) -> Vec<u8> {
    let header = pb::TransferResponse {
        code: pb::TransferCode::Ok.into(),
        size: blob.size(),
        length: blob.size() - offset,
        ..Default::default()
    };
    frame::encode(&header, MAX_RESPONSE).unwrap()
}

#[tokio::test]
async fn blobs_of_any_size_arrive_whole() {
    let blobs: Vec<_> = [0, 1, 4096, 262_145, 5 << 20].into_iter().map(blob).collect();
    let peer = Peer::of(&blobs.iter().collect::<Vec<_>>()).await;
    let client = client();
    for wanted in &blobs {
        let mut writer = writer_for(wanted);
        client.fetch_into(anyone(&peer.address), &wanted.digest(), &mut writer).await.unwrap();
        assert_eq!(**wanted, *writer.finish_as(wanted.digest()).unwrap());
    }
    // Five fetches, one connection.
    assert_eq!(client.idle(), 1);
    peer.stop().await;
}

#[tokio::test]
async fn a_fetch_starts_where_the_writer_stands() {
    let wanted = blob(1 << 20);
    let peer = Peer::of(&[&wanted]).await;
    for held in [1, 300_000, 1 << 20] {
        let mut writer = writer_for(&wanted);
        writer.write(&wanted[..held]).unwrap();
        client().fetch_into(anyone(&peer.address), &wanted.digest(), &mut writer).await.unwrap();
        writer.finish_as(wanted.digest()).unwrap();
    }
}

#[tokio::test]
async fn a_peer_that_dies_in_the_middle_is_replaced_by_another() {
    let wanted = blob(8 << 20);
    let cut = 3_000_000;
    let (sent, at) = (wanted.clone(), cut);
    let dying = scripted(move |mut stream, request| {
        let sent = sent.clone();
        async move {
            stream.write_all(&header(&sent, request.offset)).await.unwrap();
            stream.write_all(&sent[..at]).await.unwrap();
        }
    })
    .await;
    let healthy = Peer::of(&[&wanted]).await;
    let client = client();
    let mut writer = writer_for(&wanted);
    let broken =
        client.fetch_into(anyone(&dying), &wanted.digest(), &mut writer).await.unwrap_err();
    assert!(matches!(broken, TransferError::Broken { at, .. } if at == cut as u64), "{broken:?}");
    assert_eq!(writer.filled(), cut as u64);
    client.fetch_into(anyone(&healthy.address), &wanted.digest(), &mut writer).await.unwrap();
    assert_eq!(*wanted, *writer.finish_as(wanted.digest()).unwrap());
}

/// Copies `limit` bytes from `to` to whoever connects, then resets the connection.
async fn proxy_that_dies_after(limit: usize, to: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(to).await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (from_server, mut to_server) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
        tokio::io::copy(&mut from_server.take(limit as u64), &mut to_client).await.unwrap();
        to_client.as_ref().set_zero_linger().unwrap();
    });
    address
}

#[tokio::test]
async fn a_real_server_behind_a_network_that_breaks_is_resumed() {
    let wanted = blob(8 << 20);
    let healthy = Peer::of(&[&wanted]).await;
    let client = client();
    let mut writer = writer_for(&wanted);
    let mut limit = 100_000;
    while writer.filled() < wanted.size() {
        let before = writer.filled();
        let via = proxy_that_dies_after(limit, healthy.address.clone()).await;
        match client.fetch_into(anyone(&via), &wanted.digest(), &mut writer).await {
            Ok(()) => break,
            Err(TransferError::Broken { at, .. }) => assert_eq!(at, writer.filled()),
            Err(other) => panic!("{other:?}"),
        }
        // A reset may take received bytes with it, never those counted before.
        assert!(writer.filled() >= before);
        limit *= 2;
    }
    writer.finish_as(wanted.digest()).unwrap();
}

#[tokio::test]
async fn a_server_that_stops_ends_its_transfers_and_returns() {
    let wanted = blob(32 << 20);
    let peer = Peer::of(&[&wanted]).await;
    // A reader that takes the header and then nothing.
    let mut stream = TcpStream::connect(&peer.address).await.unwrap();
    ask(&mut stream, &wanted, 0).await;
    let _: Option<pb::TransferResponse> =
        frame::read(&mut stream, MAX_RESPONSE, SOON).await.unwrap();
    peer.stop().await;
    let mut rest = Vec::new();
    // The end or a reset, after less than the whole.
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < wanted.len());
}

async fn ask(stream: &mut TcpStream, blob: &Blob, offset: u64) {
    let digest = blob.digest().as_bytes().to_vec().into();
    let subject = Some(pb::transfer_request::Subject::Digest(digest));
    let request = pb::TransferRequest { subject, offset, ..Default::default() };
    frame::write(stream, &request, MAX_REQUEST, SOON.rest).await.unwrap();
}

#[tokio::test]
async fn a_corrupt_copy_is_seen_at_the_end_and_fetched_elsewhere() {
    let wanted = blob(2 << 20);
    let mut altered = wanted.to_vec();
    altered[1_500_000] ^= 1;
    let lie = wanted.clone();
    let liar = scripted(move |mut stream, _| {
        let (head, altered) = (header(&lie, 0), altered.clone());
        async move {
            stream.write_all(&head).await.unwrap();
            stream.write_all(&altered).await.unwrap();
        }
    })
    .await;
    let mut writer = writer_for(&wanted);
    client().fetch_into(anyone(&liar), &wanted.digest(), &mut writer).await.unwrap();
    assert!(matches!(writer.finish_as(wanted.digest()), Err(BlobError::Corrupt { .. })));
    let honest = Peer::of(&[&wanted]).await;
    let mut writer = writer_for(&wanted);
    client().fetch_into(anyone(&honest.address), &wanted.digest(), &mut writer).await.unwrap();
    writer.finish_as(wanted.digest()).unwrap();
}

#[tokio::test]
async fn a_blob_of_another_size_is_not_even_received() {
    let (wanted, other) = (blob(1000), blob(1001));
    let liar = scripted(move |mut stream, _| {
        let head = header(&other, 0);
        async move { stream.write_all(&head).await.unwrap() }
    })
    .await;
    let mut writer = writer_for(&wanted);
    let refused =
        client().fetch_into(anyone(&liar), &wanted.digest(), &mut writer).await.unwrap_err();
    assert!(matches!(refused, TransferError::Protocol(_)));
    assert_eq!(writer.filled(), 0);
}

#[tokio::test]
async fn oversized_and_truncated_answers_are_told_apart() {
    let wanted = blob(1000);
    let oversized = scripted(|mut stream, _| async move {
        stream.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    })
    .await;
    let truncated = scripted(|mut stream, _| async move {
        stream.write_all(&[0, 0, 0, 20, 8, 1]).await.unwrap();
    })
    .await;
    let mut writer = writer_for(&wanted);
    let refused =
        client().fetch_into(anyone(&oversized), &wanted.digest(), &mut writer).await.unwrap_err();
    assert!(matches!(refused, TransferError::Protocol(_)), "{refused:?}");
    let refused =
        client().fetch_into(anyone(&truncated), &wanted.digest(), &mut writer).await.unwrap_err();
    assert!(matches!(refused, TransferError::Broken { at: 0, .. }), "{refused:?}");
}

#[tokio::test]
async fn what_a_peer_lacks_is_not_found_and_the_connection_stays() {
    let (there, missing) = (blob(10), blob(11));
    let peer = Peer::of(&[&there]).await;
    let client = client();
    for _ in 0..3 {
        let mut writer = writer_for(&missing);
        let refused =
            client.fetch_into(anyone(&peer.address), &missing.digest(), &mut writer).await;
        assert!(matches!(refused, Err(TransferError::NotFound)));
    }
    assert_eq!(client.idle(), 1);
}

#[tokio::test]
async fn an_address_without_a_server_is_unreachable() {
    let wanted = blob(10);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut writer = writer_for(&wanted);
    let refused =
        client().fetch_into(anyone(&address), &wanted.digest(), &mut writer).await.unwrap_err();
    assert!(matches!(refused, TransferError::Unreachable { .. }));
}

#[tokio::test]
async fn bad_requests_are_answered_and_do_not_end_the_connection() {
    let wanted = blob(10);
    let peer = Peer::of(&[&wanted]).await;
    let mut stream = TcpStream::connect(&peer.address).await.unwrap();
    let key = pb::transfer_request::Subject::Key(vec![1; 32].into());
    let short = pb::transfer_request::Subject::Digest(vec![1; 31].into());
    let digest = pb::transfer_request::Subject::Digest(wanted.digest().as_bytes().to_vec().into());
    for (subject, offset) in [(None, 0), (Some(key), 0), (Some(short), 0), (Some(digest), 11)] {
        let request = pb::TransferRequest { subject, offset, ..Default::default() };
        frame::write(&mut stream, &request, MAX_REQUEST, SOON.rest).await.unwrap();
        let answer: Option<pb::TransferResponse> =
            frame::read(&mut stream, MAX_RESPONSE, SOON).await.unwrap();
        assert_eq!(answer.unwrap().code(), pb::TransferCode::BadRequest);
    }
    // Past the limit of a request there is nothing to talk about.
    stream.write_all(&(MAX_REQUEST as u32 + 1).to_be_bytes()).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn one_connection_too_many_is_told_that_the_node_is_busy() {
    let wanted = blob(10);
    let settings = ServerSettings { max_connections: 2, ..Default::default() };
    let peer = Peer::start(Shelf::of(&[&wanted]), settings).await;
    let holders = [client(), client()];
    for holder in &holders {
        let mut writer = writer_for(&wanted);
        holder.fetch_into(anyone(&peer.address), &wanted.digest(), &mut writer).await.unwrap();
    }
    let third = client();
    let mut writer = writer_for(&wanted);
    let refused =
        third.fetch_into(anyone(&peer.address), &wanted.digest(), &mut writer).await.unwrap_err();
    assert!(matches!(refused, TransferError::Busy), "{refused:?}");
    // A place that becomes free is given away again; the server learns of it
    // when the end of the connection arrives, so ask until then.
    drop(holders);
    fetch_when_there_is_a_place(&third, &peer, &wanted).await;
}

#[tokio::test]
async fn who_sends_a_request_byte_by_byte_is_cut_off() {
    let wanted = blob(10);
    let settings = ServerSettings {
        progress: Duration::from_millis(50),
        idle: Duration::from_millis(50),
        ..Default::default()
    };
    let peer = Peer::start(Shelf::of(&[&wanted]), settings).await;
    for sent in [&[][..], &[0, 0], &[0, 0, 0, 40, 10]] {
        let mut stream = TcpStream::connect(&peer.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        // The server hangs up; without its time-outs this would wait for ever.
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_reader_that_stalls_is_cut_off_and_frees_the_blob() {
    let shelf = Shelf::of(&[&blob(32 << 20)]);
    let wanted = shelf.blobs.values().next().unwrap().clone();
    let progress = Duration::from_millis(100);
    let settings = ServerSettings { progress, max_connections: 1, ..Default::default() };
    let peer = Peer::start(shelf, settings).await;
    let mut stream = TcpStream::connect(&peer.address).await.unwrap();
    ask(&mut stream, &wanted, 0).await;
    // The socket buffers fill, the server waits, and gives the place to another.
    stream.readable().await.unwrap();
    fetch_when_there_is_a_place(&client(), &peer, &wanted).await;
}

/// Waits for a server of few places to have seen the end of a connection.
async fn fetch_when_there_is_a_place(client: &PeerClient, peer: &Peer, wanted: &Blob) {
    loop {
        let mut writer = writer_for(wanted);
        match client.fetch_into(anyone(&peer.address), &wanted.digest(), &mut writer).await {
            Ok(()) => break assert_eq!(writer.filled(), wanted.size()),
            Err(TransferError::Busy) => tokio::task::yield_now().await,
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_peer_that_stalls_is_given_up() {
    let wanted = blob(1 << 20);
    let sent = wanted.clone();
    let stalled = scripted(move |mut stream, _| {
        let sent = sent.clone();
        async move {
            stream.write_all(&header(&sent, 0)).await.unwrap();
            stream.write_all(&sent[..1000]).await.unwrap();
            std::future::pending::<()>().await;
        }
    })
    .await;
    let silent = scripted(|stream, _| async move {
        let _open = stream;
        std::future::pending().await
    })
    .await;
    let settings = ClientSettings {
        answer: Duration::from_millis(50),
        progress: Duration::from_millis(50),
        ..Default::default()
    };
    let client = PeerClient::new(settings, Dialer::default());
    let mut writer = writer_for(&wanted);
    for (address, came) in [(stalled, 1000), (silent, 1000)] {
        let ended =
            client.fetch_into(anyone(&address), &wanted.digest(), &mut writer).await.unwrap_err();
        let TransferError::Broken { at, source } = ended else { panic!("{ended:?}") };
        assert_eq!((at, source.kind()), (came, io::ErrorKind::TimedOut));
    }
}

#[tokio::test]
async fn a_connection_that_the_server_closed_meanwhile_is_replaced() {
    let wanted = blob(10);
    let idle = Duration::from_millis(20);
    let settings = ServerSettings { idle, max_connections: 1, ..Default::default() };
    let peer = Peer::start(Shelf::of(&[&wanted]), settings).await;
    // One place, two clients that keep their connections: each gets its turn
    // when the server has closed the idle connection of the other.
    let clients = [client(), client()];
    for client in clients.iter().cycle().take(6) {
        fetch_when_there_is_a_place(client, &peer, &wanted).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_all_get_their_own_bytes() {
    let blobs: Arc<Vec<_>> = Arc::new((0..8).map(|i| blob(100_000 + i * 50_001)).collect());
    let peer = Peer::of(&blobs.iter().collect::<Vec<_>>()).await;
    let client = Arc::new(client());
    let mut fetches = tokio::task::JoinSet::new();
    for i in 0..64 {
        let (client, blobs, address) = (client.clone(), blobs.clone(), peer.address.clone());
        fetches.spawn(async move {
            for wanted in blobs.iter().cycle().skip(i % 8).take(8) {
                let mut writer = writer_for(wanted);
                client.fetch_into(anyone(&address), &wanted.digest(), &mut writer).await.unwrap();
                writer.finish_as(wanted.digest()).unwrap();
            }
        });
    }
    while let Some(fetch) = fetches.join_next().await {
        fetch.unwrap();
    }
    assert!(client.idle() <= ClientSettings::default().idle_per_address);
}

#[test]
fn thousands_of_fetches_leak_no_descriptor() {
    alone("transfer::tests::peers::thousands_of_fetches_leak_no_descriptor", thousands_of_fetches);
}

async fn thousands_of_fetches() {
    let (there, missing) = (blob(5000), blob(3));
    let peer = Peer::of(&[&there]).await;
    let client = client();
    let mut before = None;
    for i in 0..3000 {
        let wanted = if i % 10 == 0 { &missing } else { &there };
        let mut writer = writer_for(wanted);
        let fetched = client.fetch_into(anyone(&peer.address), &wanted.digest(), &mut writer).await;
        assert_eq!(fetched.is_ok(), i % 10 != 0);
        drop(writer);
        let now = descriptors();
        assert!(now <= *before.get_or_insert(now), "after {i} fetches");
    }
}

#[tokio::test]
async fn a_fetch_that_is_dropped_gives_no_connection_back() {
    let wanted = blob(10);
    let shelf = Arc::new(Shelf {
        blobs: HashMap::from([(wanted.digest(), wanted.clone())]),
        gate: Some(Notify::new()),
        ..Shelf::default()
    });
    let peer = Peer::start(shelf.clone(), ServerSettings::default()).await;
    let client = client();
    let mut writer = writer_for(&wanted);
    {
        let digest = wanted.digest();
        let fetch = client.fetch_into(anyone(&peer.address), &digest, &mut writer);
        tokio::pin!(fetch);
        while shelf.asked.load(Ordering::SeqCst) == 0 {
            assert!(futures::poll!(&mut fetch).is_pending());
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(client.idle(), 0);
    shelf.gate.as_ref().unwrap().notify_one();
    shelf.gate.as_ref().unwrap().notify_one();
}

#[tokio::test]
async fn another_node_at_an_address_answers_nothing_for_the_one_that_was_meant() {
    let wanted = blob(1000);
    let peer = Peer::of(&[&wanted]).await;
    let (client, mut writer) = (client(), writer_for(&wanted));
    let meant = PeerAddress { node: SHELF + 1, address: &peer.address };
    let refused = client.fetch_into(meant, &wanted.digest(), &mut writer).await.unwrap_err();
    assert!(matches!(refused, TransferError::WrongNode), "{refused}");
    let missing = blob(10).digest();
    let refused = client.fetch_into(meant, &missing, &mut writer).await.unwrap_err();
    assert!(matches!(refused, TransferError::WrongNode), "no proof that it is absent: {refused}");
    let right = PeerAddress { node: SHELF, ..meant };
    client.fetch_into(right, &wanted.digest(), &mut writer).await.unwrap();
    assert_eq!(client.idle(), 1, "a refusal leaves the connection usable");
}

#[tokio::test]
async fn a_copy_is_kept_or_refused() {
    let wanted = blob(1000);
    let shelf = Shelf::of(&[]);
    let peer = Peer::start(shelf.clone(), ServerSettings::default()).await;
    let (client, to) = (client(), PeerAddress { node: SHELF, address: &peer.address });
    let from = PeerAddress { node: 7, address: "127.0.0.1:9" };
    client.keep(to, &wanted.digest(), wanted.size(), from).await.unwrap();
    assert_eq!(*shelf.kept.lock(), [(wanted.digest(), wanted.size(), 7)]);
    let nowhere = PeerAddress { node: 8, ..from };
    let refused = client.keep(to, &wanted.digest(), wanted.size(), nowhere).await.unwrap_err();
    assert!(matches!(refused, TransferError::Failed(_)), "{refused}");
}
