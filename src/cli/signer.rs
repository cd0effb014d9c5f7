//! `kiln signer`: whose signatures count.
//!
//! Invariant: files that a command names are read and checked before a node is asked for
//! anything.

mod file;
mod root;
mod rotate;
mod rows;

use std::path::PathBuf;

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use kiln_proto::pb;

use self::rows::{SignerView, read_moment};
use super::{CliError, ClientArgs, confirm::YesArgs, output};

const EXAMPLES: &str = "\
Examples:
  kiln signer list
  kiln signer revoke 3 --reason 'its disk was sold'
  kiln signer revoke 3 --reason 'replaced by node 7' --keep

A new key for a node, and what the old one may have signed for a thief:
  kiln signer rotate --endpoint NODE
  kiln signer revoke OLDKEY --signed-after 2026-11-28T20:00:00Z --reason 'copied that evening'

A root key says who may sign, and of what; no node can name a key then:
  kiln signer root init root.key
  kiln signer root sign --root root.key --cluster ID --out root.json
  kiln signer issue KEY --root root.key --cluster ID --namespace '*' --out node-3.json
  kiln signer add root.json node-3.json
  kiln signer root sign --root root.key --cluster ID --required --out required.json

Another root in its place, once new.key has certified every node:
  kiln signer root next NEWROOT --root root.key --cluster ID --out next.json
  kiln signer root sign --root new.key --cluster ID --required --out new.json";

/// Show whose signatures count, revoke one, and say by a root key who may sign.
///
/// Each node signs what it makes. Of a revoked signer nothing is taken any more, and what
/// it made is removed from the whole fleet: the keys miss, and are compiled again elsewhere.
/// A node that is revoked goes on to serve what others signed; to be rid of it, remove it
/// too: kiln cluster remove.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SignerArgs {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// An ed25519 public key in hexadecimal.
pub(super) fn public_key(text: &str) -> Result<ed25519_dalek::VerifyingKey, String> {
    file::key(text)
}

/// Whose signatures are revoked.
#[derive(Debug, Clone, Copy)]
enum Who {
    Node(u64),
    Key(ed25519_dalek::VerifyingKey),
}

fn who(text: &str) -> Result<Who, String> {
    match text.len() == 64 {
        true => file::key(text).map(Who::Key),
        false => text.parse().map(Who::Node).map_err(|_| {
            format!("{text:?} is neither a node's id nor a public key in hexadecimal")
        }),
    }
}

