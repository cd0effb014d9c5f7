//! What a fuzzer feeds: bytes as strangers send them, one function for each way in.
//!
//! `tests/fuzz` has a target for each; the test below gives each its kept inputs, those among
//! them that once did harm. The two of other nodes' messages are tested in `kiln_cluster`.
//!
//! Invariant: whatever the bytes are, they are refused or mean something; neither ends the
//! process, takes memory without bound, nor writes outside of a folder that was named.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{Cursor, Write},
};

#[cfg(feature = "fuzzing")]
use kiln_cluster::fuzzing as peers;
use kiln_native::{Plan, cubin};
use kiln_proto::{Components, Digest, Manifest, SignedManifest, Target, convert, pb};
use prost::Message;
use tokio::time::Instant;
use zip::{ZipWriter, write::SimpleFileOptions};

use crate::{artifact, config::Layers, manager::Request, resp, transfer};

/// A function that takes whatever comes.
type Feed = fn(&[u8]);

/// Each way in by name, which is that of its target and of its folder of inputs.
const FEEDS: &[(&str, Feed)] = &[
    #[cfg(feature = "fuzzing")]
    ("commands", peers::commands),
    ("config", config),
    ("cubin", machine_code),
    ("exported", exported),
    ("graph", graph),
    ("manifest", manifest),
    ("pack", pack),
    #[cfg(feature = "fuzzing")]
    ("peers", peers::message),
    ("plan", plan),
    ("requests", requests),
    ("resp", resp::fuzzing::requests),
    ("transfer", transfer::fuzzing::frames),
];

/// Gives `data` to the way in of that name.
///
/// # Panics
/// There is none of that name; or `data` does harm.
pub fn feed(name: &str, data: &[u8]) {
    let (_, feed) = FEEDS.iter().find(|(known, _)| *known == name).expect("a way in");
    feed(data);
}

/// A TOML file of settings.
fn config(data: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(data).unwrap();
    let layers = Layers { file: Some(file.path().into()), ..Layers::default() };
    if let Ok(config) = layers.load() {
        file.as_file().set_len(0).unwrap();
        fs::write(file.path(), config.to_toml()).unwrap();
        assert_eq!(layers.load().unwrap(), config, "what is printed reads back");
    }
}

/// Machine code, as a compiler or a peer gives it.
fn machine_code(data: &[u8]) {
    drop(cubin::read(data));
}

/// A torch.export archive.
fn exported(data: &[u8]) {
    drop(kiln_native::identify(data));
    drop(kiln_native::signature(data));
    if let Ok(slim) = kiln_native::slim(Cursor::new(data)) {
        drop(kiln_native::read_any_graph(&slim));
    }
    lower(data);
}

