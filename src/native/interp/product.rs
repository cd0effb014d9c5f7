//! Matrix products and attention.
//!
//! Invariant: each element is one sum in the order of the contracted
//! dimension; nothing is skipped, so infinities and NaN spread as they must.

use std::ops::{Add, Mul, Range};

use kiln_proto::Failure;

use super::{
    invalid,
    movement::View,
    step::Step,
    tensor::{Data, Dense},
    threads,
};
use crate::core::Empty;

/// Elements of one side of a block: 64 x 256 numbers stay in the cache.
const DEPTH: usize = 64;
const WIDTH: usize = 256;

/// Batches of `[m, k] x [k, n]`.
pub(super) fn matmul(step: &Step<'_>) -> Result<Dense, Failure> {
    let (a, b) = (step.read(0)?, step.read(1)?);
    let mismatch = || invalid(format!("{:?} times {:?}", a.shape, b.shape));
    let [batch @ .., m, k] = &a.shape[..] else { return Err(mismatch()) };
    let [batch_b @ .., k_b, n] = &b.shape[..] else { return Err(mismatch()) };
    if batch != batch_b || k != k_b {
        return Err(mismatch());
    }
    let shape: Vec<usize> = batch.iter().chain([m, n]).copied().collect();
    step.expect(&shape)?;
    let sizes = Sizes { m: *m, k: *k, n: *n };
    let count = batch.iter().product::<usize>() * m;
    let data = match (&a.data, &b.data) {
        (Data::Float(a), Data::Float(b)) => Data::Float(sizes.product(a, b, count, 0.0)),
        (Data::Int(a), Data::Int(b)) => {
            let wrapping = |all: &[i64]| all.iter().map(|x| std::num::Wrapping(*x)).collect();
            let (a, b): (Vec<_>, Vec<_>) = (wrapping(a), wrapping(b));
            let out = sizes.product(&a, &b, count, std::num::Wrapping(0));
            Data::Int(out.into_iter().map(|x| x.0).collect())
        }
        _ => return Err(invalid("floats times whole numbers")),
    };
    Ok(step.result(data))
}

/// Rows of `[t, k]` in groups that end at `ends`, each by its matrix of `[e, k, n]`.
pub(super) fn grouped(step: &Step<'_>) -> Result<Dense, Failure> {
    let (a, b, ends) = (step.read(0)?, step.read(1)?, step.read(2)?);
    let mismatch =
        || invalid(format!("{:?} in groups {:?} times {:?}", a.shape, ends.shape, b.shape));
    let (&[t, k], &[e, k_b, n]) = (&a.shape[..], &b.shape[..]) else { return Err(mismatch()) };
    let Data::Int(ends) = &ends.data else { return Err(mismatch()) };
    if k != k_b || ends.len() != e {
        return Err(mismatch());
    }
    step.expect(&[t, n])?;
    let (a, b) = (a.floats()?, b.floats()?);
    // No group ends before the one before it.
    let mut least = 0;
    let ends: Vec<usize> = ends
        .iter()
        .map(|end| {
            least = usize::try_from(*end).unwrap_or(0).clamp(least, t);
            least
        })
        .collect();
    let sizes = Sizes { m: t, k, n };
    let mut out = vec![0.0; t * n];
    threads::rows(&mut out, n, k * n, |first, part| {
        let mut row = first;
        let mut rest = part;
        while !rest.is_empty() {
            let group = ends.partition_point(|end| *end <= row);
            let Some(end) = ends.get(group) else { break };
            let rows = (end - row).min(rest.len() / n);
            let (now, later) = rest.split_at_mut(rows * n);
            sizes.rows(&a[row * k..][..rows * k], &b[group * k * n..][..k * n], now);
            (row, rest) = (row + rows, later);
        }
    });
    Ok(step.result(Data::Float(out)))
}

struct Sizes {
    m: usize,
    k: usize,
    n: usize,
}

impl Sizes {
    /// `count` rows: those of all batches.
    fn product<T>(&self, a: &[T], b: &[T], count: usize, zero: T) -> Vec<T>
    where
        T: Copy + Send + Sync + Add<Output = T> + Mul<Output = T>,
    {
        let mut out = vec![zero; count * self.n];
        threads::rows(&mut out, self.n, self.k * self.n, |first, part| {
            let mut row = first;
            let mut rest = part;
            // The rows of one batch at a time: they share a right side.
            while !rest.is_empty() {
                let batch = row / self.m;
                let rows = (self.m - row % self.m).min(rest.len() / self.n);
                let (now, later) = rest.split_at_mut(rows * self.n);
                let a = &a[row * self.k..][..rows * self.k];
                let b = &b[batch * self.k * self.n..][..self.k * self.n];
                self.rows(a, b, now);
                (row, rest) = (row + rows, later);
            }
        });
        out
    }

