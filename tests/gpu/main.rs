//! Compiled kernels on this machine's GPU, against what the interpreter and
//! PyTorch say: `make test-gpu`. Compiles in this process, by the NVRTC in
//! `KILN_NVRTC_DIR` or the CUDA toolkit's own.
//!
//! Invariant: no test passes without having run kernels, but that of `targets`, which
//! compiles for devices that are not here; where there is no GPU they are ignored unless
//! asked for.

#![allow(clippy::unwrap_used)]

mod compile;
mod fixtures;
mod models;
mod operations;
mod random;
mod stitched;
mod targets;

use std::sync::atomic::{AtomicUsize, Ordering};

/// `work` for each index below `count`, on all processors; what went wrong, in order.
fn in_parallel(count: usize, work: impl Fn(usize) -> Result<(), String> + Sync) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count.max(1));
    let mut wrong: Vec<(usize, String)> = std::thread::scope(|scope| {
        let run = || {
            let mut wrong = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return wrong;
                }
                // A panic is one failure among others, not the end of the run.
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(index)));
                let done = done.unwrap_or_else(|panic| {
                    let text = panic.downcast_ref::<String>().cloned();
                    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
                    Err(format!("panic: {}", text.unwrap_or_default()))
                });
                if let Err(why) = done {
                    wrong.push((index, why));
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    wrong.sort();
    wrong.into_iter().map(|(_, why)| why).collect()
}

/// Fails with the first of what went wrong.
fn expect_none(what: &str, count: usize, wrong: &[String]) {
    println!("{what}: {count} run, {} wrong", wrong.len());
    let shown: Vec<&str> = wrong.iter().take(20).map(String::as_str).collect();
    assert!(wrong.is_empty(), "{} of {count} {what}:\n{}", wrong.len(), shown.join("\n"));
}
