//! Stitchings that no Kiln wrote.

use serde_json::{Value as Json, json};

use super::{Stitched, build, finest, model, stitched};
use crate::{
    interp::Settings as Run,
    split::{
        Settings,
        stitch::{self, Broken, Stitching},
    },
};

/// A chain of four maps, each a piece, made into JSON.
fn small() -> (Stitched, Json) {
    let settings = Settings { layers: false, at: Vec::new(), ..finest() };
    let mut graph = build::chain("64", 4);
    // Two outputs, so that there is a copy too.
    graph.outputs.push(graph.outputs[0]);
    let done = stitched(&graph, &settings).unwrap();
    let json = serde_json::to_value(&done.stitching).unwrap();
    (done, json)
}

fn read(json: &Json) -> Result<Stitching, Broken> {
    Stitching::read(json.to_string().as_bytes())
}

#[test]
fn each_kind_of_break_is_named() {
    let (_, good) = small();
    read(&good).unwrap();
    type Break = (&'static str, fn(&mut Json), fn(&Broken) -> bool);
    let breaks: Vec<Break> = vec![
        ("version", |s| s["version"] = json!(2), |b| *b == Broken::Version(2)),
        ("a field more", |s| s["more"] = json!(1), |b| matches!(b, Broken::Text(_))),
        ("a digest", |s| s["pieces"][0]["graph"] = json!("00"), |b| matches!(b, Broken::Text(_))),
        (
            "a negative piece",
            |s| s["calls"][0]["piece"] = json!(-1),
            |b| matches!(b, Broken::Text(_)),
        ),
        (
            "a piece that is not there",
            |s| s["calls"][0]["piece"] = json!(99),
            |b| *b == Broken::Piece { call: 0, piece: 99 },
        ),
        (
            "an argument less",
            |s| s["calls"][1]["args"] = json!([]),
            |b| *b == Broken::Count { call: 1 },
        ),
        (
            "an input that is not there",
            |s| s["calls"][0]["args"][0] = json!({"input": 7}),
            |b| *b == Broken::Argument { call: 0, arg: 0 },
        ),
        (
            "a value that is not there",
            |s| s["calls"][1]["args"][0] = json!({"value": 7000000}),
            |b| *b == Broken::Argument { call: 1, arg: 0 },
        ),
        (
            "a constant where there is none",
            |s| s["calls"][0]["args"][0] = json!("constant"),
            |b| *b == Broken::Argument { call: 0, arg: 0 },
        ),
        (
            "another type",
            |s| s["values"][0]["dtype"] = json!("f16"),
            |b| *b == Broken::Result { call: 0, result: 0 },
        ),
        (
            "another size",
            |s| s["values"][0]["shape"] = json!([65]),
            |b| *b == Broken::Result { call: 0, result: 0 },
        ),
        (
            "what comes later",
            |s| s["calls"][1]["args"][0] = json!({"value": 2}),
            |b| *b == Broken::Early { call: 1, value: 2 },
        ),
        (
            "a circle",
            |s| s["calls"][1]["args"][0] = json!({"value": 1}),
            |b| *b == Broken::Early { call: 1, value: 1 },
        ),
        (
            "a value twice",
            |s| s["calls"][1]["results"][0] = json!(0),
            |b| *b == Broken::Twice { value: 0 },
        ),
        (
            "a value of nobody",
            |s| {
                let more = s["values"][0].clone();
                s["values"].as_array_mut().unwrap().push(more);
            },
            |b| *b == Broken::NeverMade { value: 4 },
        ),
        (
            "a value of another call",
            |s| s["values"][1]["from"] = json!(0),
            |b| *b == Broken::NeverMade { value: 1 },
        ),
        (
            "a life too short",
            |s| s["values"][0]["to"] = json!(0),
            |b| matches!(b, Broken::Life { value: 0 } | Broken::InPlace { call: 1 }),
        ),
        (
            "memory past the end",
            |s| s["workspace_bytes"] = json!(0),
            |b| matches!(b, Broken::Memory { .. }),
        ),
        (
            "memory before the start",
            |s| s["values"][0]["memory"] = json!({"workspace": -256}),
            |b| matches!(b, Broken::Memory { .. } | Broken::InPlace { .. }),
        ),
        (
            "in place where it is not",
            |s| s["calls"][0]["in_place"] = json!(0),
            |b| *b == Broken::InPlace { call: 0 },
        ),
        (
            "two in one place",
            |s| {
                s["calls"][1].as_object_mut().unwrap().remove("in_place");
            },
            |b| *b == Broken::Overlap { a: 0, b: 1 },
        ),
        (
            "an output of nobody",
            |s| s["copies"] = json!([]),
            |b| *b == Broken::Output { output: 1 },
        ),
        (
            "an output twice",
            |s| s["copies"][0]["output"] = json!(0),
            |b| matches!(b, Broken::Output { .. }),
        ),
        (
            "a copy of what is gone",
            |s| s["copies"][0]["from"] = json!({"value": 0}),
            |b| *b == Broken::Output { output: 1 },
        ),
        (
            "more memory than there is",
            |s| s["inputs"][0]["shape"] = json!([i64::MAX]),
            |b| !matches!(b, Broken::Text(_)),
        ),
        (
            "a symbol of nothing",
            |s| s["symbols"] = json!([{"min": 0, "input": 9, "dim": 0, "scale": 1, "offset": 0}]),
            |b| matches!(b, Broken::Sizes(_)),
        ),
    ];
    for (what, change, expected) in breaks {
        let mut bad = good.clone();
        change(&mut bad);
        let broken = read(&bad).expect_err(what);
        assert!(expected(&broken), "{what}: {broken:?}");
    }
}

#[test]
fn too_many_of_anything_is_refused() {
    let (_, mut json) = small();
    let call = json["calls"][0].clone();
    json["calls"] = Json::Array(vec![call; (1 << 16) + 1]);
    assert!(matches!(read(&json), Err(Broken::TooMany { what: "calls", .. })));
    let deep = format!("{}1{}", "{\"add\":[".repeat(100_000), "]}".repeat(100_000));
    assert!(matches!(Stitching::read(deep.as_bytes()), Err(Broken::Text(_))));
}

#[test]
fn a_call_of_other_sizes_is_the_callers_fault() {
    let (done, _) = small();
    assert!(matches!(done.stitching.laid_out(&[&[63]]), Err(Broken::Inputs(_))));
    assert!(matches!(done.stitching.laid_out(&[]), Err(Broken::Inputs(_))));
}

/// Where sizes are known at the call alone, the call finds what shares memory.
#[test]
fn memory_that_is_shared_at_some_sizes_is_found_at_the_call() {
    let done = stitched(&model("qwen3_masked_f32_dynamic.211"), &Settings::default()).unwrap();
    let mut json = serde_json::to_value(&done.stitching).unwrap();
    for value in json["values"].as_array_mut().unwrap() {
        if value["memory"].get("workspace").is_some() {
            value["memory"] = json!({"workspace": 0});
        }
    }
    let bad = read(&json).unwrap();
    let shape = |input: &crate::plan::Tensor| -> Vec<usize> {
        let sizes = input.shape.iter().map(|size| size.value(&[2; 8]).unwrap() as usize);
        sizes.collect()
    };
    let shapes: Vec<Vec<usize>> = bad.inputs.iter().map(shape).collect();
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    done.stitching.laid_out(&shapes).unwrap();
    assert!(matches!(bad.laid_out(&shapes), Err(Broken::Overlap { .. })));
}

/// Changes any number anywhere: refused, or run without harm.
#[test]
fn changed_numbers_never_panic() {
    fn numbers(json: &mut Json, found: &mut Vec<*mut Json>) {
        match json {
            Json::Number(_) => found.push(json),
            Json::Array(all) => all.iter_mut().for_each(|json| numbers(json, found)),
            Json::Object(all) => all.values_mut().for_each(|json| numbers(json, found)),
            _ => {}
        }
    }
    let (done, good) = small();
    let input = build::numbers(&[64]);
    let count = {
        let (mut copy, mut found) = (good.clone(), Vec::new());
        numbers(&mut copy, &mut found);
        found.len()
    };
    let mut ran = 0;
    for at in 0..count {
        for number in [json!(0), json!(1), json!(2), json!(3), json!(1 << 20), json!(i64::MAX)] {
            let mut bad = good.clone();
            let mut found = Vec::new();
            numbers(&mut bad, &mut found);
            // SAFETY: `bad` outlives the pointer, and nothing else looks at it now.
            unsafe { *found[at] = number };
            let Ok(stitching) = read(&bad) else { continue };
            let run = Run { memory_bytes: 1 << 24, ..Run::default() };
            let _ = stitch::run(&stitching, &done.pieces, std::slice::from_ref(&input), &run);
            ran += 1;
        }
    }
    assert!(ran >= count, "each number as it was was accepted: {ran} of {count}");
}
