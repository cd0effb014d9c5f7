//! A stitching with its pieces' plans: what one call of the whole launches.
//!
//! The workspace of the whole is what pieces leave each other and, behind it, one
//! scratch area, in which each piece has its own workspace while it runs.
//!
//! Invariant: a call exists only where every piece takes what it is given, as it
//! lies, and leaves what the stitching says; its pointers lie in the memory of
//! the whole that it names.

use super::{Arg, Broken, Interface, Laid, Spec, Stitching};
use crate::plan::{
    ALIGNMENT, Base, CONSTANT, Call, CallError, Kernel, Launch, Layout, Plan, Tensor, Value,
};

/// Most launches of one call.
const MOST_LAUNCHES: usize = 1 << 20;

/// A stitching and the plans of its pieces, which fit together.
#[derive(Debug, Clone)]
pub struct Linked {
    stitching: Stitching,
    plans: Vec<Plan>,
    /// Of each plan: the position of its first kernel among those of all.
    first: Vec<usize>,
    target: String,
    /// What the pieces are called in messages.
    names: Vec<String>,
}

/// One call of the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkedCall {
    /// What is launched. Kernels are counted through all plans: [`Linked::kernels`].
    pub call: Call,
    /// For each launch, which call of the stitching it is part of.
    pub of: Vec<usize>,
    /// For each launch, whether the one before it may be another piece's and still run
    /// when it begins, where its kernel allows overlaps.
    pub follows: Vec<bool>,
    /// After all launches.
    pub copies: Vec<Copied>,
}

/// An output that is filled by a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Which; it is dense.
    pub output: usize,
    /// The start of what is copied.
    pub from: Base,
    /// How that lies; its sizes are the output's.
    pub layout: Layout,
    /// Bytes of an element.
    pub width: u64,
}

impl Linked {
    /// Puts plans together, those of the pieces in their order. All of it may come
    /// from anywhere.
    pub fn new(stitching: Stitching, plans: Vec<Plan>) -> Result<Self, Broken> {
        stitching.check()?;
        let (count, wanted) = (plans.len(), stitching.pieces.len());
        if count != wanted {
            return Err(Broken::Pieces { count, wanted });
        }
        let target = plans.first().map_or_else(|| "any".to_owned(), |plan| plan.target.clone());
        let (mut first, mut kernels) = (Vec::with_capacity(count), 0);
        for (piece, (interface, plan)) in stitching.pieces.iter().zip(&plans).enumerate() {
            let refuse = |why: String| Broken::Unfit { piece, why };
            plan.check().map_err(|error| refuse(error.to_string()))?;
            interface.check(plan).map_err(refuse)?;
            if plan.target != target {
                return Err(refuse(format!("it is for {}, piece 0 for {target}", plan.target)));
            }
            first.push(kernels);
            kernels += plan.kernels.len();
        }
        for copy in &stitching.copies {
            if matches!(copy.from, Arg::Input(at) if stitching.inputs[at].kind == CONSTANT) {
                return Err(Broken::Output { output: copy.output });
            }
        }
        let names = (0..count).map(|piece| format!("piece {piece}")).collect();
        Ok(Self { stitching, plans, first, target, names })
    }

    /// What it takes and gives, and what it runs on: a plan without kernels, whose
    /// workspace is only what pieces leave each other.
    pub fn interface(&self) -> Plan {
        Plan { target: self.target.clone(), ..self.stitching.as_plan() }
    }

    /// How the pieces are put together.
    pub fn stitching(&self) -> &Stitching {
        &self.stitching
    }

    /// The plans of the pieces.
    pub fn plans(&self) -> &[Plan] {
        &self.plans
    }

