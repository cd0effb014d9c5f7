//! What every port shares: accepting connections, TLS, and the least speed of each.
//!
//! Invariant: nothing here knows a protocol; a port brings its own and gets the
//! same bounds as every other.

mod accept;
mod incoming;
mod local;
mod patience;
mod places;
mod progress;
mod stream;
pub mod tls;

pub use self::stream::Conn;
pub(crate) use self::{
    accept::{Listen, Service, serve},
    incoming::{Placed, incoming, placed},
    local::{Local, first_byte, user},
    patience::Patience,
    places::Full,
    progress::Progress,
};
