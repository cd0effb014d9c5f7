//! Tokens of clients, and the heads of nodes' audit logs.
//!
//! Invariant: on return of a change this node's replica has it.

use std::{collections::BTreeMap, sync::Arc};

use kiln_proto::NodeId;

use super::Index;
use crate::{
    command::{Command, Response},
    error::ClusterError,
    table::AuditHeadRecord,
    tokens::{AuditHead, NewToken, TokenEnd, TokenInfo},
};

impl Index {
    /// All tokens in the local replica, by id, also those that are good no more.
    pub fn tokens(&self) -> Arc<BTreeMap<u64, TokenInfo>> {
        self.replica.tokens()
    }

    /// Makes a token good on every node. `Invalid`: it is none, or there are too many.
    pub async fn issue_token(&self, token: NewToken) -> Result<(), ClusterError> {
        let node = self.router.owner()?.node;
        let command = Command::IssueToken { token, node, at_unix_ms: 0 };
        let (index, response) = self.router.write(command).await?;
        self.wait_applied(index).await?;
        match response {
            Response::Done => Ok(()),
            Response::Refused(why) => Err(ClusterError::Invalid(why)),
            other => Err(ClusterError::unexpected(&other)),
        }
    }

    /// Ends a token on every node; false where it was revoked before. `Invalid`: there is
    /// no such token.
    pub async fn revoke_token(&self, id: u64, by: String) -> Result<bool, ClusterError> {
        let node = self.router.owner()?.node;
        let command = Command::RevokeToken { id, end: TokenEnd { by, node, at_unix_ms: 0 } };
        let (index, response) = self.router.write(command).await?;
        self.wait_applied(index).await?;
        match response {
            Response::Changed(changed) => Ok(changed),
            Response::Refused(why) => Err(ClusterError::Invalid(why)),
            other => Err(ClusterError::unexpected(&other)),
        }
    }

    /// How far the audit log of `node` has come, as far as the cluster was told.
    pub async fn audit_head(&self, node: NodeId) -> Result<Option<AuditHead>, ClusterError> {
        let record: Option<AuditHeadRecord> = self.replica.read(node).await?;
        Ok(record.map(|record| record.0))
    }

    /// Tells the cluster how far this node's audit log has come. False where it knew of as
    /// many lines or more.
    pub async fn note_audit(&self, sequence: u64, digest: [u8; 32]) -> Result<bool, ClusterError> {
        let node = self.router.owner()?.node;
        let head = AuditHead { sequence, digest, at_unix_ms: 0 };
        self.changed(Command::NoteAudit { node, head }).await
    }
}
