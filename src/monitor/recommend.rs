//! Recommendations: from what is out of the ordinary, and from what is scarce, to a knob.
//!
//! Invariant: pure; each rule names the figure by which its effect is judged afterwards
//! and the evidence that it rests on. A rule without evidence recommends nothing.

use serde::{Deserialize, Serialize};

use super::{
    anomaly::{Anomaly, Kind},
    figure::Figure,
    knob::{Bounds, Knob, Levels},
    usual::median,
    windows::Windows,
};

/// Cycles that a condition must have held.
pub(super) const HELD: usize = 3;
/// A quarter up or down.
const STEP: u64 = 4;

/// What to turn, how far, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recommendation {
    /// The knob.
    pub knob: Knob,
    /// Its level now.
    pub from: u64,
    /// The level that it should have.
    pub to: u64,
    /// By which its effect is judged; `None`: it has none to be judged by.
    pub figure: Option<Figure>,
    /// For people.
    pub why: String,
    /// What it rests on.
    pub evidence: Vec<Evidence>,
}

/// A figure that speaks for a recommendation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Which.
    pub figure: Figure,
    /// Median of the last cycles.
    pub value: f64,
}

/// What rules look at.
pub(super) struct Scene<'a> {
    /// The figures.
    pub windows: &'a Windows,
    /// What is out of the ordinary.
    pub anomalies: &'a [Anomaly],
    /// Where the knobs are.
    pub levels: &'a Levels,
    /// How far they may be turned.
    pub bounds: &'a Bounds,
}

/// All that is recommended now, the most urgent first, one for each knob.
pub(super) fn recommend(scene: &Scene<'_>) -> Vec<Recommendation> {
    let mut all = Vec::new();
    all.extend(scene.corruption());
    all.extend(scene.memory_is_short());
    all.extend(scene.disk_is_full());
    for pool in ["nvrtc", "python"] {
        all.extend(scene.compiles_wait(pool));
    }
    all.extend(scene.too_much_at_once());
    all.extend(scene.compiles_lack_memory());
    all.extend(scene.disk_tier_is_small());
    all.extend(scene.wrong_ones_leave());
    all.extend(scene.waits_in_vain());
    all.extend(scene.waits_pay());
    all.extend(scene.memory_is_back());
    let mut turned = std::collections::BTreeSet::new();
    all.retain(|of: &Recommendation| turned.insert(of.knob));
    all
}

