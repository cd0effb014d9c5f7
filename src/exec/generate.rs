//! A greedy loop over the step of a decoder: `kiln exec --generate`.
//!
//! The step takes one token of each row and where it stands, and gives the logits of the next
//! one. What it leaves in its inputs (a cache of keys and values) is what the next step finds
//! there, whether these are buffers or arguments. On a GPU all steps replay one CUDA graph.
//!
//! Invariant: a token is the place of the greatest logit of its row, the first one among
//! equals; logits that are no numbers are an error, not a token. A row that has said one of
//! the last words says nothing after it.

use std::{path::Path, time::Instant};

use kiln_native::{interp::Settings, plan::Plan};
use kiln_proto::graph::DType;

use super::{
    Exec, ExecError, Module, Session, Tensor, cpu, given, patched, program,
    tensors::{read_with, write_outputs},
};

/// What an input is called that nobody named: for the tokens, and for where they stand.
const TOKENS: [&str; 4] = ["token", "tokens", "input_ids", "idx"];
const POSITIONS: [&str; 5] =
    ["position", "positions", "position_ids", "cache_position", "input_pos"];

/// How a greedy loop goes.
#[derive(Debug, Clone)]
pub struct Generate {
    /// Most new tokens of a row: at least one.
    pub tokens: usize,
    /// The last words: a row ends with any of them.
    pub stop: Vec<i64>,
    /// The input that takes tokens; none: the one with the usual name.
    pub token: Option<String>,
    /// The input that says where they stand, the same.
    pub position: Option<String>,
    /// The output with the logits.
    pub logits: usize,
}

/// What a loop gave, for people and as JSON.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Generated {
    /// The device's name.
    pub device: String,
    /// Of each row, the last word included.
    pub tokens: Vec<Vec<i64>>,
    /// Tokens of each row that were given.
    pub prompt: usize,
    /// Steps that ran, those of the prompt among them.
    pub steps: usize,
    /// The median of a step behind the prompt, its inputs and logits copied, in microseconds;
    /// absent where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_us: Option<f64>,
}

impl std::fmt::Display for Generated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { device, tokens, steps, step_us, .. } = self;
        write!(f, "{device}: {steps} steps")?;
        if let Some(micros) = step_us {
            write!(f, ", {micros:.1} us each (median)")?;
        }
        for row in tokens {
            let words: Vec<String> = row.iter().map(ToString::to_string).collect();
            write!(f, "\n{}", words.join(" "))?;
        }
        Ok(())
    }
}

/// `kiln exec DIR --generate N`: runs the step in `exec.dir` again and again.
///
/// `exec.output` gets the tokens: JSON where it ends in `.json`, else a safetensors file with
/// `tokens`, of which rows that ended early are filled up with their last word.
pub fn generate_main(exec: &Exec, wanted: &Generate) -> Result<Generated, ExecError> {
    if patched::is_patched(&exec.dir) {
        let why = "pieces of it run on the CPU and others on a GPU: --generate runs on one device";
        return Err(ExecError::Inputs(why.to_owned()));
    }
    let (file, kept) = given(exec)?;
    let mut step = match cpu::is_eager(&exec.dir) {
        true => Step::on_cpu(exec, &file, kept.as_deref())?,
        false => Step::on_gpu(exec, &file, kept.as_deref())?,
    };
    let generated = run(&mut step, wanted)?;
    let state = match &exec.state {
        Some(path) => Some((path, super::state_of(&step.plan, &step.outputs()?)?)),
        None => None,
    };
    write(&exec.output, &generated.tokens)?;
    // Last, as that of one run: a loop whose tokens are nowhere is run again.
    if let Some((path, (names, tensors))) = state {
        super::keep_state(path, names, &tensors)?;
    }
    Ok(generated)
}

/// The loop itself.
fn run(step: &mut Step, wanted: &Generate) -> Result<Generated, ExecError> {
    let tokens = Fed::tokens(step, wanted.token.as_deref())?;
    let mut position = Fed::position(step, wanted.position.as_deref(), tokens.input)?;
    if wanted.logits >= step.plan.outputs.len() {
        let (logits, count) = (wanted.logits, step.plan.outputs.len());
        return Err(refuse(format!("there is no output {logits}: the program has {count}")));
    }
    let prompt = tokens.columns();
    let (rows, most) = (tokens.rows(), wanted.tokens.max(1));
    let mut said: Vec<Vec<i64>> = vec![Vec::new(); rows];
    let (mut micros, mut steps) = (Vec::new(), 0);
    while said.iter().any(|row| !ended(row, most, &wanted.stop)) {
        let next = match steps < prompt {
            true => tokens.column(steps),
            // A row that has ended repeats itself: what comes of that is dropped.
            false => tokens.of(said.iter().map(|row| *row.last().unwrap_or(&0))),
        };
        let start = Instant::now();
        step.set(tokens.input, next)?;
        if let Some(position) = &position {
            step.set(position.input, position.tensor())?;
        }
        let logits = step.run(wanted.logits)?;
        let took = start.elapsed().as_secs_f64() * 1e6;
        steps += 1;
        if let Some(position) = &mut position {
            position.advance()?;
        }
        if steps < prompt {
            continue;
        }
        if steps > prompt {
            micros.push(took);
        }
        for (row, word) in said.iter_mut().zip(best(&logits, rows)?) {
            if !ended(row, most, &wanted.stop) {
                row.push(word);
            }
        }
    }
    let step_us = (!micros.is_empty()).then(|| super::times::median(micros));
    Ok(Generated { device: step.device.clone(), tokens: said, prompt, steps, step_us })
}

