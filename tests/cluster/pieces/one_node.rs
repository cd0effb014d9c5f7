//! One node: what is compiled, under which keys, and what a second request costs.

use kiln_proto::{
    ArtifactKey,
    pb::{self, Choice, Outcome, Piecewise, compile_event::Event},
};
use tonic::Code;

use super::{
    manifest,
    model::{self, PIECES},
    outcomes,
};
use crate::harness::{TestCluster, bytes_of, kind, saxpy};

#[tokio::test(flavor = "multi_thread")]
async fn equal_layers_are_compiled_once_and_a_lost_piece_alone_again() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let (mut planned, mut compiling) = (None, 0);
    let first = node.compile_watching(model::whole(), |event| match event {
        Event::Planned(told) => planned = told.strategy.clone(),
        Event::Piece(pb::PieceNews { piece: Some(piece), .. }) => {
            compiling += usize::from(piece.stage() == pb::PieceStage::Compiling);
        }
        _ => {}
    });
    let first = first.await.unwrap();
    assert_eq!(first.outcome, Outcome::Compiled);
    assert_eq!(first.strategy.choice(), Choice::Piecewise);
    assert_eq!(planned.as_ref(), Some(&first.strategy), "told before, too");
    assert_eq!((first.strategy.items, first.strategy.pieces as usize), (50, PIECES));
    assert!(first.strategy.reasons.iter().any(|why| why.contains("equal layers: 16")));
    assert_eq!(outcomes(&first), [Outcome::Compiled; PIECES]);
    let times: Vec<u32> = first.pieces.iter().map(|piece| piece.times).collect();
    assert_eq!(times, [1, 16, 16, 16, 1]);
    assert!(first.pieces.iter().all(|p| p.node == node.id && p.compile_seconds > 0.0));
    assert!(compiling >= 1, "progress was told");
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64);

    // Each piece is an artifact like any other, and the whole names them.
    let whole = manifest(&first);
    assert_eq!(whole.files.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["stitching.json"]);
    for (piece, told) in whole.pieces.iter().zip(&first.pieces) {
        assert_eq!(piece.key.as_bytes().as_slice(), &told.key[..]);
        let (header, pack) = node.fetch(&piece.key).await.unwrap();
        let signed = kiln_proto::SignedManifest::from(header.manifest.unwrap());
        let artifact = signed.read_unverified().unwrap();
        assert_eq!((artifact.pack_digest, artifact.pack_size), (piece.pack, pack.len() as u64));
        let files: Vec<&str> = artifact.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(files, ["kernels.cu", "module.cubin", "plan.json"]);
    }

    let again = node.compile(model::whole()).await.unwrap();
    assert_eq!((again.key, again.outcome), (first.key, Outcome::Hit));
    assert_eq!(outcomes(&again), [Outcome::Hit; PIECES]);
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64);

    // A piece that is gone is compiled again, alone.
    let gone = whole.pieces[2].key;
    let request = pb::TombstoneRequest { key: bytes_of(&gone), reason: "a test".into() };
    node.client().await.tombstone(request).await.unwrap();
    let mended = node.compile(model::whole()).await.unwrap();
    assert_eq!((mended.key, mended.outcome), (first.key, Outcome::Compiled));
    let mut expected = [Outcome::Hit; PIECES];
    expected[2] = Outcome::Compiled;
    assert_eq!(outcomes(&mended), expected);
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64 + 1);
    assert_eq!(manifest(&mended).pieces, whole.pieces, "the same bytes again");

    // One piece by itself is asked for as the whole with a position.
    let one = pb::CompileRequest { piece: Some(1), ..model::whole() };
    let one = node.compile(one).await.unwrap();
    assert_eq!((one.key, one.outcome), (whole.pieces[1].key, Outcome::Hit));
    let none = pb::CompileRequest { piece: Some(99), ..model::whole() };
    assert_eq!(node.compile(none).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_small_is_one_compile_unless_asked_for() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let request = |when| model::request(model::archive("llama_block_f32_static.new"), when);
    let auto = node.compile(request(Piecewise::Unspecified)).await.unwrap();
    assert_eq!(auto.strategy.choice(), Choice::Full);
    assert!(auto.strategy.reasons[0].starts_with("small:"), "{:?}", auto.strategy);
    let never = node.compile(request(Piecewise::Never)).await.unwrap();
    assert_eq!((never.key, never.outcome), (auto.key, Outcome::Hit), "one key for one compile");
    assert_eq!(never.strategy.choice(), Choice::Full);
    let always = node.compile(request(Piecewise::Always)).await.unwrap();
    assert_eq!(always.strategy.choice(), Choice::Piecewise);
    assert_ne!(always.key, auto.key);
    let mut uncached = request(Piecewise::Always);
    uncached.disable_cache = true;
    let before = cluster.counter("compiler_runs").await;
    let alone = node.compile(uncached).await.unwrap();
    assert_eq!(alone.key, always.key);
    let pieces = always.pieces.len();
    assert_eq!(cluster.counter("compiler_runs").await, before + pieces as u64);
    assert_eq!(outcomes(&alone), vec![Outcome::Compiled; pieces]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_pieces_says_so() {
    let cluster = TestCluster::start(1).await;
    let mut request = saxpy("whole");
    request.piecewise = Piecewise::Always.into();
    let refused = cluster.nodes[0].compile(request).await.unwrap_err();
    assert_eq!(kind(&refused), Some("incompatible"), "{refused}");
    assert!(refused.message().contains("nothing in pieces"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_tells_of_pieces() {
    let cluster = TestCluster::start(1).await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models");
    let kiln = async |more: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
        let endpoint = format!("http://{}", cluster.nodes[0].config.grpc_listen);
        command.args(["compile", "llama_block_f32_static.new.pt2", "--endpoint", &endpoint]);
        let output = command.args(more).current_dir(folder).output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert!(output.status.success(), "{}", text(output.stderr));
        (text(output.stdout), text(output.stderr))
    };
    let (out, err) = kiln(&["--piecewise", "always", "--json"]).await;
    let view: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&view["strategy"], &view["outcome"]), (&"piecewise".into(), &"compiled".into()));
    let pieces = view["pieces"].as_array().unwrap();
    assert!(pieces.len() > 1);
    for (index, piece) in pieces.iter().enumerate() {
        assert_eq!(piece["index"], index);
        assert!(piece["key"].as_str().unwrap().parse::<ArtifactKey>().is_ok());
        assert_eq!((&piece["outcome"], &piece["error"]), (&"compiled".into(), &().into()));
        assert_eq!(piece["node"], cluster.nodes[0].id);
        assert!(piece["compile_seconds"].as_f64().unwrap() > 0.0);
        // No terminal: a line for each.
        let line = format!("piece {index} compiled {}", piece["key"].as_str().unwrap());
        assert!(err.contains(&line), "{line:?} in {err}");
    }
    // A folder of it has the pieces by position, and the names of the whole's inputs.
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("out");
    kiln(&["--piecewise", "always", "-o", into.to_str().unwrap()]).await;
    for file in ["stitching.json", "signature.json"] {
        assert!(into.join(file).is_file(), "{file}");
    }
    for index in 0..pieces.len() {
        for file in ["kernels.cu", "module.cubin", "plan.json"] {
            assert!(into.join(format!("pieces/{index}/{file}")).is_file(), "{index} {file}");
        }
    }
    let (out, err) = kiln(&["--piecewise", "always", "--explain", "--progress", "none"]).await;
    assert!(out.contains("strategy: piecewise\n  asked for: always in pieces"), "{out}");
    assert!(out.contains("ESTIMATE") && out.contains(" hit "), "{out}");
    assert_eq!(err, "");
}
