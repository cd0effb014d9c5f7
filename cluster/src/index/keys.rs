//! The keys that nodes sign with.
//!
//! Invariant: on return of a change this node's replica has it.

use ed25519_dalek::VerifyingKey;

use super::Index;
use crate::{
    command::{Command, Response},
    error::ClusterError,
    signing::{Interval, KeyChange, KeyRevocation},
};

impl Index {
    /// From the return of this call on this node signs with `key`, as its replica and the leader
    /// know; false where it did before. `Invalid`: the key is not new, or the root that is
    /// required has no certificate for it.
    pub async fn rotate_key(&self, key: &VerifyingKey) -> Result<bool, ClusterError> {
        let node = self.router.owner()?.node;
        let change = KeyChange::Rotate { node, key: key.to_bytes(), at_unix_ms: 0 };
        match self.change_keys(change).await? {
            Response::Changed(changed) => Ok(changed),
            other => Err(ClusterError::unexpected(&other)),
        }
    }

    /// From now on nothing counts that was, or will be, published under `key` in that time; what
    /// there is of it is removed. Returns how many artifacts were, once the local replica has
    /// none of them.
    pub async fn revoke_key(
        &self,
        key: &VerifyingKey,
        within: Interval,
        reason: String,
    ) -> Result<u64, ClusterError> {
        let by = self.router.owner()?.node;
        let revocation = KeyRevocation { within, reason, by, at_unix_ms: 0 };
        match self.change_keys(KeyChange::Revoke { key: key.to_bytes(), revocation }).await? {
            Response::Removed(removed) => Ok(removed),
            other => Err(ClusterError::unexpected(&other)),
        }
    }

    async fn change_keys(&self, change: KeyChange) -> Result<Response, ClusterError> {
        let (index, response) = self.router.write(Command::Keys(change)).await?;
        self.wait_applied(index).await?;
        match response {
            Response::Refused(why) => Err(ClusterError::Invalid(why)),
            response => Ok(response),
        }
    }
}
