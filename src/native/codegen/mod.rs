//! Groups to CUDA C++ and a launch plan.
//!
//! Invariant: the text is a function of the groups alone; kernels and values
//! are numbered, never named after the program. Kernels of the same text are
//! one function.

pub(crate) mod attention;
mod beside;
mod body;
mod functor;
mod map;
mod memory;
mod params;
pub(crate) mod product;
mod rows;
mod single;
mod table;

use std::{collections::HashMap, fmt::Write};

use kiln_proto::{
    Failure, FailureKind, Target,
    graph::{Graph, InputKind},
};

use self::params::Params;
use crate::{
    canonical::canonical_name,
    core::Program,
    live::live_order,
    loops::{Loops, Source, row_major},
    plan::{self, Arg, Buffer, Expr, Memory, Plan, Symbol, Tensor},
    schedule::{self, Fused, Group, Space},
    size::Size,
};

const PREAMBLE: &str = include_str!("preamble.cu");
/// What products and attention share, and what only Hopper has.
const INSTRUCTIONS: &str = include_str!("instructions.cu");
const HOPPER_INSTRUCTIONS: &str = include_str!("hopper.cu");
/// Bytes of constants that one module may hold.
const MOST_CONSTANT_BYTES: usize = 1 << 20;
/// First architecture on which a kernel may begin before the one before it ended.
const DEPENDENT_LAUNCH: u32 = 90;
/// What stands for a kernel's name until kernels of equal text are joined.
const NAME: &str = "KILN_NAME";

/// Source and plan of a module.
pub(crate) struct Code {
    pub(crate) source: String,
    pub(crate) plan: Plan,
}

/// A kernel's text and parameters, before its memory is assigned.
struct Emitted {
    /// Structures that stand before the function.
    before: String,
    kernel: Kernel,
    /// Blocks.
    grid: Size,
    /// How it was chosen, to show.
    variant: String,
}

/// One function.
struct Kernel {
    name: String,
    kind: &'static str,
    params: Params,
    /// Sources of the text's library parts, in order.
    parts: Vec<&'static str>,
    /// `__launch_bounds__` and the like.
    attributes: String,
    text: String,
    threads: i64,
    shared_bytes: u32,
    /// Tensor maps instead of pointers, by position in `params.reads`.
    maps: Vec<(usize, plan::TensorMap)>,
    /// Its text calls `kiln_wait` in its own time.
    waits: bool,
}

impl Kernel {
    fn plain(name: &str, kind: &'static str, params: Params, text: String, threads: i64) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            params,
            parts: Vec::new(),
            attributes: format!("__launch_bounds__({threads})"),
            text,
            threads,
            shared_bytes: 0,
            maps: Vec::new(),
            waits: false,
        }
    }
}

/// Generates the module of `groups`.
pub(crate) fn generate(
    graph: &Graph,
    program: &Program,
    loops: &mut Loops,
    groups: &[Group],
    target: Target,
) -> Result<Code, Failure> {
    let groups = &product::twins(loops, groups, target)[..];
    let readers = readers(loops, groups);
    let mut emitted = Vec::with_capacity(groups.len());
    for (index, group) in groups.iter().enumerate() {
        let stored: Vec<usize> = group
            .members
            .iter()
            .copied()
            .filter(|temp| {
                loops.outputs.contains(temp) || readers[*temp].iter().any(|r| *r != index)
            })
            .collect();
        let fused = |loops: &mut Loops| fuse(loops, group);
        emitted.push(match &group.space {
            Space::Map { .. } => {
                let fused = fused(loops)?;
                map::emit(loops, &fused, &stored, NAME)
            }
            Space::Rows { .. } => {
                let fused = fused(loops)?;
                rows::emit(loops, &[fused], &stored, NAME)
            }
            Space::Single { temp } => {
                let fused = fused(loops)?;
                single::emit(loops, &fused, *temp, NAME)
            }
            Space::Product { .. } | Space::Twins { .. } => {
                product::emit(loops, std::slice::from_ref(group), &stored, target)?
            }
            Space::Together { parts }
                if matches!(parts[..], [Group { space: Space::Rows { .. }, .. }, ..]) =>
            {
                let parts =
                    parts.iter().map(|part| fuse(loops, part)).collect::<Result<Vec<_>, _>>()?;
                rows::emit(loops, &parts, &stored, NAME)
            }
            Space::Together { parts } => product::emit(loops, parts, &stored, target)?,
            Space::Attention { temp } => {
                let fused = fused(loops)?;
                attention::emit(loops, &fused, *temp, &stored, target)?
            }
        });
    }
    let values = values(loops, &emitted);
    let memory = memory::place(loops, &values);
    let mut module = Module::new(graph, loops)?;
    let mut kernels = Vec::with_capacity(emitted.len());
    for (index, (emitted, group)) in emitted.into_iter().zip(groups).enumerate() {
        let computes = computes(graph, loops, group);
        let name = module.function(loops, &emitted, index, &computes);
        let launch = module.launch(loops, name, emitted, computes, &memory)?;
        let overlaps = target.compute >= DEPENDENT_LAUNCH;
        kernels.push(plan::Kernel { overlaps, follows: overlaps, ..launch });
    }
    let buffers = values
        .iter()
        .map(|value| Buffer {
            dtype: loops.temps[value.temp].dtype,
            shape: vec![loops.temps[value.temp].numel.to_plan()],
            offset: memory.offsets[&value.temp].to_plan(),
            from: value.from,
            to: value.to,
        })
        .collect();
    let plan = Plan {
        version: plan::version_for(&program.updates, &kernels),
        target: target.to_string(),
        symbols: symbols(program)?,
        inputs: inputs(graph, program),
        outputs: outputs(program),
        workspace_bytes: memory.bytes.to_plan(),
        buffers,
        kernels,
    };
    Ok(Code { source: module.source, plan })
}

