#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::symlink};

use kiln_proto::{Component, Components, Fingerprint, KeyField, Target, claimed_components};

use super::*;

fn files(list: &[(&str, &str)]) -> Vec<(String, Bytes)> {
    list.iter().map(|(path, bytes)| ((*path).into(), Bytes::from(bytes.to_string()))).collect()
}

fn artifact(list: &[(&str, &str)]) -> (Manifest, Blob) {
    let (blob, entries) = pack(files(list)).unwrap();
    let (fingerprint, target) = (Fingerprint::new("cuda", [("nvrtc", "13.0")]), Target::cubin(90));
    let graph = Component::new("graph", vec![KeyField::of_bytes("structure", b"")]);
    let claims = claimed_components(&fingerprint, &target, "");
    let components = Components::new([graph].into_iter().chain(claims).collect());
    let manifest = Manifest {
        key: components.key(),
        namespace: String::new(),
        components,
        fingerprint,
        target,
        files: entries,
        pack_digest: blob.digest(),
        pack_size: blob.size(),
        producer: 1,
        compile_seconds: 1.0,
        created_unix_ms: 1,
        label: String::new(),
        pieces: Vec::new(),
        check: None,
    };
    manifest.validate().unwrap();
    (manifest, blob)
}

const FILES: [(&str, &str); 4] =
    [("plan.json", "{}"), ("b/c/kernels.cu", "__global__"), ("b/empty", ""), ("a.cubin", "ELF")];

/// Everything below `dir`, as sorted relative paths.
fn tree(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(tree(&entry.path()).iter().map(|below| format!("{name}/{below}")));
            found.push(format!("{name}/"));
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}

#[test]
fn a_pack_gives_its_files_back() {
    let (manifest, blob) = artifact(&FILES);
    for (path, bytes) in FILES {
        assert_eq!(file(&manifest, &blob, path).unwrap(), bytes.as_bytes());
    }
    verify_files(&manifest, &blob).unwrap();
    assert!(matches!(file(&manifest, &blob, "b"), Err(ArtifactError::NoSuchFile(_))));
}

#[test]
fn the_order_of_files_does_not_change_the_pack() {
    let (_, one) = artifact(&FILES);
    let mut reversed = FILES;
    reversed.reverse();
    let (_, other) = artifact(&reversed);
    assert_eq!(one.digest(), other.digest());
}

#[test]
fn impossible_packs_are_refused() {
    assert!(matches!(pack(Vec::new()), Err(ArtifactError::Files(0))));
    for bad in [
        vec![("../a", "")],
        vec![("/etc/passwd", "")],
        vec![("a", "1"), ("a", "2")],
        vec![("a", ""), ("a-b", ""), ("a/b", "")],
    ] {
        assert!(matches!(pack(files(&bad)), Err(ArtifactError::Path { .. })), "{bad:?}");
    }
    let many = (0..=MAX_FILES).map(|i| (i.to_string(), Bytes::new())).collect();
    assert!(matches!(pack(many), Err(ArtifactError::Files(_))));
}

#[test]
fn a_pack_that_was_altered_or_cut_is_refused() {
    let (manifest, blob) = artifact(&FILES);
    let mut altered = blob.to_vec();
    *altered.last_mut().unwrap() ^= 1;
    for wrong in [&altered[..], &blob[..blob.len() - 1]] {
        assert!(matches!(verify_files(&manifest, wrong), Err(ArtifactError::Corrupt(_))));
        let dir = tempfile::tempdir().unwrap();
        assert!(write_to(dir.path(), &manifest, wrong).is_err());
        assert!(tree(dir.path()).is_empty());
    }
}

#[test]
fn files_are_written_and_replaced_and_nothing_else_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("new/folder");
    let (manifest, blob) = artifact(&FILES);
    for _ in 0..2 {
        write_to(&below, &manifest, &blob).unwrap();
        let all = ["a.cubin", "b/", "b/c/", "b/c/kernels.cu", "b/empty", "plan.json"];
        assert_eq!(tree(&below), all);
    }
    assert_eq!(fs::read(below.join("b/c/kernels.cu")).unwrap(), b"__global__");
}

#[test]
fn links_are_never_followed() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let precious = elsewhere.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    let (manifest, blob) = artifact(&FILES);
    // In a folder's place a link is refused, and nothing appears.
    symlink(elsewhere.path(), dir.path().join("b")).unwrap();
    assert!(matches!(write_to(dir.path(), &manifest, &blob), Err(ArtifactError::Write { .. })));
    assert_eq!(tree(dir.path()), ["b"]);
    assert_eq!(tree(elsewhere.path()), ["precious"]);
    // In a file's place it is replaced.
    fs::remove_file(dir.path().join("b")).unwrap();
    symlink(&precious, dir.path().join("a.cubin")).unwrap();
    write_to(dir.path(), &manifest, &blob).unwrap();
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert_eq!(fs::read(dir.path().join("a.cubin")).unwrap(), b"ELF");
}

#[test]
fn a_manifest_that_escapes_is_refused_though_nobody_validated_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut manifest, blob) = artifact(&FILES);
    manifest.files[0].path = "../escaped".into();
    let refused = write_to(&dir.path().join("in"), &manifest, &blob).unwrap_err();
    assert!(matches!(refused, ArtifactError::Path { .. }));
    assert!(tree(dir.path()).is_empty());
}

#[test]
fn a_folder_in_a_files_place_leaves_no_staging_behind() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("plan.json")).unwrap();
    let (manifest, blob) = artifact(&FILES);
    assert!(matches!(write_to(dir.path(), &manifest, &blob), Err(ArtifactError::Write { .. })));
    assert!(!tree(dir.path()).iter().any(|path| path.starts_with(".kiln-")));
}

#[test]
fn files_that_are_there_stay_where_they_are_to_be_kept() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = tempfile::tempdir().unwrap();
    let (manifest, blob) = artifact(&FILES);
    fs::write(dir.path().join("plan.json"), "mine").unwrap();
    let attributes = |entry: &FileEntry| Attributes {
        mode: if entry.path == "a.cubin" { 0o4755 } else { 0o666 },
        modified: Some((1_700_000_000, 123_456_789)),
    };
    let placed = write_with(dir.path(), &manifest, &blob, Existing::Keep, attributes).unwrap();
    assert_eq!(placed, 3);
    assert_eq!(fs::read(dir.path().join("plan.json")).unwrap(), b"mine");
    let restored = fs::metadata(dir.path().join("a.cubin")).unwrap();
    assert_eq!((restored.mtime(), restored.mtime_nsec()), (1_700_000_000, 123_456_789));
    let mode = restored.permissions().mode() & 0o7777;
    assert_eq!(mode & 0o7700, 0o700, "executable, and never set-user-id: {mode:o}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing staged is left");
}
