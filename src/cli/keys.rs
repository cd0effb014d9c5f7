//! Keys as people write them: whole, or by their first digits.

use kiln_proto::{ArtifactKey, FailureKind, pb};

use super::{CliError, client::Client};

/// Fewer digits are more likely a slip than a key.
const FEWEST_DIGITS: usize = 4;

/// A whole key or the first digits of one, lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyArg {
    Whole(ArtifactKey),
    Prefix(String),
}

impl std::str::FromStr for KeyArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match text.parse() {
            Ok(key) => Ok(Self::Whole(key)),
            Err(_) if hex && (FEWEST_DIGITS..64).contains(&text.len()) => {
                Ok(Self::Prefix(text.to_owned()))
            }
            Err(_) => Err(format!(
                "a key is 64 lower-case hex digits, or the first {FEWEST_DIGITS} or more of them"
            )),
        }
    }
}

impl KeyArg {
    /// The one key that is meant.
    pub(crate) async fn resolve(
        &self,
        client: &mut Client,
        namespace: &str,
    ) -> Result<ArtifactKey, CliError> {
        let prefix = match self {
            Self::Whole(key) => return Ok(*key),
            Self::Prefix(prefix) => prefix,
        };
        let request = pb::ListRequest {
            prefix: prefix.clone(),
            namespace: namespace.to_owned(),
            limit: 2,
            ..Default::default()
        };
        let answer = client.list(request).await.map_err(|e| CliError::from_status(&e))?;
        match answer.into_inner().entries.as_slice() {
            [] => Err(CliError::NotFound(format!(
                "no key starts with {prefix}; of one that was removed give all digits"
            ))),
            [entry] => {
                let signed = entry.manifest.clone().unwrap_or_default();
                let manifest = super::fetch::manifest(signed)?;
                super::belief::is_of(&manifest, namespace)?;
                match manifest.key.to_string().starts_with(prefix) {
                    true => Ok(manifest.key),
                    false => Err(CliError::failed(
                        FailureKind::Corrupt,
                        format!("the node sent key {} for {prefix}", manifest.key),
                    )),
                }
            }
            _ => Err(CliError::Usage(format!(
                "several keys start with {prefix}: give more digits; kiln ls --prefix {prefix}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_or_a_prefix() {
        let whole = "ab".repeat(32);
        assert!(matches!(whole.parse(), Ok(KeyArg::Whole(_))));
        assert_eq!("00ff".parse(), Ok(KeyArg::Prefix("00ff".into())));
        for bad in ["", "abc", "ABCD", "xyz0", &"ab".repeat(33)] {
            assert!(bad.parse::<KeyArg>().is_err(), "{bad}");
        }
    }
}
