//! Whether compilers or cache are down as a whole, and whether they are back.
//!
//! Invariant: pure; one success ends a crisis of the compilers, and what is off already is
//! not told to be down. What follows from requests, or from too many of them, is no crisis.

use std::collections::VecDeque;

use super::sample::Sample;
use crate::emergency::{By, Mode, System};

/// Cycles over which compiles are added up.
const CYCLES: usize = 5;
/// Compiles that failed, and none that did not, from which on compilers are down.
const FAILED: u64 = 5;
/// Cycles in a row in which the disk failed.
const DISK_CYCLES: u32 = 2;
/// Operations of it that failed in each, of which they were at least half.
const DISK_FAILED: u64 = 2;

/// A turn for the worse, or the end of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Crisis {
    /// It does not work.
    Down(System, String),
    /// It works again.
    Up(System),
}

/// What was seen lately.
#[derive(Debug, Default)]
pub(super) struct Judge {
    compiles: VecDeque<(u64, u64)>,
    disk_failed: u32,
}

impl Judge {
    /// Takes one cycle, in `mode`.
    pub(super) fn take(&mut self, sample: &Sample, mode: &Mode) -> Vec<Crisis> {
        self.compilers(sample, mode).into_iter().chain(self.cache(sample, mode)).collect()
    }

    fn compilers(&mut self, sample: &Sample, mode: &Mode) -> Option<Crisis> {
        let all = || sample.compiles.values();
        // A compiler that refuses a source works.
        let worked: u64 = all().map(|of| of.succeeded + of.refused).sum();
        let broken: u64 = all().map(|of| of.broken).sum();
        if let Some(cause) = &mode.compilers {
            self.compiles.clear();
            let is_back = cause.by == By::Monitor && worked > 0;
            return is_back.then_some(Crisis::Up(System::Compilers));
        }
        self.compiles.push_back((worked, broken));
        if self.compiles.len() > CYCLES {
            self.compiles.pop_front();
        }
        let (worked, failed) =
            self.compiles.iter().fold((0, 0), |sum, cycle| (sum.0 + cycle.0, sum.1 + cycle.1));
        let why = || format!("all of the last {failed} compiles failed for reasons of this node");
        (worked == 0 && failed >= FAILED).then(|| Crisis::Down(System::Compilers, why()))
    }

    fn cache(&mut self, sample: &Sample, mode: &Mode) -> Option<Crisis> {
        let (failed, all) = (sample.disk_errors, sample.disk_operations);
        let fails = failed >= DISK_FAILED && failed * 2 >= all;
        self.disk_failed = if fails { self.disk_failed + 1 } else { 0 };
        let why = || format!("{failed} of {all} operations of the disk tier failed, again");
        let down = self.disk_failed >= DISK_CYCLES && mode.cache.is_none();
        down.then(|| Crisis::Down(System::Cache, why()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{emergency::Cause, monitor::sample::Compiles};

    fn compiles(succeeded: u64, refused: u64, broken: u64) -> Sample {
        let compiles = Compiles { succeeded, refused, broken, ..Compiles::default() };
        Sample { compiles: BTreeMap::from([("cuda".into(), compiles)]), ..Sample::default() }
    }

    fn disk(disk_errors: u64, disk_operations: u64) -> Sample {
        Sample { disk_errors, disk_operations, ..Sample::default() }
    }

    fn off(by: By) -> Mode {
        let cause = Cause { by, why: "so".into(), since_unix_ms: 0 };
        Mode { compilers: Some(cause.clone()), cache: Some(cause) }
    }

    #[test]
    fn compilers_are_down_when_all_fail_and_up_with_the_first_that_does_not() {
        let (mut judge, on) = (Judge::default(), Mode::default());
        assert_eq!(judge.take(&compiles(0, 0, 4), &on), [], "four may be chance");
        let down = judge.take(&compiles(0, 0, 1), &on);
        assert!(matches!(&down[..], [Crisis::Down(System::Compilers, _)]), "{down:?}");
        let off = off(By::Monitor);
        assert_eq!(judge.take(&compiles(0, 0, 9), &off), [], "it is off");
        assert_eq!(judge.take(&compiles(0, 0, 0), &off), [], "no news is no good news");
        assert_eq!(judge.take(&compiles(1, 0, 3), &off), [Crisis::Up(System::Compilers)]);
        assert_eq!(judge.take(&compiles(0, 1, 50), &on), [], "a compiler that refuses works");
    }

    #[test]
    fn what_a_person_turned_off_stays_off() {
        assert_eq!(Judge::default().take(&compiles(9, 0, 0), &off(By::Person)), []);
    }

    #[test]
    fn the_cache_is_down_when_its_disk_fails_twice_in_a_row() {
        let (mut judge, on) = (Judge::default(), Mode::default());
        assert_eq!(judge.take(&disk(9, 10), &on), []);
        assert_eq!(judge.take(&disk(1, 10), &on), [], "most of it worked");
        assert_eq!(judge.take(&disk(2, 3), &on), []);
        let down = judge.take(&disk(3, 3), &on);
        assert!(matches!(&down[..], [Crisis::Down(System::Cache, _)]), "{down:?}");
        assert_eq!(judge.take(&disk(3, 3), &off(By::Monitor)), [], "it is off");
    }
}