/// A torch.export archive whose model is these bytes, so that no checksum keeps them out.
fn graph(data: &[u8]) {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let config = br#"{"config":{}}"#;
    let entries = [
        ("m/archive_format", &b"pt2"[..]),
        ("m/archive_version", b"0"),
        ("m/models/model.json", data),
        ("m/data/weights/model_weights_config.json", config),
        ("m/data/constants/model_constants_config.json", config),
    ];
    for (name, bytes) in entries {
        zip.start_file(name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    exported(&zip.finish().unwrap().into_inner());
}

fn lower(archive: &[u8]) {
    if let Ok(graph) = kiln_native::read_any_graph(archive) {
        drop(kiln_native::portable(&graph));
        kiln_native::components(&graph);
    }
    drop(kiln_native::lower(archive, &Default::default(), Target::cubin(90)));
}

/// A launch plan, and three calls of it.
fn plan(data: &[u8]) {
    let Ok(plan) = serde_json::from_slice::<Plan>(data) else { return };
    drop(plan.check());
    for size in [0, 1, usize::MAX] {
        let shapes: Vec<Vec<usize>> =
            plan.inputs.iter().map(|input| vec![size; input.shape.len()]).collect();
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        drop(plan.call(&shapes));
        plan.output_shapes(&shapes);
    }
}

/// A manifest as bytes; and once more with digests and a key that follow from what it says,
/// so that what is judged after them is judged too.
fn manifest(data: &[u8]) {
    let judge = |bytes: Vec<u8>| {
        SignedManifest { bytes, signer: 1, signature: vec![0; 64] }.read_unverified()
    };
    drop(judge(data.to_vec()));
    if let Some(manifest) = judge_repaired(data) {
        assert_eq!(manifest.components.key(), manifest.key);
        let covered: u64 = manifest.files.iter().map(|file| file.size).sum();
        assert_eq!(covered, manifest.pack_size);
        judge(pb::Manifest::from(&manifest).encode_to_vec()).expect("it is one again");
    }
}

fn judge_repaired(data: &[u8]) -> Option<Manifest> {
    let mut wire = pb::Manifest::decode(data).ok()?;
    let digest = |bytes: &[u8]| bytes.to_vec().into();
    let blank: bytes::Bytes = digest(&[0; 32]);
    for file in &mut wire.files {
        file.digest = blank.clone();
    }
    let mut components = Vec::new();
    for wire in &mut wire.components {
        let fields = wire.fields.iter().cloned().map(|f| kiln_proto::KeyField {
            name: f.name,
            value: f.value,
            derived: f.derived,
        });
        let component = kiln_proto::Component::new(wire.name.clone(), fields.collect());
        wire.digest = digest(component.digest.as_bytes());
        components.push(component);
    }
    wire.key = digest(Components::new(components).key().as_bytes());
    wire.pack_digest = blank;
    let manifest = convert::manifest(wire).ok()?;
    manifest.validate().ok().map(|()| manifest)
}

/// An artifact's files: two bytes of length, the manifest, then the pack. They are written
/// below a folder, beside which nothing may change.
fn pack(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (wire, pack) = rest.split_at(length);
    let Ok(mut wire) = pb::Manifest::decode(wire) else { return };
    // The digests are made to fit, as an attacker with a key would have them.
    for file in &mut wire.files {
        let range = usize::try_from(file.offset).ok().zip(usize::try_from(file.size).ok());
        let bytes = range.and_then(|(from, size)| pack.get(from..from.checked_add(size)?));
        file.digest = Digest::of(bytes.unwrap_or_default()).as_bytes().to_vec().into();
    }
    let Ok(manifest) = convert::manifest(wire) else { return };
    drop(artifact::verify_files(&manifest, pack));
    let around = tempfile::tempdir().unwrap();
    let dir = around.path().join("in");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::symlink(around.path(), dir.join("link")).unwrap();
    let written = artifact::write_to(&dir, &manifest, pack);
    let beside: Vec<_> = fs::read_dir(around.path()).unwrap().collect();
    assert_eq!(beside.len(), 1, "something was written beside the folder: {beside:?}");
    if written.is_ok() {
        for entry in &manifest.files {
            let bytes = fs::read(dir.join(&entry.path)).unwrap();
            assert_eq!(Digest::of(&bytes), entry.digest, "{}", entry.path);
        }
    }
}

/// A client's message; the first byte says which.
fn requests(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    match kind % 8 {
        0 => {
            if let Ok(wire) = pb::CompileRequest::decode(body)
                && let Ok(requests) = Request::read(wire, Instant::now())
            {
                for request in requests {
                    request.to_wire("auto");
                }
            }
        }
        1 => drop(pb::LeaseRequest::decode(body)),
        2 => drop(pb::PublishChunk::decode(body)),
        3 => drop(pb::RestoreRequest::decode(body)),
        4 => drop(pb::PlanRequest::decode(body)),
        5 => drop(pb::Target::decode(body).map(|wire| convert::target(&wire))),
        6 => drop(pb::Failure::decode(body).map(convert::failure)),
        _ => drop(pb::Fingerprint::decode(body).map(convert::fingerprint)),
    }
}

#[cfg(test)]
mod seeds;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Gives `feed` the files of `folder`, and of the folders in it; how many there were.
    fn feed_all(feed: Feed, folder: &Path) -> usize {
        let Ok(entries) = fs::read_dir(folder) else { return 0 };
        let mut fed = 0;
        for path in entries.map(|entry| entry.unwrap().path()) {
            fed += match path.is_dir() {
                true => feed_all(feed, &path),
                false => {
                    feed(&fs::read(&path).unwrap());
                    1
                }
            };
        }
        fed
    }

    /// With `KILN_WRITE_SEEDS=1`: writes those that are made here.
    #[test]
    fn seeds_that_are_written_here_are_kept() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds");
        for (path, bytes) in seeds::all() {
            let path = seeds.join(path);
            if std::env::var_os("KILN_WRITE_SEEDS").is_some() {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            assert!(fs::read(&path).unwrap() == bytes, "{path:?}: KILN_WRITE_SEEDS=1 writes it");
        }
    }

    #[test]
    fn what_once_did_harm_does_none() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds");
        for (name, feed) in FEEDS {
            assert!(feed_all(*feed, &seeds.join(name)) > 0, "{name} has no inputs");
            feed(b"");
        }
    }
}
