//! The repository's fixtures, or those that were carried here: `KILN_FIXTURES`.

use std::path::PathBuf;

use kiln::exec;
use kiln_native::{
    Lowered,
    decompose::decompose,
    fixtures::{Call, Fixture, load_from},
    interp::Tensor,
    plan::CONSTANT,
};

use crate::compile;

/// All archives in a folder of fixtures.
pub(crate) fn all(below: &str) -> Vec<Fixture> {
    let carried = std::env::var_os("KILN_FIXTURES").map(PathBuf::from);
    let own = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"));
    let found = load_from(&carried.unwrap_or_else(own).join(below));
    assert!(!found.is_empty(), "no fixtures: set KILN_FIXTURES");
    found
}

/// A fixture's program for the device, and what to call it with.
pub(crate) struct Compiled {
    pub(crate) lowered: Lowered,
    pub(crate) calls: Vec<Call>,
}

pub(crate) fn compile(fixture: &Fixture) -> Result<Compiled, String> {
    let failed = |failure: kiln_proto::Failure| failure.message;
    let graph = kiln_native::read_graph(&fixture.archive).map_err(failed)?;
    let calls = fixture.calls(&graph, &decompose(&graph).map_err(failed)?)?;
    let lowered = kiln_native::lower(&fixture.archive, &compile::options(), compile::target());
    Ok(Compiled { lowered: lowered.map_err(failed)?, calls })
}

/// For the runtime: dense, by position; a constant is in the module already.
pub(crate) fn given(
    lowered: &Lowered,
    inputs: &[Tensor<'_>],
) -> Result<Vec<exec::Tensor<'static>>, String> {
    let inputs = lowered.plan.inputs.iter().zip(inputs).map(|(wanted, input)| {
        if wanted.kind == CONSTANT {
            return Ok(exec::Tensor::nothing());
        }
        let Tensor { dtype, shape, bytes, .. } =
            input.to_dense().map_err(|failure| failure.message)?;
        exec::Tensor::new(dtype, &shape, bytes.into_owned()).map_err(|e| e.to_string())
    });
    inputs.collect()
}

/// Runs once: the outputs, and behind them what is left in inputs.
pub(crate) fn run(
    module: &std::sync::Arc<exec::Module>,
    inputs: &[exec::Tensor<'_>],
) -> Result<Vec<exec::Tensor<'static>>, exec::ExecError> {
    let mut session = module.session()?;
    session.set_all(inputs)?;
    session.launch()?;
    let mut found = session.outputs()?;
    for (index, input) in module.plan().inputs.iter().enumerate() {
        if input.updated {
            found.push(session.left(index)?);
        }
    }
    Ok(found)
}

/// What the runtime gave, to be judged.
pub(crate) fn view<'a>(output: &'a exec::Tensor<'_>) -> Tensor<'a> {
    Tensor::dense(output.dtype, &output.shape, output.bytes.as_ref())
}
