//! What is believed of what others sign.
//!
//! Invariant: nothing here makes a node believe more than the signatures that it checks.

use ed25519_dalek::VerifyingKey;
use serde::{Deserialize, Serialize};

use super::Config;

/// What is believed of what others sign.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrustConfig {
    /// One in so many hits is compiled once more in the background, by the node that gives it
    /// out, where another node signed it and the compiler always gives the same bytes (cuda,
    /// native). What differs is removed from all nodes, with an alert. 1: each artifact, once
    /// a node; 0: none, for these compiles take time of the node's. Default: 0.
    pub spot_checks: u64,
    /// The public key in hexadecimal of the root without whose certificate (`kiln signer
    /// issue`) this node believes no signer, whatever the cluster says; two, separated by a
    /// comma, while one root follows another. Default: none: as the
    /// root that the cluster was given wants it, and without one every node is believed.
    pub root: Option<String>,
}

impl TrustConfig {
    /// The roots' keys.
    pub fn roots(&self) -> Result<Vec<VerifyingKey>, String> {
        let Some(text) = &self.root else { return Ok(Vec::new()) };
        let key = |text: &str| {
            let bytes = hex::decode(text.trim()).ok()?;
            VerifyingKey::from_bytes(&<[u8; 32]>::try_from(bytes).ok()?).ok()
        };
        let wrong = || {
            format!(
                "trust.root: {text:?} is no ed25519 public key in hexadecimal: give what kiln \
                 signer root init said"
            )
        };
        text.split(',').map(|text| key(text).ok_or_else(wrong)).collect()
    }
}

impl Config {
    /// What is wrong with it.
    pub(super) fn check_trust(&self, wrong: &mut Vec<String>) {
        wrong.extend(self.trust.roots().err());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_a_public_key_or_a_mistake() {
        let of = |root: &str| TrustConfig { root: Some(root.into()), ..TrustConfig::default() };
        let key = ed25519_dalek::SigningKey::from_bytes(&[1; 32]).verifying_key();
        let text = hex::encode(key.as_bytes());
        assert_eq!(of(&text).roots(), Ok(vec![key]));
        assert_eq!(of(&format!("{text}, {text}")).roots(), Ok(vec![key, key]));
        assert_eq!(TrustConfig::default().roots(), Ok(Vec::new()));
        for bad in ["", "zz", &format!("{text},"), "abcd", &"0".repeat(63)] {
            let config = Config { trust: of(bad), ..Config::default() };
            let mut wrong = Vec::new();
            config.check_trust(&mut wrong);
            assert!(wrong.len() == 1 && wrong[0].contains("trust.root"), "{bad:?}: {wrong:?}");
        }
    }
}
