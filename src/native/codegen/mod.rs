//! Groups to CUDA C++ and a launch plan.
//!
//! Invariant: the text is a function of the groups alone; kernels and values
//! are numbered, never named after the program.

mod body;
mod elementwise;
mod product;
mod rows;
mod table;

use std::fmt::Write;

use kiln_proto::{
    Failure, FailureKind, Target,
    graph::{Dim, Input, InputKind, ValueId},
};

use super::{
    canonical::canonical_name,
    fuse::{Group, Kind},
    infer::Typed,
    plan::{self, Arg, Buffer, Expr, Kernel, Life, Memory, Plan, Tensor},
    prim::{Prim, Prims, Source},
    strided::row_major,
};

const PREAMBLE: &str = include_str!("preamble.cu");
const PRODUCT: &str = include_str!("product.cu");
/// Bytes of constants that one module may hold.
const MOST_CONSTANT_BYTES: usize = 1 << 20;

/// Source and plan of a module.
pub(super) struct Code {
    pub(super) source: String,
    pub(super) plan: Plan,
}

/// One kernel, before its memory is assigned.
struct Emitted {
    /// The function's body.
    text: String,
    grid: [u64; 3],
    threads: u32,
}

/// A kernel's parameters: what it reads and what it writes.
struct Params {
    reads: Vec<Source>,
    writes: Vec<usize>,
    /// For each input that is baked in, the type of its elements.
    constants: Vec<Option<&'static str>>,
}

impl Params {
    /// The name of a source in the kernel.
    fn name(&self, source: Source) -> String {
        match source {
            Source::Input(input) => match self.constants[input] {
                Some(element) => format!("(const {element}*)kiln_constant{input}"),
                None => format!("in{input}"),
            },
            Source::Prim(prim) => format!("p{prim}"),
        }
    }
}

/// Generates the module of `groups`.
pub(super) fn generate(
    typed: &Typed<'_>,
    prims: &Prims,
    groups: &[Group],
    target: Target,
) -> Result<Code, Failure> {
    let constants: Vec<Option<&'static str>> = typed
        .graph
        .inputs
        .iter()
        .zip(&prims.inputs)
        .map(|(input, dtype)| {
            matches!(input.kind, InputKind::Constant(_)).then(|| table::element(*dtype))
        })
        .collect();
    let mut source = PREAMBLE.to_owned();
    if groups.iter().any(|group| group.kind == Kind::Product) {
        source.push('\n');
        source.push_str(PRODUCT);
    }
    constant_data(typed, prims, &mut source)?;
    let params: Vec<Params> =
        groups.iter().map(|group| params(prims, groups, group, &constants)).collect();
    let mut kernels = Vec::with_capacity(groups.len());
    for (index, (group, params)) in groups.iter().zip(&params).enumerate() {
        let (kind, emitted) = match group.kind {
            Kind::Map => ("map", elementwise::emit(prims, group, params)),
            Kind::Rows { lead } => ("rows", rows::emit(prims, group, lead, params)),
            Kind::Product => ("product", product::emit(prims, group, params, target)),
        };
        let name = format!("k{index}_{kind}");
        function(&mut source, prims, params, &name, &emitted);
        kernels.push(launch(name, kind, &emitted, computes(typed, prims, group))?);
    }
    let plan = assign(typed, prims, &params, kernels, target);
    Ok(Code { source, plan })
}

