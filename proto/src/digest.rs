//! Names of bytes: [`Digest`] and [`ArtifactKey`].
//!
//! Invariant: 32 bytes, shown as 64 lower-case hex digits, everywhere.

use std::{fmt, str::FromStr};

/// An incremental blake3 hash.
pub type Hasher = blake3::Hasher;

/// The text is not 64 lower-case hex digits, or the bytes are not 32.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a 64-digit lower-case hex digest: {0:?}")]
pub struct ParseDigestError(pub String);

macro_rules! name_of_32_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
        )]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps the 32 bytes of a hash.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first eight digits, for people.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseDigestError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let refused = || ParseDigestError(text.chars().take(80).collect());
                if text.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(refused());
                }
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| refused())?;
                Ok(Self(bytes))
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = ParseDigestError;

            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                bytes
                    .try_into()
                    .map(Self)
                    .map_err(|_| ParseDigestError(format!("{} bytes", bytes.len())))
            }
        }
    };
}

name_of_32_bytes! {
    /// blake3 of some bytes.
    Digest
}

name_of_32_bytes! {
    /// blake3 of everything that decides a compiler's output: see [`crate::Components::key`].
    ArtifactKey
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}
