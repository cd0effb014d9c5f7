//! Memory for the values that kernels leave each other.
//!
//! Invariant: values whose lives overlap share no byte, whatever the symbols are.

use std::collections::BTreeMap;

use crate::{
    loops::Loops,
    plan::{Sized, place_sized},
    size::Size,
};

/// Where each value lies, and how many bytes all need.
pub(super) struct Memory {
    pub(super) offsets: BTreeMap<usize, Size>,
    pub(super) bytes: Size,
}

/// A value: its temporary, the kernel that writes it and the last that reads it.
pub(super) struct Value {
    pub(super) temp: usize,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// Places `values`.
pub(super) fn place(loops: &Loops, values: &[Value]) -> Memory {
    let sized = values.iter().map(|value| {
        let temp = &loops.temps[value.temp];
        let bytes = &temp.numel * &Size::from(temp.dtype.bytes() as i64);
        Sized { bytes, from: value.from, to: value.to }
    });
    let (offsets, bytes) = place_sized(&sized.collect::<Vec<_>>());
    let temps = values.iter().map(|value| value.temp);
    Memory { offsets: temps.zip(offsets).collect(), bytes }
}
