//! Keys of the object store from a profile of the AWS shared credentials file.
//!
//! Invariant: a secret is read when a node starts and is in no configuration:
//! what `--print-config` shows can be passed on.

use std::{collections::BTreeMap, path::PathBuf};

use super::{ConfigError, ObjectConfig};

/// An access key with its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The public half.
    pub access_key_id: String,
    /// The other.
    pub secret_access_key: String,
}

/// Without the secret: settings end up in logs.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

impl ObjectConfig {
    /// The profile's keys; none without a profile: then the environment's,
    /// the container's or the instance's are used.
    pub fn credentials(&self) -> Result<Option<Credentials>, ConfigError> {
        let Some(profile) = &self.profile else { return Ok(None) };
        let path = credentials_file()?;
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        read(&text, profile)
            .map(Some)
            .map_err(|why| ConfigError::Form(format!("object.profile: {}: {why}", path.display())))
    }
}

fn credentials_file() -> Result<PathBuf, ConfigError> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    variable("AWS_SHARED_CREDENTIALS_FILE")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".aws/credentials")))
        .ok_or_else(|| {
            ConfigError::Form("object.profile: set AWS_SHARED_CREDENTIALS_FILE or HOME".into())
        })
}

/// Reads `[profile]` of an INI file.
fn read(text: &str, profile: &str) -> Result<Credentials, String> {
    let mut section = None;
    let mut found: Option<BTreeMap<&str, &str>> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = Some(name.trim());
            if section == Some(profile) {
                found.get_or_insert_default();
            }
        } else if line.starts_with(['#', ';']) || section != Some(profile) {
        } else if let (Some((key, value)), Some(found)) = (line.split_once('='), &mut found) {
            found.insert(key.trim(), value.trim());
        }
    }
    let found = found.ok_or_else(|| format!("there is no profile [{profile}]"))?;
    if found.contains_key("aws_session_token") {
        return Err(format!(
            "[{profile}] has a session token, which will expire; give it by AWS_SESSION_TOKEN"
        ));
    }
    let value = |key: &str| {
        let value = found.get(key).filter(|value| !value.is_empty());
        value.map(|value| (*value).to_owned()).ok_or_else(|| format!("[{profile}] has no {key}"))
    };
    Ok(Credentials {
        access_key_id: value("aws_access_key_id")?,
        secret_access_key: value("aws_secret_access_key")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# keys\n[default]\naws_access_key_id = A\naws_secret_access_key=x=y\n\n\
                        [ci]\naws_access_key_id=B\n; none\n[temporary]\naws_session_token=t\n";

    #[test]
    fn a_profile_has_its_own_keys() {
        let found = read(FILE, "default").unwrap();
        assert_eq!((&*found.access_key_id, &*found.secret_access_key), ("A", "x=y"));
        assert!(!format!("{found:?}").contains("x=y"), "no secret in a log");
    }

    #[test]
    fn what_is_missing_is_named() {
        for (profile, told) in [
            ("prod", "no profile [prod]"),
            ("ci", "no aws_secret_access_key"),
            ("temporary", "AWS_SESSION_TOKEN"),
        ] {
            let refused = read(FILE, profile).unwrap_err();
            assert!(refused.contains(told), "{refused}");
        }
    }
}
