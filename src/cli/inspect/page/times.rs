//! Kernels' times: what `kiln exec --json` measured.
//!
//! Invariant: a time is shown at the kernel that was launched, found by the order of launches
//! and by its name: a measurement of another artifact is refused.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use anyhow::Context;
use kiln_native::plan::Plan;
use kiln_proto::FailureKind;
use serde::Deserialize;

use super::{
    super::super::CliError,
    MOST_PARTS,
    part::{Kind, Part},
};

/// Bytes of a measurement, at most.
const LARGEST: u64 = 64 << 20;

/// What `kiln exec --json` printed, as far as it is read here.
#[derive(Debug, Deserialize)]
pub(super) struct Times {
    pub(super) device: String,
    #[serde(default)]
    pub(super) size: Option<u64>,
    pub(super) repeat: usize,
    pub(super) graph_us: f64,
    kernels: Vec<(String, f64)>,
    /// Of the inputs; absent: an earlier program wrote it.
    #[serde(default)]
    pub(super) shapes: Option<Vec<Vec<usize>>>,
    /// What the device's memory moves at most, in 10^9 bytes a second.
    #[serde(default)]
    pub(super) peak_gb_s: Option<f64>,
    #[serde(default)]
    untimed: Option<String>,
}

impl Times {
    pub(super) fn read(path: &Path) -> Result<Self, CliError> {
        let mut text = String::new();
        let file = File::open(path).and_then(|file| file.take(LARGEST).read_to_string(&mut text));
        file.with_context(|| format!("read {}", path.display()))?;
        let refuse = |why: &str| {
            CliError::Usage(format!(
                "{}: {why}; write it with `kiln exec DIR --inputs FILE -o FILE --repeat 20 --json`",
                path.display()
            ))
        };
        let times: Self = serde_json::from_str(&text).map_err(|e| refuse(&e.to_string()))?;
        if times.kernels.is_empty() {
            let why = times.untimed.as_deref().unwrap_or("kernels are timed on a GPU alone");
            return Err(refuse(&format!("it has no kernels' times: {why}")));
        }
        if times.kernels.iter().any(|(_, micros)| *micros < 0.0) {
            return Err(refuse("a time is below zero"));
        }
        Ok(times)
    }

    /// For each part, of each of its kernels the mean of its launches in one run, in
    /// microseconds; none: it was not launched.
    ///
    /// `left` parts are not among these.
    pub(super) fn of(
        &self,
        parts: &[Part],
        left: usize,
    ) -> Result<Vec<Vec<Option<f64>>>, CliError> {
        let mut found: Vec<Vec<Option<f64>>> = vec![Vec::new(); parts.len()];
        let ours = parts.iter().enumerate().filter(|(_, part)| part.size == self.size);
        let ours: Vec<(usize, &Part)> = ours.collect();
        let Some((first, part)) = ours.iter().find(|(_, part)| part.piece.is_none()) else {
            let size = self.size.unwrap_or_default();
            return Err(other(&format!("the code for size {size} was timed, which is not here")));
        };
        // Names of kernels are as good as any other artifact's: shapes are not.
        if let (Some(shapes), Some(plan)) = (&self.shapes, part.kind.plan()) {
            let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            plan.call(&shapes).map_err(|why| other(&why.to_string()))?;
        }
        let mut launched = Launched { times: &self.kernels, at: 0 };
        match &part.kind {
            Kind::Planned(plan) => found[*first] = launched.all(plan, "")?,
            Kind::Whole(whole) => {
                let mut sums: BTreeMap<usize, Vec<(f64, usize)>> = BTreeMap::new();
                for (call, at) in whole.0.calls.iter().map(|call| call.piece).enumerate() {
                    let piece = ours.iter().find(|(_, part)| part.piece == Some(at));
                    if piece.is_none() && left > 0 {
                        return Err(CliError::Refused(format!(
                            "times are for all pieces, and {left} parts are not read: the page \
                             has {MOST_PARTS} at most; inspect it without --times"
                        )));
                    }
                    let Some((index, Part { kind: Kind::Planned(plan), .. })) = piece else {
                        return Err(other(&format!("piece {at} has no kernels")));
                    };
                    let micros = launched.all(plan, &format!("{call}/"))?;
                    let sums = sums.entry(*index).or_insert_with(|| vec![(0.0, 0); micros.len()]);
                    for ((sum, runs), micros) in sums.iter_mut().zip(micros) {
                        *sum += micros.unwrap_or_default();
                        *runs += usize::from(micros.is_some());
                    }
                }
                for (index, sums) in sums {
                    let mean = |(sum, runs): (f64, usize)| (runs > 0).then(|| sum / runs as f64);
                    found[index] = sums.into_iter().map(mean).collect();
                }
            }
            Kind::Eager(_) | Kind::Other(_) => return Err(other("this one has no kernels")),
        }
        match launched.times.get(launched.at) {
            None => Ok(found),
            Some((name, _)) => Err(other(&format!("there is no launch of {name:?} here"))),
        }
    }
}

/// Measured launches, in order.
struct Launched<'t> {
    times: &'t [(String, f64)],
    at: usize,
}

impl Launched<'_> {
    /// The next ones, of a plan whose launches are called so.
    fn all(&mut self, plan: &Plan, lead: &str) -> Result<Vec<Option<f64>>, CliError> {
        let mut found = Vec::with_capacity(plan.kernels.len());
        for kernel in &plan.kernels {
            let next = self.times.get(self.at);
            let next = next.filter(|(name, _)| name.strip_prefix(lead) == Some(&kernel.name));
            // Without blocks there is no launch.
            let always = kernel.grid.iter().all(|blocks| blocks.known().is_some_and(|n| n > 0));
            if next.is_none() && always {
                return Err(other(&format!("it has no launch of {lead}{} there", kernel.name)));
            }
            self.at += usize::from(next.is_some());
            found.push(next.map(|(_, micros)| *micros));
        }
        Ok(found)
    }
}

fn other(why: &str) -> CliError {
    let why = format!("the times are of another artifact: {why}");
    CliError::failed(FailureKind::Incompatible, why)
}
