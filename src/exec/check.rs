//! An artifact against the reference interpreter, by nobody's inputs: those are made up.
//!
//! Whoever calls this gives it a process of its own, which ends soon after: machine code
//! that is wrong may crash it or never end, and an interpreter that takes too long is left
//! to itself.
//!
//! Invariant: whatever this machine lacks, and whatever the interpreter cannot do, is no
//! verdict on the artifact; what the artifact does wrong is, and never the other way round.

use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use kiln_native::{interp, plan::Plan};
use kiln_proto::FailureKind;

use super::{
    ExecError, Tensor, Trial, Verdict, cpu,
    layout::{self, CUBIN, STITCHING},
    pieces::{Runner, tried},
    program::read_stitching,
    verify::{Judge, compare},
};

/// Bytes that an element of the inputs costs at least: as given, as a number, and as one
/// more for what is made of it.
const PER_ELEMENT: u64 = 24;
/// An artifact may be so much further off than the interpreter is that rounds every step:
/// errors grow with the length of a program, whoever runs it.
const BEYOND_ROUNDING: f64 = 2.0;

/// What to check, and what that may take.
#[derive(Debug, Clone)]
pub struct Checking {
    /// Folder of the artifact, laid out as by `kiln get`.
    pub dir: PathBuf,
    /// Folder of the program's eager artifact.
    pub reference: PathBuf,
    /// Which GPU.
    pub device: usize,
    /// Longest that the interpreter may take for its part.
    pub patience: Duration,
    /// Most memory of its tensors.
    pub memory_bytes: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Checked {
    /// The output that is furthest off, for its limit; `None`: there is no output.
    Judged(Option<Verdict>),
    /// The artifact was not run, for this reason.
    Not(String),
}

/// Runs the artifact once and compares. An error is one of the artifact's.
pub fn check(of: &Checking) -> Result<Checked, ExecError> {
    if let Some(why) = foreign(&of.dir)? {
        return Ok(Checked::Not(why));
    }
    let runner = match Runner::load(&of.dir, of.device) {
        Err(why) if is_of_this_machine(&why) => return Ok(Checked::Not(why.to_string())),
        loaded => loaded?,
    };
    let plan = runner.plan();
    let judge = match Judge::load(&of.reference, of.memory_bytes) {
        Ok(judge) => judge,
        Err(why) => return Ok(Checked::Not(format!("the interpreter has no such program: {why}"))),
    };
    judge.accept(&plan)?;
    let elements = Trial::of(&plan).elements(&plan);
    if elements.saturating_mul(PER_ELEMENT) > of.memory_bytes {
        let why = format!("{elements} numbers of input are too many for {} bytes", of.memory_bytes);
        return Ok(Checked::Not(why));
    }
    let (judge, inputs, golden) = match golden(judge, &plan, of.patience) {
        Ok(golden) => golden,
        Err(why) => return Ok(Checked::Not(why)),
    };
    let outputs = match runner.run(&plan, &inputs) {
        Err(why) if is_of_this_machine(&why) => return Ok(Checked::Not(why.to_string())),
        ran => ran?,
    };
    let mut verdicts = compare(&plan, &inputs, &outputs, &golden)?;
    if outputs.len() != golden.len() {
        let why = format!("{} outputs, not {}", outputs.len(), golden.len());
        return Err(ExecError::Artifact { path: of.dir.clone(), why });
    }
    if !verdicts.iter().all(Verdict::holds) {
        let rounded = match judge.rounded(&plan, &inputs) {
            Ok(rounded) => rounded.into_iter().map(Tensor::from).collect::<Vec<_>>(),
            Err(why) => return Ok(Checked::Not(format!("the interpreter cannot round: {why}"))),
        };
        for (verdict, rounding) in
            verdicts.iter_mut().zip(compare(&plan, &inputs, &rounded, &golden)?)
        {
            // Whole numbers are right or wrong.
            if verdict.limit > 0.0 && rounding.relative_error.is_finite() {
                let allowed = BEYOND_ROUNDING * rounding.relative_error;
                verdict.limit = verdict.limit.max(allowed);
            }
        }
    }
    Ok(Checked::Judged(worst(verdicts)))
}

/// Why nothing here runs such an artifact, if that is so.
fn foreign(dir: &Path) -> Result<Option<String>, ExecError> {
    let parts = match layout::is_stitched(dir) {
        true => {
            let pieces = read_stitching(dir)?.pieces.len();
            (0..pieces).map(|piece| layout::piece_dir(dir, piece)).collect()
        }
        false => vec![dir.to_owned()],
    };
    if parts.is_empty() {
        return Ok(Some(format!("{STITCHING} has no pieces")));
    }
    let is_known = |part: &PathBuf| cpu::is_eager(part) || part.join(CUBIN).is_file();
    let why = "only machine code of `native` and programs of `eager` are run by Kiln itself";
    Ok((!parts.iter().all(is_known)).then(|| why.to_owned()))
}

/// Inputs and what the program makes of them, with the judge; an error says why there
/// are none.
fn golden(
    judge: Judge,
    plan: &Plan,
    patience: Duration,
) -> Result<(Judge, Vec<Tensor<'static>>, Vec<interp::Tensor<'static>>), String> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let plan = plan.clone();
    let working = move || {
        let made = tried(&judge, &plan);
        // An error: nobody waits any more.
        let _ = sender.send((judge, made));
    };
    let working = std::thread::Builder::new().name("kiln-judge".into()).spawn(working);
    working.map_err(|e| format!("start the interpreter: {e}"))?;
    match receiver.recv_timeout(patience) {
        Ok((judge, Ok((inputs, golden)))) => Ok((judge, inputs, golden)),
        Ok((_, Err(why))) => Err(format!("the interpreter does not run it: {why}")),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            Err(format!("the interpreter takes longer for it than {patience:?}"))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => Err("the interpreter broke off".into()),
    }
}

/// Whether another machine, another Kiln, or this one at another time, would run the artifact.
fn is_of_this_machine(error: &ExecError) -> bool {
    match error {
        ExecError::NoDriver
        | ExecError::NoDevice { .. }
        | ExecError::WrongDevice { .. }
        | ExecError::OutOfMemory { .. }
        | ExecError::OtherVersion { .. } => true,
        ExecError::Program(failure) => failure.kind == FailureKind::OutOfMemory,
        ExecError::Piece { error, .. } => is_of_this_machine(error),
        _ => false,
    }
}

/// The one that is furthest off, measured by its limit.
fn worst(verdicts: Vec<Verdict>) -> Option<Verdict> {
    let share = |verdict: &Verdict| match verdict.limit {
        limit if limit > 0.0 => verdict.relative_error / limit,
        _ if verdict.relative_error > 0.0 => f64::INFINITY,
        _ => 0.0,
    };
    verdicts.into_iter().max_by(|a, b| share(a).total_cmp(&share(b)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