fn fuse(loops: &mut Loops, group: &Group) -> Result<Fused, Failure> {
    schedule::fused(loops, group).ok_or_else(|| bug("a group that was fused is not"))
}

fn bug(what: &str) -> Failure {
    Failure::new(FailureKind::Crashed, format!("a bug of `native`: {what}"))
}

/// The type of a source's elements in memory.
fn pointee(loops: &Loops, source: Source) -> &'static str {
    table::element(loops.dtype(source))
}

/// The type of a temporary's elements in memory.
fn element_of(loops: &Loops, temp: usize) -> &'static str {
    table::element(loops.temps[temp].dtype)
}

/// For each temporary, the groups that read it.
fn readers(loops: &Loops, groups: &[Group]) -> Vec<Vec<usize>> {
    let mut readers = vec![Vec::new(); loops.temps.len()];
    for (index, group) in groups.iter().enumerate() {
        for source in group.members.iter().flat_map(|temp| schedule::sources(loops, *temp)) {
            if let Source::Temp(temp) = source {
                readers[temp].push(index);
            }
        }
    }
    readers
}

/// What lives in the workspace, and how long.
fn values(loops: &Loops, emitted: &[Emitted]) -> Vec<memory::Value> {
    let mut values = Vec::new();
    for (from, writer) in emitted.iter().enumerate() {
        for temp in &writer.kernel.params.writes {
            if loops.outputs.contains(temp) {
                continue;
            }
            let reads = |e: &Emitted| e.kernel.params.reads.contains(&Source::Temp(*temp));
            let to = emitted.iter().rposition(reads).unwrap_or(from);
            values.push(memory::Value { temp: *temp, from, to });
        }
    }
    values
}

/// The operations behind a group, numbered as in the canonical order.
fn computes(graph: &Graph, loops: &Loops, group: &Group) -> Vec<String> {
    let mut origins: Vec<usize> =
        group.members.iter().flat_map(|temp| &loops.temps[*temp].origins).copied().collect();
    origins.sort_unstable();
    origins.dedup();
    let order = live_order(graph);
    let named = origins.iter().filter_map(|origin| {
        let number = order.iter().position(|index| index == origin)?;
        Some(format!("{number} {}", canonical_name(&graph.nodes[*origin].op)))
    });
    named.collect()
}

/// The module's text as it grows.
struct Module {
    source: String,
    /// Which library parts are in it.
    parts: Vec<&'static str>,
    /// Functions by their text.
    functions: HashMap<String, String>,
    /// For each input that is baked in, its type.
    constants: Vec<Option<&'static str>>,
}

impl Module {
    fn new(graph: &Graph, loops: &Loops) -> Result<Self, Failure> {
        let constants = graph.inputs.iter().zip(&loops.inputs).map(|(input, dtype)| {
            matches!(input.kind, InputKind::Constant(_)).then(|| table::element(*dtype))
        });
        let mut module = Self {
            source: PREAMBLE.to_owned(),
            parts: Vec::new(),
            functions: HashMap::new(),
            constants: constants.collect(),
        };
        module.constant_data(graph, loops)?;
        Ok(module)
    }

