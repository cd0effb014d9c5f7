//! The token with which this client says who it is.
//!
//! Invariant: a token is in no argument, where every user of the machine would see it, and
//! in no output; it goes in plain text to this machine alone, unless that is asked for.

use std::{
    io::IsTerminal,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tonic::metadata::{Ascii, MetadataValue};
use url::Url;

use super::CliError;

/// The variable that has a token itself.
const VARIABLE: &str = "KILN_TOKEN";

/// Who asks.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct CredentialArgs {
    /// File with this client's token (kiln token create), where the cluster wants to know who
    /// asks; KILN_TOKEN may have the token itself.
    #[arg(long, value_name = "FILE", env = "KILN_TOKEN_FILE", global = true)]
    token_file: Option<PathBuf>,
    /// Send the token in plain text to another machine too: whoever is on the way can read it.
    #[arg(
        long,
        env = "KILN_INSECURE_TOKEN",
        global = true,
        hide_short_help = true,
        value_parser = clap::builder::BoolishValueParser::new(),
        num_args = 0..=1,
        default_missing_value = "true",
        default_value = "false"
    )]
    insecure_token: bool,
}

impl CredentialArgs {
    /// As the environment says, for who was given no arguments.
    pub(super) fn from_env() -> Self {
        let token_file = std::env::var_os("KILN_TOKEN_FILE").filter(|name| !name.is_empty());
        Self { token_file: token_file.map(PathBuf::from), insecure_token: false }
    }

    /// The token, if there is one: that of the file, else that of the environment.
    pub(crate) fn secret(&self) -> Result<Option<String>, CliError> {
        let text = match self.token_file.as_ref().filter(|file| !file.as_os_str().is_empty()) {
            Some(file) => {
                if is_open(file) && std::io::stderr().is_terminal() {
                    eprintln!(
                        "every user of this machine can read the token in {}: chmod 600",
                        file.display()
                    );
                }
                std::fs::read_to_string(file).map_err(|e| {
                    CliError::Usage(format!("the token file {}: {e}", file.display()))
                })?
            }
            None => match std::env::var(VARIABLE) {
                Ok(text) => text,
                Err(_) => return Ok(None),
            },
        };
        match text.trim() {
            "" if self.token_file.is_none() => Ok(None),
            text if kiln::access::Secret::read(text).is_some()
                || kiln::access::oidc::is_one(text) =>
            {
                Ok(Some(text.to_owned()))
            }
            // Not repeated: it may be another secret.
            _ => Err(CliError::Usage(format!(
                "what {} has is no token: a token is kiln_ID_SECRET, as kiln token create printed it, or one \
                 of an issuer that the cluster believes (JWT)",
                self.token_file
                    .as_ref()
                    .map_or(VARIABLE.to_owned(), |file| file.display().to_string())
            ))),
        }
    }

    /// What goes along with calls to `endpoint`; nothing where there is no token.
    pub(super) fn header(&self, endpoint: &Url) -> Result<Option<MetadataValue<Ascii>>, CliError> {
        let Some(secret) = self.secret()? else { return Ok(None) };
        if !(self.insecure_token || is_private(endpoint)) {
            return Err(CliError::Usage(format!(
                "the token would go to {endpoint} in plain text: name the node by https:// with --ca, \
                 or say --insecure-token"
            )));
        }
        let mut value: MetadataValue<Ascii> = format!("Bearer {secret}")
            .parse()
            .map_err(|_| CliError::Usage("the token is no header's value".into()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// Whether any user of this machine can read it.
fn is_open(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|found| found.permissions().mode() & 0o004 != 0)
}

/// Whether nobody on the way can read what goes there.
fn is_private(endpoint: &Url) -> bool {
    if matches!(endpoint.scheme(), "https" | "unix") {
        return true;
    }
    let host = endpoint.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_all_can_read_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "").unwrap();
        for (mode, open) in [(0o600, false), (0o640, false), (0o644, true)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_open(&file), open, "{mode:o}");
        }
    }

    #[derive(clap::Parser)]
    struct Asked {
        #[command(flatten)]
        credential: CredentialArgs,
    }

    /// `python/tests/test_config.py` has the same table.
    #[test]
    fn only_a_yes_sends_a_token_in_plain_text() {
        let said = |word: &str| {
            let asked = <Asked as clap::Parser>::try_parse_from([
                "kiln".to_owned(),
                format!("--insecure-token={word}"),
            ]);
            asked.unwrap().credential.insecure_token
        };
        for word in ["1", "true", "TRUE", "yes", "Yes", "on", "y", "t"] {
            assert!(said(word), "{word}");
        }
        for word in ["0", "false", "False", "FALSE", "no", "off", "OFF", "n", "f"] {
            assert!(!said(word), "{word}");
        }
    }

    #[test]
    fn a_token_goes_in_plain_text_to_this_machine_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (id, secret) = kiln::access::Secret::mint().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, format!("{}\n", secret.token(id))).unwrap();
        let args = CredentialArgs { token_file: Some(file.clone()), insecure_token: false };
        let sent = |args: &CredentialArgs, to: &str| args.header(&to.parse().unwrap());
        for private in
            ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://a:1", "unix:/a"]
        {
            assert!(sent(&args, private).unwrap().is_some(), "{private}");
        }
        for open in ["http://10.0.0.1:1", "http://localhost.evil:1", "http://127.0.0.1.evil:1"] {
            let refused = sent(&args, open).unwrap_err();
            assert!(matches!(&refused, CliError::Usage(why) if why.contains("plain text")));
            assert!(!refused.to_string().contains(&secret.token(id)[22..]), "{refused}");
        }
        let asked_for = CredentialArgs { insecure_token: true, ..args };
        let value = sent(&asked_for, "http://10.0.0.1:1").unwrap().unwrap();
        assert!(!format!("{value:?}").contains("kiln_"), "it would be in logs");

        std::fs::write(&file, "a password of something else").unwrap();
        let refused = sent(&asked_for, "https://a:1").unwrap_err().to_string();
        assert!(refused.contains("no token") && !refused.contains("password"), "{refused}");
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(sent(&asked_for, "https://a:1"), Err(CliError::Usage(_))));
    }
}
