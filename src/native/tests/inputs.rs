//! Archives that cannot be compiled, and what is said about them.

use std::io::{Cursor, Read, Write};

use kiln_proto::{Failure, FailureKind, Target};
use zip::{ZipArchive, ZipWriter, write::SimpleFileOptions};

use super::{super::lower, fixture, options};

fn refused(bytes: &[u8]) -> Failure {
    lower(bytes, &options(&[]), Target::cubin(90)).expect_err("compiles")
}

/// The archive `name` with `edit` applied to its model's JSON.
fn edited(name: &str, edit: impl Fn(String) -> String) -> Vec<u8> {
    let mut from = ZipArchive::new(Cursor::new(fixture(name))).unwrap();
    let mut to = ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..from.len() {
        let mut entry = from.by_index(index).unwrap();
        let path = entry.name().unwrap().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if path.ends_with("models/model.json") {
            bytes = edit(String::from_utf8(bytes).unwrap()).into_bytes();
        }
        to.start_file(path, SimpleFileOptions::default()).unwrap();
        to.write_all(&bytes).unwrap();
    }
    to.finish().unwrap().into_inner()
}

#[test]
fn a_truncated_archive_is_invalid_at_any_length() {
    let whole = fixture("block_f32.211.pt2");
    for length in (0..whole.len()).step_by(997) {
        assert_eq!(refused(&whole[..length]).kind, FailureKind::InvalidInput);
    }
}

#[test]
fn unknown_operations_are_named_all_at_once() {
    let strange = |json: String| json.replace("aten.cumsum.default", "aten.cumbersome.default");
    let failure = refused(&edited("unknown.211.pt2", strange));
    assert_eq!(failure.kind, FailureKind::UnsupportedOp);
    for part in ["aten.cumbersome.default", "special_bessel_j0", "\"cumsum\""] {
        assert!(failure.message.contains(part), "{failure}");
    }
    assert!(!failure.message.contains("tanh"), "{failure}");
}

#[test]
fn json_of_absurd_depth_is_refused() {
    let deep = |_| format!("{{\"graph_module\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let failure = refused(&edited("block_f32.211.pt2", deep));
    assert_eq!(failure.kind, FailureKind::InvalidInput);
}

#[test]
fn a_chain_of_any_length_does_not_overflow_the_stack() {
    let long = |json: String| {
        let (before, after) = json.split_once("\"nodes\": [").unwrap();
        let meta = r#"{"dtype":7,"sizes":[{"as_int":4}],"requires_grad":false,"device":{"type":"cpu","index":null},"strides":[{"as_int":1}],"storage_offset":{"as_int":0},"layout":7}"#;
        let tensors = (0..20_000).map(|i| format!("\"n{i}\": {meta},")).collect::<String>();
        let node = |i: usize| {
            let read = if i == 0 { "x".to_owned() } else { format!("n{}", i - 1) };
            format!(
                r#"{{"target":"torch.ops.aten.neg.default","inputs":[{{"name":"self","arg":{{"as_tensor":{{"name":"{read}"}}}}}}],"outputs":[{{"as_tensor":{{"name":"n{i}"}}}}],"metadata":{{}}}},"#
            )
        };
        let nodes = (0..20_000).map(node).collect::<String>();
        let after =
            after.replace("\"tensor_values\": {", &format!("\"tensor_values\": {{{tensors}"));
        format!("{before}\"nodes\": [{nodes}{after}")
    };
    // `unknown` has what nobody knows after the chain: parsed in full, then refused by name.
    let failure = refused(&edited("unknown.211.pt2", long));
    assert_eq!(failure.kind, FailureKind::UnsupportedOp);
}

#[test]
fn a_declared_shape_that_does_not_follow_is_refused_with_its_node() {
    let lie = |json: String| {
        let at = json.find("\"linear_1\": {").unwrap();
        let (before, after) = json.split_at(at);
        format!("{before}{}", after.replacen("{\"as_int\": 136}", "{\"as_int\": 137}", 1))
    };
    let failure = refused(&edited("block_f32.211.pt2", lie));
    assert_eq!(failure.kind, FailureKind::InvalidInput);
    assert!(
        failure.message.contains("\"linear_1\"") && failure.message.contains("137"),
        "{failure}"
    );
}

#[test]
fn mangled_models_fail_and_never_panic() {
    let original = fixture("block_f32.211.pt2");
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..300 {
        let mut mangled = original.clone();
        for _ in 0..4 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (seed >> 20) as usize % mangled.len();
            mangled[at] = (seed >> 8) as u8;
        }
        let _ = lower(&mangled, &options(&[]), Target::cubin(90));
    }
    // The checksum guards the bytes above; numbers inside the JSON are next.
    for wrong in ["0", "-1", "18446744073709551615", "1e999", "null", "4294967296"] {
        for name in ["\"as_int\": 72", "\"as_int\": 136", "\"as_int\": 1}", "\"dtype\": 7", "[-1]"]
        {
            let key = name.split(':').next().unwrap();
            let new = match name {
                "[-1]" => format!("[{wrong}]"),
                "\"as_int\": 1}" => format!("{key}: {wrong}}}"),
                _ => format!("{key}: {wrong}"),
            };
            let bytes = edited("block_f32.211.pt2", |json| json.replace(name, &new));
            let _ = lower(&bytes, &options(&[]), Target::cubin(90));
        }
    }
}

