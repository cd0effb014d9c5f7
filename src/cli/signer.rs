//! `kiln signer`: whose signatures count.

mod file;
mod root;

use std::path::PathBuf;

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use kiln_proto::pb;
use serde::Serialize;

use super::{CliError, ClientArgs, confirm::YesArgs, output};

const EXAMPLES: &str = "\
Examples:
  kiln signer list
  kiln signer revoke 3 --reason 'its disk was sold'
  kiln signer revoke 3 --reason 'replaced by node 7' --keep

A root key says who may sign, and of what; no node can name a key then:
  kiln signer root init root.key
  kiln signer root sign --root root.key --cluster ID --out root.json
  kiln signer issue KEY --root root.key --cluster ID --namespace '*' --out node-3.json
  kiln signer add root.json node-3.json
  kiln signer root sign --root root.key --cluster ID --required --out required.json";

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

#[derive(Debug, Subcommand)]
enum What {
    /// Every node that ever was a member, with its public key.
    List,
    /// Trust a node's signature no more, for good.
    Revoke {
        /// The node's id.
        node: u64,
        /// Why: kept with each artifact that goes, and told by `kiln why`.
        #[arg(long, value_parser = NonEmptyStringValueParser::new())]
        reason: String,
        /// Leave what it signed before: for a node that is replaced, not for one that
        /// somebody else may have had.
        #[arg(long)]
        keep: bool,
        #[command(flatten)]
        yes: YesArgs,
    },
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

#[derive(Debug, Serialize)]
struct SignerView {
    node: u64,
    key: String,
    /// For `--cluster` of what the root signs.
    cluster: String,
    left: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked: Option<RevokedView>,
    /// What the root lets it sign.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<CertificateView>,
    /// Why it is not believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    unbelieved: Option<String>,
}

#[derive(Debug, Serialize)]
struct CertificateView {
    name: String,
    namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_after_unix_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct RevokedView {
    keep: bool,
    reason: String,
    by: u64,
    at_unix_ms: u64,
}

impl SignerView {
    fn new(signer: pb::SignerStatus, cluster: String) -> Self {
        let revoked = signer.revocation.map(|revoked| RevokedView {
            keep: revoked.keep,
            reason: revoked.reason,
            by: revoked.by,
            at_unix_ms: revoked.at_unix_ms,
        });
        let certificate = signer.certificate.map(|of| CertificateView {
            name: of.name,
            namespaces: of.namespaces,
            not_after_unix_ms: Some(of.not_after_unix_ms).filter(|end| *end != 0),
        });
        let unbelieved = Some(signer.unbelieved).filter(|why| !why.is_empty());
        let (node, key, left) = (signer.node, hex::encode(signer.key), signer.left);
        Self { node, key, cluster, left, revoked, certificate, unbelieved }
    }

    fn state(&self) -> String {
        let state = match (&self.revoked, self.left) {
            (Some(revoked), _) => return format!("revoked: {}", revoked.reason),
            (None, true) => "left",
            (None, false) => "member",
        };
        match (&self.unbelieved, &self.certificate) {
            (Some(why), _) => format!("{state}, not believed: {why}"),
            (None, Some(of)) => format!("{state}, may sign in {}", of.namespaces.join(", ")),
            (None, None) => state.to_owned(),
        }
    }
}

impl SignerArgs {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let json = self.client.json;
        let what = match self.what {
            What::Root(root) => return root.run(json),
            What::Issue(issue) => return issue.run(json),
            What::Key(key) => return key.run(json),
            online => online,
        };
        let mut client = self.client.endpoints.connect().await?;
        let refused = |status| CliError::from_status(&status);
        match what {
            What::Root(_) | What::Issue(_) | What::Key(_) => Ok(()),
            What::Add { files } => {
                // All are read before the first is sent.
                let said = files.iter().map(|file| file::read(file));
                for (said, file) in said.collect::<Result<Vec<_>, _>>()?.into_iter().zip(&files) {
                    let statement = pb::SignedStatement {
                        statement: said.signed.bytes.into(),
                        signature: said.signed.signature.into(),
                    };
                    let root = said.root.to_bytes().to_vec().into();
                    let request = pb::RootSaysRequest { root, statement: Some(statement) };
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
                output::line(format_args!("of the cluster {cluster}"))
            }
            What::Revoke { node, reason, keep, yes } => {
                let what = if keep { "stays" } else { "is removed from all nodes" };
                yes.confirm(&format!(
                    "Revoke the signature of node {node} for good? What it signed {what}."
                ))?;
                let request = pb::RevokeSignerRequest { node, reason, keep };
                let answer = client.revoke_signer(request).await.map_err(refused)?;
                let removed = answer.into_inner().removed;
                match json {
                    true => {
                        output::json(&serde_json::json!({ "revoked": node, "removed": removed }))
                    }
                    false => output::line(format_args!(
                        "revoked the signature of node {node}; artifacts removed: {removed}"
                    )),
                }
            }
        }
    }
}