    fn rows<T>(&self, a: &[T], b: &[T], out: &mut [T])
    where
        T: Copy + Add<Output = T> + Mul<Output = T>,
    {
        for columns in blocks(self.n, WIDTH) {
            for depth in blocks(self.k, DEPTH) {
                for (a, out) in a.chunks_exact(self.k).zip(out.chunks_exact_mut(self.n)) {
                    let out = &mut out[columns.clone()];
                    for at in depth.clone() {
                        let (left, right) = (a[at], &b[at * self.n..][columns.clone()]);
                        for (sum, right) in out.iter_mut().zip(right) {
                            *sum = *sum + left * *right;
                        }
                    }
                }
            }
        }
    }
}

fn blocks(size: usize, block: usize) -> impl Iterator<Item = Range<usize>> {
    (0..size).step_by(block).map(move |start| start..(start + block).min(size))
}

/// `softmax(scale * q k^T + mask) v`, row after row.
pub(super) fn attention(
    step: &Step<'_>,
    causal: bool,
    scale: f64,
    hidden: f64,
    empty: Empty,
) -> Result<Dense, Failure> {
    let (q, k, v) = (step.read(0)?, step.read(1)?, step.read(2)?);
    let mismatch =
        || invalid(format!("attention of {:?} to {:?} and {:?}", q.shape, k.shape, v.shape));
    let (&[b, h, s, d], &[b_k, g, t, d_k]) = (&q.shape[..], &k.shape[..]) else {
        return Err(mismatch());
    };
    let &[b_v, g_v, t_v, e] = &v.shape[..] else { return Err(mismatch()) };
    let divides = h == 0 || (g > 0 && h % g == 0);
    if [b_k, b_v, g_v, t_v, d_k] != [b, b, g, t, d] || !divides {
        return Err(mismatch());
    }
    step.expect(&[b, h, s, e])?;
    let zero_if_empty = empty.is_zero(step.dtypes.get(3).copied());
    let mask = match step.reads.get(3) {
        Some(mask) => {
            let view = View::broadcast(&mask.shape, &[b, h, s, t])?;
            Some((&mask.data, view.strides))
        }
        None => None,
    };
    let (q, k, v) = (q.floats()?, k.floats()?, v.floats()?);
    let mut out = vec![0.0; b * h * s * e];
    let cost = t * (d + e);
    threads::rows(&mut out, e.max(1), cost, |first, part| {
        let mut weights = vec![0.0; t];
        for (i, out) in part.chunks_exact_mut(e.max(1)).enumerate() {
            let row = first + i;
            let (head, at) = (row / s, row % s);
            let (batch, head) = (head / h, head % h);
            let group = batch * g + head / (h / g);
            let q = &q[row * d..][..d];
            let seen = if causal { t.min(at + 1) } else { t };
            for (to, weight) in weights.iter_mut().enumerate() {
                let k = &k[(group * t + to) * d..][..d];
                let product: f64 = q.iter().zip(k).map(|(a, b)| a * b).sum();
                *weight = if to < seen { scale * product } else { f64::NEG_INFINITY };
                if let Some((mask, strides)) = &mask {
                    let place = [batch, head, at, to];
                    let place: isize =
                        place.iter().zip(strides).map(|(i, stride)| *i as isize * stride).sum();
                    match mask {
                        Data::Float(mask) => *weight += mask[place as usize],
                        Data::Int(mask) if mask[place as usize] == 0 && to < seen => {
                            *weight = hidden;
                        }
                        Data::Int(_) => {}
                    }
                }
            }
            if softmax(&mut weights) || !zero_if_empty {
                for (to, weight) in weights.iter().enumerate() {
                    let v = &v[(group * t + to) * e..][..e];
                    // What is not seen does not count, whatever it is.
                    if *weight != 0.0 {
                        out.iter_mut().zip(v).for_each(|(sum, v)| *sum += weight * v);
                    }
                }
            }
        }
    });
    Ok(step.result(Data::Float(out)))
}

/// Whether one of them is more than minus infinity; if none is, all become NaN.
fn softmax(weights: &mut [f64]) -> bool {
    let most = weights.iter().copied().fold(f64::NEG_INFINITY, |most, x| {
        if x.is_nan() || most.is_nan() { f64::NAN } else { most.max(x) }
    });
    weights.iter_mut().for_each(|x| *x = (*x - most).exp());
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|x| *x /= sum);
    most != f64::NEG_INFINITY
}
