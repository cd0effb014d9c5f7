//! The data folder: may it be written, is what is written kept, and is there room.
//!
//! Invariant: no folder is made, and the probe's file has no name once it is written.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use kiln::config::Config;

use super::Check;
use crate::cli::output::{seconds, size};

/// Bytes of the probe.
const PROBE: usize = 1 << 20;

pub(super) async fn check(config: &Config) -> Vec<Check> {
    let (data, tier, wanted) = (config.data_dir.clone(), config.disk_path(), config.disk.bytes);
    let looking = tokio::task::spawn_blocking(move || {
        let mut found = vec![written("data_dir", &data)];
        if !tier.starts_with(&data) {
            found.push(written("disk.path", &tier));
        }
        found.push(room(&tier, wanted));
        found
    });
    looking.await.unwrap_or_else(|e| vec![Check::problem("disk", e.to_string(), "try again")])
}

/// The folder, or the nearest one above it, in which it would be made.
fn existing(folder: &Path) -> PathBuf {
    let whole = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let found = whole.ancestors().find(|path| path.exists()).map(Path::to_owned);
    found.unwrap_or_else(|| "/".into())
}

fn written(name: &str, folder: &Path) -> Check {
    let at = existing(folder);
    let began = Instant::now();
    let wrote = tempfile::tempfile_in(&at).and_then(|mut file| {
        file.write_all(&vec![1; PROBE])?;
        file.sync_all()?;
        std::fs::File::open(&at)?.sync_all()
    });
    let beside = match at == std::path::absolute(folder).unwrap_or_default() {
        true => String::new(),
        false => format!(" (does not exist yet; tried in {})", at.display()),
    };
    let folder = folder.display();
    match wrote {
        Ok(()) => {
            let took = seconds(began.elapsed().as_secs_f64());
            Check::ok(
                name,
                format!("{folder}: {} written and synced in {took}{beside}", size(PROBE as u64)),
            )
        }
        Err(e) => Check::problem(
            name,
            format!("{folder} cannot be written: {e}{beside}"),
            "give it to the user that runs the node, or name another with --data-dir",
        ),
    }
}

fn room(tier: &Path, wanted: u64) -> Check {
    let at = existing(tier);
    let advice = "make room, or set disk.bytes (KILN_DISK_BYTES) to less";
    match rustix::fs::statvfs(&at) {
        Err(e) => Check::problem("disk.bytes", format!("{}: {e}", at.display()), advice),
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            // What the tier has already is part of what it may have.
            let has = used(tier);
            let said = format!(
                "{} free at {}, {} there already, of {} that the tier may have",
                size(free),
                at.display(),
                size(has),
                size(wanted)
            );
            match free.saturating_add(has) < wanted {
                true => Check::problem("disk.bytes", said, advice),
                false => Check::ok("disk.bytes", said),
            }
        }
    }
}

/// Bytes of the files below `folder`, as far as they can be read.
fn used(folder: &Path) -> u64 {
    let (mut bytes, mut folders) = (0u64, vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    bytes = bytes.saturating_add(entry.metadata().map_or(0, |m| m.len()));
                }
                _ => {}
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[tokio::test]
    async fn a_folder_is_tried_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = super::super::settings(&folder.path().join("data/of/a/node"));
        config.disk.bytes = 1;
        let checks = check(&config).await;
        assert!(checks.iter().all(|check| check.state == State::Ok), "{checks:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
        config.disk.bytes = u64::MAX;
        assert_eq!(check(&config).await[1].state, State::Problem);
        // A file is no folder, whoever asks.
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        config.data_dir = file;
        let checks = check(&config).await;
        assert_eq!(checks[0].state, State::Problem, "{checks:?}");
    }
}
