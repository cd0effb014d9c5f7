//! The optimizer: which recommendations are carried out, and what became of them.
//!
//! One change at a time is on trial, so that what its figure does is its doing: after
//! [`Rules::judged_after`] cycles the figure's median is compared with that before. If it
//! got worse by more than it strays, the change is taken back, and not tried again for a
//! while. A person can take back any change whose level still holds; that knob is then left
//! alone until the node starts again.
//!
//! Invariant: pure; every change has a decision with its evidence, and every decision ends
//! in exactly one state. Nothing is changed unless [`Rules::apply`] is set.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{
    figure::{Better, Figure},
    knob::{Knob, Levels},
    recommend::{Evidence, HELD, Recommendation},
    usual::Usual,
    windows::Windows,
};

/// Decisions that are remembered.
const REMEMBERED: usize = 200;

/// What the optimizer may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Carry recommendations out; else they are only told.
    pub apply: bool,
    /// Cycles after which a change is judged.
    pub judged_after: u64,
    /// Cycles for which what did not help is not tried again.
    pub rest: u64,
}

/// A recommendation that was taken up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// By which it can be taken back.
    pub id: u64,
    /// Milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// What was turned.
    pub knob: Knob,
    /// Its level before.
    pub from: u64,
    /// And since.
    pub to: u64,
    /// For people.
    pub why: String,
    /// What it rests on.
    pub evidence: Vec<Evidence>,
    /// By which it is judged.
    pub figure: Option<Figure>,
    /// What the figure was before the change.
    pub before: Option<Usual>,
    /// What it was since, once that was judged.
    pub after: Option<f64>,
    /// What became of it.
    pub state: State,
    /// Why it has that state, for people.
    pub note: String,
}

/// What became of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is told only: the configuration allows no more.
    Recommended,
    /// The knob was turned, and the effect is not known yet.
    Applied,
    /// It did no harm and stays.
    Kept,
    /// Its figure got worse: it was taken back.
    RolledBack,
    /// A person took it back.
    Undone,
    /// The node could not do it.
    Refused,
}

impl State {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Recommended => "recommended",
            Self::Applied => "applied",
            Self::Kept => "kept",
            Self::RolledBack => "rolled_back",
            Self::Undone => "undone",
            Self::Refused => "refused",
        }
    }
}

/// A knob to be turned on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Of which decision.
    pub decision: u64,
    /// The knob.
    pub knob: Knob,
    /// The level that it gets.
    pub to: u64,
}

