//! Exported programs in core operations.

use crate::{core::Program, decompose::decompose, read_graph};

use super::fixture;

fn core(name: &str) -> Program {
    let graph = read_graph(&fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    decompose(&graph).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn every_fixture_decomposes() {
    for suffix in ["211", "new"] {
        for name in [
            "block_f32",
            "block_bf16",
            "block_f16",
            "block_f32_core",
            "block_bf16_core",
            "ops",
            "ops_core",
            "block_f32_dynamic",
        ] {
            let program = core(&format!("{name}.{suffix}.pt2"));
            assert!(!program.nodes.is_empty(), "{name}");
        }
    }
}
