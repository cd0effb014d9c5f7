//! One part on the page: what it takes, its graph, its kernels, its memory.
//!
//! Invariant: a link leads to a row that is there.

use std::collections::{BTreeSet, HashSet};

use kiln_native::plan::{Memory, Plan};

use super::{
    super::{super::output::size, view},
    MOST_PARTS, Room, left_out,
    markup::{Html, Row, element, link, list, table, text},
    memory::{Life, picture},
    nodes::{Node, Read},
    note,
    part::{Kind, Part},
    program::Nodes,
    sizes::{self, From, Held, Laid, Sizes},
    times::Times,
};

/// Links of one cell, at most.
const MOST_LINKS: usize = 24;

/// A part, and what is known of it.
pub(super) struct Section<'s> {
    /// Among the parts: what its links begin with.
    pub(super) at: usize,
    pub(super) part: &'s Part,
    pub(super) nodes: &'s Nodes,
    /// Of each kernel.
    pub(super) micros: &'s [Option<f64>],
    pub(super) times: Option<&'s Times>,
    pub(super) sizes: Option<&'s Sizes>,
}

/// What is on the page, so that links to it may be.
#[derive(Default)]
struct Shown {
    inputs: usize,
    outputs: usize,
    nodes: HashSet<usize>,
    kernels: usize,
    buffers: usize,
}

