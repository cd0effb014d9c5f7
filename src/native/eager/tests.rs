use kiln_proto::graph::DType;
use safetensors::SafeTensors;

use super::*;
use crate::{components, core, interp::Precision, read_graph, size::Size, tests::fixture};

const FIXTURES: [&str; 9] = [
    "block_f32",
    "block_bf16",
    "block_f32_1k",
    "block_f32_batch",
    "block_f32_core",
    "block_f32_dynamic",
    "block_f32_eps",
    "block_f32_renamed",
    "ops",
];

fn eager(archive: &str) -> Eager {
    Eager::new(&read_graph(&fixture(archive)).unwrap()).unwrap()
}

/// What `files` hold, after `change`.
fn load(
    files: &[(String, Vec<u8>)],
    change: impl Fn(&str, String) -> String,
) -> Result<Eager, Failure> {
    Eager::load(|name| {
        let found = files.iter().find(|(file, _)| file == name);
        let (_, bytes) = found.ok_or("no such file")?;
        Ok::<_, &str>(match std::str::from_utf8(bytes) {
            Ok(text) => change(name, text.to_owned()).into_bytes(),
            Err(_) => bytes.clone(),
        })
    })
}

/// The inputs of `golden`, as the plan has them.
fn given(eager: &Eager, golden: &SafeTensors<'_>) -> Vec<Tensor<'static>> {
    let inputs = eager.plan().inputs.iter();
    let read = inputs.map(|input| {
        let given = golden.tensor(&input.name).unwrap();
        Tensor::dense(input.dtype, given.shape(), given.data().to_vec())
    });
    read.collect()
}

/// Largest difference over the largest magnitude.
fn error(ours: &[f64], golden: &[f64]) -> f64 {
    assert_eq!(ours.len(), golden.len());
    let magnitude = golden.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let worst = ours.iter().zip(golden).map(|(a, b)| (a - b).abs());
    worst.fold(0.0, |most, x| if x.is_nan() { f64::INFINITY } else { most.max(x) }) / magnitude
}

fn check(archive: &str, golden: &str, limit: f64) {
    let written = eager(archive).files().unwrap();
    let eager = load(&written, |_, text| text).unwrap();
    let golden = fixture(golden);
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let outputs = eager.run(&given(&eager, &golden), &Settings::default()).unwrap();
    for (described, output) in eager.plan().outputs.iter().zip(&outputs) {
        let expected = golden.tensor(&described.name).unwrap();
        assert_eq!((output.dtype, &output.shape[..]), (described.dtype, expected.shape()));
        let expected = Tensor::dense(DType::F32, expected.shape(), expected.data());
        let error = error(&output.to_f64().unwrap(), &expected.to_f64().unwrap());
        assert!(error < limit, "{archive} {}: relative error {error:e}", described.name);
    }
}

#[test]
fn the_block_and_every_operation_are_pytorchs() {
    for version in ["211", "new"] {
        check(&format!("block_f32.{version}.pt2"), "block_f32.safetensors", 1e-6);
        check(&format!("block_f32_core.{version}.pt2"), "block_f32.safetensors", 1e-6);
        check(&format!("block_bf16.{version}.pt2"), "block_bf16.safetensors", 1e-2);
        check(&format!("block_f16.{version}.pt2"), "block_f16.safetensors", 2e-3);
        check(&format!("ops.{version}.pt2"), "ops.safetensors", 1e-6);
        check(&format!("ops_core.{version}.pt2"), "ops.safetensors", 1e-6);
    }
}

/// The judge needs no rounding: it is nearer than the rounded run.
#[test]
fn exact_runs_are_within_the_inputs_own_error() {
    let eager = eager("block_bf16.new.pt2");
    let golden = fixture("block_bf16.safetensors");
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let exact = Settings { precision: Precision::Exact, ..Settings::default() };
    let outputs = eager.run(&given(&eager, &golden), &exact).unwrap();
    assert_eq!(outputs[0].dtype, DType::F64);
    let expected = golden.tensor("out0").unwrap();
    let expected = Tensor::dense(DType::F32, expected.shape(), expected.data());
    let error = error(&outputs[0].to_f64().unwrap(), &expected.to_f64().unwrap());
    assert!(error < 1e-5, "{error:e}");
}

#[test]
fn equal_keys_have_equal_files_and_files_do_not_name_anything() {
    let mut seen = Vec::new();
    for name in FIXTURES {
        for version in ["211", "new"] {
            let archive = format!("{name}.{version}.pt2");
            let graph = read_graph(&fixture(&archive)).unwrap();
            let files = Eager::new(&graph).unwrap().files().unwrap();
            let text = files.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes));
            assert!(!text.collect::<String>().contains("weight"), "{archive}");
            seen.push((archive, components(&graph), files));
        }
    }
    let mut equal = 0;
    for (a, key_a, files_a) in &seen {
        for (b, key_b, files_b) in &seen {
            if a < b && key_a == key_b {
                assert!(files_a == files_b, "{a} and {b}");
                equal += 1;
            }
        }
    }
    assert!(equal >= FIXTURES.len(), "{equal} pairs");
}

