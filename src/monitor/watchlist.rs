//! From verdicts to anomalies: what was found often enough, until it is over.
//!
//! Invariant: an anomaly begins once and ends once, however its figure flickers; a cycle
//! in which something could not be judged neither confirms it nor ends it.

use std::collections::BTreeMap;

use super::anomaly::{Anomaly, Finding, Subject, Verdict};

/// Cycles in a row in which it must be well before it is over.
const CALM: u32 = 3;
/// Most subjects: compilers are few, but their names come from outside.
const MOST: usize = 256;

/// What is being watched.
#[derive(Debug, Default)]
pub(super) struct Watchlist {
    watched: BTreeMap<Subject, Watched>,
}

#[derive(Debug)]
struct Watched {
    streak: u32,
    calm: u32,
    began: Option<u64>,
    cycles: u32,
    finding: Finding,
}

/// What changed in a cycle.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// It is out of the ordinary from now on.
    Began(Anomaly),
    /// It is over.
    Ended(Anomaly),
}

impl Watchlist {
    /// Takes the verdicts of one cycle; what began and what ended by them.
    pub(super) fn take(&mut self, verdicts: Vec<Verdict>, unix_ms: u64) -> Vec<Turn> {
        let mut turns = Vec::new();
        for Verdict { subject, finding, confirm } in verdicts {
            match finding {
                Some(finding) => turns.extend(self.found(&subject, finding, confirm, unix_ms)),
                None => turns.extend(self.well(&subject)),
            }
        }
        turns
    }

    fn found(
        &mut self,
        subject: &Subject,
        finding: Finding,
        confirm: u32,
        unix_ms: u64,
    ) -> Option<Turn> {
        if self.watched.len() >= MOST && !self.watched.contains_key(subject) {
            return None;
        }
        let watched = self.watched.entry(subject.clone()).or_insert_with(|| Watched {
            streak: 0,
            calm: 0,
            began: None,
            cycles: 0,
            finding: finding.clone(),
        });
        watched.streak += 1;
        watched.calm = 0;
        watched.cycles += 1;
        watched.finding = finding;
        if watched.began.is_some() || watched.streak < confirm {
            return None;
        }
        watched.began = Some(unix_ms);
        watched.anomaly(subject).map(Turn::Began)
    }

    fn well(&mut self, subject: &Subject) -> Option<Turn> {
        let watched = self.watched.get_mut(subject)?;
        watched.streak = 0;
        watched.calm += 1;
        if watched.began.is_some() && watched.calm < CALM {
            return None;
        }
        let watched = self.watched.remove(subject)?;
        watched.anomaly(subject).map(Turn::Ended)
    }

    /// What is out of the ordinary now.
    pub(super) fn anomalies(&self) -> Vec<Anomaly> {
        self.watched.iter().filter_map(|(subject, watched)| watched.anomaly(subject)).collect()
    }
}

impl Watched {
    /// `None`: it is not confirmed.
    fn anomaly(&self, subject: &Subject) -> Option<Anomaly> {
        Some(Anomaly {
            subject: subject.clone(),
            severity: subject.kind.severity(),
            finding: self.finding.clone(),
            since_unix_ms: self.began?,
            cycles: self.cycles,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::{anomaly::Kind, figure::Figure};

    fn verdict(wrong: bool) -> Vec<Verdict> {
        let finding = Finding { figure: Figure::Cpu, now: 1.0, usual: None, text: "x".into() };
        let subject = Subject::node(Kind::SlowDisk);
        vec![Verdict { subject, finding: wrong.then_some(finding), confirm: 2 }]
    }

    #[test]
    fn it_begins_when_it_is_confirmed_and_ends_when_it_stays_well() {
        let mut list = Watchlist::default();
        let mut take = |wrong: Option<bool>| list.take(wrong.map(verdict).unwrap_or_default(), 5);
        assert_eq!(take(Some(true)), [], "once is not enough");
        assert_eq!(take(Some(false)), [], "and is forgotten");
        assert_eq!(take(Some(true)), []);
        assert_eq!(take(None), [], "not judged: neither yes nor no");
        assert!(matches!(&take(Some(true))[..], [Turn::Began(a)] if a.since_unix_ms == 5));
        assert_eq!(take(Some(true)), [], "it began once");
        assert_eq!(take(Some(false)), []);
        assert_eq!(take(Some(true)), [], "a flicker does not end it");
        assert_eq!([take(Some(false)), take(Some(false))].concat(), []);
        assert!(matches!(&take(Some(false))[..], [Turn::Ended(_)]));
        assert_eq!(take(Some(false)), [], "it ended once");
        assert_eq!(list.anomalies(), []);
    }
}
