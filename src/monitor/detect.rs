//! Detectors: from the windows to verdicts.
//!
//! Each compares a figure with its own history over the window and asks for two things at
//! once: that the change is one that people would care about, and that it is far beyond what
//! the figure strays by itself. Neither is enough alone: a figure that never moves has no
//! spread, and one that always moves is no news. Most must be found twice in a row.
//!
//! The first question is the cheap one, and mostly ends it.
//!
//! Invariant: pure; nothing is said of a figure that has no history, except where a single
//! occurrence is wrong whatever was before: a corrupt copy, a wrong artifact, a compile that was
//! ended, a full disk.

use super::{
    anomaly::{Finding, Kind, Subject, Verdict},
    figure::{Figure, Value},
    usual::{Usual, median},
    windows::Windows,
};

/// Spreads beyond which a value is out of the ordinary, twice in a row: by noise alone that
/// happens once in some 10^9 cycles.
const FAR: f64 = 4.0;
/// The same of shares, whose chance is known.
const FAR_SHARE: f64 = 3.5;
/// The same of a step of memory.
const FAR_STEP: f64 = 6.0;
/// Of the logarithm of compile seconds: what is compiled differs from cycle to cycle.
const COMPILES_STRAY: f64 = 0.25;
const MUCH_SLOWER: f64 = 3.0;
/// The same of a disk, whose rare hiccups are no news.
const DISK_STRAYS: f64 = 0.35;
const DISK_SLOWER: f64 = 4.0;
const SLOW_DISK: f64 = 0.02;
/// Of shares.
const SHARES_STRAY: f64 = 0.03;
const A_FIFTH: f64 = 0.2;
/// Least growth of memory in each of two cycles, and over the whole window.
const GROWTH: f64 = (32u64 << 20) as f64;
const GROWTH_SHARE: f64 = 0.03;
const WINDOW_GROWTH: f64 = (256u64 << 20) as f64;
const WINDOW_GROWTH_SHARE: f64 = 0.25;
/// What is almost nothing.
const HARDLY_ANY: f64 = 0.05;
const MANY_DISK_ERRORS: f64 = 0.1;
/// Publications of what had just been given out, as a share of all.
const HALF: f64 = 0.5;
const MORE_THAN_USUAL: f64 = 0.3;

const TWICE: u32 = 2;

/// Everything that can be judged in the present cycle.
pub(super) fn detect(windows: &Windows) -> Vec<Verdict> {
    let compilers = windows.all_now().filter_map(|(figure, now)| match figure {
        Figure::CompileSeconds(of) => Some((of.clone(), slow_compiles(windows, figure, now))),
        _ => None,
    });
    let mut all: Vec<_> = compilers
        .filter_map(|(of, judged)| judged.map(|f| (Subject::of(Kind::SlowCompiles, of), f, TWICE)))
        .collect();
    let fell = |figure| falling(windows, figure);
    let mut judge = |subject, judged: Option<Option<Finding>>, confirm| {
        all.extend(judged.map(|finding| (subject, finding, confirm)));
    };
    judge(Subject::of(Kind::FallingHitRate, "artifacts"), fell(&Figure::ArtifactHits), TWICE);
    judge(Subject::of(Kind::FallingHitRate, "values"), fell(&Figure::ValueHits), TWICE);
    judge(Subject::node(Kind::FailingCompiles), failing(windows), TWICE);
    judge(Subject::node(Kind::TimeOuts), time_outs(windows), 1);
    judge(Subject::node(Kind::SlowDisk), slow_disk(windows), TWICE);
    judge(Subject::node(Kind::DiskErrors), disk_errors(windows), TWICE);
    judge(Subject::node(Kind::MemoryGrowth), memory_growth(windows), 1);
    judge(Subject::node(Kind::UnusedRestores), unused_restores(windows), TWICE);
    judge(Subject::node(Kind::Corruption), corruption(windows), 1);
    judge(Subject::node(Kind::WrongArtifacts), wrong_artifacts(windows), 1);
    judge(
        Subject::node(Kind::LowMemory),
        hardly_any(windows, &Figure::FreeMemory, "memory"),
        TWICE,
    );
    judge(Subject::node(Kind::LowDisk), hardly_any(windows, &Figure::FreeDisk, "disk"), TWICE);
    let verdict = |(subject, finding, confirm)| Verdict { subject, finding, confirm };
    all.into_iter().map(verdict).collect()
}