impl Scene<'_> {
    fn is(&self, kind: Kind) -> bool {
        self.anomalies.iter().any(|anomaly| anomaly.subject.kind == kind)
    }

    /// The median of the last cycles, once there are so many.
    fn lately(&self, figure: &Figure) -> Option<f64> {
        let last = self.windows.last(figure, HELD);
        (last.len() == HELD).then(|| median(&last)).flatten()
    }

    fn turn(
        &self,
        knob: Knob,
        to: impl FnOnce(u64) -> u64,
        figure: Figure,
        seen: &[&Figure],
        why: impl Into<String>,
    ) -> Option<Recommendation> {
        let from = *self.levels.get(&knob)?;
        let to = self.bounds.clamp(knob, to(from)).filter(|to| *to != from)?;
        let evidence = self.evidence(seen);
        Some(Recommendation { knob, from, to, figure: Some(figure), why: why.into(), evidence })
    }

    fn evidence(&self, seen: &[&Figure]) -> Vec<Evidence> {
        let value =
            |figure: &&Figure| self.lately(figure).or(self.windows.now(figure).map(|v| v.value));
        let of =
            |figure: &&Figure| Some(Evidence { figure: (*figure).clone(), value: value(figure)? });
        seen.iter().filter_map(of).collect()
    }

    fn corruption(&self) -> Option<Recommendation> {
        self.bounds.0.get(&Knob::CleanUp)?;
        self.is(Kind::Corruption).then(|| Recommendation {
            knob: Knob::CleanUp,
            from: 0,
            to: 0,
            figure: None,
            why: "copies on the disk were corrupt: look at all of them".into(),
            evidence: self.evidence(&[&Figure::Corrupt]),
        })
    }

    fn memory_is_short(&self) -> Option<Recommendation> {
        let free = self.lately(&Figure::FreeMemory)?;
        let why = if free < 0.1 {
            "the machine has hardly any memory left"
        } else if self.is(Kind::MemoryGrowth) && free < 0.3 {
            "the process grows, and memory becomes short"
        } else {
            return None;
        };
        let less = |bytes| bytes - bytes / STEP;
        let seen = [&Figure::FreeMemory, &Figure::OwnMemory];
        self.turn(Knob::MemoryBytes, less, Figure::FreeMemory, &seen, why)
    }

    /// Up to what was configured, which is the upper bound.
    fn memory_is_back(&self) -> Option<Recommendation> {
        let free = self.lately(&Figure::FreeMemory).filter(|free| *free > 0.4)?;
        if self.is(Kind::MemoryGrowth) || free.is_nan() {
            return None;
        }
        let more = |bytes| bytes + bytes / STEP;
        let why = "memory is to be had again";
        self.turn(Knob::MemoryBytes, more, Figure::DiskSeconds, &[&Figure::FreeMemory], why)
    }

    fn disk_is_full(&self) -> Option<Recommendation> {
        if !self.is(Kind::LowDisk) {
            return None;
        }
        let less = |bytes| bytes - bytes / STEP;
        let why = "the device is almost full";
        self.turn(Knob::DiskBytes, less, Figure::FreeDisk, &[&Figure::FreeDisk], why)
    }

    fn too_much_at_once(&self) -> Option<Recommendation> {
        let slow = self.anomalies.iter().find(|of| of.subject.kind == Kind::SlowCompiles)?;
        let cpu = self.lately(&Figure::Cpu).filter(|cpu| *cpu > 0.95)?;
        let figure = slow.finding.figure.clone();
        let pool = if slow.subject.of.starts_with("inductor") { "python" } else { "nvrtc" };
        let why = format!("compiles are slow, and {:.0}% of all cores is busy", cpu * 100.0);
        let fewer = |n: u64| n - (n / STEP).max(1).min(n);
        self.turn(Knob::of_pool(pool)?, fewer, figure.clone(), &[&Figure::Cpu, &figure], why)
    }

    fn compiles_wait(&self, pool: &str) -> Option<Recommendation> {
        let waiting = Figure::Waiting(pool.to_owned());
        let queue = self.lately(&waiting).filter(|queue| *queue >= 1.0)?;
        let cpu = self.lately(&Figure::Cpu).filter(|cpu| *cpu < 0.7)?;
        self.lately(&Figure::FreeMemory).filter(|free| *free > 0.2)?;
        let more = |n: u64| n + (n / STEP).max(1);
        let why = format!("{queue:.0} compiles wait, and {:.0}% of all cores is busy", cpu * 100.0);
        let seen = [&waiting, &Figure::Cpu, &Figure::FreeMemory];
        self.turn(Knob::of_pool(pool)?, more, waiting.clone(), &seen, why)
    }

    fn compiles_lack_memory(&self) -> Option<Recommendation> {
        let failed: f64 = self.windows.last(&Figure::OutOfMemory, HELD).iter().sum();
        self.lately(&Figure::FreeMemory).filter(|free| *free > 0.2)?;
        if failed < 2.0 {
            return None;
        }
        let more = |bytes| bytes + bytes / 2;
        let why = format!("{failed:.0} compiles had too little memory, and there is some");
        let seen = [&Figure::OutOfMemory, &Figure::FreeMemory];
        self.turn(Knob::CompileMemory, more, Figure::OutOfMemory, &seen, why)
    }

    /// The door whose hit rate fell while blobs made room for others.
    fn evicts_what_is_wanted(&self) -> Option<Figure> {
        let falling = self.anomalies.iter().find(|of| of.subject.kind == Kind::FallingHitRate)?;
        let evictions = self.lately(&Figure::Evictions).filter(|rate| *rate > 0.0)?;
        let usual = self.windows.usual(&Figure::Evictions)?;
        (evictions > usual.median).then(|| falling.finding.figure.clone())
    }

    fn disk_tier_is_small(&self) -> Option<Recommendation> {
        let figure = self.evicts_what_is_wanted()?;
        self.lately(&Figure::FreeDisk).filter(|free| *free > 0.2)?;
        let more = |bytes| bytes + bytes / STEP;
        let why = "the hit rate falls while the disk tier evicts, and the device has room";
        let seen = [&figure, &Figure::Evictions, &Figure::FreeDisk];
        self.turn(Knob::DiskBytes, more, figure.clone(), &seen, why)
    }

    fn wrong_ones_leave(&self) -> Option<Recommendation> {
        let figure = self.evicts_what_is_wanted()?;
        let why = "the hit rate falls while the disk tier evicts: another order may suit better";
        let seen = [&figure, &Figure::Evictions];
        self.turn(Knob::Eviction, |policy| 1 - policy.min(1), figure.clone(), &seen, why)
    }

    fn waits_in_vain(&self) -> Option<Recommendation> {
        let yields = self.lately(&Figure::WaitYield).filter(|share| *share < 0.1)?;
        let why = format!("{:.0}% of the waits for another client got a value", yields * 100.0);
        let seen = [&Figure::WaitYield];
        self.turn(Knob::RespWait, |wait| wait / 2, Figure::ValueHits, &seen, why)
    }

    /// Up to what was configured, which is the upper bound.
    fn waits_pay(&self) -> Option<Recommendation> {
        let yields = self.lately(&Figure::WaitYield).filter(|share| *share > 0.8)?;
        let why = format!("{:.0}% of the waits for another client got a value", yields * 100.0);
        let seen = [&Figure::WaitYield];
        self.turn(Knob::RespWait, |wait| wait * 2, Figure::ValueHits, &seen, why)
    }
}
