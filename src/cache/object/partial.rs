//! Files of a folder that were never finished.
//!
//! A file is written as `NAME#N` and renamed once it is whole. A process that dies, or a
//! folder that goes away, in between leaves such a file behind, and no listing has it.
//!
//! Invariant: only files of such names go, whose last byte was written so long ago that
//! no upload still writes them.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use super::{ObjectTier, TierError};

impl ObjectTier {
    /// Removes what uploads left unfinished that wrote nothing for `idle`; how many files.
    /// S3 keeps such parts to itself.
    pub async fn sweep_unfinished(&self, idle: Duration) -> Result<u64, TierError> {
        let Some(root) = self.root.clone() else { return Ok(0) };
        self.gate.enter().await?;
        let packs = root.join("packs");
        let sweeping = tokio::task::spawn_blocking(move || sweep(&packs, idle, SystemTime::now()));
        match tokio::time::timeout(super::FOLDER_ANSWERS, sweeping).await {
            Ok(Ok(swept)) => swept.map_err(|e| self.failed(e)),
            Ok(Err(e)) => Err(self.failed(e)),
            Err(_) => Err(self.failed("the folder does not answer")),
        }
    }
}

fn sweep(packs: &Path, idle: Duration, now: SystemTime) -> io::Result<u64> {
    let mut swept = 0;
    for folder in found(fs::read_dir(packs))?.into_iter().flatten() {
        let folder = folder?.path();
        if !folder.is_dir() {
            continue;
        }
        for file in found(fs::read_dir(folder))?.into_iter().flatten() {
            let file = file?;
            if !unfinished(&file.file_name().to_string_lossy()) {
                continue;
            }
            // Another collector, or its own upload, may have been quicker.
            let Some(meta) = found(file.metadata())? else { continue };
            let quiet = now.duration_since(meta.modified()?).unwrap_or_default();
            if quiet >= idle && found(fs::remove_file(file.path()))?.is_some() {
                swept += 1;
            }
        }
    }
    Ok(swept)
}

/// Whether a file is called as one that is still being written.
fn unfinished(name: &str) -> bool {
    let number = name.rsplit_once('#').map(|(_, number)| number);
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `None` for what is not there.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_unfinished_files_go() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(
            sweep(&root.path().join("packs"), Duration::ZERO, SystemTime::now()).unwrap(),
            0
        );
        let folder = root.path().join("ab");
        fs::create_dir(&folder).unwrap();
        for name in ["abcd.01", "abcd.01#1", "abcd.02#17", "abcd.03#", "abcd#x"] {
            fs::write(folder.join(name), b"bytes").unwrap();
        }
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        assert_eq!(sweep(root.path(), hour, now).unwrap(), 0, "they may still be written");
        assert_eq!(sweep(root.path(), hour, now + hour * 2).unwrap(), 2);
        let mut left: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["abcd#x", "abcd.01", "abcd.03#"]);
    }
}
