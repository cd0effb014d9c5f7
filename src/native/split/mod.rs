//! A graph in pieces: which, of what, and how they are put together again.
//!
//! ```text
//! graph -> flow -> groups (operations to cut at) -> order -> pattern (layers)
//!                                                        -> cut -> part -> items
//! items -> validate -> pieces (distinct ones) -> stitch
//! ```
//!
//! It splits the exported graph, not the core program: a piece is a graph again,
//! which `identify_graph`, `lower_parsed` and `Eager` take as they take a whole,
//! so a piece's key is computed by the code that computes a whole's, and each
//! compiler can have it.
//!
//! The graph has no mutation: `parse` gives operations in place new tensors, and those
//! that have no such form have no rule. What it has of aliases are views, which are values
//! here. `split` refuses a graph that says otherwise, and one that changes its inputs.
//!
//! Invariant: pure, as the crate. The same graph and settings give the same
//! pieces, in the same order, and the order is that of the key: names and the
//! exporter's order leave no trace in a piece's key or in the stitching.

mod carried;
mod cut;
mod estimate;
mod flow;
mod groups;
mod item;
mod order;
mod part;
mod pattern;
mod settings;
pub mod stitch;
mod strategy;
mod symbols;
mod validate;

use kiln_proto::{
    Failure, FailureKind,
    graph::{Argument, Graph},
};

use crate::{decompose::outline, functional::mutates};
pub use estimate::{Coefficients, Estimates};
pub use item::{Edge, Piece, Split, SplitItem};
pub use settings::{Budget, Piecewise, Settings};
pub use strategy::{Choice, Reason, Strategy, strategy};
pub use validate::{Invalid, validate};

/// Why a graph cannot be split. It may compile as a whole all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// An operation writes to what it reads: others may hold an alias of that.
    #[error("node {node:?} ({op}) changes its inputs: compile the graph as a whole")]
    Mutation {
        /// Its name.
        node: String,
        /// What it does.
        op: String,
    },
    /// The program leaves something in an input: a piece would not know who reads it before.
    #[error("the program changes {input:?}: compile the graph as a whole")]
    Update {
        /// The input's name.
        input: String,
    },
    /// A key would not have all of it.
    #[error("node {node:?} has an argument that no key can name: compile the graph as a whole")]
    Inexact {
        /// Its name.
        node: String,
    },
    /// Sizes depend on what no input's shape says.
    #[error("no input's shape says what symbol {name:?} is")]
    Symbol {
        /// As exported.
        name: String,
    },
    /// A size that cannot be read.
    #[error("{0}")]
    Size(String),
    /// The graph itself is refused.
    #[error("{0}")]
    Graph(Failure),
    /// The splitter has an error: its pieces do not make the whole.
    #[error("the pieces are not the whole: {0}")]
    Invalid(#[from] Invalid),
}

impl SplitError {
    /// As a compile's failure.
    pub fn into_failure(self) -> Failure {
        let kind = match self {
            Self::Graph(failure) => return failure,
            Self::Mutation { .. }
            | Self::Update { .. }
            | Self::Inexact { .. }
            | Self::Symbol { .. } => FailureKind::UnsupportedOp,
            Self::Size(_) => FailureKind::InvalidInput,
            Self::Invalid(_) => FailureKind::Crashed,
        };
        Failure::new(kind, self.to_string())
    }
}

/// Splits `graph`, whatever [`Settings::piecewise`] says. There may be one piece only.
/// Operations without a rule are split like others: a compiler refuses their pieces.
pub fn split(graph: &Graph, settings: &Settings) -> Result<Split, SplitError> {
    refuse(graph)?;
    let program = outline(graph).map_err(SplitError::Graph)?;
    let split = item::split(graph, &program, settings)?;
    // Cheap beside any compile, and what is wrong here would be wrong numbers.
    validate(graph, &split.items)?;
    Ok(split)
}

/// Refuses what cannot be split safely. What no output needs is looked at too:
/// an operation in place is needed for what it does.
fn refuse(graph: &Graph) -> Result<(), SplitError> {
    if let Some(input) = graph.updates.first() {
        let input = graph.value(graph.inputs[*input].value).name.clone();
        return Err(SplitError::Update { input });
    }
    for node in &graph.nodes {
        if mutates(&node.op) {
            return Err(SplitError::Mutation { node: node.name.clone(), op: node.op.clone() });
        }
    }
    for index in crate::live::live_order(graph) {
        let node = &graph.nodes[index];
        if node.args.iter().any(|(_, argument)| matches!(argument, Argument::Other(_))) {
            return Err(SplitError::Inexact { node: node.name.clone() });
        }
    }
    Ok(())
}
