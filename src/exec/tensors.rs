//! Tensors on the host, and safetensors files of them.
//!
//! Invariant: a tensor here has as many bytes as its type and shape say, dense
//! and in row-major order.

use std::{borrow::Cow, collections::HashMap, path::Path};

use kiln_native::{
    Signature, interp,
    plan::{CONSTANT, Layout, Plan, Tensor as Wanted, shown},
};
use kiln_proto::graph::DType;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::ExecError;

/// Elements on the host, dense, in row-major order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor<'a> {
    /// Of the elements.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<usize>,
    /// The elements, little-endian.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    /// A tensor of these bytes; an error where there are too few or too many.
    pub fn new(
        dtype: DType,
        shape: &[usize],
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Result<Self, ExecError> {
        let bytes = bytes.into();
        let elements = shape.iter().try_fold(1usize, |all, size| all.checked_mul(*size));
        let wanted = elements.and_then(|count| count.checked_mul(dtype.bytes() as usize));
        if wanted != Some(bytes.len()) {
            let got = bytes.len();
            return Err(ExecError::Inputs(format!("{dtype} {shape:?} of {got} bytes")));
        }
        Ok(Self { dtype, shape: shape.to_vec(), bytes })
    }

    /// What is given for a constant: nothing, as it is in the module already.
    pub fn nothing() -> Self {
        Self { dtype: DType::U8, shape: vec![0], bytes: Cow::Borrowed(&[]) }
    }

    /// Its bytes with the strides of `layout`, and what lies between them 0.
    pub(super) fn laid_out(&self, layout: &Layout) -> Cow<'_, [u8]> {
        let width = self.dtype.bytes() as usize;
        let mut dense = 1;
        let in_order = layout.shape.iter().zip(&layout.strides).rev().all(|(size, stride)| {
            let fits = *size <= 1 || *stride == dense;
            dense *= size;
            fits
        });
        if in_order || layout.bytes == 0 {
            return Cow::Borrowed(&*self.bytes);
        }
        let mut out = vec![0; layout.bytes as usize];
        let mut at = vec![0usize; layout.shape.len()];
        for element in self.bytes.chunks_exact(width) {
            let offset: usize = at.iter().zip(&layout.strides).map(|(i, stride)| i * stride).sum();
            out[offset * width..][..width].copy_from_slice(element);
            for (i, size) in at.iter_mut().zip(&layout.shape).rev() {
                *i += 1;
                if *i < *size {
                    break;
                }
                *i = 0;
            }
        }
        Cow::Owned(out)
    }

    /// The other way: dense, from bytes with the strides of `layout`.
    pub(super) fn gathered(dtype: DType, layout: &Layout, bytes: Vec<u8>) -> Tensor<'static> {
        let shape = layout.shape.clone();
        let width = dtype.bytes() as usize;
        let count: usize = shape.iter().product();
        let mut dense = 1;
        let in_order = shape.iter().zip(&layout.strides).rev().all(|(size, stride)| {
            let fits = *size <= 1 || *stride == dense;
            dense *= size;
            fits
        });
        if in_order || count == 0 {
            return Tensor { dtype, shape, bytes: Cow::Owned(bytes) };
        }
        let mut out = Vec::with_capacity(count * width);
        let mut at = vec![0usize; shape.len()];
        for _ in 0..count {
            let offset: usize = at.iter().zip(&layout.strides).map(|(i, stride)| i * stride).sum();
            out.extend_from_slice(&bytes[offset * width..][..width]);
            for (i, size) in at.iter_mut().zip(&shape).rev() {
                *i += 1;
                if *i < *size {
                    break;
                }
                *i = 0;
            }
        }
        Tensor { dtype, shape, bytes: Cow::Owned(out) }
    }
}

/// What the interpreter gives is dense.
impl<'a> From<interp::Tensor<'a>> for Tensor<'a> {
    fn from(tensor: interp::Tensor<'a>) -> Self {
        Self { dtype: tensor.dtype, shape: tensor.shape, bytes: tensor.bytes }
    }
}

/// The inputs of `plan` in the safetensors `file`, in the plan's order.
///
/// Each is found by its name in the graph or in the module, as `signature` has
/// them, or by position: `in0`, `in1`, ... among the inputs that are given.
pub fn read_inputs<'a>(
    file: &'a [u8],
    plan: &Plan,
    signature: Option<&Signature>,
) -> Result<Vec<Tensor<'a>>, ExecError> {
    read_with(file, None, plan, signature)
}

