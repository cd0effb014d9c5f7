//! Where values lie in the workspace.
//!
//! Invariant: two values whose lives overlap never share a byte.

use std::collections::BTreeMap;

use super::ALIGNMENT;
use crate::size::Size;

/// A value in the workspace: written by kernel `from`, last read by kernel `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) bytes: u64,
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// Offsets for values, and the size of the workspace that holds them: each in
/// the lowest gap between the values alive with it.
pub(crate) fn place(lives: &[Life]) -> (Vec<u64>, u64) {
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

/// A value whose size may depend on symbols.
#[derive(Debug, Clone)]
pub(crate) struct Sized {
    pub(crate) bytes: Size,
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// Offsets for values, and the size of the workspace that holds them: those of
/// known size in gaps between each other, the others after them in slots of
/// their own size.
pub(crate) fn place_sized(values: &[Sized]) -> (Vec<Size>, Size) {
    let known = |value: &Sized| value.bytes.known().map(|bytes| bytes.max(0) as u64);
    let lives: Vec<Life> = values
        .iter()
        .filter_map(|value| Some(Life { bytes: known(value)?, from: value.from, to: value.to }))
        .collect();
    let (placed, size) = place(&lives);
    let (mut placed, mut end) = (placed.into_iter(), Size::from(size as i64));
    // (bytes, offset, last reader): a slot is free for its own size after that.
    let mut slots: Vec<(&Size, Size, usize)> = Vec::new();
    let mut offsets = Vec::with_capacity(values.len());
    for value in values {
        if known(value).is_some() {
            offsets.push(Size::from(placed.next().unwrap_or(0) as i64));
            continue;
        }
        let free =
            slots.iter_mut().find(|(bytes, _, to)| **bytes == value.bytes && *to < value.from);
        offsets.push(match free {
            Some(slot) => {
                slot.2 = value.to;
                slot.1.clone()
            }
            None => {
                let (offset, alignment) = (end.clone(), Size::from(ALIGNMENT as i64));
                end = &offset + &(&value.bytes.div_ceil(&alignment) * &alignment);
                slots.push((&value.bytes, offset.clone(), value.to));
                offset
            }
        });
    }
    (offsets, end)
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
