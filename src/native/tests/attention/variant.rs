//! The kernels that a case is tried on: the one that is chosen, and others by force.

use kiln_proto::{Target, graph::DType};

use super::case::{BASE, Case};
use crate::codegen::attention::{Choice, choose};

/// A kernel's template arguments, and what a launch takes.
pub(super) struct Variant {
    pub(super) call: String,
    pub(super) threads: u32,
    pub(super) blocks: u64,
    pub(super) sources: Vec<&'static str>,
}

impl From<(Choice, [usize; 7])> for Variant {
    fn from((choice, [b, h, _, s, ..]): (Choice, [usize; 7])) -> Self {
        Self {
            call: choice.call("PROBLEM"),
            threads: choice.threads,
            blocks: choice.blocks(b as u64, h as u64, s as u64),
            sources: choice.sources,
        }
    }
}

pub(super) fn chosen(case: Case) -> (Case, Variant) {
    let choice = choose(&case.problem(), Target::cubin(80));
    (case, (choice, case.sizes).into())
}

/// `kiln_attention_mma` with tiles of its own.
pub(super) fn tiled(case: Case, [rows, keys, split]: [u64; 3]) -> (Case, Variant) {
    let (_, mut variant) =
        chosen(Case { sizes: [1, 1, 1, 64, 64, 64, 64], dtype: DType::F16, ..BASE });
    let [b, h, _, s, ..] = case.sizes;
    variant.call = format!("kiln_attention_mma<PROBLEM, {rows}, {keys}, {split}>");
    variant.threads = (rows * 2 * split) as u32;
    variant.blocks = (s as u64).div_ceil(rows) * (b * h) as u64;
    (case, variant)
}
