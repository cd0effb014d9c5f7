//! Tensors between safetensors files and the layout that a plan asks for.
//!
//! Invariant: what reaches the device has exactly the type, shape and bytes of
//! the plan.

use std::{borrow::Cow, collections::HashMap, path::Path};

use kiln_proto::graph::DType;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::ExecError;
use kiln_native::plan::{CONSTANT, Layout, Plan, shown};

/// An input as it was given.
pub(super) struct Given<'a> {
    /// Its sizes; of a baked constant: none.
    pub(super) shape: Vec<usize>,
    /// Its elements, in row-major order.
    pub(super) bytes: &'a [u8],
}

/// Inputs of `plan` from the safetensors in `tensors`, in order; baked constants are empty.
pub(super) fn read<'a>(
    tensors: &SafeTensors<'a>,
    plan: &Plan,
) -> Result<Vec<Given<'a>>, ExecError> {
    let unknown = tensors
        .names()
        .into_iter()
        .find(|name| !plan.inputs.iter().any(|input| input.name == **name));
    if let Some(name) = unknown {
        return Err(ExecError::Inputs(format!("there is no input {name:?}: {}", wanted(plan))));
    }
    plan.inputs
        .iter()
        .map(|input| {
            if input.kind == CONSTANT {
                return Ok(Given { shape: Vec::new(), bytes: &[] });
            }
            let given = tensors.tensor(&input.name).map_err(|_| {
                ExecError::Inputs(format!("input {:?} is missing: {}", input.name, wanted(plan)))
            })?;
            if dtype(input.dtype) != Some(given.dtype()) {
                return Err(ExecError::Inputs(format!(
                    "input {:?} is {} {}, not {:?} {:?}",
                    input.name,
                    input.dtype,
                    shown(&input.shape),
                    given.dtype(),
                    given.shape()
                )));
            }
            Ok(Given { shape: given.shape().to_vec(), bytes: given.data() })
        })
        .collect()
}

/// Writes `outputs`, in the order of `plan`, with `notes` as metadata.
pub(super) fn write(
    path: &Path,
    plan: &Plan,
    outputs: &[(Layout, Vec<u8>)],
    notes: HashMap<String, String>,
) -> Result<(), ExecError> {
    let artifact = |why: String| ExecError::Artifact { path: path.to_owned(), why };
    let mut views = Vec::with_capacity(outputs.len());
    for (output, (layout, bytes)) in plan.outputs.iter().zip(outputs) {
        let dtype = dtype(output.dtype)
            .ok_or_else(|| artifact(format!("{} in safetensors", output.dtype)))?;
        let view = TensorView::new(dtype, layout.shape.clone(), bytes);
        views.push((output.name.as_str(), view.map_err(|e| artifact(e.to_string()))?));
    }
    let bytes = safetensors::serialize(views, Some(notes)).map_err(|e| artifact(e.to_string()))?;
    std::fs::write(path, bytes).map_err(|error| ExecError::File { path: path.to_owned(), error })
}

fn wanted(plan: &Plan) -> String {
    let inputs = plan.inputs.iter().filter(|input| input.kind != CONSTANT);
    let list: Vec<String> = inputs
        .map(|i| format!("{} ({} {} {})", i.name, i.kind, i.dtype, shown(&i.shape)))
        .collect();
    format!("the artifact takes {}", list.join(", "))
}

/// Row-major `bytes` of elements of `width` bytes, with the strides of `layout`.
pub(super) fn laid_out<'a>(bytes: &'a [u8], layout: &Layout, width: usize) -> Cow<'a, [u8]> {
    let mut dense = 1;
    let in_order = layout.shape.iter().zip(&layout.strides).rev().all(|(size, stride)| {
        let fits = *size <= 1 || *stride == dense;
        dense *= size;
        fits
    });
    if in_order || layout.bytes == 0 {
        return Cow::Borrowed(bytes);
    }
    let mut out = vec![0; layout.bytes as usize];
    let mut at = vec![0usize; layout.shape.len()];
    for element in bytes.chunks_exact(width) {
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

fn dtype(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kiln_native::plan::{Expr, Tensor};

    use super::*;

    fn plan() -> Plan {
        let tensor = |name: &str, kind: &str, strides: [i64; 2]| Tensor {
            name: name.to_owned(),
            kind: kind.to_owned(),
            dtype: DType::F16,
            shape: vec![Expr::Known(2), Expr::Known(3)],
            strides: strides.map(Expr::Known).to_vec(),
        };
        Plan {
            version: 2,
            target: "sm_90".to_owned(),
            symbols: Vec::new(),
            inputs: vec![tensor("in0", "user", [3, 1]), tensor("in1", "parameter", [1, 2])],
            outputs: vec![tensor("out0", "output", [3, 1])],
            workspace_bytes: Expr::Known(0),
            buffers: Vec::new(),
            kernels: Vec::new(),
        }
    }

    fn file(tensors: &[(&str, Dtype, &[usize])]) -> Vec<u8> {
        let data: Vec<u8> = (0..48).collect();
        let views = tensors.iter().map(|(name, dtype, shape)| {
            let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            (*name, TensorView::new(*dtype, shape.to_vec(), &data[..bytes]).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    #[test]
    fn inputs_take_the_strides_of_the_plan() {
        let file = file(&[("in0", Dtype::F16, &[2, 3]), ("in1", Dtype::F16, &[2, 3])]);
        let (file, plan) = (SafeTensors::deserialize(&file).unwrap(), plan());
        let given = read(&file, &plan).unwrap();
        let layout = |i: usize| plan.inputs[i].layout(&[]).unwrap();
        assert_eq!(*laid_out(given[0].bytes, &layout(0), 2), (0..12).collect::<Vec<u8>>());
        let turned = laid_out(given[1].bytes, &layout(1), 2);
        assert_eq!(*turned, [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
    }

    #[test]
    fn wrong_inputs_are_named() {
        let good = ("in0", Dtype::F16, &[2, 3][..]);
        let refused = |tensors: &[_]| {
            let file = file(tensors);
            let file = SafeTensors::deserialize(&file).unwrap();
            read(&file, &plan()).err().unwrap().to_string()
        };
        assert!(refused(&[good]).contains("\"in1\" is missing"));
        assert!(refused(&[good, ("x", Dtype::F16, &[1])]).contains("no input \"x\""));
        assert!(refused(&[good, ("in1", Dtype::F32, &[2, 3])]).contains("F32"));
    }

    #[test]
    fn outputs_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.safetensors");
        let (plan, bytes) = (plan(), (0..12).collect());
        let layout = plan.outputs[0].layout(&[]).unwrap();
        write(&path, &plan, &[(layout, bytes)], HashMap::new()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("out0").unwrap().data(), (0..12).collect::<Vec<u8>>());
    }
}
