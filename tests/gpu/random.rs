//! Random graphs: compiled kernels against the interpreter.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use kiln_native::{
    decompose::decompose,
    interp::{self, Settings},
    random::Random,
};

use crate::{
    compile, expect_none,
    fixtures::{given, run, view},
    in_parallel,
};

/// How many graphs, unless `KILN_TEST_GPU_GRAPHS` says.
const GRAPHS: usize = 2000;
/// Of the first graph, unless `KILN_TEST_GPU_SEED` says.
const SEED: u64 = 0x5eed;

fn number<T: std::str::FromStr>(variable: &str, default: T) -> T {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn random_graphs_agree_with_the_interpreter() {
    let (count, first) =
        (number("KILN_TEST_GPU_GRAPHS", GRAPHS), number("KILN_TEST_GPU_SEED", SEED));
    compile::target();
    let (began, kernels, outputs) = (Instant::now(), AtomicUsize::new(0), AtomicUsize::new(0));
    let wrong = in_parallel(count, |index| {
        // Every third leaves something in its inputs.
        let make = if index % 3 == 0 { Random::with_updates } else { Random::new };
        let random = make(first + index as u64, 1 + index % 16);
        let ran = check(&random).map_err(|why| format!("{why}\n{random}"))?;
        kernels.fetch_add(ran.0, Ordering::Relaxed);
        outputs.fetch_add(ran.1, Ordering::Relaxed);
        Ok(())
    });
    let (kernels, outputs) = (kernels.into_inner(), outputs.into_inner());
    let seconds = began.elapsed().as_secs_f64();
    println!("seeds from {first}: {kernels} launches, {outputs} outputs compared, {seconds:.1} s");
    expect_none("random graphs", count, &wrong);
    assert!(kernels > count / 2 && outputs > count);
}

/// Kernels launched and outputs compared.
fn check(random: &Random) -> Result<(usize, usize), String> {
    let lowered = kiln_native::lower_parsed(&random.graph, &compile::options(), compile::target());
    let lowered = lowered.map_err(|failure| format!("lower: {}", failure.message))?;
    let module = compile::module(&lowered)
        .map_err(|why| format!("compile: {why}\n{}", shortened(&lowered.source)))?;
    let program = decompose(&random.graph).map_err(|failure| failure.message)?;
    let mut ran = (0, 0);
    for case in &random.cases {
        let expected = interp::run(&program, case, &Settings::default());
        let expected = expected.map_err(|failure| format!("interpret: {}", failure.message))?;
        let inputs = given(&lowered, case)?;
        let found = run(&module, &inputs).map_err(|e| format!("run: {e}"))?;
        let outputs = expected.iter().zip(&found).zip(&random.bounds).enumerate();
        for (index, ((expected, found), bound)) in outputs {
            let value = random.graph.outputs[index].0;
            bound.check(expected, &view(found)).map_err(|why| format!("output v{value}: {why}"))?;
            ran.1 += 1;
        }
        ran.0 += lowered.plan.kernels.len();
    }
    Ok(ran)
}

fn shortened(source: &str) -> &str {
    // What differs between graphs comes last.
    let start = source.len().saturating_sub(6000);
    let start = (start..source.len()).find(|at| source.is_char_boundary(*at)).unwrap_or(0);
    &source[start..]
}
