//! An eager artifact's files.
//!
//! Invariant: what was read back is checked before it is used: these bytes may
//! come from anywhere.

use kiln_proto::{Failure, FailureKind};
use serde::{Deserialize, Serialize};

use super::{CONSTANTS, Eager, GRAPH, PLAIN, PLAN, VERSION, describe, invalid};
use crate::{
    core::{Op, Program, ValueId},
    plan::{self, CONSTANT, Plan},
    version,
};

/// Most values of one program.
const MOST_VALUES: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
pub(super) struct File {
    version: u32,
    pub(super) program: Program,
}

impl Eager {
    /// The artifact's files by name, in name order.
    pub fn files(&self) -> Result<Vec<(String, Vec<u8>)>, Failure> {
        let write = |e: serde_json::Error| {
            Failure::new(FailureKind::Crashed, format!("write the program: {e}"))
        };
        let plain = self.program.updates.is_empty()
            && !self.program.nodes.iter().any(|node| node.op == Op::GroupedMatMul);
        let version = if plain { PLAIN } else { VERSION };
        let graph = serde_json::to_vec(&File { version, program: self.program.clone() });
        let plan = serde_json::to_vec_pretty(&self.plan);
        let mut files = vec![
            (GRAPH.to_owned(), graph.map_err(write)?),
            (PLAN.to_owned(), plan.map_err(write)?),
        ];
        let constants: Vec<&[u8]> = self.constants.iter().flatten().map(Vec::as_slice).collect();
        if !constants.is_empty() {
            files.insert(0, (CONSTANTS.to_owned(), constants.concat()));
        }
        Ok(files)
    }

    /// The program in an artifact, whose files `read` gives by name.
    pub fn load<E>(mut read: impl FnMut(&str) -> Result<Vec<u8>, E>) -> Result<Self, Failure>
    where
        E: std::fmt::Display,
    {
        let mut file = |name: &str| read(name).map_err(|e| corrupt(format!("read {name}: {e}")));
        let (graph, plan) = (file(GRAPH)?, file(PLAN)?);
        for (name, bytes, oldest, known) in
            [(GRAPH, &graph, PLAIN, VERSION), (PLAN, &plan, plan::PLAIN, plan::VERSION)]
        {
            version::check_from(bytes, oldest, known)
                .map_err(|why| Failure::new(FailureKind::Incompatible, format!("{name}: {why}")))?;
        }
        let File { program, .. } = parse(GRAPH, &graph)?;
        let plan: Plan = parse(PLAN, &plan)?;
        let kinds: Vec<&str> = plan.inputs.iter().map(|input| input.kind.as_str()).collect();
        let mut constants = vec![None; kinds.len()];
        if kinds.contains(&CONSTANT) {
            let data = file(CONSTANTS)?;
            let mut rest = &data[..];
            for (input, constant) in plan.inputs.iter().zip(&mut constants) {
                if input.kind != CONSTANT {
                    continue;
                }
                let sizes = describe::known(&input.shape)?;
                let mut sizes = sizes.into_iter();
                let bytes = sizes.try_fold(input.dtype.bytes() as usize, usize::checked_mul);
                let (this, later) = bytes
                    .and_then(|bytes| rest.split_at_checked(bytes))
                    .ok_or_else(|| corrupt(format!("{CONSTANTS} is too short")))?;
                *constant = Some(this.to_vec());
                rest = later;
            }
            if !rest.is_empty() {
                return Err(corrupt(format!("{CONSTANTS} is too long")));
            }
        }
        let loaded = Self::of(program, &kinds, constants)?;
        if loaded.plan != plan {
            return Err(corrupt(format!("{PLAN} is not that of {GRAPH}")));
        }
        Ok(loaded)
    }
}

/// Refuses a program that refers to what it does not have.
pub(super) fn check(program: &Program, inputs: usize) -> Result<(), Failure> {
    let count = program.values.len();
    let mut defined = vec![false; count.min(MOST_VALUES)];
    let mut define = |id: ValueId| match defined.get_mut(id.0) {
        Some(defined) if !*defined => {
            *defined = true;
            Ok(())
        }
        _ => Err(invalid(format!("value {} is not defined once", id.0))),
    };
    for (i, input) in program.inputs.iter().enumerate() {
        define(input.value)?;
        let rank = program.value(input.value).shape.len();
        if input.position != i || input.strides.len() != rank || program.inputs.len() != inputs {
            return Err(invalid(format!("input {i} is not described")));
        }
    }
    program.nodes.iter().try_for_each(|node| define(node.writes))?;
    let ascending = program.updates.windows(2).all(|pair| pair[0] < pair[1]);
    let known = program.updates.last().is_none_or(|input| *input < inputs);
    if !ascending || !known || program.updates.len() > program.outputs.len() {
        return Err(invalid("what is left in the inputs is not described"));
    }
    let mut reads = program.nodes.iter().flat_map(|node| &node.reads).chain(&program.outputs);
    if let Some(read) = reads.find(|read| defined.get(read.0) != Some(&true)) {
        return Err(invalid(format!("value {} is read and never defined", read.0)));
    }
    match program.misfit() {
        Some(input) => {
            let why = format!("what is left in input {input} has not its type and shape");
            Err(invalid(why))
        }
        None => Ok(()),
    }
}

fn parse<'a, T: Deserialize<'a>>(name: &str, bytes: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|e| corrupt(format!("{name}: {e}")))
}

fn corrupt(why: String) -> Failure {
    Failure::new(FailureKind::Corrupt, why)
}
