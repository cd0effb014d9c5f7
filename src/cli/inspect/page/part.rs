//! The parts of an artifact: itself, its pieces, and what there is for static sizes.
//!
//! Invariant: a part has a launch plan, or says what it has instead; a piece that is named and
//! not there is an error.

use kiln::exec::{
    layout::{CUBIN, INDUCTOR, PLAN, STITCHING},
    parse_plan,
};
use kiln_native::{
    SIGNATURE_FILE, Signature,
    eager::{Eager, GRAPH, PORTABLE},
    plan::Plan,
    split::stitch::Stitching,
};
use kiln_proto::FailureKind;

use super::super::{super::CliError, Files, View, pieces};

/// Files of one part, as they were found.
pub(crate) struct Found {
    /// What there is beside the whole: `piece 3`, `size 8`; empty: the artifact itself.
    pub(crate) title: String,
    /// The static size that it is for.
    pub(crate) size: Option<u64>,
    /// The piece that it is.
    pub(crate) piece: Option<usize>,
    pub(crate) files: Files,
}

impl Found {
    /// A part for whatever sizes it takes.
    pub(crate) fn of(title: String, piece: Option<usize>, files: Files) -> Self {
        Self { title, size: None, piece, files }
    }
}

/// One part, read.
pub(super) struct Part {
    pub(super) title: String,
    pub(super) size: Option<u64>,
    pub(super) piece: Option<usize>,
    pub(super) view: View,
    pub(super) kind: Kind,
}

impl Part {
    /// As people see it.
    pub(super) fn name(&self) -> &str {
        match (self.title.as_str(), &self.kind) {
            ("", Kind::Whole(_)) => "the whole",
            ("", _) => "the artifact",
            (title, _) => title,
        }
    }
}

/// What a part is.
pub(super) enum Kind {
    /// Kernels and how to launch them.
    Planned(Plan),
    /// For the interpreter.
    Eager(Box<Eager>),
    /// Stitched of pieces; its plan has no kernels.
    Whole(Box<(Stitching, Plan)>),
    /// Only PyTorch runs it: why there is nothing to draw.
    Other(&'static str),
}

impl Kind {
    /// What it takes and gives.
    pub(super) fn plan(&self) -> Option<&Plan> {
        match self {
            Self::Planned(plan) => Some(plan),
            Self::Eager(eager) => Some(eager.plan()),
            Self::Whole(whole) => Some(&whole.1),
            Self::Other(_) => None,
        }
    }
}

/// Reads what was found: the artifact itself first.
pub(super) fn parts(found: Vec<Found>) -> Result<Vec<Part>, CliError> {
    let read = |found: Found| {
        let title = found.title.clone();
        part(found).map_err(|error| match error {
            CliError::Failed { code, kind, message } if !title.is_empty() => {
                CliError::Failed { code, kind, message: format!("{title}: {message}") }
            }
            CliError::NotFound(why) if !title.is_empty() => {
                CliError::NotFound(format!("{title}: {why}"))
            }
            error => error,
        })
    };
    found.into_iter().map(read).collect()
}

fn part(found: Found) -> Result<Part, CliError> {
    let Found { title, size, piece, files } = found;
    let corrupt =
        |name: &str, why: String| CliError::failed(FailureKind::Corrupt, format!("{name}: {why}"));
    // A piece of another compiler is one among others; an artifact that is nothing else has
    // no page.
    let other = match title.is_empty() {
        true => None,
        false => other(&files),
    };
    let mut view = View::new(&files)?;
    let kind = if let Some(why) = other {
        Kind::Other(why)
    } else if let Some(bytes) = files.get(STITCHING) {
        let stitching = Stitching::read(bytes).map_err(|e| corrupt(STITCHING, e.to_string()))?;
        let plan = stitching.as_plan();
        let signature = files.get(SIGNATURE_FILE).and_then(|bytes| Signature::read(bytes).ok());
        view.describe(&plan, signature.as_ref());
        view.pieces = pieces::of(&files, None)?;
        Kind::Whole(Box::new((stitching, plan)))
    } else if files.contains_key(GRAPH) {
        let read = |name: &str| files.get(name).cloned().ok_or("it is missing");
        let eager = Eager::load(read).map_err(|e| CliError::failed(e.kind, e.message))?;
        Kind::Eager(Box::new(eager))
    } else {
        let bytes = files.get(PLAN).filter(|_| files.contains_key(CUBIN));
        let bytes = bytes.ok_or_else(|| no_page(&files))?;
        Kind::Planned(parse_plan(bytes).map_err(|why| corrupt(PLAN, why))?)
    };
    Ok(Part { title, size, piece, view, kind })
}

/// What makes an artifact one that only PyTorch runs.
fn other(files: &Files) -> Option<&'static str> {
    if files.contains_key(INDUCTOR) {
        return Some("It was compiled by Inductor, which leaves no launch plan.");
    }
    let portable = files.contains_key(PORTABLE);
    portable.then_some("It is a graph of PyTorch's operations, which Kiln does not launch itself.")
}

/// Says what an artifact has that has neither a plan nor a program.
fn no_page(files: &Files) -> CliError {
    let is_module = |path: &&String| path.ends_with(".cubin") || path.ends_with(".ptx");
    let why = match other(files) {
        Some(why) => why,
        None if files.keys().any(|path| is_module(&path)) => {
            "It was compiled from CUDA C++: kernels without a launch plan."
        }
        None => "It is no artifact of a graph.",
    };
    let mut names: Vec<&str> = files.keys().map(String::as_str).collect();
    let others = names.len().saturating_sub(8);
    names.truncate(8);
    let others = if others > 0 { format!(" and {others} more") } else { String::new() };
    CliError::NotFound(format!(
        "there is nothing to draw. {why} It has {}{others}; without --html `kiln inspect` shows \
         what is in these",
        names.join(", ")
    ))
}