/// Sources that `group` reads from memory, and values that others need of it.
fn params(
    prims: &Prims,
    groups: &[Group],
    group: &Group,
    constants: &[Option<&'static str>],
) -> Params {
    let mut reads: Vec<Source> = Vec::new();
    for member in &group.members {
        for access in prims.list[member.prim].reads() {
            let inside = matches!(access.source, Source::Prim(prim) if group.has(prim));
            if !inside && !reads.contains(&access.source) {
                reads.push(access.source);
            }
        }
    }
    let elsewhere = |prim: usize| {
        let others = groups.iter().filter(|other| !std::ptr::eq(*other, group));
        others.flat_map(|other| &other.members).any(|member| {
            let reads = prims.list[member.prim].reads();
            reads.iter().any(|access| access.source == Source::Prim(prim))
        })
    };
    let computed = group.members.iter().map(|member| member.prim);
    let writes = computed.filter(|prim| prims.outputs.contains(prim) || elsewhere(*prim)).collect();
    Params { reads, writes, constants: constants.to_vec() }
}

fn function(out: &mut String, prims: &Prims, params: &Params, name: &str, emitted: &Emitted) {
    let reads = params.reads.iter().filter(|source| !params.is_constant(**source));
    let reads = reads.map(|source| (*source, false));
    let writes = params.writes.iter().map(|prim| (Source::Prim(*prim), true));
    let list: Vec<String> = reads
        .chain(writes)
        .map(|(source, written)| body::parameter(source, prims, written, &params.name(source)))
        .collect();
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "\nextern \"C\" __global__ void __launch_bounds__({}) {name}({}) {{\n{}}}\n",
        emitted.threads,
        list.join(", "),
        emitted.text
    );
}

impl Params {
    fn is_constant(&self, source: Source) -> bool {
        matches!(source, Source::Input(input) if self.constants[input].is_some())
    }
}

fn launch(
    name: String,
    kind: &str,
    emitted: &Emitted,
    computes: Vec<String>,
) -> Result<Kernel, Failure> {
    let limits = [i32::MAX as u64, 65_535, 65_535];
    if emitted.grid.iter().zip(limits).any(|(blocks, limit)| *blocks > limit) {
        let why = format!("a tensor is too large for one kernel ({:?} blocks)", emitted.grid);
        return Err(Failure::new(FailureKind::UnsupportedOp, why));
    }
    Ok(Kernel {
        name,
        kind: kind.to_owned(),
        variant: String::new(),
        grid: emitted.grid.map(|blocks| Expr::Known(blocks as i64)),
        block: [emitted.threads, 1, 1],
        shared_bytes: 0,
        args: Vec::new(),
        computes,
    })
}

/// The operations behind a group, numbered as in the canonical order.
fn computes(typed: &Typed<'_>, prims: &Prims, group: &Group) -> Vec<String> {
    let mut origins: Vec<usize> = Vec::new();
    for member in &group.members {
        let origin = prims.list[member.prim].origin;
        if !origins.contains(&origin) {
            origins.push(origin);
        }
    }
    let named = origins.iter().filter_map(|origin| {
        let number = typed.order.iter().position(|index| index == origin)?;
        Some(format!("{number} {}", canonical_name(&typed.graph.nodes[*origin].op)))
    });
    named.collect()
}

/// Baked tensors, as data of the module.
fn constant_data(typed: &Typed<'_>, prims: &Prims, out: &mut String) -> Result<(), Failure> {
    let mut total = 0;
    for (i, input) in typed.graph.inputs.iter().enumerate() {
        let InputKind::Constant(constant) = &input.kind else { continue };
        total += constant.data.len();
        if total > MOST_CONSTANT_BYTES {
            let name = &typed.graph.value(input.value).name;
            let why = format!(
                "constants up to {name:?} have {total} bytes, at most {MOST_CONSTANT_BYTES}: \
                 make them buffers"
            );
            return Err(Failure::new(FailureKind::UnsupportedOp, why));
        }
        let (word, width) = match prims.inputs[i].bytes() {
            4 => ("unsigned", 4),
            _ => ("unsigned short", 2),
        };
        let values: Vec<String> = constant
            .data
            .chunks_exact(width)
            .map(|bytes| bytes.iter().rev().fold("0x".to_owned(), |hex, b| format!("{hex}{b:02x}")))
            .collect();
        // As bits: every number survives, those that are none included.
        let _ = write!(
            out,
            "\n__device__ const __align__(16) {word} kiln_constant{i}[{}] = {{{}}};\n",
            values.len(),
            values.join(",")
        );
    }
    Ok(())
}

