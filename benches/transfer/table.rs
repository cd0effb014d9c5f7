//! Times per contender, as a table in Markdown.

use std::time::{Duration, Instant};

/// What one contender did in one round.
#[derive(Default)]
pub(crate) struct Sample {
    pub(crate) times: Vec<Duration>,
    pub(crate) bytes: usize,
    pub(crate) wall: Duration,
}

impl Sample {
    /// Counts a fetch of `bytes` that began at `start` and has just ended; what
    /// becomes of its bytes now is only part of the wall time.
    pub(crate) fn count(&mut self, start: Instant, bytes: usize) {
        self.times.push(start.elapsed());
        self.bytes += bytes;
    }

    /// All fetches together took from `start` until now.
    pub(crate) fn since(self, start: Instant) -> Self {
        Self { wall: start.elapsed(), ..self }
    }

    /// Several that ran at once, within `wall`.
    pub(crate) fn together(samples: Vec<Self>, wall: Duration) -> Self {
        let bytes = samples.iter().map(|sample| sample.bytes).sum();
        Self { times: samples.into_iter().flat_map(|sample| sample.times).collect(), bytes, wall }
    }
}

/// All rounds of all contenders, by size.
pub(crate) struct Table {
    title: String,
    ours: &'static str,
    rows: Vec<Row>,
}

struct Row {
    size: usize,
    who: &'static str,
    rounds: Vec<Sample>,
}

impl Table {
    /// A table in which the others are compared with `ours`.
    pub(crate) fn new(title: &str, ours: &'static str) -> Self {
        Self { title: title.into(), ours, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, size: usize, who: &'static str, sample: Sample) {
        match self.rows.iter_mut().find(|row| (row.size, row.who) == (size, who)) {
            Some(row) => row.rounds.push(sample),
            None => self.rows.push(Row { size, who, rounds: vec![sample] }),
        }
    }

    pub(crate) fn print(&self) {
        println!("\n{}\n", self.title);
        println!(
            "| size | who | p10 us | p50 us | p99 us | MB/s | p50 against ours | MB/s of ours against it |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        for row in &self.rows {
            let ours = self.rows.iter().find(|r| (r.size, r.who) == (row.size, self.ours));
            let ours = ours.unwrap_or(row);
            println!(
                "| {} KiB | {} | {:.1} | {:.1} | {:.1} | {:.0} | {:.2} | {:.2} |",
                row.size >> 10,
                row.who,
                row.microseconds(0.1),
                row.microseconds(0.5),
                row.microseconds(0.99),
                row.megabytes_per_second(),
                row.microseconds(0.5) / ours.microseconds(0.5),
                ours.megabytes_per_second() / row.megabytes_per_second(),
            );
        }
    }
}

impl Row {
    /// The time that a `share` of all fetches stay under.
    fn microseconds(&self, share: f64) -> f64 {
        let mut times: Vec<_> = self.rounds.iter().flat_map(|round| &round.times).collect();
        times.sort();
        let at = ((times.len() - 1) as f64 * share).round() as usize;
        times[at].as_secs_f64() * 1e6
    }

    /// Of the middle round.
    fn megabytes_per_second(&self) -> f64 {
        let speeds = self.rounds.iter().map(|r| r.bytes as f64 / r.wall.as_secs_f64() / 1e6);
        let mut speeds: Vec<_> = speeds.collect();
        speeds.sort_by(f64::total_cmp);
        speeds[speeds.len() / 2]
    }
}