fn ended(row: &[i64], most: usize, stop: &[i64]) -> bool {
    row.len() >= most || row.last().is_some_and(|word| stop.contains(word))
}

fn refuse(why: impl Into<String>) -> ExecError {
    ExecError::Inputs(why.into())
}

/// The step, on what it runs on.
struct Step {
    /// With the program's own names.
    plan: Plan,
    device: String,
    /// As the file has them: of the token the whole prompt.
    inputs: Vec<Tensor<'static>>,
    on: On,
}

enum On {
    /// With the outputs of the last run.
    Cpu(Box<cpu::Program>, Vec<Tensor<'static>>),
    /// And whether the inputs lie there already.
    Gpu(Box<Session>, bool),
}

impl Step {
    fn on_cpu(exec: &Exec, file: &[u8], kept: Option<&[u8]>) -> Result<Self, ExecError> {
        let program = cpu::Program::load(&exec.dir)?;
        let mut plan = program.plan();
        let signature = program::read_signature(&exec.dir, &plan)?;
        let inputs = own(read_with(file, kept, &plan, signature.as_ref())?);
        program::rename(&mut plan, signature.as_ref());
        Ok(Self { plan, device: "cpu".to_owned(), inputs, on: On::Cpu(Box::new(program), vec![]) })
    }

    fn on_gpu(exec: &Exec, file: &[u8], kept: Option<&[u8]>) -> Result<Self, ExecError> {
        let module = Module::load(&exec.dir, exec.device)?;
        let inputs = own(read_with(file, kept, module.plan(), module.signature())?);
        let (plan, device) = (module.plan().clone(), module.device().to_owned());
        Ok(Self { plan, device, inputs, on: On::Gpu(Box::new(module.session()?), false) })
    }

    fn set(&mut self, input: usize, tensor: Tensor<'static>) -> Result<(), ExecError> {
        if let On::Gpu(session, true) = &mut self.on {
            session.set(input, &tensor)?;
        }
        self.inputs[input] = tensor;
        Ok(())
    }

    /// Runs once, from where the run before it ended; that output.
    fn run(&mut self, output: usize) -> Result<Tensor<'static>, ExecError> {
        match &mut self.on {
            On::Cpu(program, outputs) => {
                let (all, _) = program.run(&self.plan, &self.inputs, &Settings::default())?;
                *outputs = all.into_iter().map(Tensor::from).collect();
                let updated = self.plan.inputs.iter().zip(&mut self.inputs);
                let updated = updated.filter(|(input, _)| input.updated);
                for ((_, input), left) in updated.zip(&outputs[self.plan.outputs.len()..]) {
                    input.clone_from(left);
                }
                Ok(outputs[output].clone())
            }
            On::Gpu(session, ready) => {
                if !*ready {
                    session.set_all(&self.inputs)?;
                    *ready = true;
                }
                session.replay()?;
                session.output(output)
            }
        }
    }

    /// What the last run gave, and behind it what is left in inputs.
    fn outputs(&self) -> Result<Vec<Tensor<'static>>, ExecError> {
        match &self.on {
            On::Cpu(_, outputs) => Ok(outputs.clone()),
            On::Gpu(session, _) => session.all_outputs(),
        }
    }

    /// The argument of that name, or of one of the usual ones.
    fn input(
        &self,
        name: Option<&str>,
        usual: &[&str],
        but: Option<usize>,
    ) -> Result<Found, ExecError> {
        let is_whole = |dtype| matches!(dtype, DType::I64 | DType::I32);
        let arguments = self.plan.inputs.iter().enumerate();
        let arguments: Vec<(usize, &str)> = arguments
            .filter(|(at, input)| {
                input.kind == "user" && !input.updated && is_whole(input.dtype) && Some(*at) != but
            })
            .map(|(at, input)| (at, input.name.as_str()))
            .collect();
        let called = |wanted: &str| {
            let mut found = arguments.iter();
            found.find(|(at, name)| *name == wanted || format!("in{at}") == wanted)
        };
        let names = || arguments.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ");
        if let Some(wanted) = name {
            return match called(wanted) {
                Some((at, _)) => Ok(Found::Input(*at)),
                None => Err(refuse(format!(
                    "there is no argument {wanted:?} of whole numbers; there is {}",
                    if arguments.is_empty() { "none".to_owned() } else { names() }
                ))),
            };
        }
        match usual.iter().find_map(|name| called(name)) {
            Some((at, _)) => Ok(Found::Input(*at)),
            None if arguments.is_empty() => Ok(Found::Nothing),
            None => Ok(Found::Unnamed(names())),
        }
    }
}

