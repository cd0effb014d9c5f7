//! Every operation against PyTorch, by the interpreter.

use crate::{
    decompose::decompose,
    fixtures::{Fixture, Tolerance, load},
    interp::{Settings, run},
    read_graph,
};

/// What is wrong with the interpreter's results, a line for each output.
fn wrong(fixture: &Fixture) -> Vec<String> {
    let attempt = || -> Result<Vec<String>, String> {
        let graph = read_graph(&fixture.archive).map_err(|e| e.to_string())?;
        let program = decompose(&graph).map_err(|e| e.to_string())?;
        let mut lines = Vec::new();
        for call in fixture.calls(&graph, &program)? {
            let outputs = run(&program, &call.inputs, &Settings::default());
            let outputs = outputs.map_err(|e| e.to_string())?;
            for (expected, got) in call.outputs.iter().zip(&outputs) {
                let tolerance = Tolerance::of(got.dtype);
                lines.extend(expected.mismatch(got, tolerance));
            }
        }
        Ok(lines)
    };
    let lines = attempt().unwrap_or_else(|why| vec![why]);
    lines.into_iter().map(|line| format!("{}: {line}", fixture.name)).collect()
}

#[test]
fn every_operation_is_pytorchs() {
    let fixtures = load("ops");
    assert!(fixtures.len() > 40);
    let lines: Vec<String> = fixtures.iter().flat_map(wrong).collect();
    assert!(lines.is_empty(), "{} wrong:\n{}", lines.len(), lines.join("\n"));
}
