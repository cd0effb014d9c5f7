//! What others publish while COMMAND runs.
//!
//! Invariant: a file that is in the folder is never touched, one that COMMAND
//! removed does not come back, and a file that came this way is not taken for
//! COMMAND's own. Bytes move only where the artifact changed and has files that
//! the folder lacks; what that costs bounds how often it happens.

use std::time::Instant;

use super::{
    restore,
    session::{Session, blocking},
};
use crate::cli::CliError;

/// Following takes at most one part in so many of the time.
const PART: u32 = 10;

impl Session {
    /// Brings what is new in the cluster, if it is time to look.
    pub(super) async fn follow(&mut self) -> Result<(), CliError> {
        let began = Instant::now();
        if began < self.look_next {
            return Ok(());
        }
        self.look_next = began + self.settings.every;
        let Some(manifest) = self.share.lookup(&self.key).await? else { return Ok(()) };
        if self.known == Some(manifest.pack_digest) {
            return Ok(());
        }
        let (path, patterns) = (self.folder.path.clone(), self.folder.patterns.clone());
        let (wanted, shared) = (manifest.clone(), self.shared.clone());
        let plan = blocking(move || restore::news(&path, &wanted, &patterns, &shared)).await??;
        let expected: Vec<_> = plan.manifest.files.iter().map(|f| f.path.clone()).collect();
        let written = self.write(plan, &manifest).await?;
        self.known = Some(manifest.pack_digest);
        if written.files > 0 {
            let scan = self.scan().await?;
            for path in expected {
                if let Some(seen) = scan.files.get(&path) {
                    self.watch.know(&path, seen, Instant::now());
                    self.before.insert(path, *seen);
                }
            }
            self.report.restored.live_files += written.files;
            self.report.restored.live_bytes += written.bytes;
        }
        self.look_next = self.look_next.max(Instant::now() + began.elapsed() * PART);
        Ok(())
    }
}
