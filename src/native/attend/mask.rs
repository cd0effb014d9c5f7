//! The masks of scores as what attention takes: causal or not, and one tensor.
//!
//! Invariant: each score becomes what the masks one after the other make of it;
//! where they cannot be one tensor, there is no attention.

use kiln_proto::graph::DType;

use super::{
    causal::is_causal,
    emit::Emit,
    flow::{Flow, Side, sides},
    scores::{Layer, Test, What},
};
use crate::{
    core::{Domain, Fun, Op, Operand, ValueId},
    size::Size,
};

/// Most tests that one is looked at as.
const MOST_PARTS: usize = 32;

/// What stands between the products and the softmax.
pub(super) struct Masks {
    pub(super) causal: bool,
    /// What a score becomes that a test hides.
    pub(super) hidden: f64,
    parts: Vec<Part>,
}

/// Masks of which a tensor was made: layers share one.
pub(super) type Known = Vec<(Vec<Part>, ValueId)>;

/// A tensor that is one of several, as a view that broadcasts to all scores.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    value: ValueId,
    shape: Vec<Size>,
    /// A float is taken away, a test says what is hidden.
    not: bool,
    /// The graph's node that it comes from, unless it is an input.
    origin: Option<usize>,
}

impl Masks {
    /// The masks that `layers` are, of scores as `four`.
    pub(super) fn of(flow: &Flow<'_>, layers: &[Layer], four: &[Size; 4]) -> Option<Self> {
        let (mut sums, mut tests) = (Vec::new(), Vec::new());
        let (mut causal, mut hidden) = (false, None);
        for layer in layers {
            let dtype = flow.dtype(layer.scores);
            // With a number instead of minus infinity a row that is hidden altogether
            // has weights: where a row sees its first key for sure, none of them count.
            let counts_for_nothing = |test: &Test| {
                let causal = || split(flow, test.of, test.keep);
                let all =
                    |leaves: Vec<_>| leaves.iter().all(|(of, truth)| is_causal(flow, *of, *truth));
                test.with == f64::NEG_INFINITY
                    || (layers.len() == 1 && is_low(test.with, dtype) && all(causal()))
            };
            let test = match layer.what {
                What::Hide(test) => Some(test),
                What::Add { mask, negative: false } => {
                    zero_or(flow, mask).filter(counts_for_nothing)
                }
                What::Add { .. } => None,
            };
            let Some(test) = test else {
                let What::Add { mask, negative } = layer.what else { return None };
                sums.push(Part::of(flow, mask, layer, negative, four)?);
                continue;
            };
            if hidden.is_some_and(|hidden: f64| hidden != test.with) {
                return None;
            }
            hidden = Some(test.with);
            let skips = counts_for_nothing(&test);
            for (leaf, truth) in split(flow, test.of, test.keep) {
                if skips && is_causal(flow, leaf, truth) {
                    causal = true;
                } else {
                    tests.push(Part::of(flow, leaf, layer, !truth, four)?);
                }
            }
        }
        if !sums.is_empty() && !tests.is_empty() {
            return None;
        }
        sums.extend(tests);
        Some(Self { causal, hidden: hidden.unwrap_or(f64::NEG_INFINITY), parts: sums })
    }

    /// The one tensor, if there is any; `known` are those that were made before.
    pub(super) fn emit(self, emit: &mut Emit<'_>, known: &mut Known) -> Option<ValueId> {
        if let Some((_, value)) = known.iter().find(|(parts, _)| *parts == self.parts) {
            return Some(*value);
        }
        let mut all: Option<ValueId> = None;
        let own = emit.origin;
        for Part { value, shape, not, origin } in self.parts.clone() {
            emit.origin = origin.unwrap_or(own);
            let bool = emit.value(value).dtype == DType::Bool;
            let mut part = emit.reshaped(value, &shape);
            if not {
                let (fun, domain, dtype) = match bool {
                    true => (Fun::Not, Domain::Bool, DType::Bool),
                    false => (Fun::Neg, Domain::Float, emit.value(value).dtype),
                };
                let op = Op::Map { fun, domain, args: vec![Operand::Read(0)] };
                part = emit.node(op, vec![part], dtype, shape);
            }
            all = Some(match all {
                None => part,
                Some(all) => both(emit, all, part, bool),
            });
        }
        emit.origin = own;
        known.extend(all.map(|all| (self.parts, all)));
        all
    }
}

