//! Rows with reductions along them: some threads of a warp, a warp or a block for
//! each row.
//!
//! The row is walked once for each layer of reductions that wait for each other,
//! and once more for what is stored after the last. Where a thread's share fits
//! into registers, what several walks need is loaded or computed once; where it is
//! one chunk, nothing is walked, and all that can be is loaded first.
//!
//! Invariant: all threads of a row combine the same parts in the same order.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Emitted, Kernel,
    beside::{self, Beside},
    body::{Body, CHUNK, LANE},
    map::Split,
    params::Params,
    table,
};
use crate::{
    core::Fun,
    loops::{COLUMN, Def, Domain, Expr, Id, Loops, ROW},
    schedule::Fused,
    size::Size,
};

/// Threads of a block whose warps have a row each.
const WARPS_BLOCK: i64 = 128;
/// Numbers that a thread keeps from walk to walk.
const MOST_KEPT: i64 = 64;
/// Loads that a thread does before it computes: they stay in registers.
const MOST_EARLY: usize = 12;

/// How rows are laid over threads.
struct Shape {
    lanes: i64,
    threads: i64,
    /// Chunks of each thread, where they are few and known.
    chunks: Option<i64>,
    /// Whether each thread has just that many.
    even: bool,
    /// Whether that is one, of a warp's threads or fewer.
    straight: bool,
}

impl Shape {
    fn of(rows: &Size, columns: &Size) -> Self {
        let lanes = columns.power_of_two(8).max(1);
        let Some(known) = columns.known() else {
            return Self { lanes, threads: 256, chunks: None, even: false, straight: false };
        };
        let many = rows.known().is_none_or(|rows| rows >= 8192);
        let chunks = (known / lanes).max(1);
        if (1..=32).contains(&chunks) && chunks & (chunks - 1) == 0 && known == chunks * lanes {
            return Self { lanes, threads: chunks, chunks: Some(1), even: true, straight: true };
        }
        let threads = match chunks {
            ..=32 => 32,
            33..=128 if many => 32,
            _ => ((chunks + 1) / 2).next_power_of_two_i64().clamp(64, 512),
        };
        let each = (chunks + threads - 1) / threads;
        Self {
            lanes,
            threads,
            chunks: (each * lanes <= MOST_KEPT).then_some(each),
            even: each * threads == chunks,
            straight: false,
        }
    }
}

trait PowerOfTwo {
    fn next_power_of_two_i64(self) -> i64;
}

impl PowerOfTwo for i64 {
    fn next_power_of_two_i64(self) -> i64 {
        (self.max(1) as u64).next_power_of_two() as i64
    }
}

/// The launch of `parts`, rows of one length side by side.
pub(super) fn emit(loops: &mut Loops, parts: &[Fused], stored: &[usize], name: &str) -> Emitted {
    let rows = parts.iter().fold(Size::default(), |all, part| &all + &part.extents[0]);
    let columns = parts.first().map_or_else(Size::default, |part| part.extents[1].clone());
    let shape = Shape::of(&rows, &columns);
    let (mut params, mut beside) = (Params::default(), Beside::default());
    for fused in parts {
        let own: Vec<usize> =
            stored.iter().copied().filter(|temp| fused.places.contains_key(temp)).collect();
        let (text, blocks) = part(loops, fused, &own, &shape, &mut params);
        beside.add(&mut params, text, &blocks);
    }
    let (text, grid) = beside.done();
    let count = beside::shown(parts.len());
    let kept = if shape.chunks.is_some() { ", rows in registers" } else { "" };
    let Shape { threads, lanes, .. } = shape;
    let block = if threads <= 32 { WARPS_BLOCK } else { threads };
    Emitted {
        before: String::new(),
        kernel: Kernel::plain(name, "rows", params, text, block),
        grid,
        variant: format!("{threads} threads a row, {lanes} elements at once{kept}{count}"),
    }
}