#[derive(Debug, Subcommand)]
enum What {
    /// Every node that ever was a member, with its public key.
    List,
    /// Trust a node's signature no more, for good; or what one of its keys signed in some time.
    /// What a member of version 0.1 published has no time: a key's revocation with whichever time
    /// also removes what its node published so.
    Revoke {
        /// The node's id, or one of its keys in hexadecimal (`kiln signer list`).
        #[arg(value_name = "NODE|KEY", value_parser = who)]
        who: Who,
        /// Why: kept with each artifact that goes, and told by `kiln why`.
        #[arg(long, value_parser = NonEmptyStringValueParser::new())]
        reason: String,
        /// Leave what it signed before: for a node that is replaced, not for one that
        /// somebody else may have had.
        #[arg(long)]
        keep: bool,
        /// Of a key: only what was published from this moment on (`2026-11-28T20:00:00Z`, in UTC,
        /// or `now`). When something was published is noted by the cluster's leader as it is
        /// published: a signer has no word in it.
        #[arg(long, value_name = "TIME", value_parser = read_moment)]
        signed_after: Option<u64>,
        /// Of a key: only what was published before this moment. The key signs on after it.
        #[arg(long, value_name = "TIME", value_parser = read_moment)]
        signed_before: Option<u64>,
        #[command(flatten)]
        yes: YesArgs,
    },
    /// Give the node that is asked a new key to sign with. What the old one signed is believed as
    /// before; then it can be revoked by itself. Certificates of TLS go on to name the node by the
    /// key that it joined with.
    Rotate(rotate::RotateArgs),
    /// Take what a root key signed: what it says of itself, and certificates of signers.
    Add {
        /// Files of `kiln signer root sign` and `kiln signer issue`, in this order.
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
    /// Make the root's key, and sign what makes it the cluster's; no node is asked.
    Root(root::RootArgs),
    /// Sign a key's certificate with the root's; no node is asked.
    Issue(root::IssueArgs),
    /// The public key of a node, also before it runs; no node is asked.
    Key(root::KeyArgs),
}

impl SignerArgs {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let json = self.client.json;
        let what = match self.what {
            What::Root(root) => return root.run(json),
            What::Issue(issue) => return issue.run(json),
            What::Key(key) => return key.run(json),
            What::Rotate(rotate) => return rotate.run(&self.client).await,
            online => online,
        };
        let mut client = self.client.endpoints.connect().await?;
        let refused = |status| CliError::from_status(&status);
        match what {
            What::Root(_) | What::Issue(_) | What::Key(_) | What::Rotate(_) => Ok(()),
            What::Add { files } => {
                // All are read before the first is sent.
                let said = files.iter().map(|file| file::read(file));
                for (said, file) in said.collect::<Result<Vec<_>, _>>()?.into_iter().zip(&files) {
                    let request = said.request();
                    let answer = client.root_says(request).await.map_err(refused)?.into_inner();
                    let (file, changed) = (file.display().to_string(), answer.changed);
                    match json {
                        true => output::json(&serde_json::json!({
                            "file": file, "serial": said.read.serial, "changed": changed
                        }))?,
                        false if changed => output::line(format_args!("added {file}"))?,
                        false => output::line(format_args!("the cluster knew {file}"))?,
                    }
                }
                Ok(())
            }
            What::List => {
                let answer = client.signers(pb::SignersRequest {}).await.map_err(refused)?;
                let answer = answer.into_inner();
                let cluster = format!("{:016x}", answer.cluster);
                let next = hex::encode(answer.next_root);
                let view = |signer| SignerView::new(signer, cluster.clone());
                let signers: Vec<_> = answer.signers.into_iter().map(view).collect();
                if json {
                    return output::json(&signers);
                }
                output::line(format_args!("{:<6}{:<66}STATE", "NODE", "PUBLIC KEY"))?;
                for signer in &signers {
                    let SignerView { node, key, .. } = signer;
                    output::line(format_args!("{node:<6}{key:<66}{}", signer.state()))?;
                }
                output::line(format_args!("of the cluster {cluster}"))?;
                match next.is_empty() {
                    true => Ok(()),
                    false => output::line(format_args!(
                        "to be the root: {next}, which has certified what is marked so"
                    )),
                }
            }
            What::Revoke { who, reason, keep, signed_after, signed_before, yes } => {
                let (after, before) = (signed_after, signed_before);
                let (revoked, request) = revocation(who, keep, after, before)?;
                let what = match (keep, after.is_some() || before.is_some()) {
                    (true, _) => "What it signed stays.",
                    (_, true) => {
                        "What it signed in that time is removed from all nodes, and what its node \
                         published before members noted times (0.1.0)."
                    }
                    _ => "What it signed is removed from all nodes.",
                };
                yes.confirm(&format!("Revoke the signature of {revoked} for good? {what}"))?;
                let request = pb::RevokeSignerRequest { reason, ..request };
                let answer = client.revoke_signer(request).await.map_err(refused)?;
                let removed = answer.into_inner().removed;
                match (json, who) {
                    (true, Who::Node(node)) => {
                        output::json(&serde_json::json!({ "revoked": node, "removed": removed }))
                    }
                    (true, Who::Key(key)) => output::json(&serde_json::json!({
                        "revoked_key": hex::encode(key.as_bytes()), "removed": removed
                    })),
                    (false, _) => output::line(format_args!(
                        "revoked the signature of {revoked}; artifacts removed: {removed}"
                    )),
                }
            }
        }
    }
}

/// What is asked of a node, but for the reason; and whose signature that is, for people.
fn revocation(
    who: Who,
    keep: bool,
    after: Option<u64>,
    before: Option<u64>,
) -> Result<(String, pb::RevokeSignerRequest), CliError> {
    let wrong = |why: &str| Err(CliError::Usage(why.into()));
    let request = pb::RevokeSignerRequest {
        keep,
        after_unix_ms: after.unwrap_or_default(),
        before_unix_ms: before.unwrap_or_default(),
        ..Default::default()
    };
    match who {
        Who::Node(_) if after.is_some() || before.is_some() => wrong(
            "--signed-after and --signed-before are of a key: kiln signer list shows the node's",
        ),
        Who::Key(_) if keep => wrong(
            "of a key: --signed-after now leaves what it signed before, but for what its node \
             published before members noted times (0.1.0)",
        ),
        Who::Key(_) if before == Some(0) || before.is_some_and(|end| Some(end) <= after) => {
            wrong("the time ends before it begins")
        }
        Who::Node(node) => {
            Ok((format!("node {node}"), pb::RevokeSignerRequest { node, ..request }))
        }
        Who::Key(key) => {
            let key = key.to_bytes();
            let of = pb::RevokeSignerRequest { key: key.to_vec().into(), ..request };
            Ok((format!("the key {}", hex::encode(key)), of))
        }
    }
}