/// Why a decision cannot be taken back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoUndo {
    /// There is none of that number.
    #[error("there is no decision {0}")]
    Unknown(u64),
    /// It changed nothing, or was taken back already.
    #[error("decision {0} is {1}: there is nothing to take back")]
    Nothing(u64, &'static str),
    /// The knob was turned again since: take that one back.
    #[error("{1} was turned again since decision {0}: take the later one back first")]
    Overtaken(u64, &'static str),
}

/// A change whose effect is not known yet.
#[derive(Debug)]
struct Trial {
    decision: u64,
    /// Cycles since.
    cycles: u64,
}

/// Decisions and what is on trial.
#[derive(Debug)]
pub(super) struct Optimizer {
    rules: Rules,
    decisions: VecDeque<Decision>,
    trial: Option<Trial>,
    /// Until which cycle a knob is not turned up, or down.
    rests: BTreeMap<(Knob, bool), u64>,
    next: u64,
}

impl Optimizer {
    /// Nothing decided yet.
    pub(super) fn new(rules: Rules) -> Self {
        let (decisions, rests) = (VecDeque::new(), BTreeMap::new());
        Self { rules, decisions, trial: None, rests, next: 1 }
    }

    /// One cycle: judges what is on trial, then takes up the first recommendation that is
    /// not resting. What the node is to change.
    pub(super) fn step(
        &mut self,
        windows: &Windows,
        recommended: &[Recommendation],
        unix_ms: u64,
    ) -> Option<Change> {
        let cycle = windows.cycles();
        if let Some(trial) = &mut self.trial {
            trial.cycles += 1;
            if trial.cycles < self.rules.judged_after {
                return None;
            }
            let decision = trial.decision;
            self.trial = None;
            return self.judge(decision, windows);
        }
        let is_free = |of: &&Recommendation| {
            self.rests.get(&(of.knob, of.to > of.from)).is_none_or(|until| cycle >= *until)
        };
        let chosen = recommended.iter().find(is_free)?;
        self.take_up(chosen, windows, unix_ms)
    }

    fn take_up(
        &mut self,
        chosen: &Recommendation,
        windows: &Windows,
        unix_ms: u64,
    ) -> Option<Change> {
        let Recommendation { knob, from, to, figure, why, evidence } = chosen.clone();
        let id = self.next;
        self.next += 1;
        // As long as what speaks for it held: further back it was something else.
        let history = |figure: &Figure| Usual::of(&windows.last(figure, HELD));
        let before = figure.as_ref().and_then(history);
        let state = if self.rules.apply { State::Applied } else { State::Recommended };
        let note = String::new();
        self.decisions.push_back(Decision {
            id,
            unix_ms,
            knob,
            from,
            to,
            why,
            evidence,
            figure,
            before,
            after: None,
            state,
            note,
        });
        if self.decisions.len() > REMEMBERED {
            self.decisions.pop_front();
        }
        // Told once in a while, not in every cycle.
        self.rest(knob, to > from, windows.cycles() + self.rules.rest);
        if !self.rules.apply {
            return None;
        }
        self.trial = Some(Trial { decision: id, cycles: 0 });
        Some(Change { decision: id, knob, to })
    }

    fn judge(&mut self, id: u64, windows: &Windows) -> Option<Change> {
        let cycles = usize::try_from(self.rules.judged_after).unwrap_or(1);
        let decision = self.decisions.iter_mut().find(|decision| decision.id == id)?;
        let since = decision.figure.as_ref().and_then(|of| Usual::of(&windows.last(of, cycles)));
        decision.after = since.map(|since| since.median);
        let worse = match (&decision.figure, decision.before, since) {
            (Some(figure), Some(before), Some(since)) => got_worse(figure, before, since),
            _ => false,
        };
        if !worse {
            decision.state = State::Kept;
            decision.note = match decision.after {
                Some(_) => "its figure did not get worse".into(),
                None => "it has no figure to be judged by".into(),
            };
            let (knob, up) = (decision.knob, decision.to > decision.from);
            // It may go on in the same direction at once.
            self.rests.remove(&(knob, up));
            return None;
        }
        decision.state = State::RolledBack;
        decision.note = "its figure got worse".into();
        let Decision { knob, from, to, .. } = *decision;
        self.rest(knob, to > from, windows.cycles() + self.rules.rest);
        Some(Change { decision: id, knob, to: from })
    }

    fn rest(&mut self, knob: Knob, up: bool, until: u64) {
        let now = self.rests.entry((knob, up)).or_default();
        *now = until.max(*now);
    }

    /// The node could not do what was decided.
    pub(super) fn refused(&mut self, id: u64, why: String) {
        if self.trial.as_ref().is_some_and(|trial| trial.decision == id) {
            self.trial = None;
        }
        if let Some(decision) = self.decisions.iter_mut().find(|of| of.id == id) {
            decision.state = State::Refused;
            decision.note = why;
        }
    }

    /// A person takes a decision back; what the node is to change for that.
    pub(super) fn undo(&mut self, id: u64, levels: &Levels) -> Result<Change, NoUndo> {
        let decision = self.decisions.iter_mut().find(|of| of.id == id);
        let decision = decision.ok_or(NoUndo::Unknown(id))?;
        let changed = matches!(decision.state, State::Applied | State::Kept);
        if !changed || decision.from == decision.to {
            return Err(NoUndo::Nothing(id, decision.state.name()));
        }
        if levels.get(&decision.knob) != Some(&decision.to) {
            return Err(NoUndo::Overtaken(id, decision.knob.name()));
        }
        decision.state = State::Undone;
        decision.note = "a person took it back: the knob is left alone from now on".into();
        let (knob, to) = (decision.knob, decision.from);
        if self.trial.as_ref().is_some_and(|trial| trial.decision == id) {
            self.trial = None;
        }
        for up in [true, false] {
            self.rests.insert((knob, up), u64::MAX);
        }
        Ok(Change { decision: id, knob, to })
    }

    /// All that are remembered, the latest last.
    pub(super) fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter()
    }
}

/// Whether a figure got worse by more than it strays, and by so much that it matters.
fn got_worse(figure: &Figure, before: Usual, since: Usual) -> bool {
    let up = since.median - before.median;
    let worse = match figure.better() {
        Better::Higher => -up,
        Better::Lower => up,
    };
    worse > figure.noticeable(before.median).max(2.0 * before.sigma)
}
