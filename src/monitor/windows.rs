//! The last cycles of every figure.
//!
//! Invariant: bounded in figures and in cycles; it says nothing of a figure that it has
//! not seen often enough since the start, and what it says of one never includes the
//! value that is judged by it.
//!
//! A share of three requests says nothing. Where a cycle has too few, they are added to
//! those of the next cycles until together they are enough for one value.

use std::collections::{BTreeMap, VecDeque};

use super::{
    figure::{Figure, Value, figures},
    sample::Sample,
    usual::{Usual, median},
};

/// Most figures: compilers and pools are few, but their names come from outside.
const MOST_FIGURES: usize = 256;

/// How much is remembered, and how much is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSettings {
    /// Cycles that are remembered of each figure.
    pub cycles: usize,
    /// Cycles from which on something is usual.
    pub enough: usize,
}

impl Default for WindowSettings {
    fn default() -> Self {
        Self { cycles: 60, enough: 15 }
    }
}

/// All figures over the window.
#[derive(Debug, Clone)]
pub(super) struct Windows {
    settings: WindowSettings,
    series: BTreeMap<Figure, VecDeque<Value>>,
    /// Of the cycle that was seen last.
    now: BTreeMap<Figure, Value>,
    /// What is not enough for a value yet.
    shares: BTreeMap<Figure, Value>,
    seconds: BTreeMap<String, Vec<f64>>,
    last_timed_out: String,
    cycles: u64,
}

impl Windows {
    /// Nothing seen yet.
    pub(super) fn new(settings: WindowSettings) -> Self {
        Self {
            settings,
            series: BTreeMap::new(),
            now: BTreeMap::new(),
            shares: BTreeMap::new(),
            seconds: BTreeMap::new(),
            last_timed_out: String::new(),
            cycles: 0,
        }
    }

    /// Adds one cycle: what was the present one is history now.
    pub(super) fn add(&mut self, sample: &Sample) {
        let now = self.gather(sample);
        let before = std::mem::replace(&mut self.now, now);
        for (figure, value) in before {
            if self.series.len() >= MOST_FIGURES && !self.series.contains_key(&figure) {
                continue;
            }
            let series = self.series.entry(figure).or_default();
            if series.len() == self.settings.cycles {
                series.pop_front();
            }
            series.push_back(value);
        }
        self.last_timed_out.clone_from(&sample.last_timed_out);
        self.cycles += 1;
    }

    /// The figures of `sample` that rest on enough, with what was left of earlier cycles.
    fn gather(&mut self, sample: &Sample) -> BTreeMap<Figure, Value> {
        let mut all = figures(sample);
        for (compiler, compiles) in &sample.compiles {
            if self.seconds.len() >= MOST_FIGURES && !self.seconds.contains_key(compiler) {
                continue;
            }
            let gathered = self.seconds.entry(compiler.clone()).or_default();
            gathered.extend(&compiles.seconds);
            if let Some(value) = median(gathered) {
                let value = Value { value, weight: gathered.len() as f64 };
                all.insert(Figure::CompileSeconds(compiler.clone()), value);
            }
        }
        all.retain(|figure, value| {
            if figure.is_share()
                && let Some(left) = self.shares.remove(figure)
            {
                let weight = value.weight + left.weight;
                let part = value.value * value.weight + left.value * left.weight;
                *value = Value { value: part / weight, weight };
            }
            let enough = value.weight >= figure.least();
            match figure {
                Figure::CompileSeconds(compiler) if enough => drop(self.seconds.remove(compiler)),
                _ if !enough && figure.is_share() => {
                    self.shares.insert(figure.clone(), *value);
                }
                _ => {}
            }
            enough
        });
        all
    }

    /// Cycles since the start.
    pub(super) fn cycles(&self) -> u64 {
        self.cycles
    }

    /// Every figure of the present cycle.
    pub(super) fn all_now(&self) -> impl Iterator<Item = (&Figure, Value)> {
        self.now.iter().map(|(figure, value)| (figure, *value))
    }

    /// A figure in the present cycle.
    pub(super) fn now(&self, figure: &Figure) -> Option<Value> {
        self.now.get(figure).copied()
    }

