//! What every port shares: accepting connections, and the least speed of each.
//!
//! Invariant: nothing here knows a protocol; a port brings its own and gets the
//! same bounds as every other.

mod accept;
mod incoming;
mod progress;

pub(crate) use self::{
    accept::{Listen, Service, serve},
    incoming::{Placed, incoming},
    progress::Progress,
};
