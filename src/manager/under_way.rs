//! The flights of this node, as who looks on sees them.
//!
//! Invariant: a look at the flights holds up none of them, and shows a bounded number.

use std::time::Duration;

use kiln_proto::ArtifactKey;

use super::{Manager, PieceReport, PieceStage, Stage};

/// Flights that are shown at most.
const MOST: usize = 256;

/// A key that this node compiles or waits for.
#[derive(Debug, Clone)]
pub struct Flight {
    /// What it will be.
    pub key: ArtifactKey,
    /// A name to show.
    pub label: String,
    /// Who compiles it.
    pub compiler: String,
    /// For how long it goes on.
    pub age: Duration,
    /// How far it is.
    pub stage: FlightStage,
    /// Pieces that are over, of how many; none: it is not in pieces, or they are not known yet.
    pub pieces: (usize, usize),
}

/// How far a flight is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlightStage {
    /// Asks the cluster.
    Acquiring,
    /// Waits for another node's compile.
    Waiting,
    /// Compiles here, as a whole or in pieces.
    Compiling,
}

impl FlightStage {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Acquiring => "acquiring",
            Self::Waiting => "waiting",
            Self::Compiling => "compiling",
        }
    }
}

impl Manager {
    /// What is under way here, the oldest first.
    pub fn under_way(&self) -> Vec<Flight> {
        let mut begun = self.recent.begun();
        let mut flights = Vec::new();
        for (key, stage) in self.flights.states(MOST) {
            let Some(of) = begun.remove(&key) else { continue };
            let (stage, pieces) = match &stage {
                Stage::Waiting => (FlightStage::Waiting, (0, 0)),
                Stage::Compiling(_) => (FlightStage::Compiling, (0, 0)),
                Stage::Pieces(pieces) => (FlightStage::Compiling, over(pieces)),
                Stage::Acquiring | Stage::Planned(_) => (FlightStage::Acquiring, (0, 0)),
                Stage::Ended(..) => continue,
            };
            let (label, compiler, age) = (of.label, of.compiler, of.since.elapsed());
            flights.push(Flight { key, label, compiler, age, stage, pieces });
        }
        flights.sort_by_key(|flight| std::cmp::Reverse(flight.age));
        flights
    }
}

fn over(pieces: &[PieceReport]) -> (usize, usize) {
    let over = pieces.iter().filter(|piece| PieceStage::is_over(&piece.stage)).count();
    (over, pieces.len())
}
