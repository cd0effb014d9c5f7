//! Multi-node tests: real `kiln serve` processes, real NVRTC, real sockets.
//!
//! Each test makes its own cluster in its own folder, waits on state with a
//! bound, and ends every process that it started.
#![allow(clippy::unwrap_used, missing_docs)]

mod access;
mod anomalies;
mod artifacts;
mod asked;
mod attest;
mod bad_input;
mod bytes;
#[path = "../support/collector.rs"]
mod collector;
mod commands;
mod compile_once;
mod corruption;
mod dashboard;
mod day_two;
mod degraded;
mod durability;
mod eager;
mod failover;
mod harness;
mod helpers;
mod includes;
mod inductor;
#[path = "../support/python.rs"]
mod interpreter;
mod keys;
mod ladder;
#[path = "../support/layers.rs"]
mod layers;
mod leave;
mod listing;
mod membership;
mod metrics;
mod monitor;
mod newer;
mod nodes;
mod objects;
#[path = "../support/odd.rs"]
mod odd;
mod order;
mod out;
mod pieces;
mod pinned;
mod pins;
mod places;
mod plan;
mod planted;
#[path = "../support/ports.rs"]
mod ports;
mod publish;
mod redis;
mod resources;
mod resp;
mod root;
mod rotation;
mod run;
mod signers;
mod sizes;
mod spot_checks;
mod start;
mod tls;
mod traces;
mod upgrades;
mod views;
mod watching;
