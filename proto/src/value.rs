//! What other tools store under keys of their own: a Redis SET, a cache entry
//! of PyTorch, a JIT cache folder.
//!
//! Invariant: such a key has a family of its own as its fingerprint's compiler,
//! so it never is the key of something that Kiln compiled, and it alone may be
//! overwritten.

use crate::{
    ArtifactKey, Component, Components, Digest, FileEntry, Fingerprint, KeyField, Manifest, Target,
    component,
};

/// The family of single values under a tool's own name.
pub const FAMILY: &str = "value";
/// The family of JIT cache folders.
pub const FOLDER_FAMILY: &str = "folder";
/// The family of requests that artifacts were compiled of.
pub const REQUEST_FAMILY: &str = "request";
/// The families whose keys may be overwritten.
pub const REPLACEABLE: [&str; 3] = [FAMILY, FOLDER_FAMILY, REQUEST_FAMILY];
/// The one file of a value's artifact.
pub const FILE: &str = "value";

/// The components of the value called `name` in `namespace`.
pub fn components(namespace: &str, name: &[u8]) -> Components {
    let field = |name, value: &str| vec![KeyField::new(name, value)];
    Components::new(vec![
        Component::new(component::GRAPH, field("key", &shown(name))),
        Component::new(component::FINGERPRINT, field("compiler", FAMILY)),
        Component::new(component::NAMESPACE, field("namespace", namespace)),
    ])
}

/// The components of the request that the artifact of `key` was compiled of.
pub fn request_components(namespace: &str, key: &ArtifactKey) -> Components {
    let field = |name, value: &str| vec![KeyField::new(name, value)];
    Components::new(vec![
        Component::new(component::GRAPH, field("of", &key.to_string())),
        Component::new(component::FINGERPRINT, field("compiler", REQUEST_FAMILY)),
        Component::new(component::NAMESPACE, field("namespace", namespace)),
    ])
}

/// `name` as text: itself where it is printable, else `hex:` and its digits.
/// [`name_of`] reads it back.
pub fn shown(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) if !text.starts_with("hex:") && !text.chars().any(char::is_control) => text.into(),
        _ => format!("hex:{}", hex::encode(name)),
    }
}

/// The name behind its shown form.
pub fn name_of(shown: &str) -> Vec<u8> {
    let digits = shown.strip_prefix("hex:").and_then(|digits| hex::decode(digits).ok());
    digits.unwrap_or_else(|| shown.as_bytes().to_vec())
}

/// The unsigned manifest of `bytes` bytes with `digest` under `name`; `seconds`
/// is what a hit saves, as far as is known.
pub fn manifest(
    namespace: &str,
    name: &[u8],
    digest: Digest,
    bytes: u64,
    seconds: f64,
) -> Manifest {
    let components = components(namespace, name);
    Manifest {
        key: components.key(),
        namespace: namespace.into(),
        components,
        fingerprint: Fingerprint::new(FAMILY, [("", ""); 0]),
        target: Target::any(),
        files: vec![FileEntry { path: FILE.into(), offset: 0, size: bytes, digest }],
        pack_digest: digest,
        pack_size: bytes,
        producer: 0,
        compile_seconds: seconds,
        created_unix_ms: 0,
        label: shown(name),
        pieces: Vec::new(),
        check: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_and_read_back() {
        let names: [&[u8]; 6] = [b"a", b"\0a", b"hex:61", b"a\n", b"", "ü".as_bytes()];
        let mut keys: Vec<_> = names.iter().map(|name| components("t", name).key()).collect();
        for name in names {
            assert_eq!(name_of(&shown(name)), name);
        }
        keys.push(components("u", b"a").key());
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), names.len() + 1);
    }

    #[test]
    fn only_keys_of_other_tools_are_replaceable() {
        let value = manifest("t", b"a", Digest::of(b"x"), 1, 0.0);
        assert!(value.replaceable());
        value.validate().unwrap();
        // What a manifest says beside its key changes nothing.
        let mut claims = value;
        claims.components = Components::new(vec![Component::new(
            component::FINGERPRINT,
            vec![KeyField::new("compiler", "cuda")],
        )]);
        assert!(!claims.replaceable());
    }

    #[test]
    fn golden_keys() {
        // Other languages compute keys too: tests/fixtures/keys.json has the same.
        let golden = include_str!("../../tests/fixtures/keys.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        for case in golden["values"].as_array().unwrap() {
            let text = |field: &str| case[field].as_str().unwrap();
            let name = hex::decode(text("name_hex")).unwrap();
            assert_eq!(components(text("namespace"), &name).key().to_string(), text("key"));
        }
    }
}
