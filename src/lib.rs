//! Kiln: a cluster-wide cache of compiled GPU code.

pub mod artifact;
pub mod cache;
pub mod compiler;
pub mod config;
pub mod transfer;