/// `None`: it cannot be judged. `Some(None)`: it is as it should be.
type Judged = Option<Option<Finding>>;

const WELL: Judged = Some(None);

fn found(figure: &Figure, now: f64, usual: Option<Usual>, text: String) -> Judged {
    Some(Some(Finding { figure: figure.clone(), now, usual, text }))
}

fn slow_compiles(windows: &Windows, figure: &Figure, now: Value) -> Judged {
    if !windows.was_mostly(figure, |usual| now.value > MUCH_SLOWER * usual)? {
        return WELL;
    }
    let usual = windows.usual_of(figure, f64::ln)?;
    if usual.score(now.value.ln(), COMPILES_STRAY) < FAR {
        return WELL;
    }
    let (now, usually) = (now.value, usual.median.exp());
    let text = format!("compiles take {now:.3} s, usually {usually:.3} s");
    found(figure, now, windows.usual(figure), text)
}

fn falling(windows: &Windows, figure: &Figure) -> Judged {
    let now = windows.now(figure)?;
    if !windows.was_mostly(figure, |usual| usual - now.value > A_FIFTH)? {
        return WELL;
    }
    let usual = windows.usual(figure)?;
    let expected = windows.pooled(figure)?.min(usual.median);
    let is_chance = -beyond_chance(expected, now) < FAR_SHARE;
    if is_chance || usual.score(now.value, SHARES_STRAY) > -FAR_SHARE {
        return WELL;
    }
    let text = format!(
        "{:.0}% of {:.0} requests were answered from the cache, usually {:.0}%",
        now.value * 100.0,
        now.weight,
        usual.median * 100.0
    );
    found(figure, now.value, Some(usual), text)
}

fn failing(windows: &Windows) -> Judged {
    let figure = Figure::Failures;
    let now = windows.now(&figure)?;
    if !windows.was_mostly(&figure, |usual| now.value - usual > A_FIFTH)? {
        return WELL;
    }
    let usual = windows.usual(&figure)?;
    let expected = windows.pooled(&figure)?.max(usual.median);
    let is_chance = beyond_chance(expected, now) < FAR_SHARE;
    if is_chance || usual.score(now.value, SHARES_STRAY) < FAR_SHARE {
        return WELL;
    }
    let text = format!(
        "{:.0}% of {:.0} compiles failed for reasons of this node, usually {:.0}%",
        now.value * 100.0,
        now.weight,
        usual.median * 100.0
    );
    found(&figure, now.value, Some(usual), text)
}

/// How far a share is above the expected one, in spreads of what chance makes of so many
/// draws. On the arcsine's scale that spread is the same for all shares.
fn beyond_chance(expected: f64, now: Value) -> f64 {
    let angle = |share: f64| share.clamp(0.0, 1.0).sqrt().asin();
    2.0 * now.weight.sqrt() * (angle(now.value) - angle(expected))
}

fn slow_disk(windows: &Windows) -> Judged {
    let figure = Figure::DiskSeconds;
    let now = windows.now(&figure)?.value;
    let is_slower = windows.was_mostly(&figure, |usual| now > DISK_SLOWER * usual)?;
    if !is_slower || now < SLOW_DISK {
        return WELL;
    }
    let usual = windows.usual_of(&figure, |seconds| seconds.max(1e-6).ln())?;
    if usual.score(now.ln(), DISK_STRAYS) < FAR {
        return WELL;
    }
    let usually = usual.median.exp();
    let text = format!("a small durable write takes {now:.3} s, usually {usually:.4} s");
    found(&figure, now, windows.usual(&figure), text)
}

fn disk_errors(windows: &Windows) -> Judged {
    let now = windows.now(&Figure::DiskErrors)?;
    if now.value < MANY_DISK_ERRORS {
        return WELL;
    }
    let text = format!("{:.0}% of {:.0} disk operations failed", now.value * 100.0, now.weight);
    found(&Figure::DiskErrors, now.value, None, text)
}

