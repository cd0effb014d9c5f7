//! The key: one canonical, length-prefixed, versioned encoding of components.
//!
//! Invariant: a field's `value` is exactly what is hashed, so whoever holds a
//! manifest can recompute its key, and `differences` sees all that decided it.
//! Paths, hosts, ports, process ids and environment never enter a key.

use crate::{ArtifactKey, Digest};

/// Names of the components, in the order in which they are hashed.
pub mod component {
    /// Structure and constants alone.
    pub const GRAPH: &str = "graph";
    /// What each input looks like.
    pub const INPUTS: &str = "inputs";
    /// The merged compile options.
    pub const OPTIONS: &str = "options";
    /// Compiler and toolchain versions.
    pub const FINGERPRINT: &str = "fingerprint";
    /// What the output runs on.
    pub const TARGET: &str = "target";
    /// The tenant.
    pub const NAMESPACE: &str = "namespace";
}

/// Values longer than this are hashed first and stand in the key as their digest.
const LONGEST_VALUE: usize = 96;
/// How a key is hashed: another encoding gives other keys.
pub const KEY_FORMAT: &str = "kiln-key-v1";

/// One fact that decides the output.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KeyField {
    /// Dotted name within the component: `0.dtype`.
    pub name: String,
    /// Readable value, or `blake3:<hex>` of a long one.
    pub value: String,
    /// Follows from other fields (generated source, say): hashed, but named as
    /// a difference only where no other field differs.
    pub derived: bool,
}

/// One named part of a key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Component {
    /// See [`component`].
    pub name: String,
    /// Digest of the encoded fields.
    pub digest: Digest,
    /// What decided it, in hashing order.
    pub fields: Vec<KeyField>,
}

/// A field in which two keys differ. Empty text: the field is absent there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Difference {
    /// The component's name.
    pub component: String,
    /// The field's name.
    pub field: String,
    /// The value of the key asked about.
    pub ours: String,
    /// The value of the other.
    pub theirs: String,
}

/// All components of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Components(Vec<Component>);

impl Component {
    /// A component of `fields` under `name`.
    pub fn new(name: impl Into<String>, fields: Vec<KeyField>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for field in &fields {
            write(&mut hasher, field.name.as_bytes());
            write(&mut hasher, field.value.as_bytes());
        }
        Self { name: name.into(), digest: hasher.finalize().into(), fields }
    }
}

impl KeyField {
    /// A field; a long value is replaced by its digest.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        let mut value = value.into();
        if value.len() > LONGEST_VALUE {
            value = format!("blake3:{}", Digest::of(value.as_bytes()));
        }
        Self { name: name.into(), value, derived: false }
    }

    /// A field whose value is the digest of `bytes`.
    pub fn of_bytes(name: impl Into<String>, bytes: &[u8]) -> Self {
        Self::new(name, format!("blake3:{}", Digest::of(bytes)))
    }

    /// Marks the field as following from others.
    pub fn derived(mut self) -> Self {
        self.derived = true;
        self
    }
}

impl Components {
    /// Collects components; the order given is the order hashed.
    pub fn new(components: Vec<Component>) -> Self {
        Self(components)
    }

    /// The components in hashing order.
    pub fn iter(&self) -> impl Iterator<Item = &Component> {
        self.0.iter()
    }

    /// The key that these components decide.
    pub fn key(&self) -> ArtifactKey {
        let mut hasher = blake3::Hasher::new();
        write(&mut hasher, KEY_FORMAT.as_bytes());
        for component in &self.0 {
            write(&mut hasher, component.name.as_bytes());
            write(&mut hasher, component.digest.as_bytes());
        }
        ArtifactKey::from_bytes(*hasher.finalize().as_bytes())
    }

    /// Fields in which `self` differs from `other`, primary ones if there are any.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let mut found: Vec<(Difference, bool)> = Vec::new();
        let names = self.0.iter().chain(&other.0).map(|c| c.name.as_str());
        let mut seen = std::collections::BTreeSet::new();
        for name in names.filter(|name| seen.insert(name.to_string())) {
            let (ours, theirs) = (self.fields(name), other.fields(name));
            let mut fields: Vec<&str> = Vec::new();
            for field in ours.iter().chain(theirs) {
                if !fields.contains(&field.name.as_str()) {
                    fields.push(&field.name);
                }
            }
            for field in fields {
                let pick = |fields: &[KeyField]| fields.iter().find(|f| f.name == field).cloned();
                let (a, b) = (pick(ours), pick(theirs));
                if a.as_ref().map(|f| &f.value) == b.as_ref().map(|f| &f.value) {
                    continue;
                }
                let derived = a.iter().chain(&b).all(|f| f.derived);
                let value = |f: Option<KeyField>| f.map(|f| f.value).unwrap_or_default();
                let difference = Difference {
                    component: name.to_owned(),
                    field: field.to_owned(),
                    ours: value(a),
                    theirs: value(b),
                };
                found.push((difference, derived));
            }
        }
        let only_derived = found.iter().all(|(_, derived)| *derived);
        found.into_iter().filter(|(_, derived)| only_derived || !derived).map(|(d, _)| d).collect()
    }

    fn fields(&self, component: &str) -> &[KeyField] {
        self.0.iter().find(|c| c.name == component).map_or(&[], |c| c.fields.as_slice())
    }
}

fn write(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_be_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn components(driver: &str, source: &str) -> Components {
        Components::new(vec![
            Component::new(component::GRAPH, vec![KeyField::new("structure", "g")]),
            Component::new(
                component::FINGERPRINT,
                vec![
                    KeyField::new("driver", driver),
                    KeyField::of_bytes("generated", source.as_bytes()).derived(),
                ],
            ),
        ])
    }

    #[test]
    fn names_the_one_field_that_differs() {
        let (a, b) = (components("580.65", "x"), components("580.82", "y"));
        assert_ne!(a.key(), b.key());
        let found = a.differences(&b);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].field.as_str(), found[0].theirs.as_str()), ("driver", "580.82"));
    }

    #[test]
    fn names_a_derived_field_where_nothing_else_differs() {
        let found = components("1", "x").differences(&components("1", "y"));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].field, "generated");
    }

    #[test]
    fn fields_cannot_run_into_each_other() {
        let one = Component::new("c", vec![KeyField::new("ab", "c")]);
        let other = Component::new("c", vec![KeyField::new("a", "bc")]);
        assert_ne!(one.digest, other.digest);
    }
}
