//! `kiln token`: who may ask a cluster for what.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use kiln_proto::pb;
use serde::Serialize;

use super::{CliError, ClientArgs, confirm::YesArgs, output};

/// What a join token for a number of nodes lives where nothing else is said.
const JOIN_LIFE: Duration = Duration::from_secs(3600);

const EXAMPLES: &str = "\
Examples:
  kiln token create --role admin --endpoint unix:/run/kiln/kiln.sock --out admin.token
  kiln token create --role write --namespace team-a --name ci --expires 30d
  kiln token create --role join --out join.token
  kiln token create --role join --uses 0 --name fleet --out fleet.token
  kiln token list
  kiln token revoke 4f2a91c07be3d815

The first admin's token is made at the node's socket, by the user that runs the node.
A token is printed once: keep it in a file, and name that in KILN_TOKEN_FILE.";

/// Make tokens for clients and for nodes that join, show them, and end them.
///
/// Where access.required is set, a client says with a token who it is. A token has a role
/// and namespaces; one that is revoked is refused by every node at once. A new node joins
/// with one of role join (start.join_token_file), which opens nothing else.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a token, and print it: no node keeps it.
    Create {
        /// What its bearer may do; each role may do what those before it may, but join: with
        /// that one a new node joins the cluster, and nothing else.
        #[arg(long, value_enum)]
        role: RoleArg,
        /// A namespace that it is for, the beginning of some with * behind, or *; again for
        /// more. An admin's is *.
        #[arg(long = "namespace", value_name = "NAME")]
        namespaces: Vec<String>,
        /// For people: what it is for.
        #[arg(long, default_value = "")]
        name: String,
        /// Of role join: how many nodes it lets in, 1 if not given; 0: any number.
        #[arg(long, value_name = "N")]
        uses: Option<u32>,
        /// For how long it is good: 30d, 12h. Without: until it is revoked; one of role join
        /// for a number of nodes: an hour, and at most 7d.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        expires: Option<Duration>,
        /// Write the token to this new file, which others cannot read, and do not print it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Every token, without what would open anything.
    List,
    /// End a token for good, on every node.
    Revoke {
        /// Its id: the part of it between the first two _.
        #[arg(value_parser = id)]
        id: u64,
        #[command(flatten)]
        yes: YesArgs,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleArg {
    Read,
    Write,
    Admin,
    Join,
}

impl From<RoleArg> for pb::AccessRole {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Read => Self::Read,
            RoleArg::Write => Self::Write,
            RoleArg::Admin => Self::Admin,
            RoleArg::Join => Self::Join,
        }
    }
}

/// The name of a role, as it is written.
pub(super) fn role_name(role: pb::AccessRole) -> &'static str {
    match role {
        pb::AccessRole::Unspecified => "none",
        pb::AccessRole::Read => "read",
        pb::AccessRole::Write => "write",
        pb::AccessRole::Admin => "admin",
        pb::AccessRole::Join => "join",
    }
}

/// Not the error's own words: a whole token may stand where its id belongs.
fn id(text: &str) -> Result<u64, &'static str> {
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = u64::from_str_radix(text, 16).ok().filter(|_| digits);
    id.ok_or("an id has 16 hexadecimal digits, as kiln token list shows it")
}

#[derive(Debug, Serialize)]
struct TokenView {
    id: String,
    name: String,
    role: &'static str,
    namespaces: Vec<String>,
    /// Of role join: how many nodes it lets in, 0 for any number, and how many it let in.
    #[serde(skip_serializing_if = "Option::is_none")]
    uses: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<u32>,
    by: String,
    node: u64,
    at_unix_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_unix_ms: Option<u64>,
    /// good, expired, revoked or used (up).
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_by: Option<String>,
}

impl From<pb::TokenStatus> for TokenView {
    fn from(token: pb::TokenStatus) -> Self {
        let expires_unix_ms = Some(token.expires_unix_ms).filter(|end| *end != 0);
        let over = expires_unix_ms.is_some_and(|end| end <= kiln::clock::unix_ms());
        let joins = token.role() == pb::AccessRole::Join;
        let state = match (&token.revoked, over) {
            (Some(_), _) => "revoked",
            (None, true) => "expired",
            (None, false) if token.uses != 0 && token.used >= token.uses => "used",
            (None, false) => "good",
        };
        Self {
            id: format!("{:016x}", token.id),
            role: role_name(token.role()),
            name: token.name,
            namespaces: token.namespaces,
            uses: joins.then_some(token.uses),
            used: joins.then_some(token.used),
            by: token.by,
            node: token.node,
            at_unix_ms: token.at_unix_ms,
            expires_unix_ms,
            state,
            revoked_by: token.revoked.map(|end| end.by),
        }
    }
}

