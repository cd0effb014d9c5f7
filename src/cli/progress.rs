//! What happens until an answer is there, told on stderr.
//!
//! Invariant: nothing of it goes to stdout, and a terminal is left clean.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, stderr},
    time::Duration,
};

use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle as Template};
use kiln_proto::{ArtifactKey, convert, pb};
use pb::compile_event::Event;

use super::output::{self, seconds};

/// Most pieces that have a bar of their own at once.
const MOST_BARS: usize = 24;
/// Of one bar: a thousandth.
const WHOLE_BAR: u64 = 1000;
const TICK: Duration = Duration::from_millis(100);

/// How to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressStyle {
    /// A spinner and a bar for each piece on a terminal; elsewhere a line for each piece.
    Auto,
    /// A line for each step.
    Plain,
    /// Nothing.
    None,
}

/// Tells of one request, or of several of which each has a name.
pub(crate) enum Progress {
    Bars(Box<Bars>),
    /// With `steps`, of more than pieces.
    Lines {
        steps: bool,
        told: BTreeMap<Place, &'static str>,
    },
    None,
}

/// What a terminal shows.
pub(crate) struct Bars {
    all: MultiProgress,
    spinner: ProgressBar,
    /// By whole and position.
    pieces: BTreeMap<Place, ProgressBar>,
    done: BTreeMap<Place, bool>,
    /// Different pieces of each whole.
    counts: BTreeMap<Vec<u8>, u32>,
}

/// A piece: the key of its whole, and its position there.
type Place = (Vec<u8>, u32);

impl Progress {
    /// `what` is asked about.
    pub(crate) fn start(style: ProgressStyle, what: &str) -> Self {
        Self::within(style, what, &MultiProgress::new())
    }

    /// One of several that share a terminal.
    pub(crate) fn within(style: ProgressStyle, what: &str, all: &MultiProgress) -> Self {
        match style {
            ProgressStyle::None => Self::None,
            ProgressStyle::Plain => Self::Lines { steps: true, told: BTreeMap::new() },
            ProgressStyle::Auto if !stderr().is_terminal() => {
                Self::Lines { steps: false, told: BTreeMap::new() }
            }
            ProgressStyle::Auto => {
                let spinner = all.add(ProgressBar::new_spinner());
                spinner.set_style(template("{spinner} {msg} {elapsed}"));
                spinner.set_message(format!("asking about {what}"));
                spinner.enable_steady_tick(TICK);
                let (all, pieces, done) = (all.clone(), BTreeMap::new(), BTreeMap::new());
                Self::Bars(Box::new(Bars { all, spinner, pieces, done, counts: BTreeMap::new() }))
            }
        }
    }

    /// Tells of one event.
    pub(crate) fn show(&mut self, event: &Event) {
        match self {
            Self::None => {}
            Self::Bars(bars) => bars.show(event),
            Self::Lines { steps, told } => {
                if let Event::Piece(pb::PieceNews { key, piece: Some(piece) }) = event {
                    // The end of a piece may be told twice.
                    let stage = stage(piece);
                    if told.insert((key.to_vec(), piece.index), stage) != Some(stage) {
                        eprintln!("{}", piece_step(piece));
                    }
                } else if let Some(step) = step(event).filter(|_| *steps) {
                    eprintln!("{step}");
                }
            }
        }
    }
}

impl Bars {
    fn show(&mut self, event: &Event) {
        match event {
            Event::Planned(planned) => {
                let count = planned.strategy.as_ref().map_or(0, |strategy| strategy.pieces);
                self.counts.insert(planned.key.to_vec(), count);
            }
            Event::Piece(pb::PieceNews { key, piece: Some(piece) }) => self.piece(key, piece),
            other => {
                if let Some(step) = step(other) {
                    self.spinner.set_message(step);
                }
            }
        }
    }

    fn piece(&mut self, whole: &[u8], piece: &pb::Piece) {
        use pb::PieceStage::{Compiling, Done, Failed};
        let place = (whole.to_vec(), piece.index);
        let count: u32 = self.counts.values().sum();
        match piece.stage() {
            Compiling if self.pieces.len() < MOST_BARS || self.pieces.contains_key(&place) => {
                let bar = self.pieces.entry(place).or_insert_with(|| {
                    let bar = self.all.add(ProgressBar::new_spinner());
                    bar.set_style(template("  {spinner} {prefix}, {elapsed}{msg}"));
                    bar.enable_steady_tick(TICK);
                    bar
                });
                bar.set_prefix(piece_said(piece, output::short(&shown(&piece.key))));
                let expected = expected(piece);
                let of = |expected| format!(" of about {}", seconds(expected));
                bar.set_message(expected.map(of).unwrap_or_default());
            }
            stage @ (Done | Failed) => {
                self.done.insert(place.clone(), stage == Done);
                if let Some(bar) = self.pieces.get(&place) {
                    bar.set_style(template("  {bar:12} {msg}"));
                    bar.set_length(WHOLE_BAR);
                    bar.set_position(if stage == Done { WHOLE_BAR } else { 0 });
                    let key = shown(&piece.key);
                    let said = piece_said(piece, output::short(&key)) + &piece_after(piece);
                    bar.set_message(said);
                    bar.disable_steady_tick();
                    bar.tick();
                }
                // With many pieces the place is for those that are at work.
                if count as usize > MOST_BARS
                    && let Some(bar) = self.pieces.remove(&place)
                {
                    bar.finish_and_clear();
                }
            }
            _ => {}
        }
        let done = self.done.len();
        let failed = self.done.values().filter(|ok| !**ok).count();
        let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
        self.spinner.set_message(format!("{done} of {count} pieces{failed}"));
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.pieces.values().for_each(ProgressBar::finish_and_clear);
        self.spinner.finish_and_clear();
    }
}