fn corruption(windows: &Windows) -> Judged {
    let now = windows.now(&Figure::Corrupt)?.value;
    if now == 0.0 {
        return WELL;
    }
    let text = format!("{now:.0} copies were not what their digest says; they are in quarantine");
    found(&Figure::Corrupt, now, None, text)
}

fn wrong_artifacts(windows: &Windows) -> Judged {
    let figure = Figure::WrongArtifacts;
    let now = windows.now(&figure)?.value;
    if now == 0.0 {
        return WELL;
    }
    let text = format!(
        "{now:.0} artifacts were not what their sources compile to, and are removed; the log names \
         their signers (wrong_artifact in kiln audit show)"
    );
    found(&figure, now, None, text)
}

fn time_outs(windows: &Windows) -> Judged {
    let now = windows.now(&Figure::TimeOuts)?.value;
    if now == 0.0 {
        return WELL;
    }
    let last = windows.last_timed_out();
    let text = format!("{now:.0} compiles took longer than they may; the last one: {last}");
    found(&Figure::TimeOuts, now, None, text)
}

fn hardly_any(windows: &Windows, figure: &Figure, what: &str) -> Judged {
    let now = windows.now(figure)?.value;
    if now > HARDLY_ANY {
        return WELL;
    }
    found(figure, now, None, format!("{:.1}% of the {what} is free", now * 100.0))
}

fn unused_restores(windows: &Windows) -> Judged {
    let figure = Figure::UnusedRestores;
    let now = windows.now(&figure)?;
    // A tool that always overwrites what it read is no news.
    if !windows.was_mostly(&figure, |usual| now.value - usual > MORE_THAN_USUAL)? {
        return WELL;
    }
    let usual = windows.usual(&figure)?;
    let expected = windows.pooled(&figure)?.max(usual.median);
    if now.value < HALF || beyond_chance(expected, now) < FAR_SHARE {
        return WELL;
    }
    let text = format!(
        "{:.0}% of {:.0} publications were of keys that had just been given out: clients fetch \
         artifacts, and then do not use them",
        now.value * 100.0,
        now.weight
    );
    found(&figure, now.value, Some(usual), text)
}

/// Two jumps in a row, or steady growth over a window. Growth by a day's rhythm is slower.
fn memory_growth(windows: &Windows) -> Judged {
    let figure = Figure::OwnMemory;
    windows.was_mostly(&figure, |_| true)?;
    let all = windows.last(&figure, usize::MAX);
    if !(jumped_twice(&all) || grew_steadily(&all)) {
        return WELL;
    }
    let (now, usual) = (*all.last()?, windows.usual(&figure)?);
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let text = format!(
        "the process has {:.0} MiB beside what it caches, usually {:.0} MiB",
        mib(now),
        mib(usual.median)
    );
    found(&figure, now, Some(usual), text)
}

fn jumped_twice(all: &[f64]) -> bool {
    let [earlier @ .., before, first, second] = all else { return false };
    let steps = [first - before, second - first];
    if steps.iter().any(|step| *step < GROWTH.max(before * GROWTH_SHARE)) {
        return false;
    }
    let earlier: Vec<f64> = earlier.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let Some(usual) = Usual::of(&earlier) else { return false };
    steps.iter().all(|step| usual.score(*step, GROWTH / FAR_STEP) > FAR_STEP)
}

/// Whether every quarter of the window has more than the one before, and the last much more
/// than the first.
fn grew_steadily(all: &[f64]) -> bool {
    const QUARTERS: usize = 4;
    const LEAST: usize = 24;
    let [begin, .., end] = all else { return false };
    if all.len() < LEAST || end - begin < WINDOW_GROWTH {
        return false;
    }
    let quarters = all.chunks(all.len().div_ceil(QUARTERS)).filter_map(median);
    let quarters: Vec<f64> = quarters.collect();
    let [first, .., last] = &quarters[..] else { return false };
    let grown = last - first;
    let step = grown / (2.0 * quarters.len() as f64);
    let rises = quarters.windows(2).all(|pair| pair[1] - pair[0] > step);
    rises && grown > WINDOW_GROWTH.max(first * WINDOW_GROWTH_SHARE)
}