/// The statements of one of them, and its blocks.
fn part(
    loops: &mut Loops,
    fused: &Fused,
    stored: &[usize],
    shape: &Shape,
    all: &mut Params,
) -> (String, Size) {
    let (rows, columns) = (fused.extents[0].clone(), fused.extents[1].clone());
    let split = Split::of(loops, fused, COLUMN, shape.lanes);
    let layers = Layers::of(loops, &split);
    let (first, first_write) = (all.reads.len(), all.writes.len());
    let mut params = Params { first, first_write, ..Params::default() };
    let vars = BTreeMap::from([(ROW, "row".to_owned())]);
    let mut writer = Writer {
        loops,
        shape,
        body: Body::new(&loops.exprs, &mut params, shape.lanes, vars),
        walk: String::new(),
        text: String::new(),
    };
    match shape.straight {
        true => writer.load(&split, &layers, stored),
        false => writer.keep(&split, &layers, stored),
    }
    let columns_text =
        writer.body.params.size(&columns.div_floor(&Size::from(shape.lanes)), &|_| String::new());
    writer.walk = columns_text;
    for layer in 0..layers.count {
        writer.layer(&split, &layers, layer, stored);
    }
    writer.last(&split, &layers, stored);
    let (mut head, text) = (String::new(), std::mem::take(&mut writer.text));
    let limit = params.size(&rows, &|_| String::new());
    let blocks = match shape.threads {
        threads @ ..=32 => {
            let per_block = WARPS_BLOCK / threads;
            head += &format!("const int lane = threadIdx.x % {threads};\n");
            let own = format!("(kiln_index)block * {per_block} + threadIdx.x / {threads}");
            head += &match threads {
                32 => format!("const kiln_index row = {own};\nif (row >= {limit}) return;\n"),
                // All of a warp's threads stay: the last row is then computed several times.
                _ => format!("const kiln_index row = min({own}, (kiln_index)({limit}) - 1);\n"),
            };
            rows.div_ceil(&Size::from(per_block))
        }
        _ => {
            head += "const int lane = threadIdx.x;\nconst kiln_index row = block;\n";
            rows
        }
    };
    if shape.straight {
        head += "const kiln_index c = lane;\n";
    } else if let Some(chunks) = shape.chunks {
        head += &format!("constexpr int CHUNKS = {chunks};\n");
    }
    all.reads.append(&mut params.reads);
    all.writes.append(&mut params.writes);
    all.symbols.append(&mut params.symbols);
    (head + &text, blocks)
}

struct Writer<'a> {
    loops: &'a Loops,
    shape: &'a Shape,
    body: Body<'a>,
    /// Chunks of a row, as text.
    walk: String,
    text: String,
}

impl Writer<'_> {
    /// Decides what stays in registers from walk to walk.
    fn keep(&mut self, split: &Split, layers: &Layers, stored: &[usize]) {
        let Some(chunks) = self.shape.chunks else { return };
        let exprs = &self.loops.exprs;
        let mut walks: Vec<BTreeSet<Id>> = (0..=layers.count)
            .map(|layer| exprs.unguarded(layers.roots(split, layer, stored)).into_iter().collect())
            .collect();
        walks.retain(|walk| !walk.is_empty());
        let several = |id: &Id| walks.iter().filter(|walk| walk.contains(id)).count() > 1;
        let all: BTreeSet<Id> = walks.iter().flatten().copied().collect();
        let mut room = MOST_KEPT / (chunks * self.shape.lanes);
        let candidates: Vec<Id> =
            all.into_iter().rev().filter(|id| several(id) && self.body.is_inside(*id)).collect();
        for id in candidates {
            let worth = match exprs.get(id) {
                Expr::Load { index, .. } => index.has_var(LANE),
                Expr::Apply(fun, Domain::Float | Domain::Double, _) => {
                    matches!(
                        fun,
                        Fun::Exp
                            | Fun::Erf
                            | Fun::Tanh
                            | Fun::Sigmoid
                            | Fun::Log
                            | Fun::Pow
                            | Fun::Sin
                            | Fun::Cos
                    )
                }
                _ => false,
            };
            if worth && room > 0 {
                room -= 1;
                let declaration = self.body.keep(id);
                self.text += &declaration;
                self.text.push('\n');
            }
        }
    }

    /// Loads what no reduction decides, before the first one waits.
    fn load(&mut self, split: &Split, layers: &Layers, stored: &[usize]) {
        let roots = (0..=layers.count).flat_map(|layer| layers.roots(split, layer, stored));
        self.body.load_early(roots.collect(), MOST_EARLY);
    }

    /// Walks a row: what is in the body's loop now becomes the loop.
    fn close_walk(&mut self) {
        self.text += &self.body.take_outer();
        if self.shape.straight {
            self.text += &self.body.take_straight();
            return;
        }
        let inner = self.body.take_inner();
        if inner.is_empty() {
            return;
        }
        let Shape { threads, chunks, even, .. } = self.shape;
        let walk = &self.walk;
        self.text += &match chunks {
            Some(_) => {
                let test = match even {
                    true => String::new(),
                    false => format!("if (c < {walk}) "),
                };
                format!(
                    "#pragma unroll\nfor (int ch = 0; ch < CHUNKS; ++ch) {{\n\
                     const kiln_index c = ch * {threads} + lane;\n{test}{{\n{inner}}}\n}}\n"
                )
            }
            None => {
                format!("for (kiln_index c = lane; c < {walk}; c += {threads}) {{\n{inner}}}\n")
            }
        };
    }

    fn layer(&mut self, split: &Split, layers: &Layers, layer: usize, stored: &[usize]) {
        let (lanes, threads) = (self.shape.lanes, self.shape.threads);
        let reductions: Vec<(usize, Id)> = split
            .reductions
            .iter()
            .filter(|(temp, _)| layers.of_temp[temp] == layer)
            .copied()
            .collect();
        let mut before = String::new();
        for (temp, of) in &reductions {
            let n = split.place_of(*temp);
            let Def::Reduce { how, domain, .. } = self.loops.temps[*temp].def else { continue };
            let register = table::register(domain);
            let start = table::start(how, domain);
            before += &match how.gives_positions() {
                true => format!("kiln_best<{register}> a{n} = {{{start}, KILN_INT_MAX}};\n"),
                false => format!(
                    "{register} a{n}[{lanes}];\n#pragma unroll\nfor (int v = 0; v < {lanes}; ++v) a{n}[v] = {start};\n"
                ),
            };
            let value = self.body.value(*of);
            let combine = table::combiner(how);
            let each = match how.gives_positions() {
                true => {
                    format!("a{n} = {combine}{{}}(a{n}, {{{value}, (kiln_int)(c * {lanes} + v)}});")
                }
                false => format!("a{n}[v] = {combine}{{}}(a{n}[v], {value});"),
            };
            self.body.for_lanes(each);
        }
        for temp in stored.iter().filter(|temp| layers.stored_at(split, **temp) == Some(layer)) {
            let (place, value) = &split.places[temp];
            self.body.store(*temp, place, *value, super::element_of(self.loops, *temp));
        }
        self.text += &before;
        self.close_walk();
        for (temp, _) in &reductions {
            let n = split.place_of(*temp);
            let Def::Reduce { how, domain, .. } = self.loops.temps[*temp].def else { continue };
            let (register, combine) = (table::register(domain), table::combiner(how));
            self.text += &match how.gives_positions() {
                true => {
                    format!("const kiln_int t{n} = kiln_across<{threads}, {combine}>(a{n}).at;\n")
                }
                false => format!(
                    "const {register} t{n} = kiln_across<{threads}, {combine}>(kiln_together<{combine}>(a{n}));\n"
                ),
            };
            self.body.define(*temp, &format!("t{n}"), false);
        }
    }

    /// What waits for the last layer, and what is one value for a row.
    fn last(&mut self, split: &Split, layers: &Layers, stored: &[usize]) {
        for temp in stored.iter().filter(|t| layers.stored_at(split, **t) == Some(layers.count)) {
            let (place, value) = &split.places[temp];
            self.body.store(*temp, place, *value, super::element_of(self.loops, *temp));
        }
        self.close_walk();
        let of_rows = stored.iter().filter(|temp| layers.stored_at(split, **temp).is_none());
        for temp in of_rows {
            let (place, value) = &split.places[temp];
            self.body.store(*temp, place, *value, super::element_of(self.loops, *temp));
        }
        let (outer, inner) = (self.body.take_outer(), self.body.take_inner());
        self.text += &outer;
        if !inner.is_empty() {
            self.text += &format!("if (lane == 0) {{\n{inner}}}\n");
        }
    }
}

