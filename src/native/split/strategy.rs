//! Whole or in pieces, and why.
//!
//! Invariant: the choice follows from the graph and the settings, and its
//! reasons name the numbers that decided it.

use std::fmt;

use kiln_proto::graph::Graph;
use serde::{Deserialize, Serialize};

use super::{Estimates, Piecewise, Settings, Split, SplitError, split};

/// How to compile a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// In one compile.
    Full,
    /// In pieces.
    Piecewise,
}

/// Why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum Reason {
    /// Somebody said so.
    Asked {
        /// What they said.
        piecewise: Piecewise,
    },
    /// It has operations at which pieces are cut.
    Operations {
        /// How many.
        count: usize,
    },
    /// It has equal layers.
    Layers {
        /// How many, of each kind.
        times: Vec<usize>,
    },
    /// There would be so many pieces, of which so many are different.
    Pieces {
        /// All.
        count: usize,
        /// Different ones.
        distinct: usize,
    },
    /// A compile of the whole takes longer than it should.
    Seconds {
        /// Estimated.
        whole: f64,
        /// Allowed.
        most: f64,
    },
    /// A compile of the whole takes more memory than it should.
    Bytes {
        /// Estimated.
        whole: u64,
        /// Allowed.
        most: u64,
    },
    /// It has more operations than one compile should.
    Complexity {
        /// Core operations.
        operations: usize,
        /// Allowed.
        most: usize,
    },
    /// The different pieces take much less than the whole.
    Saves {
        /// Seconds of the whole, estimated.
        whole: f64,
        /// Seconds of the different pieces one after the other, estimated.
        pieces: f64,
    },
    /// It is small: pieces would not pay.
    Small {
        /// Seconds of the whole, estimated.
        seconds: f64,
        /// Core operations.
        operations: usize,
    },
    /// There is nothing to cut at.
    OnePiece,
    /// It cannot be split.
    Refused {
        /// Why.
        error: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked { piecewise: Piecewise::Never } => {
                f.write_str("asked for: never in pieces")
            }
            Self::Asked { .. } => f.write_str("asked for: always in pieces"),
            Self::Operations { count } => write!(f, "{count} operations to cut at"),
            Self::Layers { times } => {
                let times: Vec<String> = times.iter().map(ToString::to_string).collect();
                write!(f, "equal layers: {}", times.join(" and "))
            }
            Self::Pieces { count, distinct } => write!(f, "{count} pieces, {distinct} different"),
            Self::Seconds { whole, most } => {
                write!(f, "compiles in about {whole:.1} s as a whole, over {most:.1} s")
            }
            Self::Bytes { whole, most } => {
                let mib = |bytes: &u64| bytes >> 20;
                write!(f, "compiles in about {} MiB as a whole, over {}", mib(whole), mib(most))
            }
            Self::Complexity { operations, most } => {
                write!(f, "{operations} operations, over {most}")
            }
            Self::Saves { whole, pieces } => {
                write!(f, "the different pieces take about {pieces:.1} s, the whole {whole:.1} s")
            }
            Self::Small { seconds, operations } => {
                write!(f, "small: {operations} operations, about {seconds:.1} s as a whole")
            }
            Self::OnePiece => f.write_str("nothing to cut at"),
            Self::Refused { error } => write!(f, "cannot be split: {error}"),
        }
    }
}

/// A choice with its reasons.
#[derive(Debug, Clone)]
pub struct Strategy {
    /// What was chosen.
    pub choice: Choice,
    /// Why: what speaks for it first.
    pub reasons: Vec<Reason>,
    /// What the whole takes; `None` where nobody looked.
    pub whole: Option<Estimates>,
    /// The pieces, if it was chosen to have them.
    pub split: Option<Split>,
}

/// Chooses how to compile `graph`. Only [`Piecewise::Always`] can fail: what
/// cannot be split is compiled as a whole otherwise.
pub fn strategy(graph: &Graph, settings: &Settings) -> Result<Strategy, SplitError> {
    let asked = Reason::Asked { piecewise: settings.piecewise };
    let full = |reasons, whole| Strategy { choice: Choice::Full, reasons, whole, split: None };
    let found = match settings.piecewise {
        Piecewise::Never => return Ok(full(vec![asked], None)),
        Piecewise::Always => split(graph, settings)?,
        Piecewise::Auto => match split(graph, settings) {
            Ok(found) => found,
            Err(error) => {
                return Ok(full(vec![Reason::Refused { error: error.to_string() }], None));
            }
        },
    };
    let whole = Some(found.whole);
    let mut reasons = match settings.piecewise {
        Piecewise::Always => vec![asked],
        _ if found.items.len() < 2 => return Ok(full(vec![Reason::OnePiece], whole)),
        _ => for_pieces(&found, settings),
    };
    let Estimates { compile_seconds, operations, .. } = found.whole;
    if reasons.is_empty() {
        let small = Reason::Small { seconds: compile_seconds, operations };
        return Ok(full(vec![small], whole));
    }
    if found.cut_at > 0 {
        reasons.push(Reason::Operations { count: found.cut_at });
    }
    if !found.layers.is_empty() {
        reasons.push(Reason::Layers { times: found.layers.clone() });
    }
    let (count, distinct) = (found.items.len(), found.pieces.len());
    reasons.push(Reason::Pieces { count, distinct });
    Ok(Strategy { choice: Choice::Piecewise, reasons, whole, split: Some(found) })
}

/// What speaks for pieces by itself.
fn for_pieces(found: &Split, settings: &Settings) -> Vec<Reason> {
    let (whole, most) = (found.whole, settings.whole);
    let mut reasons = Vec::new();
    if most.most_seconds > 0.0 && whole.compile_seconds > most.most_seconds {
        reasons.push(Reason::Seconds { whole: whole.compile_seconds, most: most.most_seconds });
    }
    if most.most_bytes > 0 && whole.compile_bytes > most.most_bytes {
        reasons.push(Reason::Bytes { whole: whole.compile_bytes, most: most.most_bytes });
    }
    if most.most_operations > 0 && whole.operations > most.most_operations {
        let (operations, most) = (whole.operations, most.most_operations);
        reasons.push(Reason::Complexity { operations, most });
    }
    // Twice is a rule of thumb: calls of pieces cost something when they run.
    let pieces = found.distinct_seconds();
    if !found.layers.is_empty() && whole.compile_seconds > 2.0 * pieces {
        reasons.push(Reason::Saves { whole: whole.compile_seconds, pieces });
    }
    reasons
}
