//! Arguments and tensor types of the exporter's JSON.
//!
//! Invariant: an argument of a form that is not known here is
//! [`Argument::Other`], and a known form with nonsense in it is refused.

use std::collections::HashMap;

use kiln_proto::{
    Failure,
    graph::{Argument, DType, Dim, SymInt, TensorType, ValueId},
};
use serde_json::Value as Json;

use super::{
    super::{archive::invalid, schema},
    expression::infix,
    unsupported,
};

/// Layout number of dense tensors.
const STRIDED: i64 = 7;
/// Argument names that hold sizes, which may follow from the inputs' shapes.
const SIZE_ARGUMENTS: [&str; 3] = ["size", "shape", "sizes"];

/// What arguments may name.
#[derive(Default, Clone)]
pub(super) struct Names {
    /// Tensors that are defined.
    pub(super) tensors: HashMap<String, ValueId>,
    /// Symbolic numbers, as formulas.
    pub(super) sizes: HashMap<String, String>,
}

/// The only variant of a tagged union.
pub(super) fn one<'a>(
    tagged: &'a schema::Tagged,
    what: &str,
) -> Result<(&'a str, &'a Json), Failure> {
    match tagged.iter().next() {
        Some((tag, body)) if tagged.len() == 1 => Ok((tag, body)),
        _ => Err(invalid(format!("{what} has {} variants, not one", tagged.len()))),
    }
}

impl Names {
    /// The argument `name` of `node`.
    pub(super) fn argument(
        &self,
        node: &str,
        name: &str,
        tagged: &schema::Tagged,
    ) -> Result<Argument, Failure> {
        let (tag, body) = one(tagged, "an argument")?;
        let wrong = || invalid(format!("node {node:?}: argument {name:?} is no {tag}: {body}"));
        let int = |json: &Json| json.as_i64().ok_or_else(wrong);
        let list = || body.as_array().ok_or_else(wrong);
        Ok(match tag {
            "as_none" => Argument::None,
            "as_tensor" => Argument::Tensor(self.tensor(node, body)?),
            "as_optional_tensor" => match body.get("as_tensor") {
                Some(tensor) => Argument::Tensor(self.tensor(node, tensor)?),
                None => Argument::None,
            },
            "as_tensors" => {
                let tensors = list()?.iter().map(|tensor| self.tensor(node, tensor).map(Some));
                Argument::Tensors(tensors.collect::<Result<_, _>>()?)
            }
            "as_optional_tensors" => {
                let tensors = list()?.iter().map(|tensor| match tensor.get("as_tensor") {
                    Some(tensor) => self.tensor(node, tensor).map(Some),
                    None => Ok(None),
                });
                Argument::Tensors(tensors.collect::<Result<_, _>>()?)
            }
            "as_bool" => Argument::Bool(body.as_bool().ok_or_else(wrong)?),
            "as_int" => Argument::Int(int(body)?),
            "as_float" => Argument::Float(float(body).ok_or_else(wrong)?),
            "as_string" => Argument::String(body.as_str().ok_or_else(wrong)?.to_owned()),
            "as_bools" => {
                let bools = list()?.iter().map(|switch| switch.as_bool().ok_or_else(wrong));
                Argument::Bools(bools.collect::<Result<_, _>>()?)
            }
            "as_floats" => {
                let floats = list()?.iter().map(|number| float(number).ok_or_else(wrong));
                Argument::Floats(floats.collect::<Result<_, _>>()?)
            }
            "as_ints" => {
                let ints = list()?.iter().map(|i| int(i).map(SymInt::Known));
                self.ints(name, ints.collect::<Result<_, _>>()?).ok_or_else(wrong)?
            }
            "as_sym_ints" => {
                let ints = list()?.iter().map(|i| self.sym_int(node, i)?.ok_or_else(wrong));
                self.ints(name, ints.collect::<Result<_, _>>()?).ok_or_else(wrong)?
            }
            "as_sym_int" => match self.sym_int(node, body)?.ok_or_else(wrong)? {
                SymInt::Known(known) => Argument::Int(known),
                SymInt::Symbolic(formula) => Argument::SymInt(formula),
            },
            "as_scalar_type" => {
                let code = body.as_u64().ok_or_else(wrong)?;
                Argument::DType(u32::try_from(code).ok().and_then(dtype).ok_or_else(wrong)?)
            }
            "as_device" => {
                let device: schema::Device =
                    serde_json::from_value(body.clone()).map_err(|_| wrong())?;
                Argument::Device(device_name(&device))
            }
            "as_layout" | "as_memory_format" => Argument::Layout(int(body)?),
            other => Argument::Other(other.to_owned()),
        })
    }