/// The same; inputs in which a run before left something are as `state` has them, which is
/// such a file too.
pub(super) fn read_with<'a>(
    file: &'a [u8],
    state: Option<&'a [u8]>,
    plan: &Plan,
    signature: Option<&Signature>,
) -> Result<Vec<Tensor<'a>>, ExecError> {
    let parsed = |file, what: &str| {
        SafeTensors::deserialize(file)
            .map_err(|e| ExecError::Inputs(format!("{what} no safetensors file: {e}")))
    };
    let file = parsed(file, "the inputs are")?;
    let names = Names::new(plan, signature);
    let keys: Vec<Option<String>> = names.keys(&file);
    let state = state.map(|state| parsed(state, "the state is")).transpose()?;
    let kept = state.as_ref().map(|state| names.keys(state)).unwrap_or_default();
    if let Some(state) = &state {
        let is_state = |name: &str| {
            let mut all = plan.inputs.iter().zip(&kept);
            all.any(|(input, key)| is_state(input) && key.as_deref() == Some(name))
        };
        if let Some(name) = state.names().into_iter().find(|name| !is_state(name)) {
            let why = format!("the state has {name:?}, which is no state of the program");
            return Err(ExecError::Inputs(why));
        }
    }
    let taken = |name: &str| keys.iter().flatten().any(|key| key == name);
    if let Some(name) = file.names().into_iter().find(|name| !taken(name)) {
        let why = format!("there is no input {name:?}: {}", names.wanted(plan));
        return Err(ExecError::Inputs(why));
    }
    let mut tensors = Vec::with_capacity(plan.inputs.len());
    for (index, (input, key)) in plan.inputs.iter().zip(&keys).enumerate() {
        if input.kind == CONSTANT {
            tensors.push(Tensor::nothing());
            continue;
        }
        let name = names.shown(index);
        let kept = kept.get(index).and_then(Option::as_ref).filter(|_| is_state(input));
        let kept = kept.and_then(|key| state.as_ref()?.tensor(key).ok());
        let given = || key.as_ref().and_then(|key| file.tensor(key).ok());
        let Some(view) = kept.or_else(given) else {
            let why = format!("input {name:?} is missing: {}", names.wanted(plan));
            return Err(ExecError::Inputs(why));
        };
        let Some(dtype) = from_file(view.dtype()) else {
            let why = format!("input {name:?} is {:?}: no type of Kiln's", view.dtype());
            return Err(ExecError::Inputs(why));
        };
        tensors.push(Tensor {
            dtype,
            shape: view.shape().to_vec(),
            bytes: Cow::Borrowed(view.data()),
        });
    }
    check_types(&tensors, plan, |index| names.shown(index))?;
    Ok(tensors)
}

/// Whether each tensor has the plan's type and rank; `name` is for the message.
pub(super) fn check_types(
    tensors: &[Tensor<'_>],
    plan: &Plan,
    name: impl Fn(usize) -> String,
) -> Result<(), ExecError> {
    for (index, (tensor, wanted)) in tensors.iter().zip(&plan.inputs).enumerate() {
        if wanted.kind == CONSTANT {
            continue;
        }
        let Wanted { dtype, shape, .. } = wanted;
        if tensor.dtype != *dtype || tensor.shape.len() != shape.len() {
            let (name, got) = (name(index), &tensor.shape);
            return Err(ExecError::Inputs(format!(
                "input {name:?} is {} {got:?}, not {dtype} {}",
                tensor.dtype,
                shown(shape)
            )));
        }
    }
    Ok(())
}

/// What each input may be called.
struct Names<'a> {
    /// Position among those that are given; of a constant: none.
    given: Vec<Option<usize>>,
    signature: Option<&'a Signature>,
}

impl<'a> Names<'a> {
    fn new(plan: &Plan, signature: Option<&'a Signature>) -> Self {
        let mut next = 0;
        let given = plan.inputs.iter().map(|input| {
            let position = (input.kind != CONSTANT).then_some(next);
            next += usize::from(position.is_some());
            position
        });
        // One of another program would be worse than none.
        let signature = signature.filter(|s| s.inputs.len() == plan.inputs.len());
        Self { given: given.collect(), signature }
    }