impl Section<'_> {
    pub(super) fn html(&self, room: &mut Room) -> Html {
        let Self { at, part, .. } = self;
        let id = format!("p{at}");
        let mut html = element("h2", &[("id", &*id)], part.name());
        html.push(element("p", &[], part.view.summary()));
        if let Kind::Other(why) = part.kind {
            html.push(note(why));
        }
        let Some(plan) = part.kind.plan() else {
            html.push(self.files(room));
            return html;
        };
        if let Some(sizes) = self.sizes.filter(|sizes| sizes.from != From::Plan) {
            let from = match sizes.from {
                From::Measured => "as measured",
                _ => "an example, as the call decides",
            };
            html.push(note(format!("Bytes below are {from}: for {}.", sizes.shown())));
        } else if self.sizes.is_none() {
            html.push(note("The plan's sizes could not be worked out: bytes are left out."));
        }
        // Which rows there will be is decided first: links go both ways.
        let tensors = room.take(part.view.tensors.len());
        let inputs = plan.inputs.len();
        let nodes = room.take(self.nodes.list.len());
        let shown = Shown {
            inputs: tensors.min(inputs),
            outputs: tensors.saturating_sub(inputs),
            nodes: self.nodes.list[..nodes].iter().map(|node| node.number).collect(),
            kernels: room.take(part.view.kernels.len()),
            buffers: room.take(part.view.buffers.len()),
        };
        html.push(self.interface(tensors, inputs));
        if let Kind::Whole(_) = part.kind {
            html.push(self.whole(room));
            return html;
        }
        html.push(self.graph(nodes, &shown));
        if let Kind::Planned(plan) = &part.kind {
            html.push(self.kernels(plan, &shown));
            html.push(self.memory(plan, &shown, room));
        }
        html
    }

    fn heading(&self, said: &str) -> Html {
        element("h3", &[], said)
    }

    fn files(&self, room: &mut Room) -> Html {
        let files = &self.part.view.files;
        let shown = room.take(files.len());
        let rows = files.iter().take(shown).enumerate().map(|(i, view::File { path, bytes })| {
            Row { id: format!("p{}-f{i}", self.at), cells: vec![text(path), text(size(*bytes))] }
        });
        let mut html = table(&["File", "Size"], rows);
        html.push(left_out(shown, files.len(), "files"));
        html
    }

    /// Inputs, outputs and symbols.
    fn interface(&self, shown: usize, inputs: usize) -> Html {
        let (at, view) = (self.at, &self.part.view);
        let mut html = self.heading("Inputs and outputs");
        let rows = view.tensors.iter().take(shown).enumerate().map(|(i, tensor)| {
            let id = match i.checked_sub(inputs) {
                None => format!("p{at}-i{i}"),
                Some(output) => format!("p{at}-o{output}"),
            };
            Row { id, cells: tensor.row().into_iter().map(text).collect() }
        });
        html.push(table(&["Tensor", "Name", "Kind", "Type", "Shape", "Strides"], rows));
        html.push(left_out(shown, view.tensors.len(), "inputs and outputs"));
        if !view.symbols.is_empty() {
            let rows = view.symbols.iter().take(MOST_LINKS).enumerate().map(|(i, symbol)| Row {
                id: format!("p{at}-s{i}"),
                cells: symbol.row().into_iter().map(text).collect(),
            });
            html.push(table(&["Symbol", "From", "To", "Is"], rows));
            html.push(left_out(view.symbols.len().min(MOST_LINKS), view.symbols.len(), "symbols"));
        }
        html
    }

    fn graph(&self, rows: usize, shown: &Shown) -> Html {
        let (at, all) = (self.at, &self.nodes.list);
        let mut html = self.heading("Graph");
        if let Some(missing) = self.nodes.missing {
            html.push(note(missing));
        }
        let row = |node: &Node| {
            let reads = node.reads.iter().map(|read| match read {
                Read::Input(input, name) if *input < shown.inputs => {
                    link(&format!("p{at}-i{input}"), name)
                }
                Read::Node(number, name) if shown.nodes.contains(number) => {
                    link(&format!("p{at}-n{number}"), name)
                }
                Read::Input(_, name) | Read::Node(_, name) => text(name),
            });
            let groups = node.kernels.iter().map(|kernel| match *kernel < shown.kernels {
                true => link(&format!("p{at}-k{kernel}"), &kernel.to_string()),
                false => text(kernel.to_string()),
            });
            let cells = vec![
                text(node.number.to_string()),
                text(&node.name),
                text(&node.op),
                list(node.gives.iter().map(text).collect(), MOST_LINKS),
                list(reads.collect(), MOST_LINKS),
                list(groups.collect(), MOST_LINKS),
            ];
            Row { id: format!("p{at}-n{}", node.number), cells }
        };
        let headings = ["Node", "Name", "Operation", "Gives", "Reads", "Fusion group"];
        html.push(table(&headings, all.iter().take(rows).map(row)));
        html.push(left_out(rows, all.len(), "nodes"));
        html
    }

    /// Each kernel is a fusion group.
    fn kernels(&self, plan: &Plan, shown: &Shown) -> Html {
        let (at, view) = (self.at, &self.part.view);
        let mut html = self.heading("Fusion groups and their kernels");
        let laid = self.sizes.map(|sizes| sizes::buffers(plan, sizes));
        let laid = self.sizes.zip(laid.as_deref());
        let peak = self.times.and_then(|times| times.peak_gb_s).filter(|peak| *peak > 0.0);
        let mut headings = vec![
            "Group",
            "Kernel",
            "Kind",
            "Computes",
            "Memory",
            "Grid",
            "Block",
            "Registers",
            "Shared",
            "Bytes",
        ];
        if self.times.is_some() {
            headings.extend(["Time", "Share of bandwidth"]);
        }
        let row = |(index, kernel): (usize, &view::Kernel)| {
            let held = match index < plan.kernels.len() {
                true => sizes::held(plan, index, laid),
                false => BTreeSet::new(),
            };
            let bytes = laid.and_then(|(sizes, laid)| sizes::bytes(sizes, laid, &held));
            let computes = kernel.computes.iter().map(|said| {
                let number = said.split_once(' ').and_then(|(number, _)| number.parse().ok());
                match number.filter(|number| shown.nodes.contains(number)) {
                    Some(number) => link(&format!("p{at}-n{number}"), said),
                    None => text(said),
                }
            });
            let held = held.iter().map(|held| self.link_to(*held, shown));
            let [name, kind, grid, block, registers, shared, ..] = kernel.row();
            let dash = || text("-");
            let mut cells = vec![
                text(index.to_string()),
                text(name),
                text(kind),
                list(computes.collect(), MOST_LINKS),
                list(held.collect(), MOST_LINKS),
                text(grid),
                text(block),
                text(registers),
                text(shared),
                bytes.map_or_else(dash, |bytes| text(size(bytes))),
            ];
            if self.times.is_some() {
                let micros = self.micros.get(index).copied().flatten();
                cells.push(micros.map_or_else(
                    || text("not measured"),
                    |micros| text(format!("{micros:.2} us")),
                ));
                let share = micros.filter(|micros| *micros > 0.0).zip(bytes).zip(peak);
                // Bytes in 10^-6 seconds are 10^-3 of 10^9 bytes a second.
                cells.push(share.map_or_else(dash, |((micros, bytes), peak)| {
                    text(format!("{:.0}%", bytes as f64 / micros / 1e3 / peak * 100.0))
                }));
            }
            Row { id: format!("p{at}-k{index}"), cells }
        };
        html.push(table(&headings, view.kernels.iter().enumerate().take(shown.kernels).map(row)));
        html.push(left_out(shown.kernels, view.kernels.len(), "kernels"));
        html.push(note(
            "Bytes are those of all memory that a kernel is given, each once: one that reads a \
             part of it, or from the cache, moves less.",
        ));
        if self.times.is_some() {
            html.push(note(match peak {
                Some(peak) => format!("Shares are of the device's peak, {peak:.0} GB/s."),
                None => "Shares are not known: the measurement does not say what the device's \
                         memory moves."
                    .to_owned(),
            }));
        }
        html
    }

    /// Memory, by the name that the program has for it.
    fn link_to(&self, held: Held, shown: &Shown) -> Html {
        let at = self.at;
        let name = |position: usize| {
            let tensor = self.part.view.tensors.get(position).map(|tensor| tensor.row());
            tensor.map_or_else(String::new, |[position, name, ..]| match name.as_str() {
                "-" => position,
                _ => name,
            })
        };
        let inputs = self.part.kind.plan().map_or(0, |plan| plan.inputs.len());
        let (is_there, id, said) = match held {
            Held::Input(i) => (i < shown.inputs, format!("p{at}-i{i}"), name(i)),
            Held::Output(i) => (i < shown.outputs, format!("p{at}-o{i}"), name(inputs + i)),
            Held::Buffer(i) => (i < shown.buffers, format!("p{at}-b{i}"), format!("b{i}")),
        };
        if is_there { link(&id, &said) } else { text(said) }
    }

    fn memory(&self, plan: &Plan, shown: &Shown, room: &mut Room) -> Html {
        let (at, view) = (self.at, &self.part.view);
        let mut html = self.heading("Memory plan");
        if let Some(sizes) = self.sizes {
            let laid = sizes::buffers(plan, sizes);
            let lives = laid.iter().zip(&plan.buffers).zip(&view.buffers).enumerate();
            let lives = lives.filter_map(|(i, ((laid, buffer), shown))| {
                let Laid { offset, bytes } = (*laid)?;
                let [_, dtype, shape, ..] = shown.row(i);
                let (label, from, to) = (format!("b{i} {dtype} {shape}"), buffer.from, buffer.to);
                Some(Life { label, index: i, offset, bytes, from, to })
            });
            let lives: Vec<Life> = lives.collect();
            let most = room.take(lives.len());
            let total = sizes.call.workspace_bytes;
            let unknown = laid.iter().filter(|laid| laid.is_none()).count();
            html.push(picture(lives, plan.kernels.len(), total, "kernel", most));
            if unknown > 0 {
                html.push(note(format!(
                    "{unknown} of {} buffers are not drawn: their sizes could not be worked out.",
                    laid.len()
                )));
            }
        }
        let kernel = |index: usize| {
            let name = plan.kernels.get(index).map_or("-", |kernel| &kernel.name);
            match index < shown.kernels {
                true => link(&format!("p{at}-k{index}"), name),
                false => text(name),
            }
        };
        let rows = view.buffers.iter().zip(&plan.buffers).enumerate().take(shown.buffers);
        let rows = rows.map(|(i, (buffer, planned))| {
            let [_, dtype, shape, offset, ..] = buffer.row(i);
            let mut cells: Vec<Html> =
                [format!("b{i}"), dtype, shape, offset].into_iter().map(text).collect();
            cells.extend([kernel(planned.from), kernel(planned.to)]);
            Row { id: format!("p{at}-b{i}"), cells }
        });
        let headings = ["Buffer", "Type", "Shape", "Offset", "Written by", "Last read by"];
        html.push(table(&headings, rows));
        html.push(left_out(shown.buffers, view.buffers.len(), "buffers"));
        html
    }

    /// What calls of pieces leave each other.
    fn whole(&self, room: &mut Room) -> Html {
        let mut html = self.heading("Memory plan: what pieces leave each other");
        let Kind::Whole(whole) = &self.part.kind else { return html };
        let stitching = &whole.0;
        let Some(sizes) = self.sizes else { return html };
        let Some(laid) = sizes::laid_out(stitching, sizes) else {
            html.push(note("It cannot be laid out for these sizes."));
            return html;
        };
        let values = stitching.values.iter().zip(&laid.values).enumerate();
        let lives: Vec<Life> = values
            .filter(|(_, (value, _))| matches!(value.memory, Memory::Workspace(_)))
            .map(|(i, (value, place))| Life {
                label: format!("v{i} {} {:?}", value.dtype, place.shape),
                index: i,
                offset: place.offset,
                bytes: place.bytes,
                from: value.from,
                to: value.to,
            })
            .collect();
        let most = room.take(lives.len());
        html.push(picture(lives, stitching.calls.len(), laid.workspace_bytes, "call", most));
        let shown = room.take(stitching.calls.len());
        let rows = stitching.calls.iter().take(shown).enumerate().map(|(i, call)| {
            // Pieces come behind their whole.
            let (part, piece) = (self.at + 1 + call.piece, format!("piece {}", call.piece));
            let piece = match part < MOST_PARTS {
                true => link(&format!("p{part}"), &piece),
                false => text(piece),
            };
            let leaves = call.results.iter().map(|value| text(format!("v{value}"))).collect();
            let cells = vec![text(i.to_string()), piece, list(leaves, MOST_LINKS)];
            Row { id: format!("p{}-call{i}", self.at), cells }
        });
        html.push(table(&["Call", "Piece", "Leaves"], rows));
        html.push(left_out(shown, stitching.calls.len(), "calls"));
        html
    }
}