/// A template of this file, which is well-formed.
fn template(text: &str) -> Template {
    Template::with_template(text).unwrap_or_else(|_| Template::default_spinner())
}

/// `started KEY for sm_90`, `waiting KEY`, `compiling KEY`: the plain lines.
fn step(event: &Event) -> Option<String> {
    match event {
        Event::Started(started) => {
            let target = started.target.as_ref().and_then(|t| convert::target(t).ok());
            let target = target.map(|t| format!(" for {t}")).unwrap_or_default();
            Some(format!("started {}{target}", shown(&started.key)))
        }
        Event::Planned(planned) => {
            let strategy = planned.strategy.as_ref()?;
            (strategy.choice() == pb::Choice::Piecewise).then(|| {
                let (items, pieces) = (strategy.items, strategy.pieces);
                format!("planned {}: {items} pieces, {pieces} different", shown(&planned.key))
            })
        }
        Event::Waiting(waiting) => Some(format!("waiting {}", shown(&waiting.key))),
        Event::Compiling(compiling) => Some(format!("compiling {}", shown(&compiling.key))),
        Event::Piece(news) => news.piece.as_ref().map(piece_step),
        Event::Done(_) | Event::SizeFailed(_) => None,
    }
}

/// The name of an outcome.
pub(crate) fn outcome(outcome: pb::Outcome) -> &'static str {
    match outcome {
        pb::Outcome::Compiled => "compiled",
        pb::Outcome::Coalesced => "coalesced",
        pb::Outcome::Hit => "hit",
        pb::Outcome::Unspecified => "unknown",
    }
}

fn shown(key: &[u8]) -> String {
    ArtifactKey::try_from(key).map(|key| key.to_string()).unwrap_or_default()
}

/// The name of a piece's stage.
pub(crate) fn stage(piece: &pb::Piece) -> &'static str {
    match piece.stage() {
        pb::PieceStage::Unspecified | pb::PieceStage::Wanted => "wanted",
        pb::PieceStage::Compiling => "compiling",
        pb::PieceStage::Failed => "failed",
        pb::PieceStage::Done => outcome(piece.outcome()),
    }
}

/// `piece 3 compiled KEY on node 2 in 1.20 s`.
pub(crate) fn piece_step(piece: &pb::Piece) -> String {
    piece_said(piece, &shown(&piece.key)) + &piece_after(piece)
}

/// `piece 3 compiling KEY on node 2`, the key as it is given.
fn piece_said(piece: &pb::Piece, key: &str) -> String {
    let node = if piece.node == 0 { String::new() } else { format!(" on node {}", piece.node) };
    format!("piece {} {} {key}{node}", piece.index, stage(piece))
}

/// How long it took or will take, or why it failed.
fn piece_after(piece: &pb::Piece) -> String {
    match piece.stage() {
        pb::PieceStage::Done => format!(" in {}", seconds(piece.compile_seconds)),
        pb::PieceStage::Failed => {
            let failure = piece.failure.clone().unwrap_or_default();
            match convert::failure(failure) {
                Ok(failure) => format!(": {failure}"),
                Err(e) => format!(": {e}"),
            }
        }
        _ => {
            let expected = expected(piece).unwrap_or_default();
            format!(", about {}", seconds(expected))
        }
    }
}

/// Seconds that its compile is expected to take, where that is known.
fn expected(piece: &pb::Piece) -> Option<f64> {
    piece.estimates.as_ref().map(|of| of.compile_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_progress_is_a_word_and_a_key() {
        let key = vec![0xab; 32];
        let waiting = Event::Waiting(pb::Waiting { key: key.clone().into() });
        assert_eq!(step(&waiting), Some(format!("waiting {}", "ab".repeat(32))));
        let target = Some(kiln_proto::Target::cubin(90).into());
        let started = Event::Started(pb::Started { key: key.into(), target, size: None });
        assert_eq!(step(&started), Some(format!("started {} for sm_90", "ab".repeat(32))));
    }

    #[test]
    fn a_piece_says_who_did_what() {
        let mut piece = pb::Piece {
            index: 3,
            key: vec![0xab; 32].into(),
            node: 2,
            compile_seconds: 1.25,
            ..Default::default()
        };
        let key = "ab".repeat(32);
        piece.set_stage(pb::PieceStage::Done);
        piece.set_outcome(pb::Outcome::Compiled);
        assert_eq!(piece_step(&piece), format!("piece 3 compiled {key} on node 2 in 1.25 s"));
        piece.set_stage(pb::PieceStage::Failed);
        let failure =
            kiln_proto::Failure::new(kiln_proto::FailureKind::Timeout, "it took too long");
        piece.failure = Some((&failure).into());
        let text = piece_step(&piece);
        assert_eq!(text, format!("piece 3 failed {key} on node 2: C004 timeout: it took too long"));
    }
}