    /// The name in `file` of each input.
    fn keys(&self, file: &SafeTensors<'_>) -> Vec<Option<String>> {
        let has = |name: &str| file.tensor(name).is_ok();
        let count = self.given.iter().flatten().count();
        let by_position = (0..count).all(|i| has(&format!("in{i}"))) && file.len() == count;
        let in_graph = |name: &str| {
            self.signature.is_some_and(|s| s.inputs.iter().any(|input| input.name == name))
        };
        let key = |(index, given): (usize, &Option<usize>)| {
            let position = format!("in{}", (*given)?);
            if by_position {
                return Some(position);
            }
            let named = self.signature.map(|s| &s.inputs[index]);
            let name = named.map(|named| named.name.clone());
            // What the graph calls something else is not the module's name.
            let target = named.and_then(|n| n.target.clone()).filter(|target| !in_graph(target));
            let with_constants = format!("in{index}");
            [name, target, Some(with_constants), Some(position)]
                .into_iter()
                .flatten()
                .find(|k| has(k))
        };
        self.given.iter().enumerate().map(key).collect()
    }

    fn shown(&self, index: usize) -> String {
        match (self.signature, self.given[index]) {
            (Some(signature), _) => signature.inputs[index].name.clone(),
            (None, Some(position)) => format!("in{position}"),
            (None, None) => format!("constant {index}"),
        }
    }

    fn wanted(&self, plan: &Plan) -> String {
        let inputs = plan.inputs.iter().enumerate().filter(|(_, input)| input.kind != CONSTANT);
        let list: Vec<String> = inputs
            .map(|(i, t)| format!("{} ({} {} {})", self.shown(i), t.kind, t.dtype, shown(&t.shape)))
            .collect();
        let by = match self.signature {
            Some(_) => "by these names, or in0, in1, ...",
            None => "in this order",
        };
        format!("the artifact takes {} {by}", list.join(", "))
    }
}

/// What messages call each input of `plan`, and a file of inputs may.
pub(super) fn shown_names(plan: &Plan, signature: Option<&Signature>) -> Vec<String> {
    let names = Names::new(plan, signature);
    (0..plan.inputs.len()).map(|index| names.shown(index)).collect()
}

/// Whether what runs leave in an input is the program's own, from call to call: what an
/// argument is left with is the caller's.
pub(super) fn is_state(input: &Wanted) -> bool {
    input.updated && input.kind != "user"
}

/// What `outputs` of a run of `plan` are called: `out0`, `out1`, ..., and behind them the
/// names of the inputs in which something was left.
pub(super) fn names(plan: &Plan) -> Vec<String> {
    let outputs = (0..plan.outputs.len()).map(|index| format!("out{index}"));
    let left = plan.inputs.iter().filter(|input| input.updated).map(|input| input.name.clone());
    outputs.chain(left).collect()
}

/// Writes `outputs` by their `names`, with `notes` as metadata.
pub(super) fn write_outputs(
    path: &Path,
    names: Vec<String>,
    outputs: &[Tensor<'_>],
    notes: HashMap<String, String>,
) -> Result<(), ExecError> {
    let artifact = |why: String| ExecError::Artifact { path: path.to_owned(), why };
    let mut views = Vec::with_capacity(outputs.len());
    for (name, Tensor { dtype, shape, bytes }) in names.into_iter().zip(outputs) {
        let dtype = to_file(*dtype).ok_or_else(|| artifact(format!("{dtype} in safetensors")))?;
        let view = TensorView::new(dtype, shape.clone(), bytes);
        views.push((name, view.map_err(|e| artifact(e.to_string()))?));
    }
    let bytes = safetensors::serialize(views, Some(notes)).map_err(|e| artifact(e.to_string()))?;
    std::fs::write(path, bytes).map_err(|error| ExecError::File { path: path.to_owned(), error })
}

const TYPES: [(DType, Dtype); 13] = [
    (DType::F64, Dtype::F64),
    (DType::F32, Dtype::F32),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::I64, Dtype::I64),
    (DType::I32, Dtype::I32),
    (DType::I16, Dtype::I16),
    (DType::I8, Dtype::I8),
    (DType::U16, Dtype::U16),
    (DType::U8, Dtype::U8),
    (DType::Bool, Dtype::BOOL),
    (DType::F8E4M3, Dtype::F8_E4M3),
    (DType::F8E5M2, Dtype::F8_E5M2),
];

fn to_file(dtype: DType) -> Option<Dtype> {
    TYPES.iter().find(|(ours, _)| *ours == dtype).map(|(_, file)| *file)
}

fn from_file(dtype: Dtype) -> Option<DType> {
    TYPES.iter().find(|(_, file)| *file == dtype).map(|(ours, _)| *ours)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
