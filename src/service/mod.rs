//! What the node offers: the gRPC API and the plain HTTP port.
//!
//! Invariant: services translate and bound; every decision is the manager's or
//! the cluster's.

pub mod api;
mod explain;
pub mod http;
mod leases;
mod publish;
mod restore;
mod wire;