fn both(emit: &mut Emit<'_>, a: ValueId, b: ValueId, bool: bool) -> ValueId {
    let (x, y) = (emit.value(a).shape.clone(), emit.value(b).shape.clone());
    let rank = x.len().max(y.len());
    // Each is that of the scores or one.
    let size = |shape: &[Size], dim: usize| {
        (dim + shape.len()).checked_sub(rank).map_or(Size::from(1), |dim| shape[dim].clone())
    };
    let shape = (0..rank).map(|dim| match size(&x, dim) {
        one if one.is(1) => size(&y, dim),
        whole => whole,
    });
    let (fun, domain, dtype) = match bool {
        true => (Fun::And, Domain::Bool, DType::Bool),
        false => (Fun::Add, Domain::Float, DType::F32),
    };
    let op = Op::Map { fun, domain, args: vec![Operand::Read(0), Operand::Read(1)] };
    emit.node(op, vec![a, b], dtype, shape.collect())
}

impl Part {
    /// `value`, which broadcasts to the scores that `layer` masks.
    fn of(
        flow: &Flow<'_>,
        value: ValueId,
        layer: &Layer,
        not: bool,
        four: &[Size; 4],
    ) -> Option<Self> {
        let (own, scores) = (flow.shape(value), flow.shape(layer.scores));
        let (lead, last) = own.split_at(own.len().saturating_sub(2));
        let shape = if scores == four || lead.is_empty() {
            own.to_vec()
        } else if lead.iter().all(|size| size.is(1)) {
            last.to_vec()
        } else if *lead == scores[..scores.len() - 2] {
            [&four[..2], last].concat()
        } else {
            return None;
        };
        let fits = |(own, whole): (&Size, &Size)| own.is(1) || own == whole;
        let fit = shape.len() <= 4 && shape.iter().rev().zip(four.iter().rev()).all(fits);
        let origin = flow.writer(value).map(|(_, node)| node.origin);
        fit.then_some(Self { value, shape, not, origin })
    }
}

/// Tests that all hold exactly where `value` is `truth`.
fn split(flow: &Flow<'_>, value: ValueId, truth: bool) -> Vec<(ValueId, bool)> {
    let (mut left, mut leaves) = (vec![(value, truth)], Vec::new());
    for _ in 0..MOST_PARTS {
        let Some((value, truth)) = left.pop() else { return leaves };
        if flow.number(value).is_some_and(|number| (number != 0.0) == truth) {
            continue;
        }
        match parts(flow, value, truth) {
            Some(parts) => left.extend(parts),
            None => leaves.push((value, truth)),
        }
    }
    vec![(value, truth)]
}

/// One step of that.
fn parts(flow: &Flow<'_>, value: ValueId, truth: bool) -> Option<Vec<(ValueId, bool)>> {
    let (_, node) = flow.writer(value)?;
    let Op::Map { fun, .. } = &node.op else { return None };
    let sides = sides(node);
    let tensor = |side: &Side| side.tensor().filter(|x| flow.dtype(*x) == DType::Bool);
    match (fun, &sides[..]) {
        (Fun::Not | Fun::BitNot, [x]) => Some(vec![(tensor(x)?, !truth)]),
        (Fun::And, [a, b]) if truth => Some(vec![(tensor(a)?, true), (tensor(b)?, true)]),
        (Fun::Or, [a, b]) if !truth => Some(vec![(tensor(a)?, false), (tensor(b)?, false)]),
        // As `tril` and `triu` have it.
        (Fun::Where, [test, x, zero]) if truth && flow.constant(zero) == Some(0.0) => {
            Some(vec![(tensor(test)?, true), (tensor(x)?, true)])
        }
        (Fun::Where, [test, zero, x]) if truth && flow.constant(zero) == Some(0.0) => {
            Some(vec![(tensor(test)?, false), (tensor(x)?, true)])
        }
        _ => None,
    }
}

/// What hides as much as a mask that is added, which is zero or one other number.
fn zero_or(flow: &Flow<'_>, mask: ValueId) -> Option<Test> {
    let (_, sides) = flow.map(mask, Fun::Where)?;
    let [Side::Tensor(of), a, b] = &sides[..] else { return None };
    let (a, b) = (flow.constant(a)?, flow.constant(b)?);
    let (keep, with) = if a == 0.0 { (true, b) } else { (false, a) };
    let is_one = flow.dtype(*of) == DType::Bool && (a == 0.0 || b == 0.0);
    is_one.then_some(Test { of: *of, keep, with })
}

/// Whether a score of that number has no weight beside any other: its
/// neighbours in that type are so far apart that what is not hidden and as low
/// is noise.
fn is_low(number: f64, dtype: DType) -> bool {
    let digits = match dtype {
        DType::F16 => 10,
        DType::BF16 => 7,
        _ => 23,
    };
    number <= -(32.0 * f64::from(1 << digits))
}
