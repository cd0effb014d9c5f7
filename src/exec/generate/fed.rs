//! What a step is given anew: tokens, and where they stand.
//!
//! Invariant: which argument is which is never guessed between two, and an argument is called
//! what messages call it.

use kiln_proto::graph::DType;

use super::{
    super::{ExecError, Tensor},
    NO_POSITION, refuse,
    step::Step,
};

/// What an input is called that nobody named: for the tokens, and for where they stand.
const TOKENS: [&str; 4] = ["token", "tokens", "input_ids", "idx"];
const POSITIONS: [&str; 5] =
    ["position", "positions", "position_ids", "cache_position", "input_pos"];

/// Whole numbers that each step is given anew.
pub(super) struct Fed {
    pub(super) input: usize,
    dtype: DType,
    /// Of the file's tensor.
    pub(super) shape: Vec<usize>,
    pub(super) numbers: Vec<i64>,
}

impl Fed {
    fn of_input(step: &Step, input: usize) -> Result<Self, ExecError> {
        let Tensor { dtype, shape, bytes } = &step.inputs[input];
        let numbers = match dtype {
            DType::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            _ => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
        };
        Ok(Self { input, dtype: *dtype, shape: shape.clone(), numbers })
    }

    /// The prompt: a number for each row, or a row of numbers.
    pub(super) fn tokens(step: &Step, name: Option<&str>) -> Result<Self, ExecError> {
        let usual = || usual(step, &TOKENS, None);
        let input = match name {
            Some(name) => called(step, name, None)?,
            None => match usual()?[..] {
                [input] => input,
                [] => {
                    let names = names(step, &arguments(step, None));
                    return Err(refuse(match names.as_str() {
                        "" => "the program takes no tokens: whole numbers".to_owned(),
                        names => format!("which argument takes the tokens? --token {names}"),
                    }));
                }
                ref several => {
                    let names = names(step, several);
                    return Err(refuse(format!(
                        "which argument takes the tokens? --token {names}"
                    )));
                }
            },
        };
        let fed = Self::of_input(step, input)?;
        let name = &step.names[input];
        if fed.shape.len() > 2 {
            let shape = &fed.shape;
            return Err(refuse(format!("{name} has shape {shape:?}: not rows of tokens")));
        }
        if fed.rows() == 0 || fed.columns() == 0 {
            return Err(refuse(format!("{name} is empty: give at least one token of each row")));
        }
        Ok(fed)
    }

    /// What grows by one with each step, where the first token stands before all; none: the
    /// program counts by itself.
    pub(super) fn positions(
        step: &Step,
        given: &[String],
        tokens: usize,
    ) -> Result<Vec<Self>, ExecError> {
        let mut inputs = Vec::with_capacity(given.len());
        match given {
            [none] if none == NO_POSITION => {}
            [] => {
                inputs = usual(step, &POSITIONS, Some(tokens))?;
                let others = arguments(step, Some(tokens));
                if inputs.len() > 1 {
                    return Err(refuse(format!(
                        "{} may all say where tokens stand: --position NAME for each that grows \
                         by one with each step, what is judged by its room first",
                        names(step, &inputs)
                    )));
                }
                if inputs.is_empty() && !others.is_empty() {
                    return Err(refuse(format!(
                        "which argument says where tokens stand? --position {}; --position \
                         {NO_POSITION} where the program counts by itself",
                        names(step, &others)
                    )));
                }
            }
            given => {
                for name in given {
                    let input = called(step, name, Some(tokens))?;
                    if inputs.contains(&input) {
                        return Err(refuse(format!("--position {name} is given twice")));
                    }
                    inputs.push(input);
                }
            }
        }
        inputs.into_iter().map(|input| Self::of_input(step, input)).collect()
    }

    pub(super) fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    pub(super) fn columns(&self) -> usize {
        self.shape.get(1).copied().unwrap_or(1)
    }

    /// One token of each row of the prompt.
    pub(super) fn column(&self, at: usize) -> Tensor<'static> {
        self.of(self.numbers.chunks(self.columns()).map(|row| row[at]))
    }

    /// One number for each row.
    pub(super) fn of(&self, numbers: impl Iterator<Item = i64>) -> Tensor<'static> {
        let mut shape = self.shape.clone();
        if let Some(columns) = shape.get_mut(1) {
            *columns = 1;
        }
        let bytes = numbers.flat_map(|number| match self.dtype {
            DType::I64 => number.to_le_bytes().to_vec(),
            _ => (number as i32).to_le_bytes().to_vec(),
        });
        Tensor { dtype: self.dtype, shape, bytes: bytes.collect::<Vec<u8>>().into() }
    }

    /// All numbers, as they are now.
    pub(super) fn tensor(&self) -> Tensor<'static> {
        let shape = self.shape.clone();
        Tensor { shape, ..self.of(self.numbers.iter().copied()) }
    }

    /// One further.
    pub(super) fn advance(&mut self) -> Result<(), ExecError> {
        let last = if self.dtype == DType::I64 { i64::MAX } else { i32::MAX.into() };
        for number in &mut self.numbers {
            if *number == last {
                return Err(refuse("there is no position after the last one"));
            }
            *number += 1;
        }
        Ok(())
    }
}

/// Whether the caller may change that input from step to step: an argument of whole numbers.
fn may_be_fed(step: &Step, input: usize) -> bool {
    let of = &step.plan.inputs[input];
    of.kind == "user" && !of.updated && matches!(of.dtype, DType::I64 | DType::I32)
}

/// All of them, but one.
pub(super) fn arguments(step: &Step, but: Option<usize>) -> Vec<usize> {
    let all = 0..step.plan.inputs.len();
    all.filter(|input| may_be_fed(step, *input) && Some(*input) != but).collect()
}

pub(super) fn names(step: &Step, inputs: &[usize]) -> String {
    let names: Vec<&str> = inputs.iter().map(|input| step.names[*input].as_str()).collect();
    names.join(", ")
}

/// The argument of that name.
fn called(step: &Step, name: &str, but: Option<usize>) -> Result<usize, ExecError> {
    let all = arguments(step, but);
    all.iter().copied().find(|input| step.names[*input] == name).ok_or_else(|| {
        let there = if all.is_empty() { "none".to_owned() } else { names(step, &all) };
        refuse(format!("there is no argument {name:?} of whole numbers; there is {there}"))
    })
}

/// The arguments with one of these names; one of them that is nothing to feed is refused.
fn usual(step: &Step, usual: &[&str], but: Option<usize>) -> Result<Vec<usize>, ExecError> {
    let is_usual = |input: &usize| {
        let argument = step.plan.inputs[*input].kind == "user" && Some(*input) != but;
        argument && usual.contains(&step.names[*input].as_str())
    };
    let found: Vec<usize> = (0..step.plan.inputs.len()).filter(is_usual).collect();
    match found.iter().find(|input| !may_be_fed(step, **input)) {
        None => Ok(found),
        Some(input) => {
            let (name, of) = (&step.names[*input], &step.plan.inputs[*input]);
            let what = match of.updated {
                true => "is what the program itself changes".to_owned(),
                false => format!("is {}, not whole numbers (i64 or i32)", of.dtype),
            };
            Err(refuse(format!(
                "{name} {what}: name what each step is given, --token NAME or --position NAME; \
                 --position {NO_POSITION} where the program counts by itself"
            )))
        }
    }
}
