//! Kiln: a cluster-wide cache of compiled GPU code.

pub mod cache;
pub mod compiler;
pub mod exec;
pub mod transfer;
