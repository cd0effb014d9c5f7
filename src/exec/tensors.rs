//! Tensors between safetensors files and the layout that a plan asks for.
//!
//! Invariant: what reaches the device has exactly the type, shape and bytes of
//! the plan.

use std::{borrow::Cow, collections::HashMap, path::Path};

use kiln_proto::graph::DType;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::ExecError;
use kiln_native::plan::{Plan, Tensor};

/// Inputs of `plan` from the safetensors in `file`, in order; baked constants are empty.
pub(super) fn read<'a>(file: &'a [u8], plan: &Plan) -> Result<Vec<Cow<'a, [u8]>>, ExecError> {
    let tensors = SafeTensors::deserialize(file)
        .map_err(|e| ExecError::Inputs(format!("the inputs are no safetensors file: {e}")))?;
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
            if input.kind == "constant" {
                return Ok(Cow::Borrowed(&[][..]));
            }
            let given = tensors.tensor(&input.name).map_err(|_| {
                ExecError::Inputs(format!("input {:?} is missing: {}", input.name, wanted(plan)))
            })?;
            if dtype(input.dtype) != Some(given.dtype()) || input.shape != given.shape() {
                return Err(ExecError::Inputs(format!(
                    "input {:?} is {} {:?}, not {:?} {:?}",
                    input.name,
                    input.dtype,
                    input.shape,
                    given.dtype(),
                    given.shape()
                )));
            }
            Ok(laid_out(given.data(), input))
        })
        .collect()
}

/// Writes `outputs`, in the order of `plan`, with `notes` as metadata.
pub(super) fn write(
    path: &Path,
    plan: &Plan,
    outputs: &[Vec<u8>],
    notes: HashMap<String, String>,
) -> Result<(), ExecError> {
    let artifact = |why: String| ExecError::Artifact { path: path.to_owned(), why };
    let mut views = Vec::with_capacity(outputs.len());
    for (output, bytes) in plan.outputs.iter().zip(outputs) {
        let dtype = dtype(output.dtype)
            .ok_or_else(|| artifact(format!("{} in safetensors", output.dtype)))?;
        let view = TensorView::new(dtype, output.shape.clone(), bytes);
        views.push((output.name.as_str(), view.map_err(|e| artifact(e.to_string()))?));
    }
    let bytes = safetensors::serialize(views, Some(notes)).map_err(|e| artifact(e.to_string()))?;
    std::fs::write(path, bytes).map_err(|error| ExecError::File { path: path.to_owned(), error })
}

fn wanted(plan: &Plan) -> String {
    let inputs = plan.inputs.iter().filter(|input| input.kind != "constant");
    let list: Vec<String> =
        inputs.map(|i| format!("{} ({} {} {:?})", i.name, i.kind, i.dtype, i.shape)).collect();
    format!("the artifact takes {}", list.join(", "))
}

/// Row-major `bytes` with the strides of `tensor`.
fn laid_out<'a>(bytes: &'a [u8], tensor: &Tensor) -> Cow<'a, [u8]> {
    let mut dense = 1;
    let in_order = tensor.shape.iter().zip(&tensor.strides).rev().all(|(size, stride)| {
        let fits = *size == 1 || *stride == dense;
        dense *= size;
        fits
    });
    if in_order {
        return Cow::Borrowed(bytes);
    }
    let width = tensor.dtype.bytes() as usize;
    let mut out = vec![0; tensor.bytes() as usize];
    let mut at = vec![0usize; tensor.shape.len()];
    for element in bytes.chunks_exact(width) {
        let offset: usize = at.iter().zip(&tensor.strides).map(|(i, stride)| i * stride).sum();
        out[offset * width..][..width].copy_from_slice(element);
        for (i, size) in at.iter_mut().zip(&tensor.shape).rev() {
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
    use super::*;

    fn plan() -> Plan {
        let tensor = |name: &str, kind: &str, strides: [usize; 2]| Tensor {
            name: name.to_owned(),
            kind: kind.to_owned(),
            dtype: DType::F16,
            shape: vec![2, 3],
            strides: strides.to_vec(),
        };
        Plan {
            version: 1,
            target: "sm_90".to_owned(),
            inputs: vec![tensor("in0", "user", [3, 1]), tensor("in1", "parameter", [1, 2])],
            outputs: vec![tensor("out0", "output", [3, 1])],
            workspace_bytes: 0,
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
        let inputs = read(&file, &plan()).unwrap();
        assert_eq!(*inputs[0], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(*inputs[1], [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
    }

    #[test]
    fn wrong_inputs_are_named() {
        let good = ("in0", Dtype::F16, &[2, 3][..]);
        let refused = |tensors: &[_]| read(&file(tensors), &plan()).unwrap_err().to_string();
        assert!(refused(&[good]).contains("\"in1\" is missing"));
        assert!(refused(&[good, ("x", Dtype::F16, &[1])]).contains("no input \"x\""));
        assert!(refused(&[good, ("in1", Dtype::F32, &[2, 3])]).contains("F32"));
        assert!(refused(&[good, ("in1", Dtype::F16, &[3, 2])]).contains("[3, 2]"));
        assert!(read(b"nonsense", &plan()).is_err());
    }

    #[test]
    fn outputs_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.safetensors");
        write(&path, &plan(), &[(0..12).collect()], HashMap::new()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("out0").unwrap().data(), (0..12).collect::<Vec<u8>>());
    }
}
