//! The form of a token: `kiln_ID_SECRET`.
//!
//! Invariant: a secret is never printed but where it is made, and is compared with what is
//! kept of it in constant time.

use std::fmt;

/// What a token begins with.
const PREFIX: &str = "kiln_";
/// Hexadecimal digits of an id, and of a secret.
const DIGITS: (usize, usize) = (16, 64);

/// The part of a token that only its bearer has.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// A new one, and the id of its token.
    pub fn mint() -> Result<(u64, Self), getrandom::Error> {
        let (mut id, mut secret) = ([0; 8], [0; 32]);
        getrandom::fill(&mut id)?;
        getrandom::fill(&mut secret)?;
        Ok((u64::from_be_bytes(id), Self(secret)))
    }

    /// The id and the secret of a token.
    pub fn read(token: &str) -> Option<(u64, Self)> {
        let (id, secret) = token.strip_prefix(PREFIX)?.split_once('_')?;
        let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if (id.len(), secret.len()) != DIGITS || !id.bytes().chain(secret.bytes()).all(digits) {
            return None;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(secret, &mut bytes).ok()?;
        Some((u64::from_str_radix(id, 16).ok()?, Self(bytes)))
    }

    /// What is kept of it.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.0).as_bytes()
    }

    /// Whether `digest` is of it.
    pub fn is_of(&self, digest: &[u8; 32]) -> bool {
        // The library compares hashes in constant time.
        blake3::hash(&self.0) == blake3::Hash::from_bytes(*digest)
    }

    /// The whole token, to be shown once.
    pub fn token(&self, id: u64) -> String {
        format!("{PREFIX}{id:016x}_{}", hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_written_and_no_other_form_is() {
        let (id, secret) = Secret::mint().unwrap();
        let text = secret.token(id);
        let (read, of) = Secret::read(&text).unwrap();
        assert_eq!(read, id);
        assert!(of.is_of(&secret.digest()) && !of.is_of(&[0; 32]));
        assert!(!format!("{of:?}").contains(&text[22..30]));
        let upper = text.to_uppercase();
        let bad = ["", "kiln_", "kiln__", &text[..text.len() - 1], &upper, &format!("{text}0")];
        for bad in bad.into_iter().chain([&*text.replace("kiln_", "kiln-"), "kiln_+0_00"]) {
            assert!(Secret::read(bad).is_none(), "{bad}");
        }
        let (other, _) = Secret::mint().unwrap();
        assert_ne!(id, other);
    }
}