impl TokenArgs {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let refused = |status| CliError::from_status(&status);
        let json = self.client.json;
        match self.what {
            What::Create { role, mut namespaces, name, uses, expires, out } => {
                let role = pb::AccessRole::from(role);
                let joins = role == pb::AccessRole::Join;
                if uses.is_some() && !joins {
                    return Err(CliError::Usage("--uses is for --role join".into()));
                }
                if namespaces.is_empty() && !joins {
                    if role != pb::AccessRole::Admin {
                        return Err(CliError::Usage(
                            "name what it is for with --namespace; \"*\" is all".into(),
                        ));
                    }
                    namespaces.push("*".into());
                }
                let bounded = joins && uses != Some(0);
                let expires = expires.or(bounded.then_some(JOIN_LIFE));
                let lifetime_ms = match expires.map(|time| time.as_millis()) {
                    None => 0,
                    Some(0) => return Err(CliError::Usage("it would expire at once".into())),
                    Some(ms) => u64::try_from(ms).unwrap_or(u64::MAX),
                };
                let role = role.into();
                let request = pb::CreateTokenRequest { name, role, namespaces, lifetime_ms, uses };
                let mut client = self.client.endpoints.connect().await?;
                // Before there is a token that would be lost.
                let file = out.map(|path| private(&path).map(|file| (path, file))).transpose()?;
                let made = match client.create_token(request).await.map_err(refused) {
                    Ok(made) => made.into_inner(),
                    Err(error) => {
                        // Its own, and empty.
                        let _ = file.map(|(path, _)| std::fs::remove_file(path));
                        return Err(error);
                    }
                };
                let id = format!("{:016x}", made.id);
                if let Some((path, mut file)) = file {
                    let written = writeln!(file, "{}", made.token).and_then(|()| file.sync_all());
                    written.map_err(|e| {
                        CliError::Usage(format!(
                            "write {}: {e}; kiln token revoke {id}, for nobody has it",
                            path.display()
                        ))
                    })?;
                    return match json {
                        true => output::json(&serde_json::json!({ "id": id, "file": path })),
                        false => output::line(format_args!("{id} in {}", path.display())),
                    };
                }
                if json {
                    return output::json(&serde_json::json!({ "id": id, "token": made.token }));
                }
                output::line(format_args!("{}", made.token))?;
                eprintln!("it is shown this once: keep it in a file that others cannot read");
                Ok(())
            }
            What::List => {
                let mut client = self.client.endpoints.connect().await?;
                let answer = client.tokens(pb::TokensRequest {}).await.map_err(refused)?;
                let tokens: Vec<_> =
                    answer.into_inner().tokens.into_iter().map(TokenView::from).collect();
                if json {
                    return output::json(&tokens);
                }
                output::line(format_args!(
                    "{:<18}{:<7}{:<9}{:<24}{:<22}NAME",
                    "ID", "ROLE", "STATE", "NAMESPACES", "EXPIRES"
                ))?;
                for token in &tokens {
                    let expires = token.expires_unix_ms.map_or("-".to_owned(), date);
                    let namespaces = match (token.used, token.uses) {
                        (Some(used), Some(0)) => format!("let in {used}"),
                        (Some(used), Some(uses)) => format!("let in {used} of {uses}"),
                        _ => token.namespaces.join(","),
                    };
                    output::line(format_args!(
                        "{:<18}{:<7}{:<9}{namespaces:<24}{expires:<22}{}",
                        token.id, token.role, token.state, token.name
                    ))?;
                }
                Ok(())
            }
            What::Revoke { id, yes } => {
                yes.confirm(&format!("End the token {id:016x} for good?"))?;
                let mut client = self.client.endpoints.connect().await?;
                let request = pb::RevokeTokenRequest { id };
                let answer = client.revoke_token(request).await.map_err(refused)?;
                let changed = answer.into_inner().changed;
                let id = format!("{id:016x}");
                match (json, changed) {
                    (true, _) => {
                        output::json(&serde_json::json!({ "revoked": id, "changed": changed }))
                    }
                    (false, true) => output::line(format_args!("revoked the token {id}")),
                    (false, false) => output::line(format_args!("{id} was revoked before")),
                }
            }
        }
    }
}

/// A new file that nobody else reads.
fn private(path: &Path) -> Result<File, CliError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    opened.map_err(|e| CliError::Usage(format!("make {}: {e}", path.display())))
}

fn date(unix_ms: u64) -> String {
    let at = std::time::SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    // Beyond what a calendar has.
    at.filter(|_| unix_ms < 253_402_300_800_000)
        .map_or("never".into(), |at| humantime::format_rfc3339_seconds(at).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_and_a_token_in_its_place_is_not_repeated() {
        assert_eq!(id("00000000000000ff"), Ok(255));
        for bad in ["ff", "", "+0000000000000ff", "kiln_00000000000000ff_secret"] {
            assert!(id(bad).is_err_and(|why| !why.contains("secret")), "{bad}");
        }
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(u64::MAX), "never");
    }
}
