//! `kiln inspect --html`: an artifact on one page.
//!
//! The page is complete in itself: no script, nothing from elsewhere, light and dark as the
//! reader has it.
//!
//! Invariant: everything on it is the artifact's, the archive's that was named or the
//! measurement's, and a figure that none of them has is said to be missing. It is bounded,
//! whatever the artifact: what is left out is counted.

mod file;
mod markup;
mod memory;
mod nodes;
mod part;
mod program;
mod section;
mod sizes;
mod times;

use std::path::Path;

use kiln_proto::Component;

use super::{super::CliError, pieces::Piece};
pub(super) use file::{check, write};
use markup::{Html, Row, element, fixed, link, table, text};
pub(super) use part::Found;
use part::{Kind, Part};
use section::Section;
use times::Times;

/// Rows of one table, at most.
const MOST_ROWS: usize = 2_000;
/// Rows and boxes of a page, at most.
const MOST_OF_ALL: usize = 30_000;
/// Parts of a page, at most.
pub(super) const MOST_PARTS: usize = 200;

/// No script may run on the page, and nothing may be fetched for it.
const POLICY: &str = "<meta http-equiv=\"Content-Security-Policy\" \
    content=\"default-src &#39;none&#39;; style-src &#39;unsafe-inline&#39;\"/>";

/// What a page is made from.
pub(super) struct Page<'p> {
    /// As the command line called it.
    pub(super) name: &'p str,
    /// The artifact itself first.
    pub(super) found: Vec<Found>,
    /// Parts that there are, and that were not read.
    pub(super) left: usize,
    /// The component `graph` of its key, where that is known.
    pub(super) key: Option<&'p Component>,
    /// What it is stitched of.
    pub(super) pieces: Vec<Piece>,
    /// The archive that it was compiled from.
    pub(super) graph: Option<&'p Path>,
    /// What `kiln exec --json` measured.
    pub(super) times: Option<&'p Path>,
}

/// What may still be put on the page.
struct Room(usize);

impl Room {
    /// How many of `wanted` rows one table gets.
    fn take(&mut self, wanted: usize) -> usize {
        let got = wanted.min(MOST_ROWS).min(self.0);
        self.0 -= got;
        got
    }
}

impl Page<'_> {
    /// The page's text.
    pub(super) fn text(self) -> Result<String, CliError> {
        let parts = part::parts(self.found)?;
        let times = self.times.map(Times::read).transpose()?;
        let micros = match &times {
            Some(times) => times.of(&parts, self.left)?,
            None => vec![Vec::new(); parts.len()],
        };
        let nodes = program::nodes(&parts, self.graph, self.key)?;
        let sizes = sizes::of_parts(&parts, times.as_ref());
        let mut body = element("h1", &[], format!("{} - Kiln artifact", self.name));
        body.push(lead(&parts, times.as_ref()));
        let mut room = Room(MOST_OF_ALL);
        if parts.len() > 1 {
            body.push(contents(&parts, &self.pieces, &mut room));
        }
        let all = parts.iter().zip(&nodes).zip(&micros).zip(&sizes).enumerate();
        for (at, (((part, nodes), micros), sizes)) in all.take(MOST_PARTS) {
            let times = times.as_ref().filter(|_| !micros.is_empty());
            let section = Section { at, part, nodes, micros, times, sizes: sizes.as_ref() };
            body.push(section.html(&mut room));
        }
        body.push(left_out(parts.len().min(MOST_PARTS), parts.len() + self.left, "parts"));
        Ok(document(self.name, body))
    }
}

/// What is measured, above all.
fn lead(parts: &[Part], times: Option<&Times>) -> Html {
    let mut said = Html::default();
    if let Some(target) = parts.iter().find_map(|part| match part.kind {
        Kind::Planned(_) => part.view.target.clone(),
        _ => None,
    }) {
        said.push(element("p", &[], format!("Compiled for {target}.")));
    }
    said.push(match times {
        None => note(
            "Not measured: `kiln exec DIR --inputs FILE -o FILE --repeat 20 --json > times.json` \
             on a GPU times the kernels, and --times times.json puts them here.",
        ),
        Some(Times { device, repeat, graph_us, .. }) => element(
            "p",
            &[],
            format!(
                "Measured: one run is {graph_us:.1} us as a CUDA graph; medians of {repeat} runs, \
                 each kernel on its own. Device: {device}"
            ),
        ),
    });
    said
}

/// What there is, with links.
fn contents(parts: &[Part], pieces: &[Piece], room: &mut Room) -> Html {
    let shown = room.take(parts.len().min(MOST_PARTS));
    let rows = parts.iter().enumerate().take(shown).map(|(at, part)| {
        let key = part.piece.filter(|_| part.size.is_none()).and_then(|piece| pieces.get(piece));
        let [key, bytes, runs] = match key.map(Piece::row) {
            Some([_, key, bytes, runs]) => [key, bytes, runs],
            None => ["-".to_owned(), "-".to_owned(), "-".to_owned()],
        };
        let cells = vec![
            link(&format!("p{at}"), part.name()),
            text(part.view.summary()),
            text(key),
            text(bytes),
            text(runs),
        ];
        Row { id: format!("c{at}"), cells }
    });
    table(&["Part", "What it is", "Key", "Size", "Runs"], rows)
}

/// A line that is about the page.
fn note(said: impl Into<Html>) -> Html {
    element("p", &[("class", "note")], said)
}

/// Says how many of `all` are not shown; nothing if they are.
fn left_out(shown: usize, all: usize, what: &str) -> Html {
    match all.saturating_sub(shown) {
        0 => Html::default(),
        others => note(format!("{shown} of {all} {what} are shown, {others} are left out.")),
    }
}

fn document(name: &str, body: Html) -> String {
    let head = [
        fixed("<meta charset=\"utf-8\"/>"),
        fixed(POLICY),
        fixed("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>"),
        element("title", &[], format!("{name} - Kiln")),
        fixed("<style>\n"),
        fixed(include_str!("style.css")),
        fixed("</style>"),
    ];
    let head = element("head", &[], head.into_iter().collect::<Html>());
    let page = [head, element("body", &[], body)].into_iter().collect::<Html>();
    let page = element("html", &[("lang", "en")], page);
    format!("<!DOCTYPE html>\n{}\n", page.into_string())
}

#[cfg(test)]
mod tests;