    /// Baked tensors, as data of the module.
    fn constant_data(&mut self, graph: &Graph, loops: &Loops) -> Result<(), Failure> {
        let mut total = 0;
        for (i, input) in graph.inputs.iter().enumerate() {
            let InputKind::Constant(constant) = &input.kind else { continue };
            let used = loops.exprs.any_load(Source::Input(i));
            if !used {
                continue;
            }
            total += constant.data.len();
            if total > MOST_CONSTANT_BYTES {
                let name = &graph.value(input.value).name;
                let why = format!(
                    "constants up to {name:?} have {total} bytes, at most {MOST_CONSTANT_BYTES}: \
                     make them buffers"
                );
                return Err(Failure::new(FailureKind::UnsupportedOp, why));
            }
            let width = loops.inputs[i].bytes() as usize;
            let word = match width {
                8 => "unsigned long long",
                4 => "unsigned",
                2 => "unsigned short",
                _ => "unsigned char",
            };
            let hex = |bytes: &[u8]| {
                bytes.iter().rev().fold("0x".to_owned(), |hex, b| format!("{hex}{b:02x}"))
            };
            let values: Vec<String> = constant.data.chunks_exact(width.max(1)).map(hex).collect();
            // As bits: every number survives, those that are none included.
            let _ = write!(
                self.source,
                "\n__device__ const __align__(16) {word} kiln_constant{i}[{}] = {{{}}};\n",
                // An empty one is named all the same, by kernels without blocks.
                values.len().max(1),
                values.join(",")
            );
        }
        Ok(())
    }

    /// Adds a kernel's function, unless one of the same text is there.
    fn function(
        &mut self,
        loops: &Loops,
        emitted: &Emitted,
        index: usize,
        computes: &[String],
    ) -> String {
        let kernel = &emitted.kernel;
        for part in &kernel.parts {
            if !self.parts.contains(part) {
                self.parts.push(part);
                self.source.push('\n');
                self.source += part;
            }
        }
        let text = self.text(loops, emitted);
        if let Some(name) = self.functions.get(&text) {
            return name.clone();
        }
        let name = format!("k{index}_{}", kernel.kind);
        // The first of those that share it: the plan lists all.
        let _ = write!(self.source, "\n// {}\n", computes.join(", "));
        self.source += &text.replace(&kernel.name, &name);
        self.functions.insert(text, name.clone());
        name
    }

    fn text(&self, loops: &Loops, emitted: &Emitted) -> String {
        let Kernel { name, params, attributes, text, maps, waits, .. } = &emitted.kernel;
        let mut list = Vec::new();
        let mut bound = String::new();
        for (i, read) in params.reads.iter().enumerate() {
            match self.constant(*read) {
                Some((input, element)) => {
                    let _ = writeln!(
                        bound,
                        "const {element}* const r{i} = (const {element}*)kiln_constant{input};"
                    );
                }
                None if maps.iter().any(|(place, _)| *place == i) => {
                    list.push(format!("const __grid_constant__ kiln_tensor_map r{i}"));
                }
                None => {
                    // What an earlier launch writes is not `__restrict__`: the compiler
                    // might load it before `kiln_wait`, and by the read-only cache.
                    let settled = loops.settled.contains(read);
                    let only_read = if settled { " __restrict__" } else { "" };
                    list.push(format!("const {}*{only_read} r{i}", pointee(loops, *read)));
                }
            }
        }
        for (i, temp) in params.writes.iter().enumerate() {
            // What is written to an input may be read there, by the same thread before.
            let own = if loops.updated(*temp).is_some() { "" } else { " __restrict__" };
            list.push(format!("{}*{own} w{i}", element_of(loops, *temp)));
        }
        list.extend(params.symbols.iter().map(|symbol| format!("const kiln_index s{symbol}")));
        let wait = if *waits { "" } else { "kiln_wait();\n" };
        format!(
            "{}extern \"C\" __global__ void {attributes} {name}({}) {{\nkiln_begin();\n{wait}{bound}{text}}}\n",
            emitted.before,
            list.join(", ")
        )
    }

    fn constant(&self, source: Source) -> Option<(usize, &'static str)> {
        match source {
            Source::Input(input) => Some((input, self.constants[input]?)),
            Source::Temp(_) => None,
        }
    }

