//! Each operation with its edge cases, against what torch computed.

use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_native::interp::Tensor;
use kiln_proto::graph::DType;
use safetensors::SafeTensors;

use crate::{
    compile, expect_none,
    fixtures::{self, Fixture},
    in_parallel,
    models::given,
};

/// A few units in the last place, as CUDA's functions are off in f32 and as a
/// result that is rounded twice is in shorter types.
const fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 4e-6,
        DType::F16 => 2e-3,
        DType::BF16 => 1.6e-2,
        _ => 0.0,
    }
}

/// The first element that is wrong. What was computed from the ends of a type is
/// judged by its own size, anything else by that of the numbers it came from.
fn mismatch(ours: &[f64], golden: &[f64], tolerance: f64, edge: bool) -> Option<String> {
    if ours.len() != golden.len() {
        return Some(format!("{} elements, not {}", ours.len(), golden.len()));
    }
    let floor = if edge { 1e-30 } else { 1.0 };
    let wrong = ours.iter().zip(golden).position(|(a, b)| {
        let same = a == b || (a.is_nan() && b.is_nan());
        let near = b.is_finite() && (a - b).abs() <= tolerance * b.abs().max(floor);
        !same && !near
    })?;
    Some(format!("element {wrong} is {}, not {}", ours[wrong], golden[wrong]))
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn operations_are_pytorchs() {
    let found = fixtures::all("ops");
    assert!(!found.is_empty(), "no fixtures: set KILN_FIXTURES");
    let outputs = AtomicUsize::new(0);
    let wrong = in_parallel(found.len(), |index| {
        let fixture = &found[index];
        let wrong = check(fixture, &outputs).map_err(|why| format!("{}: {why}", fixture.name))?;
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(format!("{}: {}", fixture.name, wrong.join("; "))),
        }
    });
    println!("{} outputs compared", outputs.load(Ordering::Relaxed));
    expect_none("archives of operations", found.len(), &wrong);
    assert!(outputs.into_inner() > found.len());
}

/// All outputs that are wrong.
fn check(fixture: &Fixture, outputs: &AtomicUsize) -> Result<Vec<String>, String> {
    let lowered = kiln_native::lower(&fixture.archive, &compile::options(), compile::target());
    let lowered = lowered.map_err(|failure| failure.message)?;
    let module = compile::module(&lowered)?;
    let golden = SafeTensors::deserialize(&fixture.golden).map_err(|e| e.to_string())?;
    let inputs = given(&lowered, |index, dtype| {
        fixtures::cast(&fixtures::tensor(&golden, "", &format!("in{index}"))?, dtype)
    })?;
    let names = names(&fixture.golden);
    let found = module.run(&inputs).map_err(|e| e.to_string())?;
    let mut wrong = Vec::new();
    for (index, output) in found.iter().enumerate() {
        let name = names.get(index).map_or("", String::as_str);
        let view = fixtures::tensor(&golden, "", &format!("out{index}"))?;
        if view.shape() != output.shape {
            wrong.push(format!("{name}: shape {:?}, not {:?}", output.shape, view.shape()));
            continue;
        }
        let ours = Tensor::dense(output.dtype, &output.shape, output.bytes.as_ref());
        let wanted = fixtures::cast(&view, output.dtype)?;
        let numbers = |tensor: &Tensor<'_>| tensor.to_f64().map_err(|e| e.message);
        let tolerance = tolerance(output.dtype);
        let why = mismatch(&numbers(&ours)?, &numbers(&wanted)?, tolerance, name.contains("edge"));
        outputs.fetch_add(1, Ordering::Relaxed);
        wrong.extend(why.map(|why| format!("{name} (out{index}): {why}")));
    }
    Ok(wrong)
}

/// What the outputs are called, where the file says.
fn names(golden: &[u8]) -> Vec<String> {
    let read = SafeTensors::read_metadata(golden).ok();
    let noted = read.and_then(|(_, header)| header.metadata().clone());
    let names = noted.and_then(|notes| notes.get("names").cloned()).unwrap_or_default();
    serde_json::from_str(&names).unwrap_or_default()
}
