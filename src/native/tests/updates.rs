//! What is left in inputs: where the plan writes it, and which version says so.

use kiln_proto::Target;

use super::{super::lower, fixture, options};
use crate::plan::{Arg, Kernel, Memory, PLAIN, Plan, VERSION};

fn plan(name: &str) -> Plan {
    lower(&fixture(name), &options(&[]), Target::cubin(90)).unwrap().plan
}

fn touches(kernel: &Kernel, input: usize) -> bool {
    kernel.args.iter().any(|arg| matches!(arg, Arg::Memory(Memory::Input(at)) if *at == input))
}

#[test]
fn raw_and_decomposed_programs_leave_the_same_in_the_same_inputs() {
    for (name, updated) in [("counting", vec![0, 1, 3]), ("decoding", vec![4, 5])] {
        for form in ["", "_core"] {
            let plan = plan(&format!("state/{name}{form}.pt2"));
            let inputs = plan.inputs.iter().enumerate();
            let found: Vec<usize> = inputs.filter(|(_, i)| i.updated).map(|(at, _)| at).collect();
            assert_eq!(found, updated, "{name}{form}");
            // No output is handed out for what is left in an input.
            assert_eq!(plan.outputs.len(), 1, "{name}{form}");
            assert_eq!(plan.version, VERSION);
            for input in updated.iter().copied() {
                assert!(plan.kernels.iter().any(|kernel| touches(kernel, input)), "{name} {input}");
            }
        }
    }
}

/// Programs of before have a plan that nodes and clients of before read.
#[test]
fn a_plan_that_changes_no_input_is_one_of_the_version_before() {
    let plan = plan("block_f32.new.pt2");
    assert_eq!(plan.version, PLAIN);
    assert!(plan.inputs.iter().all(|input| !input.updated));
    assert!(!serde_json::to_string(&plan).unwrap().contains("updated"));
}

/// A cache of keys is read where the step before left it, not from a copy beside it.
#[test]
fn a_cache_is_written_where_it_lies() {
    let plan = plan("state/decoding.pt2");
    let cache = plan.inputs[4].shape.iter().map(|size| size.known().unwrap()).product::<i64>() * 4;
    let workspace = plan.workspace_bytes.known().unwrap();
    assert!(workspace < cache, "{workspace} bytes of workspace beside a cache of {cache}");
}
