//! A greedy loop over the step of a decoder: `kiln exec --generate`.
//!
//! The step takes one token of each row and where it stands, and gives the logits of the next
//! one. What it leaves in its inputs (a cache of keys and values) is what the next step finds
//! there, whether these are buffers or arguments. On a GPU all steps replay one CUDA graph.
//!
//! Invariant: a token is the place of the greatest logit of its row, the first one among
//! equals; logits that are no numbers are an error, not a token. A row that has said one of
//! the last words says nothing after it. What was said is written, also where a later step
//! fails.

mod fed;
mod room;
mod step;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use fed::Fed;
use kiln_proto::graph::DType;
use step::Step;

use super::{Exec, ExecError, Tensor, cpu, given, patched, tensors::write_outputs};

/// As `--position`: the program counts by itself.
pub(super) const NO_POSITION: &str = "none";

/// How a greedy loop goes.
#[derive(Debug, Clone)]
pub struct Generate {
    /// Most new tokens of a row: at least one.
    pub tokens: usize,
    /// The last words: a row ends with any of them.
    pub stop: Vec<i64>,
    /// The input that takes tokens; none: the one with the usual name.
    pub token: Option<String>,
    /// The inputs that grow by one with each step, the one that says where tokens stand first,
    /// the same; `none`: the program counts by itself.
    pub position: Vec<String>,
    /// Tokens of a row that the program's cache has places for; `None`: nobody said.
    pub room: Option<usize>,
    /// The output with the logits.
    pub logits: usize,
    /// Set while the loop runs: no further step begins.
    pub halt: Arc<AtomicBool>,
    /// Is told, before the first step, what the caller should know.
    pub tell: fn(&str),
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
    if exec.state.is_some() {
        super::check_state(&step.plan)?;
    }
    let mut said = Said::default();
    if let Err(error) = run(&mut step, wanted, &mut said) {
        if said.tokens.iter().all(Vec::is_empty) {
            return Err(error);
        }
        // What was said is not lost with the step that failed.
        let (steps, path) = (said.steps, exec.output.clone());
        return match write(&path, &said.tokens) {
            Ok(()) => Err(ExecError::Ended { steps, path, error: Box::new(error) }),
            Err(_) => Err(error),
        };
    }
    let state = match &exec.state {
        Some(path) => Some((path, super::state_of(&step.plan, &step.outputs()?)?)),
        None => None,
    };
    write(&exec.output, &said.tokens)?;
    // Last, as that of one run: a loop whose tokens are nowhere is run again.
    if let Some((path, (names, tensors))) = state {
        super::keep_state(path, names, &tensors)?;
    }
    let Said { tokens, prompt, steps, micros } = said;
    let step_us = (!micros.is_empty()).then(|| super::times::median(micros));
    Ok(Generated { device: step.device, tokens, prompt, steps, step_us })
}

/// What a loop has come to.
#[derive(Debug, Default)]
struct Said {
    tokens: Vec<Vec<i64>>,
    prompt: usize,
    steps: usize,
    /// Of each step behind the prompt.
    micros: Vec<f64>,
}

