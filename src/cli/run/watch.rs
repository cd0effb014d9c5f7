//! When a folder has come to rest.
//!
//! Invariant: pure but for the moment that it is told: a file that never rests
//! holds up itself alone, a new file holds up all for as long as it takes to
//! settle.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use super::scan::Seen;

/// What was seen of a folder so far.
#[derive(Debug)]
pub(crate) struct Watch {
    files: HashMap<String, Tracked>,
    /// When the last new file was seen; at first, when this began.
    newest: Instant,
}

#[derive(Debug)]
struct Tracked {
    seen: Seen,
    /// `None`: it was there from the start.
    appeared: Option<Instant>,
    since: Instant,
}

impl Watch {
    /// Begins with what is there.
    pub(crate) fn new(files: &BTreeMap<String, Seen>, now: Instant) -> Self {
        let tracked = |seen: &Seen| Tracked { seen: *seen, appeared: None, since: now };
        let files = files.iter().map(|(path, seen)| (path.clone(), tracked(seen))).collect();
        Self { files, newest: now }
    }

    /// Takes note of a file that is not COMMAND's: it is as if it had been there.
    pub(crate) fn know(&mut self, path: &str, seen: &Seen, now: Instant) {
        let known = Tracked { seen: *seen, appeared: None, since: now };
        self.files.insert(path.to_owned(), known);
    }

    /// Takes note of what is there now.
    pub(crate) fn look(&mut self, files: &BTreeMap<String, Seen>, now: Instant) {
        self.files.retain(|path, _| files.contains_key(path));
        for (path, seen) in files {
            match self.files.get_mut(path) {
                Some(tracked) if tracked.seen == *seen => {}
                Some(tracked) => (tracked.seen, tracked.since) = (*seen, now),
                None => {
                    let fresh = Tracked { seen: *seen, appeared: Some(now), since: now };
                    self.files.insert(path.clone(), fresh);
                    self.newest = now;
                }
            }
        }
    }

    /// Whether new files still appear.
    pub(crate) fn grows(&self, now: Instant, settle: Duration) -> bool {
        let fresh = |at: &Instant| now.duration_since(*at) < settle;
        self.files.values().any(|tracked| tracked.appeared.as_ref().is_some_and(fresh))
    }

    /// For how long no new file appeared.
    pub(crate) fn silent(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.newest)
    }

    /// Whether the file at `path` has rested in this state.
    pub(crate) fn rests(&self, path: &str, seen: &Seen, now: Instant, settle: Duration) -> bool {
        self.files.get(path).is_some_and(|tracked| {
            tracked.seen == *seen && now.duration_since(tracked.since) >= settle
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::{patterns::Patterns, scan::scan},
        *,
    };

    const SETTLE: Duration = Duration::from_secs(10);

    #[test]
    fn a_new_file_holds_up_all_and_a_restless_one_itself() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let files = || scan(dir.path(), &Patterns::new(&[], &[])).unwrap().files;
        write("old", "1");
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch::new(&files(), at(0));
        assert!(!watch.grows(at(1), SETTLE));
        write("restored", "1");
        watch.know("restored", &files()["restored"], at(3));
        watch.look(&files(), at(4));
        assert_eq!(watch.silent(at(4)), Duration::from_secs(4), "it is not COMMAND's");
        write("new", "1");
        write("restless", "1");
        watch.look(&files(), at(5));
        assert!(watch.grows(at(14), SETTLE));
        for round in 0..12 {
            write("restless", &"x".repeat(round + 2));
            watch.look(&files(), at(6 + round as u64));
        }
        let now = at(17);
        assert!(!watch.grows(now, SETTLE), "no new file for ten seconds");
        assert_eq!(watch.silent(now), Duration::from_secs(12));
        let files = files();
        assert!(watch.rests("new", &files["new"], now, SETTLE));
        assert!(!watch.rests("restless", &files["restless"], now, SETTLE));
        assert!(!watch.rests("unseen", &files["new"], now, SETTLE));
    }
}
