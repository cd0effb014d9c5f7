//! The names of objects.
//!
//! Invariant: a name says which bytes the object must have and in which
//! publication they were written. A generation that ended never becomes current
//! again, so deleting its object is safe however late that happens.

use kiln_proto::Digest;
use object_store::path::Path;

/// A pack of one generation: `packs/ab/<digest>` for generation 0, which older
/// versions wrote, else `packs/ab/<digest>.<generation, 16 hex digits>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Its bytes.
    pub pack: Digest,
    /// Fixed by the command that began its publication.
    pub generation: u64,
}

impl ObjectName {
    /// Where it lies below `prefix`.
    pub(super) fn path(&self, prefix: &Path) -> Path {
        let digest = self.pack.to_string();
        let name = match self.generation {
            0 => digest.clone(),
            generation => format!("{digest}.{generation:016x}"),
        };
        prefix.clone().join("packs").join(&digest[..2]).join(name.as_str())
    }

    /// The name of a listed object; `None`: it is no pack.
    pub(super) fn parse(file: &str) -> Option<Self> {
        let (digest, generation) = match file.split_once('.') {
            None => (file, 0),
            Some((digest, hex)) if hex.len() == 16 => {
                (digest, u64::from_str_radix(hex, 16).ok().filter(|g| *g != 0)?)
            }
            Some(_) => return None,
        };
        Some(Self { pack: digest.parse().ok()?, generation })
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.pack, self.generation)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_as_they_were_written() {
        let (pack, prefix) = (Digest::of(b"x"), Path::from("some/prefix"));
        let hex = pack.to_string();
        for (generation, file) in [(0, hex.clone()), (0x1f, format!("{hex}.000000000000001f"))] {
            let name = ObjectName { pack, generation };
            let path = name.path(&prefix);
            assert_eq!(path.as_ref(), format!("some/prefix/packs/{}/{file}", &hex[..2]));
            assert_eq!(ObjectName::parse(path.filename().unwrap()), Some(name));
        }
        for other in ["", "x", &format!("{hex}.1f"), &format!("{hex}.0000000000000000"), ".kiln"] {
            assert_eq!(ObjectName::parse(other), None, "{other}");
        }
    }
}