/// Which input is meant.
enum Found {
    Input(usize),
    /// No argument could be it.
    Nothing,
    /// One of these.
    Unnamed(String),
}

fn own(tensors: Vec<Tensor<'_>>) -> Vec<Tensor<'static>> {
    let own = |Tensor { dtype, shape, bytes }| Tensor {
        dtype,
        shape,
        bytes: std::borrow::Cow::Owned(Vec::from(bytes)),
    };
    tensors.into_iter().map(own).collect()
}

/// Whole numbers that each step is given anew.
struct Fed {
    input: usize,
    dtype: DType,
    /// Of the file's tensor.
    shape: Vec<usize>,
    numbers: Vec<i64>,
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
    fn tokens(step: &Step, name: Option<&str>) -> Result<Self, ExecError> {
        let input = match step.input(name, &TOKENS, None)? {
            Found::Input(input) => input,
            Found::Nothing => return Err(refuse("the program takes no tokens: whole numbers")),
            Found::Unnamed(names) => {
                return Err(refuse(format!("which argument takes the tokens? --token {names}")));
            }
        };
        let fed = Self::of_input(step, input)?;
        let name = &step.plan.inputs[input].name;
        if fed.shape.len() > 2 {
            let shape = &fed.shape;
            return Err(refuse(format!("{name} has shape {shape:?}: not rows of tokens")));
        }
        if fed.rows() == 0 || fed.columns() == 0 {
            return Err(refuse(format!("{name} is empty: give at least one token of each row")));
        }
        Ok(fed)
    }

    /// Where the first token stands; `None`: the program counts by itself.
    fn position(step: &Step, name: Option<&str>, tokens: usize) -> Result<Option<Self>, ExecError> {
        match step.input(name, &POSITIONS, Some(tokens))? {
            Found::Input(input) => Ok(Some(Self::of_input(step, input)?)),
            Found::Nothing => Ok(None),
            Found::Unnamed(names) => {
                Err(refuse(format!("which argument says where tokens stand? --position {names}")))
            }
        }
    }

    fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    fn columns(&self) -> usize {
        self.shape.get(1).copied().unwrap_or(1)
    }

    /// One token of each row of the prompt.
    fn column(&self, at: usize) -> Tensor<'static> {
        self.of(self.numbers.chunks(self.columns()).map(|row| row[at]))
    }

    /// One number for each row.
    fn of(&self, numbers: impl Iterator<Item = i64>) -> Tensor<'static> {
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
    fn tensor(&self) -> Tensor<'static> {
        let shape = self.shape.clone();
        Tensor { shape, ..self.of(self.numbers.iter().copied()) }
    }

    /// One further.
    fn advance(&mut self) -> Result<(), ExecError> {
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

/// For each row the place of its greatest logit: of the last position, where there are several.
fn best(logits: &Tensor<'_>, rows: usize) -> Result<Vec<i64>, ExecError> {
    let Tensor { dtype, shape, bytes } = logits;
    let words = shape.last().copied().unwrap_or(0);
    let fits = (2..=3).contains(&shape.len()) && shape[0] == rows && !shape.contains(&0);
    if !fits {
        return Err(refuse(format!(
            "the logits have shape {shape:?}, not [{rows}, words] or [{rows}, 1, words]: \
             --logits N names another output"
        )));
    }
    let dense = kiln_native::interp::Tensor::dense(*dtype, shape, &**bytes);
    let numbers = dense.to_f64()?;
    let of_row = numbers.len() / rows;
    let row = |row: &[f64]| {
        let mut found = 0;
        for (at, logit) in row.iter().enumerate() {
            if logit.is_nan() {
                return Err(refuse(format!("logit {at} is no number (NaN)")));
            }
            if *logit > row[found] {
                found = at;
            }
        }
        Ok(found as i64)
    };
    numbers.chunks(of_row).map(|all| row(&all[of_row - words..])).collect()
}

/// Writes the tokens, by the file's ending.
fn write(path: &Path, tokens: &[Vec<i64>]) -> Result<(), ExecError> {
    if path.extension().is_some_and(|ending| ending == "json") {
        let text = serde_json::json!({ "tokens": tokens }).to_string();
        return std::fs::write(path, text + "\n")
            .map_err(|error| ExecError::File { path: path.to_owned(), error });
    }
    let longest = tokens.iter().map(Vec::len).max().unwrap_or_default();
    let filled = tokens.iter().flat_map(|row| {
        let last = row.last().copied().unwrap_or_default();
        row.iter().copied().chain(std::iter::repeat(last)).take(longest)
    });
    let bytes: Vec<u8> = filled.flat_map(i64::to_le_bytes).collect();
    let tensor = Tensor::new(DType::I64, &[tokens.len(), longest], bytes)?;
    write_outputs(path, vec!["tokens".to_owned()], &[tensor], Default::default())
}
