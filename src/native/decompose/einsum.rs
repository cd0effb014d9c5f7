//! Sums over letters, as products of matrices.
//!
//! Invariant: what one operand alone sums over is summed before the product.

use super::{
    super::{
        core::{Reduction, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why, one,
    products::matmul,
    shapes::product,
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "einsum.default" => einsum,
        _ => return None,
    })
}

/// One or two operands, each letter once in an operand.
fn einsum(args: &mut Args<'_>) -> Outputs {
    let equation: String = args.text("equation", "")?.split_whitespace().collect();
    let (inputs, output) = match equation.split_once("->") {
        Some((inputs, output)) => (inputs.to_owned(), output.to_owned()),
        None => {
            let letters: Vec<char> = equation.chars().filter(|c| *c != ',').collect();
            let mut once: Vec<char> = letters.clone();
            once.retain(|c| letters.iter().filter(|l| *l == c).count() == 1);
            once.sort_unstable();
            (equation.clone(), once.into_iter().collect())
        }
    };
    let operands = args.tensors("tensors")?;
    let terms: Vec<Vec<char>> = inputs.split(',').map(|term| term.chars().collect()).collect();
    let output: Vec<char> = output.chars().collect();
    let plain = |term: &Vec<char>| {
        term.iter().all(|c| c.is_ascii_alphabetic())
            && term.iter().all(|c| term.iter().filter(|l| *l == c).count() == 1)
    };
    let ranks_fit = || {
        let ranks = terms.iter().zip(&operands);
        terms.len() == operands.len() && ranks.into_iter().all(|(t, x)| t.len() == args.b.rank(*x))
    };
    if !terms.iter().all(plain) || !plain(&output) || !ranks_fit() || operands.len() > 2 {
        return unsupported(format!("the equation {equation:?}"));
    }
    let dtype = args.b.dtype(operands[0]);
    let kept = |c: &char, other: Option<&Vec<char>>| {
        output.contains(c) || other.is_some_and(|other| other.contains(c))
    };
    // What only one operand has and the result has not is summed first.
    let mut parts = Vec::new();
    for (i, (term, value)) in terms.iter().zip(operands).enumerate() {
        let other = terms.iter().enumerate().find(|(j, _)| *j != i).map(|(_, term)| term);
        let gone: Vec<usize> = (0..term.len()).filter(|d| !kept(&term[*d], other)).collect();
        let value = match gone.is_empty() {
            true => value,
            false => args.b.reduce(Reduction::Sum, value, &gone, dtype)?,
        };
        parts.push((term.iter().copied().filter(|c| kept(c, other)).collect::<Vec<_>>(), value));
    }
    let (letters, value) = match &parts[..] {
        [(term, value)] => (term.clone(), *value),
        [(a, x), (b, y)] => contract(args, (a, *x), (b, *y), &output)?,
        _ => return Err("no operands".into()),
    };
    let order: Option<Vec<usize>> =
        output.iter().map(|c| letters.iter().position(|l| l == c)).collect();
    one(args.b.permute(value, &order.ok_or("a letter of the result is in no operand")?))
}

/// Two operands with letters for dimensions, as a product of matrices.
fn contract(
    args: &mut Args<'_>,
    (a, x): (&[char], ValueId),
    (b, y): (&[char], ValueId),
    output: &[char],
) -> Result<(Vec<char>, ValueId), Why> {
    let both = |keep: bool| -> Vec<char> {
        a.iter().copied().filter(|c| b.contains(c) && output.contains(c) == keep).collect()
    };
    let (batch, summed) = (both(true), both(false));
    let only = |x: &[char], y: &[char]| -> Vec<char> {
        x.iter().copied().filter(|c| !y.contains(c)).collect()
    };
    let (rows, columns) = (only(a, b), only(b, a));
    let mut sizes = Vec::new();
    let mut flat = |args: &mut Args<'_>, letters: &[char], value: ValueId, groups: [&[char]; 3]| {
        let places = |group: &[char]| -> Vec<usize> {
            group.iter().filter_map(|c| letters.iter().position(|l| l == c)).collect()
        };
        let order: Vec<usize> = groups.iter().flat_map(|group| places(group)).collect();
        let shape = args.b.shape(value);
        let size = |group: &[char]| -> Vec<Size> {
            places(group).iter().map(|at| shape[*at].clone()).collect()
        };
        let groups = groups.map(size);
        let value = args.b.permute(value, &order);
        let flat = groups.iter().map(product).collect();
        sizes.push(groups);
        args.b.reshape(value, flat)
    };
    let left = flat(args, a, x, [&batch, &rows, &summed]);
    let right = flat(args, b, y, [&batch, &summed, &columns]);
    let dtype = args.b.dtype(x);
    let value = matmul(args.b, left, right, dtype)?;
    let shape = [&sizes[0][0][..], &sizes[0][1], &sizes[1][2]].concat();
    let value = args.b.reshape(value, shape);
    Ok(([batch, rows, columns].concat(), value))
}
