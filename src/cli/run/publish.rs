//! From what is new in a folder to an artifact that has it.
//!
//! Invariant: what others published is never lost by publishing more: each
//! artifact is based on the latest one, or that one's bytes are gone for good.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::Context;
use kiln::clock;
use kiln_proto::{FailureKind, Manifest};

use super::{
    builds::is_build_file,
    capture::{self, Found},
    fill,
    scan::{Scan, Seen},
    session::{Session, blocking},
    spool::Pack,
};
use crate::cli::CliError;

/// For an artifact that is replaced while it is looked at.
const TRIES: usize = 3;

/// What a publication is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// More is to come from this process.
    More,
    /// The folder is filled, if this process is its filler.
    Done,
}

impl Session {
    /// Publishes `changed` together with what the cluster has. False, where files
    /// kept changing and `rounds` are left to look again: then nothing was published.
    pub(super) async fn publish(
        &mut self,
        scan: &Scan,
        changed: BTreeMap<String, Seen>,
        rounds: usize,
        stage: Stage,
    ) -> Result<bool, CliError> {
        self.report.published.unfit = scan.unfit;
        // An artifact of a filler that is done says so, even where it stays as it is.
        let fills = self.held.is_some();
        let done = fills && stage == Stage::Done;
        if changed.is_empty() && !done {
            return Ok(true);
        }
        let began = Instant::now();
        let mut tries = TRIES;
        let (base, mut wanted, fetched) = loop {
            let base = self.share.latest(&self.key).await?;
            let has = |path: &str| base.as_ref().is_some_and(|base| capture::has(base, path));
            let mut wanted = changed.clone();
            wanted.retain(|path, seen| self.taken.get(path) != Some(seen) || !has(path));
            let marked = base.as_ref().is_some_and(fill::unfinished);
            if wanted.is_empty() && !(done && marked) {
                return Ok(true);
            }
            let Some(found) = &base else { break (base, wanted, None) };
            tries -= 1;
            match self.share.fetch(found).await {
                Ok(fetched) => break (base, wanted, Some(fetched)),
                // Lost bytes are a miss. What cannot be had now must not be replaced:
                // others' files are in it.
                Err(CliError::NotFound(_)) => break (base, wanted, None),
                Err(CliError::Failed { code, .. }) if code == FailureKind::Corrupt.code() => {
                    break (base, wanted, None);
                }
                Err(CliError::Unreachable(_)) if tries > 0 => {}
                Err(error) => return Err(error),
            }
        };
        if fetched.is_none() {
            // Its bytes are gone: what was restored from it goes along once more.
            let restored = scan.files.iter().filter(|(path, _)| self.shared.contains(*path));
            wanted.extend(restored.map(|(path, seen)| (path.clone(), *seen)));
        }
        let is_old = |(path, seen): &(&String, &Seen)| self.before.get(*path) == Some(*seen);
        let job = capture::Job {
            folder: self.folder.path.clone(),
            build_files: scan.files.keys().filter(|path| is_build_file(path)).cloned().collect(),
            old: wanted.iter().filter(is_old).map(|(path, _)| path.clone()).collect(),
            wanted,
            // Another filler's mark is that one's to take away.
            filling: match fills {
                true => !done,
                false => base.as_ref().is_some_and(fill::unfinished),
            },
            base: fetched,
            max_bytes: self.settings.max_bytes,
        };
        let found: Found = blocking(move || job.gather()).await?.context("read the folder")?;
        self.report.published.changing = found.changing;
        if found.changing > 0 && rounds > 0 {
            return Ok(false);
        }
        self.report.published.beyond_limits = found.beyond;
        let Some(pack) = found.pack else {
            self.taken.extend(found.taken);
            return Ok(true);
        };
        let published = &mut self.report.published;
        (published.pack_files, published.pack_bytes) = (pack.files.len(), pack.size);
        let manifest = self.manifest(&pack, found.newest, base.as_ref());
        self.share.publish(&manifest, pack).await?;
        self.known = Some(manifest.pack_digest);
        self.shared.extend(manifest.files.iter().map(|file| file.path.clone()));
        self.taken.extend(found.taken);
        if found.files == 0 {
            return Ok(true);
        }
        let published = &mut self.report.published;
        published.captures += 1;
        published.files += found.files;
        published.bytes += found.bytes;
        published.seconds += began.elapsed().as_secs_f64();
        self.report.why = None;
        Ok(true)
    }

    fn manifest(&self, pack: &Pack, newest: Duration, base: Option<&Manifest>) -> Manifest {
        // From COMMAND's start to the last file: what a hit saves, at most.
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mine = newest.saturating_sub(started).as_secs_f64();
        let now = clock::since_epoch();
        Manifest {
            key: self.key,
            namespace: self.facts.namespace.clone(),
            components: self.folder.components(&self.facts),
            fingerprint: self.folder.fingerprint(&self.facts),
            target: self.facts.target,
            files: pack.files.clone(),
            pack_digest: pack.digest,
            pack_size: pack.size,
            producer: 0,
            compile_seconds: base.map_or(mine, |base| base.compile_seconds.max(mine)),
            created_unix_ms: u64::try_from(now.as_millis()).unwrap_or_default(),
            label: match self.facts.tag.as_str() {
                "" => self.folder.label.clone(),
                tag => format!("{} {tag}", self.folder.label),
            },
            pieces: Vec::new(),
            check: None,
        }
    }
}
