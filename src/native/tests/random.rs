//! Random graphs: generated kernels, emulated, against the interpreter.

use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};

use super::emulator::Module;
use crate::{
    decompose::decompose,
    interp::{self, Settings, Tensor},
    lower_parsed,
    plan::Arg,
    random::Random,
};

/// What is wrong with it; `Ok(false)`: it has kernels that only a GPU runs.
fn check(random: &Random) -> Result<bool, String> {
    let failed = |failure: kiln_proto::Failure| failure.message;
    let lowered = lower_parsed(&random.graph, &Default::default(), kiln_proto::Target::cubin(90));
    let lowered = lowered.map_err(failed)?;
    keep(random, &lowered.source);
    let mut args = lowered.plan.kernels.iter().flat_map(|kernel| &kernel.args);
    if args.any(|arg| matches!(arg, Arg::Map(_))) {
        return Ok(false);
    }
    if std::env::var_os("KILN_RANDOM_SOURCES").is_some() {
        return Ok(true);
    }
    let module = Module::build(&lowered);
    let program = decompose(&random.graph).map_err(failed)?;
    for case in &random.cases {
        let expected = interp::run(&program, case, &Settings::default()).map_err(failed)?;
        let shapes: Vec<&[usize]> = case.iter().map(|tensor| tensor.shape.as_slice()).collect();
        let inputs: Vec<Vec<u8>> = case.iter().map(|tensor| tensor.bytes.to_vec()).collect();
        let found = module.run_shaped(&inputs, &shapes);
        let outputs = found.into_iter().zip(&expected).zip(&random.bounds).enumerate();
        for (index, ((bytes, expected), bound)) in outputs {
            let found = Tensor::dense(expected.dtype, &expected.shape, bytes);
            let value = random.graph.outputs[index].0;
            bound.check(expected, &found).map_err(|why| format!("output v{value}: {why}"))?;
        }
    }
    Ok(true)
}

fn agrees(seed: u64, steps: usize) -> Result<(), TestCaseError> {
    let random = Random::new(seed, steps);
    check(&random).map(|_| ()).map_err(|why| TestCaseError::fail(format!("{why}\n{random}")))
}

proptest! {
    // Each is a run of the C++ compiler; on a GPU there are thousands.
    #![proptest_config(Config {
        cases: 16,
        rng_seed: RngSeed::Fixed(16),
        failure_persistence: None,
        max_shrink_iters: 40,
        ..Config::default()
    })]

    #[test]
    fn small_graphs_agree_with_the_interpreter(seed in any::<u64>().no_shrink(), steps in 1usize..5) {
        agrees(seed, steps)?;
    }

    #[test]
    fn what_is_left_in_inputs_agrees_with_the_interpreter(
        seed in any::<u64>().no_shrink(),
        steps in 1usize..8,
    ) {
        let random = Random::with_updates(seed, steps);
        check(&random).map(|_| ()).map_err(|why| TestCaseError::fail(format!("{why}\n{random}")))?;
    }

    #[test]
    fn larger_graphs_agree_with_the_interpreter(seed in any::<u64>().no_shrink(), steps in 5usize..16) {
        agrees(seed, steps)?;
    }
}

/// Sources to look at, or to compile elsewhere: `KILN_RANDOM_SOURCES=DIR`.
fn keep(random: &Random, source: &str) {
    if let Some(folder) = std::env::var_os("KILN_RANDOM_SOURCES") {
        let path = std::path::Path::new(&folder).join(format!("{}.cu", random.seed));
        std::fs::write(path, source).unwrap();
    }
}

/// `KILN_RANDOM=COUNT[@SEED]` runs so many and says what is wrong with each.
#[test]
#[ignore = "runs as long as one likes: for hunting"]
fn many_graphs_agree_with_the_interpreter() {
    let told = std::env::var("KILN_RANDOM").unwrap_or_else(|_| "100".to_owned());
    let (count, first) = told.split_once('@').unwrap_or((&told, "0"));
    let (count, first): (u64, u64) = (count.parse().unwrap(), first.parse().unwrap());
    let (mut wrong, mut only_gpu) = (Vec::new(), 0);
    for seed in first..first + count {
        let make = if seed % 3 == 0 { Random::with_updates } else { Random::new };
        let random = make(seed, 1 + seed as usize % 16);
        let done = std::panic::catch_unwind(|| check(&random));
        let done = done.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            Err(format!("panic: {}", text.chars().take(1500).collect::<String>()))
        });
        match done {
            Ok(ran) => only_gpu += usize::from(!ran),
            Err(why) => {
                println!("seed {seed}: {why}\n{random}");
                wrong.push(seed);
            }
        }
    }
    println!("{only_gpu} only for a GPU");
    assert!(wrong.is_empty(), "{} of {count} are wrong: {wrong:?}", wrong.len());
}
