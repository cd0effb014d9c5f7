//! The monitor: watches this node, says what it sees, and puts right what it safely can.
//!
//! ```text
//! sampler, resources -> sample -> core -> driver -> controls, notify, emergency
//!                                  |
//!                 windows, detect, watchlist, recommend, optimizer, crisis
//! ```
//!
//! The core is pure and judges recorded and simulated samples as it does those of a node;
//! the driver does what it says. A restart begins with the configured levels and without
//! history.
//!
//! Invariant: the monitor holds up nobody: what it asks answers from memory, what may hang
//! (a disk, a receiver of alerts) runs beside it under a bound, and without it the node
//! serves as it did.

mod alert;
mod anomaly;
mod controls;
mod core;
mod crisis;
mod detect;
mod driver;
mod figure;
mod knob;
mod notify;
mod optimizer;
mod recommend;
mod report;
mod resources;
mod sample;
mod sampler;
#[cfg(test)]
mod simulated;
mod usual;
mod watchlist;
mod windows;

pub use self::{
    alert::Alert,
    anomaly::{Anomaly, Finding, Kind, Severity, Subject},
    controls::Controls,
    core::{Core, CoreSettings, Outcome},
    driver::{Monitor, MonitorSettings, Told, run},
    figure::Figure,
    knob::{Bounds, Knob, Levels},
    notify::{Form, Receiver},
    optimizer::{Change, Decision, NoUndo, Rules, State},
    recommend::{Evidence, Recommendation},
    report::{Metric, Report},
    sample::{Asked, Compiles, Gpu, PoolLoad, Resources, Sample},
    sampler::Sampler,
    usual::Usual,
    windows::WindowSettings,
};
