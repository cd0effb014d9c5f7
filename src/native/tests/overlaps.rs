//! Kernels that begin before those before them ended.

use super::{fixture, options};
use crate::{
    lower,
    plan::{Arg, Memory},
};
use kiln_proto::Target;

const ARCHIVES: [&str; 3] = [
    "block_bf16.new.pt2",
    "models/gpt2_block_f32_static.new.pt2",
    "models/qwen3_lm_bf16_dynamic.new.pt2",
];

#[test]
fn kernels_overlap_where_the_architecture_can() {
    for (target, can) in [(Target::cubin(80), false), (Target::cubin(90), true)] {
        for archive in ARCHIVES {
            let lowered = lower(&fixture(archive), &options(&[]), target).unwrap();
            let kernels = &lowered.plan.kernels;
            let all = kernels.iter().all(|kernel| kernel.overlaps == can && kernel.follows == can);
            assert!(all, "{archive}");
            let text = serde_json::to_string(&lowered.plan).unwrap();
            assert_eq!(text.contains("overlaps"), can, "{archive}");
        }
    }
}

#[test]
fn what_another_launch_writes_is_read_after_the_wait_and_not_as_constant() {
    let mut read = 0;
    for archive in ARCHIVES {
        let lowered = lower(&fixture(archive), &options(&[]), Target::cubin(90)).unwrap();
        for kernel in &lowered.plan.kernels {
            let (name, source) = (&kernel.name, &lowered.source);
            let at = source.find(&format!(" {name}(")).unwrap() + name.len() + 2;
            let (params, body) = source[at..].split_once(") {\n").unwrap();
            // What follows, a function or a library's part, has its comment first.
            let body = body.split("\n// ").next().unwrap();
            assert!(body.starts_with("kiln_begin();\n"), "{name}: {body}");
            // These wait by themselves, after they have asked for weights.
            let waits = ["kiln_product_vector<", "kiln_product_wgmma<", "kiln_product_persistent<"];
            let waits = waits.iter().any(|template| body.contains(template));
            assert_ne!(body.contains("kiln_wait();"), waits, "{name}: {body}");
            for (param, arg) in params.split(", ").zip(&kernel.args) {
                let written = match arg {
                    Arg::Memory(Memory::Workspace(_) | Memory::Output(_)) => true,
                    // By the launch before the first one, where this is a piece.
                    Arg::Memory(Memory::Input(at)) => lowered.plan.inputs[*at].kind == "user",
                    _ => false,
                };
                if written && param.starts_with("const ") {
                    read += 1;
                    assert!(!param.contains("__restrict__"), "{name}: {param}");
                }
            }
        }
    }
    assert!(read > 10, "{read} temporaries are read");
}
