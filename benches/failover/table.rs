//! What was measured, as a table in Markdown and as JSON.

use std::time::Duration;

use serde_json::{Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    Killed,
    Paused,
}

impl Failure {
    const fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Paused => "paused",
        }
    }

    /// What [`Event::resumed`] is the time of.
    const fn resumed(self) -> &'static str {
        match self {
            Self::Killed => "restart until it follows",
            Self::Paused => "publish at the old leader after it woke",
        }
    }
}

/// What one reader saw of one failure.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) errors: u64,
    /// Longest time without a hit.
    pub(crate) longest_gap: Duration,
}

/// One failure of a leader.
pub(crate) struct Event {
    pub(crate) failure: Failure,
    /// Until a survivor followed another leader.
    pub(crate) elected: Duration,
    /// Until a publish was acknowledged, at each survivor.
    pub(crate) published: Vec<Duration>,
    pub(crate) resumed: Duration,
    /// One for each survivor.
    pub(crate) reads: Vec<Reads>,
}

impl Event {
    fn first(&self) -> Duration {
        self.published.iter().copied().min().unwrap_or_default()
    }

    fn last(&self) -> Duration {
        self.published.iter().copied().max().unwrap_or_default()
    }

    fn longest_gap(&self) -> Duration {
        self.reads.iter().map(|reads| reads.longest_gap).max().unwrap_or_default()
    }

    pub(crate) fn line(&self) -> String {
        format!(
            "{}: leader {:.2?}, publish {:.2?}, gap {:.2?}, {} {:.2?}",
            self.failure.name(),
            self.elected,
            self.published,
            self.longest_gap(),
            self.failure.resumed(),
            self.resumed
        )
    }

    fn json(&self) -> Value {
        let reads = self.reads.iter().map(|reads| {
            json!({
                "hits": reads.hits, "misses": reads.misses, "errors": reads.errors,
                "longest_gap_seconds": reads.longest_gap.as_secs_f64(),
            })
        });
        json!({
            "leader": self.failure.name(),
            "elected_seconds": self.elected.as_secs_f64(),
            "published_seconds": self.published.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
            "resumed_seconds": self.resumed.as_secs_f64(),
            "reads": reads.collect::<Vec<_>>(),
        })
    }
}

/// All failures.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) events: Vec<Event>,
}

impl Report {
    pub(crate) fn print(&self) {
        println!("| leader | seconds until | n | p50 | p90 | p99 | max |");
        println!("|---|---|---|---|---|---|---|");
        for failure in [Failure::Killed, Failure::Paused] {
            let events: Vec<_> = self.events.iter().filter(|e| e.failure == failure).collect();
            if events.is_empty() {
                continue;
            }
            row(failure, "a survivor follows another leader", events.iter().map(|e| e.elected));
            row(failure, "first publish at a survivor", events.iter().map(|e| e.first()));
            row(failure, "publishes at both survivors", events.iter().map(|e| e.last()));
            row(failure, failure.resumed(), events.iter().map(|e| e.resumed));
            row(failure, "longest gap between hits", events.iter().map(|e| e.longest_gap()));
        }
        for failure in [Failure::Killed, Failure::Paused] {
            let of = self.events.iter().filter(|e| e.failure == failure);
            let (mut hits, mut misses, mut errors) = (0, 0, 0);
            for reads in of.flat_map(|e| &e.reads) {
                hits += reads.hits;
                misses += reads.misses;
                errors += reads.errors;
            }
            println!("{}: {hits} hits, {misses} misses, {errors} errors", failure.name());
        }
    }

    /// Every sample.
    pub(crate) fn json(&self) -> Value {
        json!({ "failover": self.events.iter().map(Event::json).collect::<Vec<_>>() })
    }
}

fn row(failure: Failure, what: &str, times: impl Iterator<Item = Duration>) {
    let mut times: Vec<f64> = times.map(|time| time.as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    // The smallest time that at least this share stays within.
    let at = |share: f64| times[((times.len() as f64 * share).ceil() as usize).max(1) - 1];
    println!(
        "| {} | {what} | {} | {:.3} | {:.3} | {:.3} | {:.3} |",
        failure.name(),
        times.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
}
