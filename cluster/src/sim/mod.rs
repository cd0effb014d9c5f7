//! A whole cluster in one thread, on a simulated clock, network and disk.
//!
//! Read in this order: `chance` (all randomness), `trace` (what happened), `network` and
//! `wire` (how calls travel), `disk` (what a crash leaves), `fleet` (members come and go),
//! `history` (what is right), `client` (what is asked), `nemesis` (what goes wrong), `run`
//! (one seed from beginning to end), `seeds` (many).
//!
//! A seed is replayed by
//! `KILN_SIM_SEED=7 cargo test -p kiln-cluster --lib -- --exact sim::seeds::one --ignored --nocapture`.
//!
//! Invariant: a run follows from its seed, and nothing in it waits for real time.

#![allow(clippy::unwrap_used)]

mod chance;
mod client;
mod disk;
mod fleet;
mod history;
mod nemesis;
mod network;
mod run;
mod seeds;
mod trace;
mod wire;
