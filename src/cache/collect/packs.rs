//! What the collector asks of the index.
//!
//! Invariant: an answer is that of a replica which has everything that was committed
//! before the barrier.

use async_trait::async_trait;
use kiln_proto::Digest;

use crate::cache::IndexError;

/// What the index knows of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackState {
    /// The current one.
    pub generation: u64,
    /// A manifest, or an open lease, refers to it.
    pub referenced: bool,
    /// The condemnation of this generation was committed.
    pub condemned: bool,
}

/// What the collector asks of the index.
#[async_trait]
pub trait PackIndex: Send + Sync {
    /// Waits until the local replica has everything that was committed before this
    /// call.
    async fn barrier(&self) -> Result<(), IndexError>;
    /// What the local replica knows of each pack; `None`: nothing.
    async fn packs(&self, packs: Vec<Digest>) -> Result<Vec<Option<PackState>>, IndexError>;
    /// Condemns a generation to which nothing refers; false where something does. To
    /// one that is not the current one nothing refers. A pack that the index does not know is
    /// condemned in the generation named.
    async fn condemn(&self, pack: &Digest, generation: u64) -> Result<bool, IndexError>;
    /// The object of a condemned generation is gone: forgets it, unless the pack
    /// has another generation since.
    async fn forget(&self, pack: &Digest, generation: u64) -> Result<(), IndexError>;
    /// Generations that are condemned, at most `limit`: also those whose object was
    /// deleted by a collector that died before it could say so.
    async fn condemned(&self, limit: usize) -> Result<Vec<(Digest, u64)>, IndexError>;
}
