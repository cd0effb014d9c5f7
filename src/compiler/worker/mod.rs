//! Compiles in child processes: `kiln worker`, started by a [`Pool`].
//!
//! Invariant: a hang, a crash or an out-of-memory of a compiler ends its own
//! process group and becomes a [`kiln_proto::Failure`]; nothing of it stays.
//!
//! A worker lives for one job. It is told its toolchain, loads it, answers that
//! it is ready, gets one job, answers, and is killed with all that it started.

mod child;
mod confine;
mod dialect;
mod nvrtc;
mod pool;
mod process;
mod protocol;

pub use child::worker_main;
pub(super) use dialect::{Dialect, Nvrtc};
pub(super) use nvrtc::SOURCE_NAME;
pub(super) use pool::Pool;
pub use pool::PoolSettings;
pub(super) use process::Launch;
pub(super) use protocol::{Answer, Bundled, Compiled, Octets, Program, Setup, module_file};
