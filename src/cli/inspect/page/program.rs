//! The nodes of each part, from the archive that was compiled where there is one.
//!
//! Invariant: a piece has the nodes of the part of the program whose digests the stitching has
//! for it, and of no other.

use std::{fs::File, io::BufReader, path::Path};

use anyhow::Context;
use kiln_native::{
    split::{self, Split, SplitError, stitch::Stitching},
    static_size,
};
use kiln_proto::{Component, Failure, FailureKind, KeyField, graph::Graph};

use super::{
    super::super::CliError,
    nodes::{self, Node},
    part::{Kind, Part},
};

/// The nodes of a part.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    pub(super) list: Vec<Node>,
    /// What is missing of them, and what to do.
    pub(super) missing: Option<&'static str>,
}

const NO_NAMES: &str = "An artifact has no names or shapes of nodes, as it serves every program \
    of its key: --graph MODEL.pt2, the archive that was compiled, puts them here.";
const OTHER_SIZE: &str = "Several sizes of the program are open, and the artifact does not say \
    which of them it is fixed to: nodes are without names here.";

/// The nodes of each part; `archive` is what was compiled,
/// and `key` the component `graph` of the artifact's key.
pub(super) fn nodes(
    parts: &[Part],
    archive: Option<&Path>,
    key: Option<&Component>,
) -> Result<Vec<Nodes>, CliError> {
    let Some(path) = archive else {
        return Ok(parts.iter().map(|part| unnamed(part, NO_NAMES)).collect());
    };
    let graph = read(path)?;
    let refuse = |why: String| {
        let why = format!("{}: it is not what was compiled: {why}", path.display());
        CliError::failed(FailureKind::Incompatible, why)
    };
    if key.is_some_and(|key| !is_of_key(&graph, key)) {
        return Err(refuse("the artifact's key is of another graph".to_owned()));
    }
    // Of the last whole: the program, how it splits, and what its pieces are.
    let mut whole: Option<(Split, &Stitching)> = None;
    let mut all = Vec::with_capacity(parts.len());
    for part in parts {
        let fixed = part.size.map(|size| static_size::fixed(&graph, "", size));
        let own = match (&fixed, part.piece, &part.kind) {
            (_, Some(piece), _) => match &whole {
                Some((split, stitching)) => {
                    Some(piece_of(split, stitching, piece).map_err(refuse)?)
                }
                None => None,
            },
            (Some(fixed), None, _) => fixed.as_ref().ok(),
            (None, None, _) => Some(&graph),
        };
        let nodes = match (&part.kind, own) {
            (Kind::Whole(_), _) => Nodes::default(),
            (Kind::Other(_), _) => Nodes::default(),
            (_, None) => unnamed(part, OTHER_SIZE),
            (kind, Some(own)) => {
                let plan = kind.plan().ok_or_else(|| refuse("it has no plan".to_owned()))?;
                let list = nodes::of_graph(own, plan);
                let about = |why| match part.title.as_str() {
                    "" => refuse(why),
                    title => refuse(format!("{title}: {why}")),
                };
                Nodes { list: list.map_err(about)?, missing: None }
            }
        };
        if let Kind::Whole(of) = &part.kind {
            whole = match own {
                Some(own) => {
                    let split = split::split(own, &split::Settings::default());
                    Some((split.map_err(SplitError::into_failure).map_err(failed)?, &of.0))
                }
                None => None,
            };
        }
        all.push(nodes);
    }
    Ok(all)
}

/// Whether the key's component is that of the graph. One of a program that was not understood
/// when it was compiled is of its text, and says nothing here.
fn is_of_key(graph: &Graph, key: &Component) -> bool {
    let is_form = |field: &&KeyField| field.name == "form";
    if key.fields.iter().find(is_form).is_some_and(|form| form.value != "canonical") {
        return true;
    }
    let (own, _) = kiln_native::components(graph);
    let others = key.fields.iter().filter(|field| !is_form(field));
    own.fields.iter().eq(others)
}

/// What a part says itself.
fn unnamed(part: &Part, missing: &'static str) -> Nodes {
    match &part.kind {
        Kind::Planned(plan) => Nodes { list: nodes::of_plan(plan), missing: Some(missing) },
        Kind::Eager(eager) => Nodes { list: nodes::of_program(eager), missing: None },
        Kind::Whole(_) | Kind::Other(_) => Nodes::default(),
    }
}

fn piece_of<'s>(
    split: &'s Split,
    stitching: &Stitching,
    piece: usize,
) -> Result<&'s Graph, String> {
    let wanted = stitching.pieces.get(piece).map(|wanted| [wanted.graph, wanted.inputs]);
    let found = split.pieces.iter().find(|piece| Some(piece.digests()) == wanted);
    found.map(|piece| split.graph(piece)).ok_or_else(|| {
        format!("it has no part that is piece {piece}; or another version of Kiln split it")
    })
}

/// The graph of an archive, without its weights, which may be larger than memory.
fn read(path: &Path) -> Result<Graph, CliError> {
    let file = File::open(path).with_context(|| format!("read {}", path.display()))?;
    let archive = kiln_native::slim(BufReader::new(file)).map_err(failed)?;
    kiln_native::read_any_graph(&archive).map_err(failed)
}

fn failed(failure: Failure) -> CliError {
    CliError::failed(failure.kind, failure.message)
}
