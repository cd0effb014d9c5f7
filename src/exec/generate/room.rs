//! What a loop would do out of range, as far as that can be told before the first step.
//!
//! A read or a write whose place is decided by numbers is not checked on a GPU: a token that is
//! no word, and a block beyond a row's table, are read from wherever that is.
//!
//! Invariant: nothing is refused here but what the shapes prove, or what the caller said.

use kiln_native::plan::{Expr, Plan};
use kiln_proto::graph::DType;

use super::{
    super::ExecError,
    Generate,
    fed::{self, Fed},
    refuse,
    step::Step,
};

/// Refuses tokens that are no words, where the plan knows how many there are: not more than the
/// longest table of the program has rows, or the logits have places.
pub(super) fn check_words(step: &Step, tokens: &Fed, logits: usize) -> Result<(), ExecError> {
    let words = words(step, logits);
    let is_word = |token: i64| token >= 0 && words.is_none_or(|words| token < words);
    let Some(at) = tokens.numbers.iter().position(|token| !is_word(*token)) else {
        return Ok(());
    };
    let (token, name) = (tokens.numbers[at], &step.names[tokens.input]);
    let row = at / tokens.columns();
    Err(refuse(match words {
        Some(words) => {
            format!("{name} of row {row} has {token}, which is not one of {words} words")
        }
        None => format!("{name} of row {row} has {token}, which is below zero"),
    }))
}

fn words(step: &Step, logits: usize) -> Option<i64> {
    let Plan { inputs, outputs, .. } = &step.plan;
    let whole = |dtype| matches!(dtype, DType::I64 | DType::I32);
    let tables = inputs
        .iter()
        .zip(&step.inputs)
        .filter(|(input, _)| input.shape.len() == 2 && !input.updated && !whole(input.dtype));
    let rows = |(input, given): (&kiln_native::plan::Tensor, &super::Tensor<'_>)| {
        // Of a constant nothing is given.
        let given = given.shape.first().filter(|_| given.shape.len() == 2);
        input.shape[0].known().or_else(|| i64::try_from(*given?).ok())
    };
    let longest = tables.map(rows).collect::<Option<Vec<i64>>>()?.into_iter().max()?;
    let logits = outputs.get(logits)?.shape.last().and_then(Expr::known)?;
    Some(longest.max(logits))
}

/// Refuses a loop whose last token has no place, and tells what cannot be known.
pub(super) fn check_places(
    step: &Step,
    (tokens, positions): (&Fed, &[Fed]),
    wanted: &Generate,
) -> Result<(), ExecError> {
    let first = positions.first();
    let numbers = first.map_or(&[][..], |position| &position.numbers);
    if let (Some(least), Some(position)) = (numbers.iter().min().filter(|n| **n < 0), first) {
        let name = &step.names[position.input];
        return Err(refuse(format!("{name} is {least}: a token stands at 0 or behind it")));
    }
    let start = numbers.iter().max().copied().unwrap_or(0);
    let steps = tokens.columns().saturating_add(wanted.tokens.max(1) - 1);
    let last = start.saturating_add(i64::try_from(steps).unwrap_or(i64::MAX) - 1);
    let table = table(step, tokens, positions);
    let needs = || format!("the last token stands at {last} (counted from 0)");
    if let Some(room) = wanted.room {
        if last < i64::try_from(room).unwrap_or(i64::MAX) {
            return Ok(());
        }
        return Err(refuse(format!("{}, and there is room for {room}: --room", needs())));
    }
    if let Some(places) = places(step, positions, table.as_deref()).filter(|most| last >= *most) {
        return Err(refuse(format!(
            "{}, and the cache cannot have more than {places} places by its shape; give it more, \
             or say --room N if this program keeps places in another way",
            needs()
        )));
    }
    match &table {
        Some(table) if step.is_on_gpu() => Err(refuse(format!(
            "how many tokens of a row its cache has room for is not known, and on a GPU steps \
             beyond would write into other rows: --room N, blocks of a row in {table} times \
             tokens of a block"
        ))),
        _ if step.plan.inputs.iter().any(|input| input.updated) => {
            (wanted.tell)(
                "steps past the end of the cache may not be noticed: --room N says how \
                           many tokens of a row it has room for",
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The arguments that may say where blocks are: whole numbers, more than one, that stay as given.
fn table(step: &Step, tokens: &Fed, positions: &[Fed]) -> Option<String> {
    let is_fed = |input: &usize| positions.iter().any(|position| position.input == *input);
    let mut stay = fed::arguments(step, Some(tokens.input));
    stay.retain(|input| !is_fed(input) && !step.inputs[*input].shape.is_empty());
    (!stay.is_empty()).then(|| fed::names(step, &stay))
}

/// The most places that one row can have: the longest dimension of what the program changes,
/// and with a table that many in each of its blocks. `None`: nothing says where tokens stand.
fn places(step: &Step, positions: &[Fed], table: Option<&str>) -> Option<i64> {
    positions.first()?;
    let changed = step.plan.inputs.iter().zip(&step.inputs);
    let changed = changed.filter(|(input, given)| input.updated && given.shape.len() >= 2);
    let longest = changed.flat_map(|(_, given)| &given.shape).max()?;
    let blocks = match table {
        None => 1,
        Some(_) => {
            let whole = fed::arguments(step, None).into_iter();
            let longest = whole.flat_map(|input| &step.inputs[input].shape).max();
            *longest?
        }
    };
    i64::try_from(longest.checked_mul(blocks)?).ok()
}