    /// Numbers as what the argument `name` has: sizes or others.
    fn ints(&self, name: &str, ints: Vec<SymInt>) -> Option<Argument> {
        if SIZE_ARGUMENTS.contains(&name) {
            let sizes = ints.into_iter().map(|size| match size {
                SymInt::Known(-1) => Some(None),
                SymInt::Known(size) => Some(Some(Dim::Static(u64::try_from(size).ok()?))),
                SymInt::Symbolic(formula) => Some(Some(Dim::Symbolic(formula))),
            });
            return sizes.collect::<Option<_>>().map(Argument::Sizes);
        }
        let known = ints.iter().map(|i| match i {
            SymInt::Known(known) => Some(*known),
            SymInt::Symbolic(_) => None,
        });
        Some(match known.collect() {
            Some(known) => Argument::Ints(known),
            None => Argument::SymInts(ints),
        })
    }

    /// A number or the name of one.
    fn sym_int(&self, node: &str, json: &Json) -> Result<Option<SymInt>, Failure> {
        let Some(name) = json["as_name"].as_str() else {
            return Ok(json["as_int"].as_i64().map(SymInt::Known));
        };
        let formula = self.sizes.get(name).ok_or_else(|| {
            unsupported(format!("node {node:?} reads {name:?}, which is no formula over sizes"))
        })?;
        Ok(Some(match formula.parse() {
            Ok(known) => SymInt::Known(known),
            Err(_) => SymInt::Symbolic(formula.clone()),
        }))
    }

    /// The tensor that `json` names.
    pub(super) fn tensor(&self, node: &str, json: &Json) -> Result<ValueId, Failure> {
        let name = json["name"].as_str().unwrap_or_default();
        self.tensors
            .get(name)
            .copied()
            .ok_or_else(|| invalid(format!("node {node:?} reads {name:?} before it is defined")))
    }
}

/// The type of the tensor `name`.
pub(super) fn tensor_type(name: &str, meta: &schema::TensorMeta) -> Result<TensorType, Failure> {
    if meta.layout != STRIDED {
        return Err(unsupported(format!("{name:?} is not dense (layout {})", meta.layout)));
    }
    if meta.sizes.len() != meta.strides.len() {
        return Err(invalid(format!("{name:?} has as many sizes as strides, or none")));
    }
    let dims = |dims: &[schema::Tagged]| -> Result<Vec<Dim>, Failure> {
        dims.iter().map(|d| dim(name, d)).collect()
    };
    Ok(TensorType {
        dtype: dtype(meta.dtype)
            .ok_or_else(|| invalid(format!("{name:?}: element type {} is unknown", meta.dtype)))?,
        shape: dims(&meta.sizes)?,
        strides: dims(&meta.strides)?,
        offset: dim(name, &meta.storage_offset)?,
        device: device_name(&meta.device),
    })
}

fn dim(name: &str, tagged: &schema::Tagged) -> Result<Dim, Failure> {
    let (tag, body) = one(tagged, "a size")?;
    match tag {
        "as_int" => body.as_u64().map(Dim::Static),
        "as_expr" => formula(body).map(Dim::Symbolic),
        _ => None,
    }
    .ok_or_else(|| invalid(format!("{name:?} has a size that cannot be read: {body}")))
}

/// A symbolic number; one in words that are not known here is kept as it is,
/// and refused where it is needed.
pub(super) fn formula(expression: &Json) -> Option<String> {
    let text = expression["expr_str"].as_str()?;
    Some(infix(text).unwrap_or_else(|| text.to_owned()))
}

fn device_name(device: &schema::Device) -> String {
    match device.index {
        Some(index) => format!("{}:{index}", device.kind),
        None => device.kind.clone(),
    }
}

/// JSON has no infinity: the exporter writes it as text.
fn float(json: &Json) -> Option<f64> {
    match json.as_str() {
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some("NaN") => Some(f64::NAN),
        Some(_) => None,
        None => json.as_f64(),
    }
}

fn dtype(code: u32) -> Option<DType> {
    Some(match code {
        1 => DType::U8,
        2 => DType::I8,
        3 => DType::I16,
        4 => DType::I32,
        5 => DType::I64,
        6 => DType::F16,
        7 => DType::F32,
        8 => DType::F64,
        9 => DType::C32,
        10 => DType::C64,
        11 => DType::C128,
        12 => DType::Bool,
        13 => DType::BF16,
        28 => DType::U16,
        29 => DType::F8E4M3,
        30 => DType::F8E5M2,
        31 => DType::F8E4M3Fnuz,
        32 => DType::F8E5M2Fnuz,
        _ => return None,
    })
}
