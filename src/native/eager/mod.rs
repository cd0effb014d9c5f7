//! Eager artifacts: a graph's core program, run by the interpreter on the CPU; or the graph
//! as it is, where the interpreter does not know all of it and PyTorch does.
//!
//! Invariant: the files follow from the core program and the constants alone,
//! and a program that was read back refers to nothing that it does not have.

mod describe;
mod files;

use std::borrow::Cow;

use kiln_proto::{
    Failure, FailureKind,
    graph::{Graph, InputKind},
};

use crate::{
    core::Program,
    decompose::{decompose, outline},
    interp::{self, Settings, Tensor},
    plan::{CONSTANT, Plan},
    portable::{Portable, portable},
};

/// Says that an artifact is one: no other has it. The core program as JSON.
pub const GRAPH: &str = "graph.json";
/// What the program takes and gives, as a plan without kernels.
pub const PLAN: &str = "plan.json";
/// Data of the constant inputs, one after the other; absent without any.
pub const CONSTANTS: &str = "constants.bin";
/// In place of the core program: the graph as PyTorch's operations, see `portable.rs`.
pub const PORTABLE: &str = "portable.json";
/// Of the program's format: the latest.
pub const VERSION: u32 = 2;
/// The oldest that is read, and that of programs that change none of their inputs.
pub const PLAIN: u32 = 1;

/// What `graph` takes and gives, whether or not it can be run.
pub(crate) fn interface(graph: &Graph) -> Result<Plan, Failure> {
    let kinds: Vec<&str> = graph.inputs.iter().map(|input| kind(&input.kind)).collect();
    describe::plan(&outline(graph)?, &kinds)
}

/// The files of a graph that only PyTorch can run, by name, in name order.
pub fn foreign(graph: &Graph) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let Portable { graph: text, constants } = portable(graph)?;
    let plan = serde_json::to_vec_pretty(&interface(graph)?)
        .map_err(|e| Failure::new(FailureKind::Crashed, format!("write the plan: {e}")))?;
    let mut files = vec![(PLAN.to_owned(), plan), (PORTABLE.to_owned(), text)];
    if !constants.is_empty() {
        files.insert(0, (CONSTANTS.to_owned(), constants));
    }
    Ok(files)
}

/// A program that can be run on the CPU.
#[derive(Debug, Clone)]
pub struct Eager {
    program: Program,
    plan: Plan,
    /// By position of the input; `None`: given with each call.
    constants: Vec<Option<Vec<u8>>>,
}

impl Eager {
    /// The program of `graph`.
    pub fn new(graph: &Graph) -> Result<Self, Failure> {
        let constants = graph.inputs.iter().map(|input| match &input.kind {
            InputKind::Constant(constant) => Some(constant.data.clone()),
            _ => None,
        });
        let kinds: Vec<&str> = graph.inputs.iter().map(|input| kind(&input.kind)).collect();
        Self::of(decompose(graph)?, &kinds, constants.collect())
    }

    /// A program whose inputs are of those kinds.
    fn of(
        mut program: Program,
        kinds: &[&str],
        constants: Vec<Option<Vec<u8>>>,
    ) -> Result<Self, Failure> {
        files::check(&program, kinds.len())?;
        renumber_origins(&mut program);
        let plan = describe::plan(&program, kinds)?;
        Ok(Self { program, plan, constants })
    }

    /// What it takes and gives.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The program itself.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Runs once. `inputs` are in the plan's order; at constants anything. Behind what the
    /// plan calls outputs comes what is left in the inputs that it calls updated.
    pub fn run(
        &self,
        inputs: &[Tensor<'_>],
        settings: &Settings,
    ) -> Result<Vec<Tensor<'static>>, Failure> {
        if inputs.len() != self.plan.inputs.len() {
            let (got, wanted) = (inputs.len(), self.plan.inputs.len());
            return Err(invalid(format!("{got} inputs, not {wanted}")));
        }
        let mut all = Vec::with_capacity(inputs.len());
        for ((given, constant), described) in
            inputs.iter().zip(&self.constants).zip(&self.plan.inputs)
        {
            all.push(match constant {
                Some(bytes) => {
                    let shape = describe::known(&described.shape)?;
                    Tensor::dense(described.dtype, &shape, Cow::Borrowed(&bytes[..]))
                }
                None => Tensor {
                    dtype: given.dtype,
                    shape: given.shape.clone(),
                    strides: given.strides.clone(),
                    bytes: Cow::Borrowed(&given.bytes),
                },
            });
        }
        interp::run(&self.program, &all, settings)
    }
}

const fn kind(kind: &InputKind) -> &'static str {
    match kind {
        InputKind::Parameter => "parameter",
        InputKind::Buffer => "buffer",
        InputKind::User => "user",
        InputKind::Constant(_) => CONSTANT,
    }
}

/// Counts origins in the order in which they appear: where a node stood among
/// others that do not matter leaves no trace.
fn renumber_origins(program: &mut Program) {
    let mut seen = std::collections::HashMap::new();
    for node in &mut program.nodes {
        let next = seen.len();
        node.origin = *seen.entry(node.origin).or_insert(next);
    }
}

fn invalid(why: impl Into<String>) -> Failure {
    Failure::new(FailureKind::InvalidInput, why)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
