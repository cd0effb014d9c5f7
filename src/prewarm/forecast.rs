//! What the next day will make, by what earlier days made.
//!
//! Invariant: a day that is not wholly behind us counts for nothing: a history of less than one
//! day has no forecast; the middle one is a median, so that one odd day does not move it.

/// Days that are looked back at, at most.
const DAYS: usize = 7;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// What each of the last days made.
#[derive(Debug, Clone)]
pub struct History {
    now_unix_ms: u64,
    oldest_unix_ms: Option<u64>,
    /// The last 24 hours first.
    days: [Day; DAYS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Day {
    bytes: f64,
    seconds: f64,
}

/// What the next 24 hours will make.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// Whole days that it rests on: 1 to 7.
    pub days: usize,
    /// Bytes that are published.
    pub bytes: Range,
    /// Seconds that compilers take.
    pub seconds: Range,
}

/// A median, between the least and the most of all days.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Of the day that made least.
    pub least: f64,
    /// The median.
    pub middle: f64,
    /// Of the day that made most.
    pub most: f64,
}

impl History {
    /// An empty one, that ends now, in milliseconds since the Unix epoch.
    pub fn until(now_unix_ms: u64) -> Self {
        Self { now_unix_ms, oldest_unix_ms: None, days: [Day::default(); DAYS] }
    }

    /// Counts an artifact that was made then. Producers' clocks differ: one of the future
    /// was made now.
    pub fn count(&mut self, made_unix_ms: u64, bytes: u64, seconds: f64) {
        // A manifest without a time says nothing about days.
        if made_unix_ms == 0 {
            return;
        }
        let made = made_unix_ms.min(self.now_unix_ms);
        self.oldest_unix_ms = Some(self.oldest_unix_ms.map_or(made, |oldest| oldest.min(made)));
        let day = (self.now_unix_ms - made) / DAY_MS;
        if let Some(day) = usize::try_from(day).ok().and_then(|day| self.days.get_mut(day)) {
            day.bytes += bytes as f64;
            day.seconds += if seconds.is_finite() { seconds.max(0.0) } else { 0.0 };
        }
    }

    /// `None`: not even one day is behind the oldest artifact.
    pub fn forecast(&self) -> Option<Forecast> {
        let age = self.now_unix_ms - self.oldest_unix_ms?;
        let days = usize::try_from(age / DAY_MS).unwrap_or(DAYS).min(DAYS);
        let whole = self.days.get(..days).filter(|whole| !whole.is_empty())?;
        let bytes = range(whole.iter().map(|day| day.bytes));
        let seconds = range(whole.iter().map(|day| day.seconds));
        Some(Forecast { days, bytes, seconds })
    }
}

/// Of at least one number.
fn range(all: impl Iterator<Item = f64>) -> Range {
    let mut all: Vec<f64> = all.collect();
    all.sort_by(f64::total_cmp);
    let (least, most) = (all[0], all[all.len() - 1]);
    let at = all.len() / 2;
    let middle = match all.len() % 2 {
        1 => all[at],
        _ => f64::midpoint(all[at - 1], all[at]),
    };
    Range { least, middle, most }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn ago(days: f64) -> u64 {
        NOW - (days * DAY_MS as f64) as u64
    }

    #[test]
    fn less_than_a_day_says_nothing() {
        let mut history = History::until(NOW);
        assert_eq!(history.forecast(), None);
        history.count(ago(0.9), 100, 1.0);
        history.count(0, 100, 1.0);
        assert_eq!(history.forecast(), None);
    }

    #[test]
    fn one_odd_day_among_others_moves_the_middle_little() {
        let mut history = History::until(NOW);
        for (day, bytes) in [100, 110, 90, 10_000, 105].into_iter().enumerate() {
            history.count(ago(day as f64 + 0.5), bytes, bytes as f64 / 10.0);
        }
        // Begins a sixth day, which is not over.
        history.count(ago(5.2), 1, 0.0);
        let found = history.forecast();
        let bytes = Range { least: 90.0, middle: 105.0, most: 10_000.0 };
        assert_eq!(found.map(|found| (found.days, found.bytes)), Some((5, bytes)));
    }

    #[test]
    fn days_without_anything_count_as_what_they_are() {
        let mut history = History::until(NOW);
        history.count(ago(3.5), 100, 1.0);
        let found = history.forecast();
        assert_eq!(found.map(|found| (found.days, found.bytes.middle)), Some((3, 0.0)));
    }

    #[test]
    fn clocks_that_are_wrong_and_seconds_that_are_none_do_no_harm() {
        let mut history = History::until(NOW);
        history.count(ago(1.5), 10, f64::NAN);
        history.count(NOW + DAY_MS, 10, f64::INFINITY);
        history.count(1, 10, -1.0);
        let found = history.forecast();
        let seconds = found.map(|found| (found.seconds.least, found.seconds.most));
        assert_eq!(seconds, Some((0.0, 0.0)));
        assert_eq!(found.map(|found| found.days), Some(7));
    }
}
