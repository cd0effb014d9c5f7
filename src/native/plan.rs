//! The launch plan: which kernels run on which memory, in which order.
//!
//! Invariant: two values whose lives overlap never share a byte of the
//! workspace, and a plan names nothing that the key does not decide.

use std::collections::BTreeMap;

use kiln_proto::graph::DType;
use serde::{Deserialize, Serialize};

/// Of the format below.
pub const VERSION: u32 = 1;
/// Bytes at which every tensor starts.
pub const ALIGNMENT: u64 = 256;

/// How to run a module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`VERSION`].
    pub version: u32,
    /// What the module runs on: `sm_90`.
    pub target: String,
    /// What the caller gives, in the order of the exported program.
    pub inputs: Vec<Tensor>,
    /// What the caller gets.
    pub outputs: Vec<Tensor>,
    /// Bytes of scratch memory for one run.
    pub workspace_bytes: u64,
    /// In the order of launching.
    pub kernels: Vec<Kernel>,
}

/// A whole number over the plan's symbols; in JSON `3`, `{"symbol": 0}` or
/// `{"add": [.., ..]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expr {
    /// The value of [`Plan::symbols`] at that position.
    Symbol(usize),
    /// The sum of all.
    Add(Vec<Expr>),
    /// The product of all.
    Mul(Vec<Expr>),
    /// The first by the second, rounded down.
    Div(Box<[Expr; 2]>),
    /// What that leaves: of the divisor's sign.
    Mod(Box<[Expr; 2]>),
    /// The greatest.
    Max(Vec<Expr>),
    /// The least.
    Min(Vec<Expr>),
    /// Known.
    #[serde(untagged)]
    Known(i64),
}

impl Expr {
    /// Its value, where `symbols` has those of all symbols; `None`: a symbol
    /// that is not there, a division by zero or more than `i64` holds.
    pub fn value(&self, symbols: &[i64]) -> Option<i64> {
        let all =
            |parts: &[Expr]| parts.iter().map(|e| e.value(symbols)).collect::<Option<Vec<_>>>();
        match self {
            Self::Known(number) => Some(*number),
            Self::Symbol(symbol) => symbols.get(*symbol).copied(),
            Self::Add(parts) => all(parts)?.into_iter().try_fold(0i64, i64::checked_add),
            Self::Mul(parts) => all(parts)?.into_iter().try_fold(1i64, i64::checked_mul),
            Self::Div(parts) => {
                let (a, b) = (parts[0].value(symbols)?, parts[1].value(symbols)?);
                let quotient = a.checked_div(b)?;
                Some(quotient - i64::from(a % b != 0 && (a < 0) != (b < 0)))
            }
            Self::Mod(parts) => {
                let (a, b) = (parts[0].value(symbols)?, parts[1].value(symbols)?);
                let left = a.checked_rem(b)?;
                Some(if left != 0 && (left < 0) != (b < 0) { left + b } else { left })
            }
            Self::Max(parts) => all(parts)?.into_iter().max(),
            Self::Min(parts) => all(parts)?.into_iter().min(),
        }
    }
}

/// A tensor that the caller holds, starting at a multiple of 16 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// `in0`, `out0`: by position, as an artifact serves every program of its key.
    pub name: String,
    /// `parameter`, `buffer`, `user`; `constant` is in the module already; `output`.
    pub kind: String,
    /// Of the elements.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<usize>,
    /// In elements.
    pub strides: Vec<usize>,
}

impl Tensor {
    /// Bytes from the first element to the end of the last one.
    pub fn bytes(&self) -> u64 {
        let steps = self.shape.iter().zip(&self.strides);
        let last: usize = steps.map(|(size, stride)| size.saturating_sub(1) * stride).sum();
        (last as u64 + 1) * self.dtype.bytes()
    }
}

/// One launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// In the module.
    pub name: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// Pointers, in the order of the kernel's parameters.
    pub args: Vec<Memory>,
    /// The operations that it computes, numbered in canonical order.
    pub computes: Vec<String>,
}

/// Where a pointer points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// The start of an input.
    Input(usize),
    /// The start of an output.
    Output(usize),
    /// Bytes into the workspace.
    Workspace(u64),
}

/// A value in the workspace: written by kernel `from`, last read by kernel `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) bytes: u64,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// Offsets for values, and the size of the workspace that holds them: each in
/// the lowest gap between the values alive with it.
pub(super) fn place(lives: &[Life]) -> (Vec<u64>, u64) {
    let mut offsets = vec![0u64; lives.len()];
    let mut size = 0;
    // The largest first: small ones fit into what is left.
    let mut order: Vec<usize> = (0..lives.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(lives[*i].bytes), *i));
    for (done, value) in order.iter().enumerate() {
        let life = lives[*value];
        let bytes = life.bytes.next_multiple_of(ALIGNMENT);
        let taken: BTreeMap<u64, u64> = order[..done]
            .iter()
            .filter(|other| lives[**other].from <= life.to && life.from <= lives[**other].to)
            .map(|other| {
                let end = offsets[*other] + lives[*other].bytes.next_multiple_of(ALIGNMENT);
                (offsets[*other], end)
            })
            .fold(BTreeMap::new(), |mut taken, (start, end)| {
                let longest = taken.entry(start).or_insert(end);
                *longest = end.max(*longest);
                taken
            });
        let mut offset = 0;
        for (start, end) in taken {
            if offset + bytes <= start {
                break;
            }
            offset = offset.max(end);
        }
        offsets[*value] = offset;
        size = size.max(offset + bytes);
    }
    (offsets, size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lives() -> impl Strategy<Value = Vec<Life>> {
        let life = (1u64..5000, 0usize..12, 0usize..6).prop_map(|(bytes, from, long)| Life {
            bytes,
            from,
            to: from + long,
        });
        proptest::collection::vec(life, 0..20)
    }

    proptest! {
        #[test]
        fn values_alive_together_share_no_byte(lives in lives()) {
            let (offsets, size) = place(&lives);
            for (i, a) in lives.iter().enumerate() {
                prop_assert_eq!(offsets[i] % ALIGNMENT, 0);
                prop_assert!(offsets[i] + a.bytes <= size);
                for (j, b) in lives.iter().enumerate().skip(i + 1) {
                    let together = a.from <= b.to && b.from <= a.to;
                    let apart = offsets[i] + a.bytes <= offsets[j]
                        || offsets[j] + b.bytes <= offsets[i];
                    prop_assert!(!together || apart, "{} and {}", i, j);
                }
            }
        }
    }

    #[test]
    fn a_chain_needs_room_for_two() {
        let chain: Vec<Life> = (0..8).map(|i| Life { bytes: 256, from: i, to: i + 1 }).collect();
        assert_eq!(place(&chain).1, 512);
    }
}
