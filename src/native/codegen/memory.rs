//! Memory for the values that kernels leave each other.
//!
//! Invariant: values whose lives overlap share no byte, whatever the symbols are.

use std::collections::BTreeMap;

use crate::{
    loops::Loops,
    plan::{self, ALIGNMENT, Life},
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

/// Places `values`: those of known size in gaps between each other, the others
/// after them in slots of their own size.
pub(super) fn place(loops: &Loops, values: &[Value]) -> Memory {
    let bytes = |value: &Value| {
        let temp = &loops.temps[value.temp];
        &temp.numel * &Size::from(temp.dtype.bytes() as i64)
    };
    let (known, unknown): (Vec<&Value>, Vec<&Value>) =
        values.iter().partition(|value| bytes(value).known().is_some());
    let lives: Vec<Life> = known
        .iter()
        .map(|value| Life {
            bytes: bytes(value).known().unwrap_or(0).max(0) as u64,
            from: value.from,
            to: value.to,
        })
        .collect();
    let (offsets, size) = plan::place(&lives);
    let mut memory = Memory {
        offsets: known
            .iter()
            .zip(offsets)
            .map(|(value, offset)| (value.temp, Size::from(offset as i64)))
            .collect(),
        bytes: Size::from(size as i64),
    };
    // (bytes, offset, last reader): a slot is free for its own size after that.
    let mut slots: Vec<(Size, Size, usize)> = Vec::new();
    for value in unknown {
        let bytes = bytes(value);
        let free = slots.iter_mut().find(|(size, _, to)| *size == bytes && *to < value.from);
        let offset = match free {
            Some(slot) => {
                slot.2 = value.to;
                slot.1.clone()
            }
            None => {
                let offset = memory.bytes.clone();
                let alignment = Size::from(ALIGNMENT as i64);
                memory.bytes = &offset + &(&bytes.div_ceil(&alignment) * &alignment);
                slots.push((bytes, offset.clone(), value.to));
                offset
            }
        };
        memory.offsets.insert(value.temp, offset);
    }
    memory
}