#[test]
fn options_and_targets_that_cannot_be_are_incompatible() {
    let archive = fixture("block_f32.211.pt2");
    let kind = |given: &[(&str, &str)], target: &str| {
        lower(&archive, &options(given), target.parse().unwrap()).unwrap_err().kind
    };
    assert_eq!(kind(&[("fuze", "on")], "sm_90"), FailureKind::Incompatible);
    assert_eq!(kind(&[("fuse", "maybe")], "sm_90"), FailureKind::Incompatible);
    assert_eq!(kind(&[], "compute_90"), FailureKind::Incompatible);
}

/// What was written through a view that nobody reads was dropped once, and the numbers wrong.
#[test]
fn writes_that_cannot_be_followed_are_refused_though_nothing_reads_them() {
    for (name, kind, said) in [
        ("drawn", FailureKind::UnsupportedOp, "aten.uniform_.default (node \"uniform_\")"),
        ("unsure", FailureKind::UnsupportedOp, "write to a clone of it instead"),
        ("constant", FailureKind::UnsupportedOp, "is written to: make it a buffer"),
    ] {
        let failure = refused(&fixture(&format!("state/{name}.refused.pt2")));
        assert!(failure.kind == kind && failure.message.contains(said), "{name}: {failure}");
    }
}

/// The exporter's own account of what is written to, broken.
#[test]
fn what_is_left_in_no_input_or_twice_is_refused() {
    for (from, to, said) in [
        ("\"buffer_name\":\"mean\"", "\"buffer_name\":\"none\"", "\"none\" is written to"),
        ("\"user_input_name\":\"total\"", "\"user_input_name\":\"x\"", ""),
        ("\"buffer_name\":\"mean\"", "\"buffer_name\":\"count\"", ""),
    ] {
        let archive = edited("state/counting_core.pt2", |json| {
            let json = json.replace(": ", ":").replace(", ", ",");
            let (inputs, outputs) = json.split_once("\"output_specs\"").unwrap();
            assert!(outputs.contains(from), "{from}");
            format!("{inputs}\"output_specs\"{}", outputs.replacen(from, to, 1))
        });
        match (lower(&archive, &options(&[]), Target::cubin(90)), said) {
            // Another input of the same type: another program, and a right one.
            (Ok(lowered), "") => assert!(lowered.plan.inputs.iter().any(|input| input.updated)),
            (Err(failure), said) => {
                assert_eq!(failure.kind, FailureKind::InvalidInput, "{failure}");
                assert!(failure.message.contains(said), "{failure}");
            }
            (Ok(_), said) => panic!("{said}"),
        }
    }
}
