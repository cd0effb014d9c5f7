//! Records and messages to bytes and back: postcard, with byte strings copied whole.
//!
//! Invariant: what was encoded decodes to an equal value; anything else is an
//! error that names the record, never a default.

use serde::{Serialize, de::DeserializeOwned};

/// Bytes that are not the record they should be.
#[derive(Debug, Clone, thiserror::Error)]
#[error("a stored or received {what} cannot be read: {why}")]
pub(crate) struct Malformed {
    what: &'static str,
    why: String,
}

/// Encodes `value`.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Malformed> {
    postcard::to_stdvec(value)
        .map_err(|e| Malformed { what: short_name::<T>(), why: e.to_string() })
}

/// Decodes one `T` that fills `bytes` exactly.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    let malformed = |why: String| Malformed { what: short_name::<T>(), why };
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(malformed(format!("{} bytes too many", rest.len()))),
        Err(e) => Err(malformed(e.to_string())),
    }
}

/// Whether the key of a `T` has `length` bytes.
pub(crate) fn exact_length<T>(key: &[u8], length: usize) -> Result<(), Malformed> {
    if key.len() == length {
        return Ok(());
    }
    Err(Malformed { what: short_name::<T>(), why: format!("a key of {} bytes", key.len()) })
}

fn short_name<T>() -> &'static str {
    let full = std::any::type_name::<T>();
    full.rsplit("::").next().unwrap_or(full)
}

/// A signed manifest whose byte strings are copied whole: serde would visit a
/// `Vec<u8>` byte by byte, on the path of every lookup.
pub(crate) mod manifest {
    use std::sync::Arc;

    use kiln_proto::{NodeId, SignedManifest};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize)]
    struct Borrowed<'a>(
        #[serde(with = "super::byte_string")] &'a [u8],
        NodeId,
        #[serde(with = "super::byte_string")] &'a [u8],
    );

    #[derive(Deserialize)]
    struct Owned(
        #[serde(with = "super::byte_string")] Vec<u8>,
        NodeId,
        #[serde(with = "super::byte_string")] Vec<u8>,
    );

    pub(crate) fn serialize<S: Serializer>(
        manifest: &Arc<SignedManifest>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        Borrowed(&manifest.bytes, manifest.signer, &manifest.signature).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<SignedManifest>, D::Error> {
        let Owned(bytes, signer, signature) = Owned::deserialize(deserializer)?;
        Ok(Arc::new(SignedManifest { bytes, signer, signature }))
    }
}

/// Byte strings as one copy.
pub(crate) mod byte_string {
    use std::fmt;

    use serde::{Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer, T: AsRef<[u8]>>(
        bytes: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes.as_ref())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        struct Copy;

        impl de::Visitor<'_> for Copy {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Ok(bytes.to_vec())
            }
        }

        deserializer.deserialize_bytes(Copy)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bytes_left_over_are_an_error() {
        let mut bytes = encode(&(7u64, "x")).unwrap();
        assert_eq!(decode::<(u64, String)>(&bytes).unwrap(), (7, "x".to_owned()));
        bytes.push(0);
        assert!(decode::<(u64, String)>(&bytes).is_err());
        assert!(decode::<(u64, String)>(&bytes[..1]).is_err());
    }
}
