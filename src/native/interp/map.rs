//! Element by element.
//!
//! Invariant: operands become numbers of the domain before anything is
//! computed; where no `f64` takes part, whole numbers and literals become
//! `f32` on the way, as everywhere else.

use std::borrow::Cow;

use kiln_proto::{Failure, graph::DType};

use super::{
    Precision, invalid,
    movement::{View, each},
    number::{self, truncated},
    step::{Known, Step},
    tensor::{Data, Dense, float_to_int, is_float, round, wrap},
};
use crate::core::{Domain, Fun, Operand};

/// `fun` of `args`.
pub(super) fn map(
    step: &Step<'_>,
    fun: Fun,
    domain: Domain,
    args: &[Operand],
) -> Result<Dense, Failure> {
    if args.len() != number::arity(fun) || !number::has_meaning(fun, domain) {
        return Err(invalid(format!("no {fun:?} of {} operands in {domain:?}", args.len())));
    }
    let dtypes = step.dtypes.iter().chain([&step.dtype]);
    let narrow = step.precision == Precision::Rounded && dtypes.clone().all(|d| *d != DType::F64);
    let mut operands = Vec::with_capacity(3);
    for arg in args {
        let tensor = match arg {
            Operand::Read(position) => Cow::Borrowed(step.read(*position)?),
            Operand::Number(number) => Cow::Owned(match step.number(number)? {
                Known::Float(float) if narrow => Known::Float(f64::from(float as f32)).dense(),
                number => number.dense(),
            }),
        };
        let view = View::broadcast(&tensor.shape, step.shape)?;
        operands.push((tensor, view.strides));
    }
    // One that is not there is never looked at: any will do.
    while operands.len() < 3 {
        operands.push(operands[0].clone());
    }
    let strides = [&operands[0].1[..], &operands[1].1[..], &operands[2].1[..]];
    let data = [&operands[0].0.data, &operands[1].0.data, &operands[2].0.data];
    let count = step.shape.iter().product();
    let result = match domain {
        Domain::Float => {
            let get = |data: &Data, at: isize| match data {
                Data::Float(floats) => floats[at as usize],
                Data::Int(ints) if narrow => f64::from(ints[at as usize] as f32),
                Data::Int(ints) => ints[at as usize] as f64,
            };
            let compute = |[a, b, c]: [isize; 3]| {
                let args = [get(data[0], a), get(data[1], b), get(data[2], c)];
                number::float(fun, args, narrow).unwrap_or(f64::NAN)
            };
            if is_float(step.dtype) {
                let mut out = Vec::with_capacity(count);
                each(step.shape, strides, |at| {
                    out.push(round(compute(at), step.dtype, step.precision));
                });
                Data::Float(out)
            } else {
                let mut out = Vec::with_capacity(count);
                each(step.shape, strides, |at| out.push(float_to_int(compute(at), step.dtype)));
                Data::Int(out)
            }
        }
        Domain::Int | Domain::Bool => {
            let bool = domain == Domain::Bool;
            let get = |data: &Data, at: isize| match data {
                Data::Float(floats) if bool => i64::from(floats[at as usize] != 0.0),
                Data::Float(floats) => truncated(floats[at as usize]),
                Data::Int(ints) if bool => i64::from(ints[at as usize] != 0),
                Data::Int(ints) => ints[at as usize],
            };
            let mut out = Vec::with_capacity(count);
            let compute = if bool { number::truth } else { number::int };
            each(step.shape, strides, |[a, b, c]| {
                let args = [get(data[0], a), get(data[1], b), get(data[2], c)];
                out.push(wrap(compute(fun, args).unwrap_or(0), dtype_of_ints(step.dtype)));
            });
            Data::Int(out).cast(step.dtype, step.precision)
        }
    };
    Ok(Dense { shape: step.shape.to_vec(), data: result })
}

/// The type to which whole numbers are wrapped: none, if they become floats.
const fn dtype_of_ints(dtype: DType) -> DType {
    if is_float(dtype) { DType::I64 } else { dtype }
}
