//! Whether an artifact computes what its program does, found out in a child process.
//!
//! The child runs the artifact and the reference interpreter on inputs made up by shape
//! and type: see [`crate::exec::check`].
//!
//! Invariant: machine code runs in the child and nowhere else: a kernel that crashes or
//! hangs costs the child. What kept the check from being begun, or is this machine's lack,
//! is told as a reason and never as a pass; what ends the check itself is the artifact's
//! failure.

mod child;
mod policy;
mod protocol;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use kiln_native::eager::Eager;
use kiln_proto::{Check, Failure, FailureKind, graph::Graph};
use tokio_util::sync::CancellationToken;

use self::protocol::{Checks, Found, Job, octets};
pub use self::{child::checker_main, policy::Verify};
use crate::compiler::{
    Limits, PoolSettings,
    worker::{Pool, remove_left},
};

/// Bounds on checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckSettings {
    /// How many run at once, and wait.
    pub pool: PoolSettings,
    /// Of one of them. A third of the time is the interpreter's.
    pub limits: Limits,
}

/// Relative path and bytes of each file.
pub type Files = Vec<(String, Bytes)>;

/// An artifact to check.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its own files.
    pub files: Files,
    /// Those of its pieces, in the order of the stitching.
    pub pieces: Vec<Files>,
    /// What it should compute.
    pub program: Arc<Graph>,
}

/// Checks artifacts, each in a child process of its own.
#[derive(Debug)]
pub struct Checker {
    pool: Pool<Checks>,
    limits: Limits,
    folder: PathBuf,
}

impl Checker {
    /// `program` is the `kiln` executable; `folder` is made when it is needed, and is for
    /// the children alone.
    pub fn new(settings: CheckSettings, program: &Path, folder: &Path) -> Self {
        let CheckSettings { pool, limits } = settings;
        let folder = folder.to_owned();
        if let Err(why) = remove_left(&folder) {
            tracing::warn!("what checks of a killed node left in {}: {why}", folder.display());
        }
        Self { pool: Pool::new(Checks::new(program, &folder), pool), limits, folder }
    }

    /// Runs an artifact and tells how far off it is, or why it was not run. An error is
    /// the artifact's: it is wrong, or its check did not end as it should.
    pub async fn check(&self, of: Subject, stop: CancellationToken) -> Result<Check, Failure> {
        let (limits, patience) = (self.limits.clone(), self.limits.time / 3);
        let preparing = move || job(of, patience, limits.memory_bytes);
        let prepared = tokio::task::spawn_blocking(preparing).await;
        let job = match prepared {
            Ok(Ok(job)) => job,
            Ok(Err(why)) => {
                return Ok(Check::not(format!("the interpreter has no such program: {why}")));
            }
            Err(why) => return Ok(Check::not(format!("its check could not be prepared: {why}"))),
        };
        let checking = async {
            if let Err(why) = std::fs::create_dir_all(&self.folder) {
                return Ok(Check::not(format!("its check could not begin: {why}")));
            }
            let begun = match self.pool.begin().await {
                Ok(begun) => begun,
                Err(why) => return Ok(Check::not(format!("its check could not begin: {why}"))),
            };
            verdict(begun.run(&job, &self.limits).await)
        };
        tokio::select! {
            checked = checking => checked,
            () = stop.cancelled() => Ok(Check::not("this node stops")),
        }
    }
}

/// What the child gets.
fn job(of: Subject, patience: Duration, memory_bytes: u64) -> Result<Job, Failure> {
    let reference = Eager::new(&of.program)?.files()?;
    Ok(Job {
        files: octets(of.files),
        pieces: of.pieces.into_iter().map(octets).collect(),
        reference: octets(reference.into_iter().map(|(name, file)| (name, file.into()))),
        patience,
        memory_bytes,
        cpu_seconds: 0,
    })
}

/// What the end of a child says of the artifact.
fn verdict(ended: Result<Found, Failure>) -> Result<Check, Failure> {
    let wrong = |why: String| Err(Failure::new(FailureKind::WrongOutput, why));
    match ended {
        Ok(Found::Passed { relative_error, limit }) => {
            let check = Check::Passed { relative_error, limit };
            check.validate().map_err(|why| Failure::new(FailureKind::Crashed, why))?;
            Ok(check)
        }
        Ok(Found::Not(why)) => Ok(Check::not(why)),
        Ok(Found::Wrong { output, relative_error, limit }) => wrong(format!(
            "{output} is not what the interpreter has: relative error {relative_error:.2e}, \
             limit {limit:.0e}"
        )),
        Ok(Found::Broken(why)) => wrong(format!("it does not run: {why}")),
        // Of the machine, not of the artifact.
        Err(Failure { kind: FailureKind::OutOfMemory, message }) => {
            Ok(Check::not(format!("its check had too little memory: {message}")))
        }
        Err(Failure { kind, message }) => {
            Err(Failure::new(kind, format!("its check failed: {message}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_check_badly_is_the_artifacts_and_what_the_machine_lacks_is_not() {
        let ended = |kind| verdict(Err(Failure::new(kind, "so")));
        for kind in [FailureKind::Timeout, FailureKind::Crashed] {
            assert_eq!(ended(kind).unwrap_err().kind, kind);
        }
        assert!(!ended(FailureKind::OutOfMemory).unwrap().passed());
        assert!(!verdict(Ok(Found::Not("no GPU".into()))).unwrap().passed());
        assert!(verdict(Ok(Found::Passed { relative_error: 0.0, limit: 0.0 })).unwrap().passed());
        // What no honest child says is no pass.
        let lied = verdict(Ok(Found::Passed { relative_error: 2.0, limit: 1.0 }));
        assert_eq!(lied.unwrap_err().kind, FailureKind::Crashed);
        let wrong = Found::Wrong { output: "out0".into(), relative_error: 0.25, limit: 1e-5 };
        let wrong = verdict(Ok(wrong)).unwrap_err();
        assert_eq!(wrong.kind, FailureKind::WrongOutput);
        assert!(wrong.message.contains("relative error 2.50e-1, limit 1e-5"), "{wrong}");
        let broken = verdict(Ok(Found::Broken("no plan".into()))).unwrap_err();
        assert_eq!(broken.kind, FailureKind::WrongOutput);
    }
}