#[test]
fn symbols_are_in_the_plan_and_bound_by_a_call() {
    let eager = eager("block_f32_dynamic.new.pt2");
    let plan = eager.plan();
    assert_eq!((plan.target.as_str(), plan.kernels.len()), ("any", 0));
    let [symbol] = &plan.symbols[..] else { panic!("{:?}", plan.symbols) };
    let sizes = |n: i64| {
        let shape = |tensor: &crate::plan::Tensor| {
            tensor.shape.iter().map(|size| size.value(&[n]).unwrap() as usize).collect::<Vec<_>>()
        };
        plan.inputs.iter().map(shape).collect::<Vec<_>>()
    };
    for n in [symbol.min, symbol.min + 3] {
        let inputs: Vec<Tensor<'_>> = (plan.inputs.iter().zip(sizes(n)))
            .map(|(input, shape)| {
                let bytes = vec![0; shape.iter().product::<usize>() * input.dtype.bytes() as usize];
                Tensor::dense(input.dtype, &shape, bytes)
            })
            .collect();
        let outputs = eager.run(&inputs, &Settings::default()).unwrap();
        let expected = plan.outputs[0].shape.iter().map(|size| size.value(&[n]).unwrap() as usize);
        assert_eq!(outputs[0].shape, expected.collect::<Vec<_>>());
        let shapes = sizes(n);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        assert_eq!(plan.call(&shapes).unwrap().launches, []);
    }
}

/// `x + c` where `c` is a constant, with everything that JSON could spoil.
fn with_constant() -> Eager {
    use core::{Domain, Fun, Input, Node, Number, Op, Operand, Value, ValueId};
    let shape = |size: i64| vec![Size::from(size)];
    let value = |size| Value { dtype: DType::F32, shape: shape(size) };
    let input = |id| Input { value: ValueId(id), position: id, strides: vec![Size::from(1)] };
    let add = Op::Map {
        fun: Fun::Add,
        domain: Domain::Float,
        args: vec![Operand::Read(0), Operand::Read(1)],
    };
    let pad = Op::Pad { before: vec![1.into()], value: Number::Float(f64::NEG_INFINITY) };
    let scale = Op::Map {
        fun: Fun::Mul,
        domain: Domain::Float,
        args: vec![Operand::Read(0), Operand::Number(Number::Float(0.1 + 0.2))],
    };
    let node = |op, reads: &[usize], writes, origin| Node {
        op,
        reads: reads.iter().map(|id| ValueId(*id)).collect(),
        writes: ValueId(writes),
        origin,
    };
    let program = Program {
        symbols: Vec::new(),
        values: vec![value(2), value(2), value(2), value(3), value(3)],
        inputs: vec![input(0), input(1)],
        nodes: vec![node(add, &[0, 1], 2, 7), node(pad, &[2], 3, 4), node(scale, &[3], 4, 7)],
        updates: Vec::new(),
        outputs: vec![ValueId(4)],
    };
    let constant = [1f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    Eager::of(program, &["user", CONSTANT], vec![None, Some(constant)]).unwrap()
}

#[test]
fn constants_travel_with_the_program_and_floats_keep_every_bit() {
    let files = with_constant().files().unwrap();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [CONSTANTS, GRAPH, PLAN]);
    let eager = load(&files, |_, text| text).unwrap();
    assert_eq!(eager.program().nodes[2].op, with_constant().program().nodes[2].op);
    assert_eq!(eager.program().nodes.iter().map(|n| n.origin).collect::<Vec<_>>(), [0, 1, 0]);
    let x = Tensor::dense(DType::F32, &[2], [3f32, 4.0].map(f32::to_le_bytes).concat());
    let nothing = Tensor::dense(DType::U8, &[0], Vec::new());
    let exact = Settings { precision: Precision::Exact, ..Settings::default() };
    let outputs = eager.run(&[x, nothing], &exact).unwrap();
    let third = 0.1 + 0.2;
    assert_eq!(outputs[0].to_f64().unwrap(), [f64::NEG_INFINITY, 4.0 * third, 6.0 * third]);
    let failure = eager.run(&[], &exact).unwrap_err();
    assert!(failure.message.contains("0 inputs, not 2"));
}