/// Gives every value its memory.
fn assign(
    typed: &Typed<'_>,
    prims: &Prims,
    params: &[Params],
    mut kernels: Vec<Kernel>,
    target: Target,
) -> Plan {
    let mut values: Vec<(usize, Life)> = Vec::new();
    for (from, writer) in params.iter().enumerate() {
        for prim in writer.writes.iter().filter(|prim| !prims.outputs.contains(prim)) {
            let read = |params: &Params| params.reads.contains(&Source::Prim(*prim));
            let to = params.iter().rposition(read).unwrap_or(from);
            let Prim { shape, dtype, .. } = &prims.list[*prim];
            let bytes = shape.iter().product::<usize>() as u64 * dtype.bytes();
            values.push((*prim, Life { bytes, from, to }));
        }
    }
    let lives: Vec<Life> = values.iter().map(|(_, life)| *life).collect();
    let (offsets, workspace_bytes) = plan::place(&lives);
    let memory = |source: Source| match source {
        Source::Input(input) => Memory::Input(input),
        Source::Prim(prim) => match prims.outputs.iter().position(|output| *output == prim) {
            Some(output) => Memory::Output(output),
            None => {
                let value = values.iter().position(|(other, _)| *other == prim);
                let offset = value.map_or(0, |value| offsets[value]);
                Memory::Workspace(Expr::Known(offset as i64))
            }
        },
    };
    for (kernel, params) in kernels.iter_mut().zip(params) {
        let reads = params.reads.iter().filter(|source| !params.is_constant(**source)).copied();
        let writes = params.writes.iter().map(|prim| Source::Prim(*prim));
        kernel.args = reads.chain(writes).map(|source| Arg::Memory(memory(source))).collect();
    }
    let buffer = |((prim, life), offset): (&(usize, Life), &u64)| Buffer {
        dtype: prims.list[*prim].dtype,
        shape: known(&prims.list[*prim].shape),
        offset: Expr::Known(*offset as i64),
        from: life.from,
        to: life.to,
    };
    Plan {
        version: plan::VERSION,
        target: target.to_string(),
        symbols: Vec::new(),
        inputs: inputs(typed),
        outputs: outputs(typed, prims),
        workspace_bytes: Expr::Known(workspace_bytes as i64),
        buffers: values.iter().zip(&offsets).map(buffer).collect(),
        kernels,
    }
}

fn known(sizes: &[usize]) -> Vec<Expr> {
    sizes.iter().map(|size| Expr::from(*size)).collect()
}

fn inputs(typed: &Typed<'_>) -> Vec<Tensor> {
    let describe = |(i, input): (usize, &Input)| {
        let ty = &typed.graph.value(input.value).ty;
        let known = |dims: &[Dim]| {
            dims.iter().filter_map(|dim| dim.known().map(|size| Expr::Known(size as i64))).collect()
        };
        let kind = match input.kind {
            InputKind::Parameter => "parameter",
            InputKind::Buffer => "buffer",
            InputKind::User => "user",
            InputKind::Constant(_) => "constant",
        };
        Tensor {
            name: format!("in{i}"),
            kind: kind.to_owned(),
            dtype: ty.dtype,
            shape: known(&ty.shape),
            strides: known(&ty.strides),
        }
    };
    typed.graph.inputs.iter().enumerate().map(describe).collect()
}

fn outputs(typed: &Typed<'_>, prims: &Prims) -> Vec<Tensor> {
    let describe = |(i, (prim, value)): (usize, (&usize, &ValueId))| {
        let prim = &prims.list[*prim];
        // As many elements as the primitive's, in the same order.
        let shape = typed.ty(*value).map_or_else(|_| prim.shape.clone(), |ty| ty.shape.clone());
        Tensor {
            name: format!("out{i}"),
            kind: "output".to_owned(),
            dtype: prim.dtype,
            strides: known(&row_major(&shape)),
            shape: known(&shape),
        }
    };
    prims.outputs.iter().zip(&typed.graph.outputs).enumerate().map(describe).collect()
}
