//! Attention in pieces becomes attention, where it is one.

mod bench;
mod forms;
mod refusals;

use super::{EMULATED, options};
use crate::{attend, core::Op, decompose::decompose, fixtures::load, lower, read_graph};

/// Kernels of attention in each archive whose name starts like that.
const FIXTURES: [(&str, &str, usize); 11] = [
    ("models", "gpt2_gelu_block_", 1),
    ("models", "gpt2_block_", 1),
    ("models", "llama_block_", 1),
    ("models", "qwen3_block_", 1),
    ("models", "qwen3_masked_", 2),
    ("models", "qwen3_lm_", 16),
    ("models", "bert_", 2),
    ("models", "vit_unfold_", 1),
    ("models", "vit_", 2),
    ("ops", "dynamic_", 3),
    // Four share their products: they stay.
    ("ops", "attention_", 13),
];

/// Models with causal attention, as `run_decompositions()` leaves them.
const CAUSAL: [&str; 4] = ["gpt2_block_", "llama_block_", "qwen3_block_", "qwen3_masked_"];

#[test]
fn masks_of_decomposed_models_are_known_to_be_causal() {
    for fixture in load("models") {
        let is_core = fixture.name.contains("_core.");
        if !is_core || !CAUSAL.iter().any(|name| fixture.name.starts_with(name)) {
            continue;
        }
        let graph = read_graph(&fixture.archive).unwrap();
        let mut program = decompose(&graph).unwrap();
        assert!(!attend::attend(&mut program, &graph).is_empty(), "{}", fixture.name);
        for node in &program.nodes {
            assert!(!matches!(node.op, Op::Attention { causal: false, .. }), "{}", fixture.name);
        }
    }
}

#[test]
fn exported_in_pieces_or_not_attention_is_a_kernel() {
    for folder in ["models", "ops"] {
        for fixture in load(folder) {
            let is = |(of, name, _): &&(&str, &str, usize)| {
                *of == folder && fixture.name.starts_with(name)
            };
            let Some((_, _, count)) = FIXTURES.iter().find(is) else { continue };
            // In f64 it is products and a softmax: there is no such kernel.
            let count = if fixture.name.contains("_f64") { &0 } else { count };
            let lowered = lower(&fixture.archive, &options(&[]), EMULATED).unwrap();
            let kernels = lowered.plan.kernels;
            let attention = kernels.iter().filter(|kernel| kernel.name.ends_with("_attention"));
            let attention: Vec<_> = attention.collect();
            assert_eq!(attention.len(), *count, "{}", fixture.name);
            // Each says that it is the softmax as well, and the products.
            for kernel in attention {
                let does =
                    |what: &str| kernel.computes.iter().filter(|op| op.contains(what)).count();
                let pieces = does("softmax") == 1 && does("bmm") + does("matmul") == 2;
                let whole = does("scaled_dot_product_attention") == 1;
                assert!(whole || pieces, "{}: {:?}", fixture.name, kernel.computes);
            }
        }
    }
}
