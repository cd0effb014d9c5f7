//! What attention is, in f64: a row that sees nothing is zeros where the mask is of
//! bools, and NaN where it is added, as in PyTorch.

use super::case::{Case, Mask};
use crate::tests::build::noise;

impl Case {
    pub(super) fn mask(&self, seed: &mut u64) -> Vec<f32> {
        let [b, h, _, s, t, ..] = self.sizes;
        let planes = if self.mask == Mask::Bool { b } else { h };
        let low = if self.mask == Mask::Lowest { f32::MIN } else { f32::NEG_INFINITY };
        let mut mask = noise(planes * s * t, seed);
        for (i, row) in mask.chunks_mut(t.max(1)).enumerate() {
            // Every fifth row sees nothing, every third only what comes late.
            for (j, x) in row.iter_mut().enumerate() {
                let hidden = i % 5 == 4 || (i % 3 == 2 && j < t / 2) || *x > 0.7;
                *x = if hidden { low } else { *x };
            }
        }
        mask
    }

    /// In the order `[b, s, h, e]`.
    pub(super) fn expect(&self, [q, k, v]: [&[f32]; 3], mask: &[f32]) -> Vec<f64> {
        let [b, h, g, s, t, _, e] = self.sizes;
        let [(_, qs), (_, ks), (_, vs)] = self.shapes();
        let d = self.sizes[5];
        let mut out = Vec::new();
        for (b, i, h) in
            (0..b).flat_map(|b| (0..s).flat_map(move |i| (0..h).map(move |h| (b, i, h))))
        {
            let kv = h / (self.sizes[1] / g);
            let scores: Vec<f64> = (0..t)
                .map(|j| {
                    let at = |x: &[f32], st: [usize; 3], at: [usize; 3], n: usize| {
                        f64::from(x[at[0] * st[0] + at[1] * st[1] + at[2] * st[2] + n])
                    };
                    let dot: f64 =
                        (0..d).map(|n| at(q, qs, [b, h, i], n) * at(k, ks, [b, kv, j], n)).sum();
                    let x = dot * f64::from(self.scale);
                    let masked = match self.mask {
                        Mask::None => x,
                        Mask::Float => x + f64::from(mask[(h * s + i) * t + j]),
                        // In the kernels' type nothing is left of what it is added to.
                        Mask::Lowest => f64::from(x as f32 + mask[(h * s + i) * t + j]),
                        Mask::Bool if mask[(b * s + i) * t + j] == f32::NEG_INFINITY => {
                            f64::NEG_INFINITY
                        }
                        Mask::Bool => x,
                    };
                    if self.causal && j > i { f64::NEG_INFINITY } else { masked }
                })
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let empty = most == f64::NEG_INFINITY;
            let weights: Vec<f64> = scores.iter().map(|x| (x - most).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for n in 0..e {
                let at = |j: usize| f64::from(v[b * vs[0] + kv * vs[1] + j * vs[2] + n]);
                let value: f64 = weights.iter().enumerate().map(|(j, w)| w / sum * at(j)).sum();
                out.push(match empty {
                    true if self.mask == Mask::Float && t > 0 => f64::NAN,
                    true => 0.0,
                    false => value,
                });
            }
        }
        out
    }
}