    fn launch(
        &self,
        loops: &Loops,
        name: String,
        emitted: Emitted,
        computes: Vec<String>,
        memory: &memory::Memory,
    ) -> Result<plan::Kernel, Failure> {
        let Kernel { kind, params, threads, shared_bytes, maps, .. } = emitted.kernel;
        if emitted.grid.known().is_some_and(|blocks| blocks > i64::from(i32::MAX)) {
            let why = format!("a tensor is too large for one kernel ({} blocks)", emitted.grid);
            return Err(Failure::new(FailureKind::UnsupportedOp, why));
        }
        let at = |source: Source| match source {
            Source::Input(input) => Memory::Input(input),
            Source::Temp(temp) => match loops.outputs.iter().position(|output| *output == temp) {
                Some(output) => loops.updated(temp).map_or(Memory::Output(output), Memory::Input),
                None => Memory::Workspace(
                    memory.offsets.get(&temp).map_or(Expr::Known(0), Size::to_plan),
                ),
            },
        };
        let mut args = Vec::new();
        for (i, read) in params.reads.iter().enumerate() {
            if self.constant(*read).is_some() {
                continue;
            }
            let map = maps.iter().find(|(place, _)| *place == i);
            args.push(match map {
                Some((_, map)) => Arg::Map(plan::TensorMap { memory: at(*read), ..map.clone() }),
                None => Arg::Memory(at(*read)),
            });
        }
        args.extend(params.writes.iter().map(|temp| Arg::Memory(at(Source::Temp(*temp)))));
        args.extend(params.symbols.iter().map(|symbol| Arg::Size(Expr::Symbol(*symbol))));
        Ok(plan::Kernel {
            name,
            kind: kind.to_owned(),
            variant: emitted.variant,
            grid: [emitted.grid.to_plan(), Expr::Known(1), Expr::Known(1)],
            block: [threads as u32, 1, 1],
            shared_bytes,
            overlaps: false,
            follows: false,
            args,
            computes,
        })
    }
}

/// Where each symbol's value is to be found.
fn symbols(program: &Program) -> Result<Vec<Symbol>, Failure> {
    let found = program.symbols.iter().enumerate().map(|(symbol, range)| {
        let dims = program.inputs.iter().flat_map(|input| {
            let shape = &program.value(input.value).shape;
            shape.iter().enumerate().map(move |(dim, size)| (input.position, dim, size))
        });
        let mut affine = dims.filter_map(|(input, dim, size)| {
            let (scale, offset) = size.linear_in(&crate::size::Atom::Symbol(symbol))?;
            Some((input, dim, scale.known().filter(|s| *s > 0)?, offset.known()?))
        });
        let (input, dim, scale, offset) = affine.next().ok_or_else(|| {
            let why = format!("no input's shape says what the size s{symbol} is");
            Failure::new(FailureKind::UnsupportedOp, why)
        })?;
        let max = (range.max != i64::MAX).then_some(range.max);
        Ok(Symbol { min: range.min, max, input, dim, scale, offset })
    });
    found.collect()
}

fn inputs(graph: &Graph, program: &Program) -> Vec<Tensor> {
    let describe = |(i, input): (usize, &kiln_proto::graph::Input)| {
        let kind = match input.kind {
            InputKind::Parameter => "parameter",
            InputKind::Buffer => "buffer",
            InputKind::User => "user",
            InputKind::Constant(_) => "constant",
        };
        let found = program.inputs.iter().find(|input| input.position == i);
        let plan = |sizes: &[Size]| sizes.iter().map(Size::to_plan).collect();
        Tensor {
            name: format!("in{i}"),
            kind: kind.to_owned(),
            dtype: graph.value(input.value).ty.dtype,
            shape: found.map_or_else(Vec::new, |f| plan(&program.value(f.value).shape)),
            strides: found.map_or_else(Vec::new, |f| plan(&f.strides)),
            updated: program.updates.contains(&i),
        }
    };
    graph.inputs.iter().enumerate().map(describe).collect()
}

fn outputs(program: &Program) -> Vec<Tensor> {
    let describe = |(i, value): (usize, &crate::core::ValueId)| {
        let value = program.value(*value);
        Tensor {
            name: format!("out{i}"),
            kind: "output".to_owned(),
            dtype: value.dtype,
            shape: value.shape.iter().map(Size::to_plan).collect(),
            strides: row_major(&value.shape).iter().map(Size::to_plan).collect(),
            updated: false,
        }
    };
    program.outputs[..program.returned()].iter().enumerate().map(describe).collect()
}
