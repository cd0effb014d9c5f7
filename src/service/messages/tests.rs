use bytes::{BufMut, BytesMut};
use futures::{FutureExt, StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;

use super::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);

fn header(size: usize) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(size).unwrap());
    bytes.freeze()
}

/// A body that gives `pieces`, and then rests.
fn body(pieces: Vec<Bytes>) -> Body {
    let pieces = stream::iter(pieces).map(|piece| Ok::<_, Status>(Frame::data(piece)));
    Body::new(StreamBody::new(pieces.chain(stream::pending())))
}

fn units(messages: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(messages * MAX_MESSAGE_BYTES / UNIT))
}

#[tokio::test]
async fn a_large_message_waits_for_the_place_of_another_before_it_is_read() {
    let units = units(1);
    let begun = || Messages::new(body(vec![header(MAX_MESSAGE_BYTES)]), units.clone(), LONG);
    let (mut first, mut second) = (begun(), begun());
    assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap().len(), HEADER);
    assert!(second.frame().now_or_never().is_none(), "there is no place for it");
    drop(first);
    assert_eq!(second.frame().await.unwrap().unwrap().into_data().unwrap().len(), HEADER);
}

#[tokio::test]
async fn who_finds_no_place_is_told_so() {
    let units = units(1);
    let begun = || Messages::new(body(vec![header(MAX_MESSAGE_BYTES)]), units.clone(), SHORT);
    let (mut first, mut second) = (begun(), begun());
    first.frame().await.unwrap().unwrap();
    let refused = second.frame().await.unwrap().unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
}

#[tokio::test]
async fn a_message_that_stalls_ends_and_a_stream_that_rests_does_not() {
    let units = units(1);
    let mut stalls = Messages::new(body(vec![header(MAX_MESSAGE_BYTES)]), units.clone(), SHORT);
    stalls.frame().await.unwrap().unwrap();
    let ended = stalls.frame().await.unwrap().unwrap_err();
    assert_eq!(ended.code(), tonic::Code::InvalidArgument);
    drop(stalls);
    assert_eq!(units.available_permits(), MAX_MESSAGE_BYTES / UNIT);
    let mut rests = Messages::new(body(vec![header(0)]), units, SHORT);
    rests.frame().await.unwrap().unwrap();
    let rested = tokio::time::timeout(SHORT * 5, rests.frame());
    assert!(rested.await.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn messages_are_found_however_the_stream_is_cut(
        sizes in prop::collection::vec(0usize..300, 1..20),
        piece in 1usize..400,
    ) {
        let mut wire = BytesMut::new();
        for size in &sizes {
            wire.extend_from_slice(&header(*size));
            wire.extend_from_slice(&vec![7; *size]);
        }
        let mut arriving = Arriving::default();
        let found = wire.chunks(piece).filter_map(|piece| arriving.read(piece)).max();
        prop_assert_eq!(found, sizes.iter().copied().max());
        prop_assert!(!arriving.is_within());
    }
}