    /// The kernels of all pieces, one piece's after the other's.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.plans.iter().flat_map(|plan| &plan.kernels)
    }

    /// Calls the inputs as their program does, in messages.
    pub fn name_inputs<'n>(&mut self, names: impl Iterator<Item = &'n str>) {
        for (tensor, name) in self.stitching.inputs.iter_mut().zip(names) {
            name.clone_into(&mut tensor.name);
        }
    }

    /// Calls the pieces so, in messages; they are numbered where there are fewer names.
    pub fn name_pieces(&mut self, names: impl Iterator<Item = String>) {
        self.names.iter_mut().zip(names).for_each(|(name, given)| *name = given);
    }

    /// What a call with inputs of these shapes launches, those of constants ignored.
    pub fn call(&self, shapes: &[&[usize]]) -> Result<LinkedCall, CallError> {
        let stitching = &self.stitching;
        let laid = stitching.laid_out(shapes).map_err(|broken| match broken {
            Broken::Inputs(why) => CallError::Inputs(why),
            broken => CallError::Plan(broken.to_string()),
        })?;
        let outputs = laid.outputs.iter().zip(&stitching.outputs);
        if let Some((_, output)) = outputs.into_iter().find(|(layout, _)| !is_dense(layout)) {
            return Err(CallError::Plan(format!("{} is not dense", output.name)));
        }
        let scratch = laid.workspace_bytes.checked_next_multiple_of(ALIGNMENT);
        let scratch =
            scratch.ok_or_else(|| CallError::Plan("its memory has no size".to_owned()))?;
        let (mut launches, mut of, mut follows, mut most) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (at, step) in stitching.calls.iter().enumerate() {
            let named = |why: &str| format!("{}, call {at}: {why}", self.names[step.piece]);
            let about = |error: CallError| match error {
                CallError::Inputs(why) => CallError::Inputs(named(&why)),
                CallError::Plan(why) => CallError::Plan(named(&why)),
            };
            let args: Vec<Given> = step.args.iter().map(|arg| given(&laid, *arg)).collect();
            let results: Vec<Given> =
                step.results.iter().map(|value| given(&laid, Arg::Value(*value))).collect();
            let shapes: Vec<&[usize]> = args.iter().map(|arg| &arg.layout.shape[..]).collect();
            let plan = &self.plans[step.piece];
            let own = plan.call(&shapes).map_err(about)?;
            fits(plan, &own, &args, &results).map_err(|why| about(CallError::Plan(why)))?;
            if launches.len() + own.launches.len() > MOST_LAUNCHES {
                return Err(CallError::Plan(format!("more than {MOST_LAUNCHES} launches")));
            }
            let waits = waits(plan, &own, step);
            let place = |base: Base, offset: u64| match base {
                Base::Input(input) => (args[input].base, args[input].offset + offset),
                Base::Output(output) => (results[output].base, results[output].offset + offset),
                Base::Workspace => (Base::Workspace, scratch + offset),
            };
            for Launch { kernel, grid, values } in own.launches {
                let values = values.into_iter().map(|value| match value {
                    Value::Pointer(base, offset) => {
                        let (base, offset) = place(base, offset);
                        Value::Pointer(base, offset)
                    }
                    Value::Map(mut tile) => {
                        tile.start = place(tile.start.0, tile.start.1);
                        Value::Map(tile)
                    }
                    size @ Value::Size(_) => size,
                });
                let kernel = self.first[step.piece] + kernel;
                launches.push(Launch { kernel, grid, values: values.collect() });
                follows.push(waits || of.last() == Some(&at));
                of.push(at);
            }
            most = own.workspace_bytes.max(most);
        }
        let copies = self.copies(&laid)?;
        let workspace_bytes = match scratch.checked_add(most) {
            // No piece has one: nothing behind what they leave each other.
            Some(_) if most == 0 => laid.workspace_bytes,
            Some(bytes) => bytes,
            None => return Err(CallError::Plan("its memory has no size".to_owned())),
        };
        let Laid { symbols, inputs, outputs, .. } = laid;
        let call = Call { symbols, inputs, outputs, workspace_bytes, launches };
        Ok(LinkedCall { call, of, follows, copies })
    }

    fn copies(&self, laid: &Laid) -> Result<Vec<Copied>, CallError> {
        let copy = |copy: &super::Copy| {
            let Given { base, offset, layout } = given(laid, copy.from);
            // An output starts at its own start.
            if offset != 0 || layout.shape != laid.outputs[copy.output].shape {
                return Err(CallError::Plan(format!("output {} is no copy", copy.output)));
            }
            let width = self.stitching.outputs[copy.output].dtype.bytes();
            Ok(Copied { output: copy.output, from: base, layout, width })
        };
        self.stitching.copies.iter().map(copy).collect()
    }
}

