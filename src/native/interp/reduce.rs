//! Many numbers to one, and along a dimension.
//!
//! Invariant: the order of a fold is row-major over the reduced dimensions, so
//! results do not depend on anything but the program.

use std::cmp::Ordering;

use kiln_proto::{Failure, graph::DType};

use super::{
    invalid,
    step::Step,
    tensor::{Data, Dense},
};
use crate::core::Reduction;

/// Folds `dims` of the only operand.
pub(super) fn reduce(step: &Step<'_>, how: Reduction, dims: &[usize]) -> Result<Dense, Failure> {
    let x = step.read(0)?;
    let (data, count, length) = x.rows(dims)?;
    if length == 0 && count > 0 && how.gives_positions() {
        return Err(invalid(format!("{how:?} of nothing: {:?} over {dims:?}", x.shape)));
    }
    let is_truth = step.dtypes.first() == Some(&DType::Bool);
    let rows = 0..count;
    let result = match &data {
        Data::Float(all) => {
            let row = |i: usize| &all[i * length..][..length];
            match how {
                Reduction::Sum => {
                    Data::Float(rows.map(|i| row(i).iter().fold(0.0, |a, b| a + b)).collect())
                }
                Reduction::Prod => Data::Float(rows.map(|i| row(i).iter().product()).collect()),
                Reduction::Max if length == 0 => Data::Float(vec![f64::NEG_INFINITY; count]),
                Reduction::Min if length == 0 => Data::Float(vec![f64::INFINITY; count]),
                Reduction::Max | Reduction::Min => {
                    let best = |i| row(i)[best(row(i), how, float_order)];
                    Data::Float(rows.map(best).collect())
                }
                Reduction::ArgMax | Reduction::ArgMin => {
                    Data::Int(rows.map(|i| best(row(i), how, float_order) as i64).collect())
                }
                Reduction::Any => {
                    Data::Int(rows.map(|i| row(i).iter().any(|x| *x != 0.0).into()).collect())
                }
                Reduction::All => {
                    Data::Int(rows.map(|i| row(i).iter().all(|x| *x != 0.0).into()).collect())
                }
            }
        }
        Data::Int(all) => {
            let row = |i: usize| &all[i * length..][..length];
            let fold = |i: usize| {
                let numbers = row(i).iter().copied();
                match how {
                    Reduction::Sum => numbers.fold(0, i64::wrapping_add),
                    Reduction::Prod => numbers.fold(1, i64::wrapping_mul),
                    Reduction::Any => i64::from(row(i).iter().any(|x| *x != 0)),
                    Reduction::All => i64::from(row(i).iter().all(|x| *x != 0)),
                    Reduction::Max if length == 0 => {
                        if is_truth {
                            0
                        } else {
                            i64::MIN
                        }
                    }
                    Reduction::Min if length == 0 => {
                        if is_truth {
                            1
                        } else {
                            i64::MAX
                        }
                    }
                    Reduction::Max | Reduction::Min => row(i)[best(row(i), how, i64::cmp)],
                    Reduction::ArgMax | Reduction::ArgMin => best(row(i), how, i64::cmp) as i64,
                }
            };
            Data::Int(rows.map(fold).collect())
        }
    };
    let kept = (0..x.shape.len()).filter(|dim| !dims.contains(dim));
    let shape: Vec<usize> = kept.map(|dim| x.shape[dim]).collect();
    Ok(Dense { shape, ..step.result(result) })
}

/// Running sums.
pub(super) fn cumsum(step: &Step<'_>, dim: usize) -> Result<Dense, Failure> {
    let x = step.read(0)?;
    let length = super::movement::size(x, dim)?;
    let inner: usize = x.shape[dim + 1..].iter().product();
    fn sums<T: Copy>(all: &[T], length: usize, inner: usize, add: fn(T, T) -> T) -> Vec<T> {
        let mut out = all.to_vec();
        for block in out.chunks_exact_mut((length * inner).max(1)) {
            for at in inner..block.len() {
                block[at] = add(block[at - inner], block[at]);
            }
        }
        out
    }
    let data = match &x.data {
        Data::Float(all) => Data::Float(sums(all, length, inner, |a, b| a + b)),
        Data::Int(all) => Data::Int(sums(all, length, inner, i64::wrapping_add)),
    };
    Ok(Dense { shape: x.shape.clone(), ..step.result(data) })
}

/// The `k` greatest or least of each row.
pub(super) fn topk(
    step: &Step<'_>,
    k: usize,
    largest: bool,
    positions: bool,
) -> Result<Dense, Failure> {
    let x = step.read(0)?;
    let (Some(dim), Some(length)) = (x.shape.len().checked_sub(1), x.shape.last()) else {
        return Err(invalid("a number has no last dimension"));
    };
    if k > *length {
        return Err(invalid(format!("the {k} first of {length}")));
    }
    let (_, count, length) = x.rows(&[dim])?;
    let mut chosen = Vec::with_capacity(count * k);
    for row in 0..count {
        let order = |a: &usize, b: &usize| {
            let (a, b) = (row * length + *a, row * length + *b);
            let order = match &x.data {
                Data::Float(all) => float_order(&all[a], &all[b]),
                Data::Int(all) => all[a].cmp(&all[b]),
            };
            if largest { order.reverse() } else { order }
        };
        let mut ranked: Vec<usize> = (0..length).collect();
        ranked.sort_by(order);
        chosen.extend(ranked[..k].iter().map(|at| (row, *at)));
    }
    let data = match &x.data {
        _ if positions => Data::Int(chosen.iter().map(|(_, at)| *at as i64).collect()),
        Data::Float(all) => {
            Data::Float(chosen.iter().map(|(row, at)| all[row * length + at]).collect())
        }
        Data::Int(all) => {
            Data::Int(chosen.iter().map(|(row, at)| all[row * length + at]).collect())
        }
    };
    let mut shape = x.shape.clone();
    shape[dim] = k;
    Ok(Dense { shape, ..step.result(data) })
}

/// Position of the greatest or least, the first of equals. For both, NaN is best.
fn best<T: Unordered>(row: &[T], how: Reduction, order: fn(&T, &T) -> Ordering) -> usize {
    let least = matches!(how, Reduction::Min | Reduction::ArgMin);
    let better = |a: &T, b: &T| match (a.is_nan(), b.is_nan()) {
        (true, b) => !b,
        (false, true) => false,
        _ if least => order(a, b) == Ordering::Less,
        _ => order(a, b) == Ordering::Greater,
    };
    (1..row.len()).fold(0, |best, at| if better(&row[at], &row[best]) { at } else { best })
}

/// By value, both zeros equal, NaN greatest.
fn float_order(a: &f64, b: &f64) -> Ordering {
    a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

trait Unordered {
    fn is_nan(&self) -> bool;
}

impl Unordered for f64 {
    fn is_nan(&self) -> bool {
        f64::is_nan(*self)
    }
}

impl Unordered for i64 {
    fn is_nan(&self) -> bool {
        false
    }
}
