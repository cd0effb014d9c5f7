//! Random graphs: compiled kernels in the emulator against the interpreter.

use kiln_proto::Target;

use super::emulator::Module;
use crate::{
    Options,
    decompose::decompose,
    interp::{self, Settings, Tensor},
    lower_graph,
    random::Random,
};

/// One graph on all of its inputs.
fn check(seed: u64, steps: usize) -> Result<(), String> {
    let Random { graph, cases, bounds, .. } = Random::new(seed, steps);
    let program = decompose(&graph).map_err(|failure| failure.message)?;
    let options = Options { fuse: seed % 4 != 0, fast_math: false };
    let lowered = lower_graph(&graph, String::new(), options, Target::cubin(80));
    let lowered = lowered.map_err(|failure| failure.message)?;
    let module = Module::build(&lowered);
    for case in &cases {
        let wanted = interp::run(&program, case, &Settings::default());
        let wanted = wanted.map_err(|failure| failure.message)?;
        let inputs: Vec<Vec<u8>> = case.iter().map(|tensor| tensor.bytes.to_vec()).collect();
        let shapes: Vec<&[usize]> = case.iter().map(|tensor| tensor.shape.as_slice()).collect();
        let found = module.run_shaped(&inputs, &shapes);
        for (i, ((wanted, bound), found)) in wanted.iter().zip(&bounds).zip(found).enumerate() {
            let found = Tensor::dense(wanted.dtype, &wanted.shape, found);
            bound.check(wanted, &found).map_err(|why| format!("out{i}: {why}"))?;
        }
    }
    Ok(())
}

#[test]
fn kernels_of_random_graphs_give_what_the_interpreter_gives() {
    // More of them run on a GPU: `make test-gpu`.
    let from = std::env::var("KILN_RANDOM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let mut wrong = Vec::new();
    let count = std::env::var("KILN_RANDOM_COUNT").ok().and_then(|s| s.parse().ok()).unwrap_or(24);
    for seed in from..from + count {
        let result = std::panic::catch_unwind(|| check(seed, 1 + seed as usize % 12));
        match result {
            Ok(Ok(())) => {}
            Ok(Err(why)) => wrong.push(format!("seed {seed}: {why}")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                wrong.push(format!("seed {seed} panics: {text}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
