//! Faults on real nodes while clients work, and checks of what those were told.
//!
//! Invariant: a run in which a promise was broken, in which its fault never struck, or
//! during which too little succeeded, is a failure, leaves its history in a file, and
//! makes the exit code 1. Whatever a run starts or makes is gone when it ends.
#![allow(clippy::unwrap_used, missing_docs)]

mod calls;
mod check;
mod clients;
mod clock;
mod disk;
mod door;
mod fleet;
mod history;
#[path = "../support/layers.rs"]
mod layers;
mod leftovers;
mod memory;
mod nemesis;
mod network;
mod node;
mod options;
mod payload;
#[path = "../support/ports.rs"]
mod ports;
mod proxy;
mod report;
mod resp;
mod run;
#[path = "../support/seaweed.rs"]
#[allow(dead_code)]
mod seaweed;
mod session;
mod soak;
mod store;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let passed = runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate()).unwrap();
        let work = async {
            match options.soak {
                Some(minutes) => soak::soak(minutes, &options).await,
                None => run::all(&options).await,
            }
        };
        tokio::select! {
            passed = work => passed,
            // What was started or made is dropped, and so ended, with the futures.
            _ = tokio::signal::ctrl_c() => false,
            _ = terminated.recv() => false,
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
