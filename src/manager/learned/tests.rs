use kiln_proto::Digest;

use super::*;
use crate::compiler::{CompileInput, Compiler, EagerCompiler, Source};

/// What an estimate of `seconds` was made for.
fn prepared(seconds: f64) -> Prepared {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/block_f32.new.pt2");
    let archive = std::fs::read(path).unwrap().into();
    let input = CompileInput {
        source: Source::Program { name: "block".into(), archive, size: None },
        target: Target::any(),
        options: Default::default(),
        namespace: "n".into(),
    };
    let fingerprint = EagerCompiler.fingerprint().unwrap();
    let mut prepared = EagerCompiler.prepare(&input, &fingerprint).unwrap();
    prepared.estimated_seconds = Some(seconds);
    prepared
}

fn key(n: usize) -> ArtifactKey {
    ArtifactKey::from_bytes(*Digest::of(&n.to_le_bytes()).as_bytes())
}

#[test]
fn the_median_corrects_once_there_is_enough_to_learn_from() {
    let (learned, prepared) = (Learned::default(), prepared(2.0));
    // One compile that took a thousand times as long means nothing.
    for (n, taken) in [1.0, 1.0, 2000.0, 1.0].into_iter().enumerate() {
        learned.observe(&prepared, &key(n), taken);
        assert_eq!(learned.correction(&prepared), None, "{n}");
    }
    // What is met again is no more than what it was.
    learned.observe(&prepared, &key(0), 1.0);
    assert_eq!(learned.correction(&prepared), None);
    learned.observe(&prepared, &key(4), 1.2);
    let correction = learned.correction(&prepared).unwrap();
    assert_eq!((correction.factor, correction.compiles), (0.5, 5));
    // Of another target nothing is known.
    let mut other = prepared;
    other.target = Target::cubin(90);
    assert_eq!(learned.correction(&other), None);
}

#[test]
fn what_is_learned_follows_from_the_artifacts_and_not_from_their_order() {
    let prepared = prepared(1.0);
    let taken = |n: usize| 0.5 + (n * 37 % 101) as f64 / 10.0;
    let learn = |order: &mut dyn Iterator<Item = usize>| {
        let learned = Learned::default();
        order.for_each(|n| learned.observe(&prepared, &key(n), taken(n)));
        learned.correction(&prepared).unwrap()
    };
    let forwards = learn(&mut (0..2000));
    assert_eq!(forwards, learn(&mut (0..2000).rev().chain(0..50)));
    assert_eq!(forwards.compiles, KEPT);
    // A fair sample: near the median of all.
    assert!((4.5..6.5).contains(&forwards.factor), "{forwards:?}");
}

#[test]
fn nonsense_teaches_nothing_and_no_correction_is_boundless() {
    let learned = Learned::default();
    let mut none = prepared(1.0);
    none.estimated_seconds = None;
    for (n, taken) in [0.0, -1.0, f64::NAN, f64::INFINITY].into_iter().enumerate() {
        learned.observe(&prepared(1.0), &key(n), taken);
        learned.observe(&prepared(0.0), &key(n), taken);
        learned.observe(&none, &key(n), 1.0);
    }
    assert!(learned.0.lock().values().all(BTreeMap::is_empty));
    for n in 0..LEAST {
        learned.observe(&prepared(1.0), &key(n), 1e9);
    }
    assert_eq!(learned.correction(&prepared(1.0)).unwrap().factor, FURTHEST);
}