    /// The compile that timed out last in the present cycle, for people.
    pub(super) fn last_timed_out(&self) -> &str {
        &self.last_timed_out
    }

    /// What was usual of a figure before the present cycle; `None`: too little was seen.
    pub(super) fn usual(&self, figure: &Figure) -> Option<Usual> {
        self.usual_of(figure, |value| value)
    }

    /// The same of what `transform` makes of the values.
    pub(super) fn usual_of(
        &self,
        figure: &Figure,
        transform: impl Fn(f64) -> f64,
    ) -> Option<Usual> {
        let series = self.series.get(figure)?;
        let values: Vec<f64> = series.iter().map(|value| transform(value.value)).collect();
        Usual::of(&values).filter(|usual| usual.cycles >= self.settings.enough)
    }

    /// Whether it holds of most values before the present one; `None`: too little was seen.
    pub(super) fn was_mostly(&self, figure: &Figure, holds: impl Fn(f64) -> bool) -> Option<bool> {
        let series = self.series.get(figure)?;
        let holding = series.iter().filter(|value| holds(value.value)).count();
        (series.len() >= self.settings.enough).then_some(holding * 2 > series.len())
    }

    /// The share of all that was seen before the present cycle.
    pub(super) fn pooled(&self, figure: &Figure) -> Option<f64> {
        let series = self.series.get(figure)?;
        let (part, all) = series.iter().fold((0.0, 0.0), |(part, all), value| {
            (part + value.value * value.weight, all + value.weight)
        });
        (all > 0.0).then(|| part / all)
    }

    /// The last `cycles` values, the present one among them, oldest first.
    pub(super) fn last(&self, figure: &Figure, cycles: usize) -> Vec<f64> {
        let series = self.series.get(figure);
        let history = series.into_iter().flatten().chain(self.now.get(figure));
        let values: Vec<f64> = history.map(|value| value.value).collect();
        values[values.len().saturating_sub(cycles)..].to_vec()
    }

    /// Whether so much was seen since the start that something can be usual.
    pub(super) fn is_fresh(&self) -> bool {
        self.cycles <= self.settings.enough as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::sample::{Asked, Resources};

    fn sample(hits: u64, misses: u64, seconds: f64) -> Sample {
        let resources = Resources { disk_seconds: Some(seconds), ..Resources::default() };
        Sample { seconds: 1.0, values: Asked { hits, misses }, resources, ..Sample::default() }
    }

    #[test]
    fn it_says_nothing_before_it_has_seen_enough() {
        let mut windows = Windows::new(WindowSettings { cycles: 8, enough: 3 });
        for n in 0..4 {
            assert_eq!(windows.usual(&Figure::DiskSeconds), None, "{n}");
            windows.add(&sample(99, 0, 2.0));
        }
        let usual = windows.usual(&Figure::DiskSeconds).unwrap();
        assert_eq!((usual.median, usual.cycles), (2.0, 3), "without the present one");
    }

    #[test]
    fn few_requests_are_gathered_until_they_say_something() {
        let mut windows = Windows::new(WindowSettings { cycles: 8, enough: 2 });
        let least = Figure::ValueHits.least() as u64;
        windows.add(&sample(least / 2, 0, 1.0));
        assert_eq!(windows.now(&Figure::ValueHits), None);
        windows.add(&sample(0, least / 2, 1.0));
        let now = windows.now(&Figure::ValueHits).unwrap();
        assert_eq!((now.value, now.weight), (0.5, least as f64));
        windows.add(&sample(least, 0, 1.0));
        assert_eq!(windows.now(&Figure::ValueHits).unwrap().value, 1.0, "and begin anew");
    }

    #[test]
    fn it_forgets_what_is_older_than_the_window() {
        let mut windows = Windows::new(WindowSettings { cycles: 4, enough: 2 });
        (0..50).for_each(|_| windows.add(&sample(1, 1, 1.0)));
        (0..5).for_each(|_| windows.add(&sample(1, 1, 9.0)));
        let usual = windows.usual(&Figure::DiskSeconds).unwrap();
        assert_eq!((usual.median, usual.cycles), (9.0, 4));
        assert_eq!(windows.last(&Figure::DiskSeconds, 2), [9.0, 9.0]);
    }
}
