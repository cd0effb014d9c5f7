//! The monitor without its node: a sample in, everything that follows from it out.
//!
//! ```text
//! Sample -> Windows -> Verdicts -> Anomalies -> Recommendations -> Decision -> Change
//!              |                      |
//!            Crisis                 Alerts
//! ```
//!
//! Invariant: pure; what it says follows from the samples, levels and modes that it was
//! given, in their order, so that a recorded day can be judged again.

use std::collections::VecDeque;

use super::{
    alert::Alert,
    anomaly::{Anomaly, Finding, Kind, Subject, Verdict},
    crisis::{Crisis, Judge},
    detect::detect,
    figure::Figure,
    knob::{Bounds, Levels},
    optimizer::{Change, NoUndo, Optimizer, Rules},
    recommend::{Recommendation, Scene, recommend},
    report::{Metric, Report},
    sample::{Resources, Sample},
    watchlist::{Turn, Watchlist},
    windows::{WindowSettings, Windows},
};
use crate::emergency::{Mode, System};

/// Alerts that ended and are remembered.
const ENDED: usize = 50;

/// What a [`Core`] is told.
#[derive(Debug, Clone)]
pub struct CoreSettings {
    /// Whose monitor it is.
    pub node: u64,
    /// How much is remembered.
    pub windows: WindowSettings,
    /// What the optimizer may do.
    pub rules: Rules,
    /// How far knobs may be turned.
    pub bounds: Bounds,
}

/// Windows, anomalies and decisions of one node.
pub struct Core {
    settings: CoreSettings,
    windows: Windows,
    watchlist: Watchlist,
    judge: Judge,
    optimizer: Optimizer,
    recommendations: Vec<Recommendation>,
    resources: Resources,
    unix_ms: u64,
    ended: VecDeque<Alert>,
}

/// What followed from a sample.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Alerts that began or ended.
    pub alerts: Vec<Alert>,
    /// Systems that went down or came back.
    pub crises: Vec<Crisis>,
    /// What the node is to change.
    pub change: Option<Change>,
}

impl Core {
    /// Nothing seen yet.
    pub fn new(settings: CoreSettings) -> Self {
        Self {
            windows: Windows::new(settings.windows),
            watchlist: Watchlist::default(),
            judge: Judge::default(),
            optimizer: Optimizer::new(settings.rules.clone()),
            recommendations: Vec::new(),
            resources: Resources::default(),
            unix_ms: 0,
            ended: VecDeque::new(),
            settings,
        }
    }

    /// Judges one cycle of a node whose knobs are at `levels`.
    pub fn step(&mut self, sample: &Sample, levels: &Levels, mode: &Mode) -> Outcome {
        self.windows.add(sample);
        self.resources = sample.resources.clone();
        self.unix_ms = sample.unix_ms;
        let crises = self.judge.take(sample, mode);
        let mut verdicts = detect(&self.windows);
        verdicts.extend(down(mode, &crises));
        let turns = self.watchlist.take(verdicts, sample.unix_ms);
        let alerts: Vec<Alert> = turns.iter().map(|turn| self.alert(turn)).collect();
        let anomalies = self.anomalies();
        let scene = Scene {
            windows: &self.windows,
            anomalies: &anomalies,
            levels,
            bounds: &self.settings.bounds,
        };
        self.recommendations = recommend(&scene);
        // Nothing is tuned while something is down: its figures say nothing.
        let change = match mode.is_normal() && crises.is_empty() {
            true => self.optimizer.step(&self.windows, &self.recommendations, sample.unix_ms),
            false => None,
        };
        Outcome { alerts, crises, change }
    }

    fn alert(&mut self, turn: &Turn) -> Alert {
        let alert = Alert::at(turn, self.settings.node, self.unix_ms);
        if alert.is_resolved() {
            self.ended.push_back(alert.clone());
            if self.ended.len() > ENDED {
                self.ended.pop_front();
            }
        }
        alert
    }

    /// The node could not change what was decided.
    pub fn refused(&mut self, decision: u64, why: String) {
        self.optimizer.refused(decision, why);
    }

    /// A person takes a decision back; what the node is to change for that.
    pub fn undo(&mut self, decision: u64, levels: &Levels) -> Result<Change, NoUndo> {
        self.optimizer.undo(decision, levels)
    }

    /// What is out of the ordinary now.
    pub fn anomalies(&self) -> Vec<Anomaly> {
        self.watchlist.anomalies()
    }

    /// Everything, as of the last cycle.
    pub fn report(&self, every_seconds: f64) -> Report {
        let anomalies = self.anomalies();
        let metric = |(figure, now): (&Figure, super::figure::Value)| Metric {
            figure: figure.clone(),
            now: now.value,
            usual: self.windows.usual(figure),
        };
        let lasting = anomalies.iter().map(|anomaly| Alert::of(anomaly, self.settings.node));
        Report {
            node: self.settings.node,
            unix_ms: self.unix_ms,
            cycle: self.windows.cycles(),
            every_seconds,
            fresh: self.windows.is_fresh(),
            metrics: self.windows.all_now().map(metric).collect(),
            resources: self.resources.clone(),
            alerts: self.ended.iter().cloned().chain(lasting).collect(),
            anomalies,
            recommendations: self.recommendations.clone(),
            decisions: self.optimizer.decisions().cloned().collect(),
        }
    }
}

/// What is off, as verdicts.
fn down(mode: &Mode, crises: &[Crisis]) -> Vec<Verdict> {
    let verdict = |(system, kind, figure): (System, Kind, Figure)| {
        let told = crises.iter().find_map(|crisis| match crisis {
            Crisis::Down(of, why) if *of == system => Some(why.clone()),
            _ => None,
        });
        let why = told.or_else(|| mode.of(system).map(|cause| cause.why.clone()));
        let finding = why.map(|text| Finding { figure, now: 1.0, usual: None, text });
        Verdict { subject: Subject::node(kind), finding, confirm: 1 }
    };
    let systems = [
        (System::Compilers, Kind::CompilersDown, Figure::Failures),
        (System::Cache, Kind::CacheDown, Figure::DiskErrors),
    ];
    systems.into_iter().map(verdict).collect()
}

#[cfg(test)]
mod tests;
