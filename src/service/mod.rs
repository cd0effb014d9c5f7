//! What the node offers: the gRPC API and the plain HTTP port.
//!
//! Invariant: services translate and bound; every decision is the manager's or
//! the cluster's.

pub mod api;
mod attest;
mod audience;
mod blocking;
mod compile;
pub mod dashboard;
mod departure;
mod explain;
mod fetch;
mod gather;
mod guard;
mod health;
pub mod http;
mod leases;
mod list;
mod messages;
mod meters;
mod monitor;
mod observe;
mod overview;
mod page_guard;
mod parts;
mod plan;
mod publish;
mod recheck;
mod restore;
mod status;
mod tokens;
mod trust;
mod wire;

pub use self::{
    audience::Audience, departure::Departure, guard::Guard, health::Readiness, messages::Counted,
    meters::Meters, observe::Observe, parts::Parts,
};