#[test]
fn damaged_files_are_refused() {
    let files = with_constant().files().unwrap();
    let refused = |file: &str, from: &str, to: &str| {
        let change = |name: &str, text: String| match name == file {
            true if from.is_empty() => to.to_owned(),
            true => {
                assert!(text.contains(from), "{from} in {text}");
                text.replace(from, to)
            }
            false => text,
        };
        load(&files, change).unwrap_err()
    };
    for (file, from, to, why) in [
        (GRAPH, "", "{", "graph.json"),
        (GRAPH, "\"version\":1", "\"version\":9", "version 9"),
        (GRAPH, "\"reads\":[2]", "\"reads\":[9]", "value 9"),
        (GRAPH, "\"writes\":3", "\"writes\":2", "not defined once"),
        (GRAPH, "\"writes\":3", "\"writes\":99", "not defined once"),
        (GRAPH, "\"outputs\":[4]", "\"outputs\":[5]", "value 5"),
        (GRAPH, "\"position\":1", "\"position\":0", "input 1"),
        (GRAPH, "\"-inf\"", "\"low\"", "graph.json"),
        (PLAN, "\"any\"", "\"sm_90\"", "not that of"),
    ] {
        let failure = refused(file, from, to);
        assert!(failure.message.contains(why), "{from} to {to}: {failure}");
    }
    for (file, why) in [(CONSTANTS, "no such file"), (GRAPH, "graph.json"), (PLAN, "plan.json")] {
        let fewer: Vec<_> = files.iter().filter(|(name, _)| name != file).cloned().collect();
        let failure = load(&fewer, |_, text| text).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Corrupt);
        assert!(failure.message.contains(why), "{failure}");
    }
    for (length, why) in [(7, "too short"), (9, "too long")] {
        let mut odd = files.clone();
        odd[0].1.resize(length, 0xff);
        let failure = load(&odd, |_, text| text).unwrap_err();
        assert!(failure.message.contains(why), "{failure}");
    }
}

/// Whatever the numbers in a program are, it runs or says why not.
#[test]
fn mangled_programs_never_panic() {
    for archive in ["ops.new.pt2", "block_f32_core.new.pt2"] {
        let whole = eager(archive);
        let (files, plan) = (whole.files().unwrap(), whole.plan());
        let (_, graph) = files.into_iter().find(|(name, _)| name == GRAPH).unwrap();
        let kinds: Vec<&str> = plan.inputs.iter().map(|input| input.kind.as_str()).collect();
        let inputs: Vec<Tensor<'_>> = (plan.inputs.iter())
            .map(|input| {
                let shape = describe::known(&input.shape).unwrap();
                let count = shape.iter().product::<usize>();
                Tensor::dense(input.dtype, &shape, vec![0; count * input.dtype.bytes() as usize])
            })
            .collect();
        let settings = Settings { memory_bytes: 64 << 20, ..Settings::default() };
        let digits: Vec<usize> = (graph.iter().enumerate())
            .filter_map(|(at, byte)| byte.is_ascii_digit().then_some(at))
            .collect();
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut ran = 0;
        for _ in 0..150 {
            let mut graph = graph.clone();
            for _ in 0..2 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = digits[(seed >> 33) as usize % digits.len()];
                let new = ["0", "1", "3", "9", "-1", "70000", "9223372036854775807"];
                let new = new[(seed >> 20) as usize % new.len()];
                graph.splice(at..=at, new.bytes());
                if at + 30 > graph.len() {
                    break;
                }
            }
            let Ok(file) = serde_json::from_slice::<files::File>(&graph) else { continue };
            let constants = whole.constants.clone();
            let Ok(mangled) = Eager::of(file.program, &kinds, constants) else { continue };
            let _ = mangled.run(&inputs, &settings);
            ran += 1;
        }
        assert!(ran > 20, "{ran} programs could be run");
    }
}