/// The loop itself.
fn run(step: &mut Step, wanted: &Generate, said: &mut Said) -> Result<(), ExecError> {
    let tokens = Fed::tokens(step, wanted.token.as_deref())?;
    let mut positions = Fed::positions(step, &wanted.position, tokens.input)?;
    if wanted.logits >= step.plan.outputs.len() {
        let (logits, count) = (wanted.logits, step.plan.outputs.len());
        return Err(refuse(format!("there is no output {logits}: the program has {count}")));
    }
    room::check_words(step, &tokens, wanted.logits)?;
    room::check_places(step, (&tokens, &positions), wanted)?;
    let mut stay = fed::arguments(step, Some(tokens.input));
    stay.retain(|input| positions.iter().all(|position| position.input != *input));
    if !stay.is_empty() {
        let names = fed::names(step, &stay);
        (wanted.tell)(&format!("each step is given the same {names}"));
    }
    let (rows, most) = (tokens.rows(), wanted.tokens.max(1));
    said.prompt = tokens.columns();
    said.tokens = vec![Vec::new(); rows];
    loop {
        let next = match said.steps < said.prompt {
            true => tokens.column(said.steps),
            // A row that has ended repeats itself: what comes of that is dropped.
            false => tokens.of(said.tokens.iter().map(|row| *row.last().unwrap_or(&0))),
        };
        let start = Instant::now();
        step.set(tokens.input, next)?;
        for position in &positions {
            step.set(position.input, position.tensor())?;
        }
        let logits = step.run(wanted.logits)?;
        let took = start.elapsed().as_secs_f64() * 1e6;
        said.steps += 1;
        if said.steps > said.prompt {
            said.micros.push(took);
        }
        if said.steps >= said.prompt {
            let logits = Logits::of(&logits, rows)?;
            let goes_on = |row: &[i64]| !ended(row, most, &wanted.stop);
            // All are judged before one is told: rows of a file are of one step.
            let words = said.tokens.iter().enumerate();
            let words =
                words.map(|(row, told)| goes_on(told).then(|| logits.best(row)).transpose());
            let words: Vec<Option<i64>> = words.collect::<Result<_, _>>()?;
            said.tokens.iter_mut().zip(words).for_each(|(row, word)| row.extend(word));
            if !said.tokens.iter().any(|row| goes_on(row)) {
                return Ok(());
            }
        }
        if wanted.halt.load(Ordering::Relaxed) {
            return Err(refuse("the loop was told to end"));
        }
        // Of a further step alone: there may be no position after the last one.
        positions.iter_mut().try_for_each(Fed::advance)?;
    }
}

fn ended(row: &[i64], most: usize, stop: &[i64]) -> bool {
    row.len() >= most || row.last().is_some_and(|word| stop.contains(word))
}

fn refuse(why: impl Into<String>) -> ExecError {
    ExecError::Inputs(why.into())
}

/// Logits of all rows: of the last position, where there are several.
struct Logits {
    numbers: Vec<f64>,
    /// Numbers of one row, and of them those of its last position.
    of_row: usize,
    words: usize,
}

impl Logits {
    fn of(logits: &Tensor<'_>, rows: usize) -> Result<Self, ExecError> {
        let Tensor { dtype, shape, bytes } = logits;
        let words = shape.last().copied().unwrap_or(0);
        let fits = (2..=3).contains(&shape.len()) && shape[0] == rows && !shape.contains(&0);
        if !fits {
            return Err(refuse(format!(
                "the logits have shape {shape:?}, not [{rows}, words] or [{rows}, 1, words]: \
                 --logits N names another output"
            )));
        }
        let numbers = kiln_native::interp::Tensor::dense(*dtype, shape, &**bytes).to_f64()?;
        Ok(Self { of_row: numbers.len() / rows, numbers, words })
    }

    /// The place of a row's greatest logit.
    fn best(&self, row: usize) -> Result<i64, ExecError> {
        let end = (row + 1) * self.of_row;
        let logits = &self.numbers[end - self.words..end];
        let mut found = 0;
        for (at, logit) in logits.iter().enumerate() {
            if logit.is_nan() {
                return Err(refuse(format!("logit {at} of row {row} is no number (NaN)")));
            }
            if *logit > logits[found] {
                found = at;
            }
        }
        Ok(found as i64)
    }
}

/// Writes the tokens, by the file's ending, whole or not at all.
fn write(path: &Path, tokens: &[Vec<i64>]) -> Result<(), ExecError> {
    if path.extension().is_some_and(|ending| ending == "json") {
        let text = serde_json::json!({ "tokens": tokens }).to_string() + "\n";
        return super::put_whole(path, |path| {
            let failed = |error| ExecError::File { path: path.to_owned(), error };
            std::fs::write(path, &text).map_err(failed)
        });
    }
    let longest = tokens.iter().map(Vec::len).max().unwrap_or_default();
    let filled = tokens.iter().flat_map(|row| {
        let last = row.last().copied().unwrap_or_default();
        row.iter().copied().chain(std::iter::repeat(last)).take(longest)
    });
    let bytes: Vec<u8> = filled.flat_map(i64::to_le_bytes).collect();
    let tensor = Tensor::new(DType::I64, &[tokens.len(), longest], bytes)?;
    super::put_whole(path, |path| {
        write_outputs(
            path,
            vec!["tokens".to_owned()],
            std::slice::from_ref(&tensor),
            Default::default(),
        )
    })
}
