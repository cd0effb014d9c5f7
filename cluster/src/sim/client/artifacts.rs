//! The artifacts that clients make: what a name stands for.
//!
//! Invariant: of a name, the same key, on whatever member.

use kiln_proto::{
    ArtifactKey, Component, Components, Digest, FileEntry, Fingerprint, KeyField, Manifest,
    PieceRef, Target, claimed_components, value,
};

/// Of a name, `v...` is a key that may be overwritten, any other one that is compiled.
fn components(name: &str) -> Components {
    if name.starts_with('v') {
        return value::components("", name.as_bytes());
    }
    let graph = Component::new("graph", vec![KeyField::new("name", name)]);
    let claims = claimed_components(&compiler(), &Target::cubin(90), "");
    Components::new([graph].into_iter().chain(claims).collect())
}

pub(super) fn compiler() -> Fingerprint {
    Fingerprint::new("cuda", [("nvrtc", "13.0")])
}

pub(in crate::sim) fn key_of(name: &str) -> ArtifactKey {
    components(name).key()
}

pub(super) fn manifest(name: &str, digest: Digest, pieces: Vec<PieceRef>) -> Manifest {
    if name.starts_with('v') {
        return value::manifest("", name.as_bytes(), digest, 8, 1.0);
    }
    let components = components(name);
    Manifest {
        key: components.key(),
        namespace: String::new(),
        components,
        fingerprint: compiler(),
        target: Target::cubin(90),
        files: vec![FileEntry { path: "module.cubin".into(), offset: 0, size: 8, digest }],
        pack_digest: digest,
        pack_size: 8,
        producer: 0,
        compile_seconds: 1.5,
        created_unix_ms: 1,
        label: name.into(),
        pieces,
        check: None,
    }
}
