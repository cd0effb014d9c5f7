//! The cache tiers: memory (L1), disk (L2), object store (L3).

mod blob;

pub use blob::{Blob, BlobError, BlobWriter};
