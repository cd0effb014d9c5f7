//! `kiln signer rotate`: another key for one node.
//!
//! Invariant: the node that is asked is told what is known of the change, which node and which
//! key, and makes no other one: neither a second address nor a second try gives somebody else, or
//! the same node once more, another key.

use std::path::PathBuf;

use clap::Args;
use kiln_proto::{NodeId, pb, root::Says};

use super::file;
use crate::cli::{CliError, ClientArgs, output};

#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    /// The root's certificate of the new key, which is added first (`kiln signer issue`). With it
    /// the command may be run again: a node that has this key already says so.
    #[arg(long, value_name = "FILE", conflicts_with = "next")]
    certificate: Option<PathBuf>,
    /// Only make the new key and show it, for its certificate: it signs nothing yet.
    #[arg(long)]
    next: bool,
    /// The node's id: needed where several endpoints are named and the certificate says none.
    #[arg(long, value_name = "ID")]
    node: Option<NodeId>,
}

impl RotateArgs {
    pub(super) async fn run(self, client: &ClientArgs) -> Result<(), CliError> {
        let refused = |status| CliError::from_status(&status);
        let said = self.certificate.as_deref().map(file::read).transpose()?;
        let certified = match said.as_ref().map(|said| &said.read.says) {
            None => None,
            Some(Says::Signer(of)) => Some(of),
            Some(_) => {
                let why = "--certificate is what kiln signer issue wrote, of the node's next key";
                return Err(CliError::Usage(why.into()));
            }
        };
        let of = certified.and_then(|of| of.node);
        if let (Some(named), Some(of)) = (self.node, of)
            && named != of
        {
            let why = format!("--node is {named}, and the certificate is of node {of}");
            return Err(CliError::Usage(why));
        }
        let node = self.node.or(of);
        let endpoints = &client.endpoints;
        let mut asked = match node {
            Some(node) => endpoints.of_node(node).await?,
            None if endpoints.count() == 1 => endpoints.connect().await?,
            None => {
                return Err(CliError::Usage(
                    "one node's key changes, and several endpoints are named: name the node by \
                     --node, or one endpoint"
                        .into(),
                ));
            }
        };
        let key = certified.map(|of| of.key.to_vec()).unwrap_or_default();
        if let Some(said) = &said {
            asked.root_says(said.request()).await.map_err(refused)?;
        }
        let node = node.unwrap_or_default();
        let request = pb::RotateSignerRequest { only_make: self.next, node, key: key.into() };
        let answer = asked.rotate_signer(request).await.map_err(refused)?.into_inner();
        let (key, before) = (hex::encode(answer.key), hex::encode(answer.before));
        let node = answer.node;
        match (client.json, self.next) {
            (true, next) => output::json(&serde_json::json!({
                "node": node, "key": key, "before": before, "rotated": !next
            })),
            (false, true) => output::line(format_args!(
                "node {node} is to sign with {key} next; it signs with {before} still"
            )),
            (false, false) => output::line(format_args!(
                "node {node} signs with {key}; what {before} signed is believed as before"
            )),
        }
    }
}