impl Interface {
    /// Whether `plan` takes and gives what this says; an error says why not.
    pub fn check(&self, plan: &Plan) -> Result<(), String> {
        if let Some(position) = plan.inputs.iter().position(|input| input.updated) {
            return Err(format!("it changes its input {position}: no piece does"));
        }
        let sides = [("input", &self.takes, &plan.inputs), ("output", &self.gives, &plan.outputs)];
        for (what, specs, tensors) in sides {
            let (got, wanted) = (tensors.len(), specs.len());
            if got != wanted {
                return Err(format!("it has {got} {what}s, not {wanted}"));
            }
            for (position, (spec, tensor)) in specs.iter().zip(tensors).enumerate() {
                if !spec.is_of(tensor) {
                    let shape = crate::plan::shown(&tensor.shape);
                    let Tensor { kind, dtype, .. } = tensor;
                    return Err(format!(
                        "its {what} {position}, {kind} {dtype} {shape}, is not what is stitched"
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Spec {
    fn is_of(&self, tensor: &Tensor) -> bool {
        let size = |(wanted, size): (&Option<u64>, &crate::plan::Expr)| match (wanted, size.known())
        {
            (Some(wanted), Some(size)) => u64::try_from(size) == Ok(*wanted),
            _ => true,
        };
        self.dtype == tensor.dtype
            && self.constant == (tensor.kind == CONSTANT)
            && self.shape.len() == tensor.shape.len()
            && self.shape.iter().zip(&tensor.shape).all(size)
    }
}

/// What a piece is given, or where it leaves something.
struct Given {
    base: Base,
    offset: u64,
    layout: Layout,
}

fn given(laid: &Laid, arg: Arg) -> Given {
    match arg {
        Arg::Input(at) => {
            Given { base: Base::Input(at), offset: 0, layout: laid.inputs[at].clone() }
        }
        Arg::Value(value) => {
            let place = &laid.values[value];
            let (shape, bytes) = (place.shape.clone(), place.bytes);
            let layout = Layout { strides: dense(&shape), shape, bytes };
            Given { base: place.base, offset: place.offset, layout }
        }
        // The piece has it: its plan asks for nothing there.
        Arg::Constant => {
            let layout = Layout { shape: Vec::new(), strides: Vec::new(), bytes: 0 };
            Given { base: Base::Workspace, offset: 0, layout }
        }
    }
}

/// Whether what the piece's plan says of its inputs and outputs is how they lie.
fn fits(plan: &Plan, own: &Call, args: &[Given], results: &[Given]) -> Result<(), String> {
    for (position, (wanted, arg)) in own.inputs.iter().zip(args).enumerate() {
        if plan.inputs[position].kind != CONSTANT && !same(wanted, &arg.layout) {
            let (wanted, got) = (&wanted.strides, &arg.layout.strides);
            return Err(format!("its input {position} has strides {got:?}, not {wanted:?}"));
        }
    }
    for (position, (own, result)) in own.outputs.iter().zip(results).enumerate() {
        if own.bytes != result.layout.bytes || !same(own, &result.layout) {
            let (wanted, got) = (&result.layout.shape, &own.shape);
            return Err(format!("its output {position} is {got:?}, not {wanted:?} and dense"));
        }
    }
    Ok(())
}

/// Whether all that a piece reads of other pieces, each of its kernels waits for.
fn waits(plan: &Plan, own: &Call, step: &super::Call) -> bool {
    // Only what a user gives is waited for.
    let given =
        |(arg, tensor): (&Arg, &Tensor)| !matches!(arg, Arg::Value(_)) || tensor.kind == "user";
    step.args.iter().zip(&plan.inputs).all(given)
        && own.launches.iter().all(|launch| plan.kernels[launch.kernel].follows)
}

/// Whether two layouts are one: where a dimension has one element its stride
/// means nothing.
fn same(a: &Layout, b: &Layout) -> bool {
    let strides = a.shape.iter().zip(a.strides.iter().zip(&b.strides));
    a.shape == b.shape
        && (a.shape.contains(&0) || strides.into_iter().all(|(size, (a, b))| *size <= 1 || a == b))
}

fn is_dense(layout: &Layout) -> bool {
    same(layout, &Layout { strides: dense(&layout.shape), ..layout.clone() })
}

fn dense(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for dim in (1..shape.len()).rev() {
        // Of a tensor without elements it may be anything.
        strides[dim - 1] = strides[dim].saturating_mul(shape[dim]);
    }
    strides
}
