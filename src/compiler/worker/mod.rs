//! Compiles in child processes: `kiln worker`, started by a [`Pool`].
//!
//! Invariant: a hang, a crash or an out-of-memory of a compiler ends its own
//! process group and becomes a [`kiln_proto::Failure`]; nothing of it stays.
//!
//! A worker lives for one job. It is told its toolchain, loads it, answers that
//! it is ready, gets one job, answers, and is killed with all that it started. Where
//! loading takes seconds, a process beside the pool has loaded, and workers are its forks.

mod addresses;
mod child;
mod dialect;
mod layout;
mod nvrtc;
mod places;
mod pool;
mod preloaded;
mod process;
mod protocol;
mod service;
mod watch;

pub use child::worker_main;
pub(crate) use dialect::Dialect;
pub(super) use dialect::Nvrtc;
pub(super) use nvrtc::SOURCE_NAME;
pub use places::PoolUse;
pub(crate) use pool::Pool;
pub use pool::PoolSettings;
pub(crate) use process::{Forks, Launch, remove_left};
pub(crate) use protocol::{Answer, Octets, decode, encode};
pub(super) use protocol::{Bundled, Compiled, Program, Setup, module_file};
pub(crate) use service::{limit, serve};
