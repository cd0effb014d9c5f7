//! Exported programs in core operations.

use crate::{
    core::Program,
    decompose::decompose,
    fixtures::{Fixture, load},
    interp::{Settings, run},
    read_graph,
};

use super::fixture;

fn core(name: &str) -> Program {
    let graph = read_graph(&fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    decompose(&graph).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Length of the difference over the length of the expected.
fn relative_error(ours: &[f64], golden: &[f64]) -> f64 {
    assert_eq!(ours.len(), golden.len());
    if ours.iter().zip(golden).all(|(a, b)| a.is_nan() && b.is_nan()) {
        return 0.0;
    }
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = length(&mut ours.iter().zip(golden).map(|(a, b)| a - b));
    error / length(&mut golden.iter().copied())
}

/// Runs the archive on each call in its golden file.
fn check(fixture: &Fixture) -> Result<(), String> {
    let graph = read_graph(&fixture.archive).map_err(|e| e.to_string())?;
    let program = decompose(&graph).map_err(|e| e.to_string())?;
    // Whole models in bf16 are rounded after each operation, as PyTorch does.
    let limit = if fixture.name.contains("f32") { 1e-5 } else { 3e-2 };
    for call in fixture.calls(&graph, &program)? {
        let outputs = run(&program, &call.inputs, &Settings::default());
        let outputs = outputs.map_err(|e| e.to_string())?;
        for (i, (output, expected)) in outputs.iter().zip(&call.outputs).enumerate() {
            let error = relative_error(&output.to_f64().unwrap(), &expected.values);
            if output.shape != expected.shape || error.is_nan() || error > limit {
                return Err(format!("call {:?}, out{i}: relative error {error:e}", call.name));
            }
        }
    }
    Ok(())
}

#[test]
fn every_model_is_pytorchs() {
    let fixtures = load("models");
    assert!(fixtures.len() > 50);
    let wrong = |fixture: &Fixture| Some(format!("{}: {}", fixture.name, check(fixture).err()?));
    let wrong: Vec<String> = fixtures.iter().filter_map(wrong).collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn equal_keys_are_equal_programs() {
    for name in ["block_f32", "block_bf16", "block_f32_dynamic", "ops", "ops_core"] {
        let (old, new) = (core(&format!("{name}.211.pt2")), core(&format!("{name}.new.pt2")));
        let parts = |program: &Program| format!("{:?} {:?}", program.values, program.nodes);
        assert_eq!(parts(&old), parts(&new), "{name}");
    }
    let (named, renamed) = (core("block_f32.211.pt2"), core("block_f32_renamed.211.pt2"));
    assert_eq!(format!("{:?}", named.values), format!("{:?}", renamed.values));
}
