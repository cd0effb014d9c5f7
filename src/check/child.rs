//! `kiln checker`: the process in which an artifact is run to be checked.
//!
//! Invariant: its limits are set, and it is confined, before it reads an artifact; and it
//! writes below its own folder alone, which the daemon removes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use kiln_native::eager;
use kiln_proto::check_path;
use rustix::process::Resource;

use super::protocol::{Files, Found, Job};
use crate::{
    compiler::{
        sandbox,
        worker::{Answer, limit, serve},
    },
    exec::{self, Checked, Checking, layout},
};

/// Below the working folder.
const ARTIFACT: &str = "artifact";
const REFERENCE: &str = "reference";

/// Checks one artifact on this process's stdin and stdout. Call it from `main` before
/// anything else has been started.
pub fn checker_main() -> ExitCode {
    match serve(true, |()| Ok((confine()?, ())), |(), job| work(&job)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("kiln checker: {e}");
            ExitCode::FAILURE
        }
    }
}

/// The interpreter needs no file, and a kernel none but the driver's.
fn confine() -> Answer<()> {
    let mut read = sandbox::system();
    read.extend(sandbox::folders_of("LD_LIBRARY_PATH"));
    sandbox::keep_to_files(&read, Path::new(".")).map(drop)
}

fn work(job: &Job) -> Answer<Found> {
    limit(Resource::Cpu, job.cpu_seconds)?;
    let dir = PathBuf::from(ARTIFACT);
    let written = write(&dir, &job.files).and_then(|()| {
        write(Path::new(REFERENCE), &job.reference)?;
        let mut pieces = job.pieces.iter().enumerate();
        pieces.try_for_each(|(at, files)| write(&layout::piece_dir(&dir, at), files))
    });
    if let Err(e) = written {
        // A full disk: nothing of the artifact's.
        return Ok(Found::Not(format!("its files cannot be written: {e}")));
    }
    // A driver maps more than it uses: with one, what the tensors take is bounded alone.
    let first = if job.pieces.is_empty() { dir.clone() } else { layout::piece_dir(&dir, 0) };
    if first.join(eager::GRAPH).is_file() {
        limit(Resource::Data, job.memory_bytes)?;
    }
    let checked = exec::check(&Checking {
        dir,
        reference: REFERENCE.into(),
        device: 0,
        patience: job.patience,
        memory_bytes: job.memory_bytes,
    });
    Ok(match checked {
        Ok(Checked::Judged(None)) => Found::Passed { relative_error: 0.0, limit: 0.0 },
        Ok(Checked::Judged(Some(worst))) => {
            let exec::Verdict { relative_error, limit, .. } = worst;
            match worst.holds() {
                true => Found::Passed { relative_error, limit },
                false => Found::Wrong { output: worst.output, relative_error, limit },
            }
        }
        Ok(Checked::Not(why)) => Found::Not(why),
        Err(why) => Found::Broken(why.to_string()),
    })
}

fn write(folder: &Path, files: &Files) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, bytes) in files {
        check_path(name).map_err(io::Error::other)?;
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, &bytes.0)?;
    }
    Ok(())
}