/// Which values wait for which reductions.
struct Layers {
    /// How many walks of reductions there are.
    count: usize,
    /// The walk of each reduction.
    of_temp: BTreeMap<usize, usize>,
    /// Of each stored value: how many walks it waits for.
    of_value: BTreeMap<usize, usize>,
    /// Values with an element for each column.
    along: BTreeSet<usize>,
}

impl Layers {
    fn of(loops: &Loops, split: &Split) -> Self {
        let mut layers = Self {
            count: 0,
            of_temp: BTreeMap::new(),
            of_value: BTreeMap::new(),
            along: BTreeSet::new(),
        };
        for (temp, of) in &split.reductions {
            let layer = layers.waits(loops, *of);
            layers.of_temp.insert(*temp, layer);
            layers.count = layers.count.max(layer + 1);
        }
        for (temp, (place, value)) in &split.places {
            layers.of_value.insert(*temp, layers.waits(loops, *value));
            if place.has_var(LANE) || place.has_var(CHUNK) {
                layers.along.insert(*temp);
            }
        }
        layers
    }

    /// How many walks `id` needs before it.
    fn waits(&self, loops: &Loops, id: Id) -> usize {
        let parts = loops.exprs.reachable([id]);
        let layer = |part: &Id| match loops.exprs.get(*part) {
            Expr::Result(temp, _) => self.of_temp.get(temp).map_or(0, |layer| layer + 1),
            _ => 0,
        };
        parts.iter().map(layer).max().unwrap_or(0)
    }

    /// The walk in which `temp` is stored: the first that can; `None`: it is one value of a row.
    fn stored_at(&self, _split: &Split, temp: usize) -> Option<usize> {
        self.along.contains(&temp).then(|| self.of_value[&temp])
    }

    /// What a walk computes.
    fn roots(&self, split: &Split, layer: usize, stored: &[usize]) -> Vec<Id> {
        let reductions = split.reductions.iter().filter(|(temp, _)| self.of_temp[temp] == layer);
        let values = stored.iter().filter(|temp| self.stored_at(split, **temp) == Some(layer));
        reductions.map(|(_, of)| *of).chain(values.map(|temp| split.places[temp].1)).collect()
    }
}
