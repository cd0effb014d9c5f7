use kiln_native::{NamedInput, plan::Expr};

use super::*;

fn wanted(name: &str, kind: &str, strides: [i64; 2]) -> Wanted {
    Wanted {
        name: name.to_owned(),
        kind: kind.to_owned(),
        dtype: DType::F16,
        shape: vec![Expr::Known(2), Expr::Known(3)],
        strides: strides.map(Expr::Known).to_vec(),
        updated: false,
    }
}

/// A parameter, a constant, an argument.
fn plan() -> Plan {
    Plan {
        version: 2,
        target: "sm_90".to_owned(),
        symbols: Vec::new(),
        inputs: vec![
            wanted("in0", "parameter", [1, 2]),
            wanted("in1", "constant", [3, 1]),
            wanted("in2", "user", [3, 1]),
        ],
        outputs: vec![wanted("out0", "output", [3, 1])],
        workspace_bytes: Expr::Known(0),
        buffers: Vec::new(),
        kernels: Vec::new(),
    }
}

fn signature() -> Signature {
    let input = |name: &str, kind: &str, target: Option<&str>| NamedInput {
        name: name.to_owned(),
        kind: kind.to_owned(),
        target: target.map(str::to_owned),
    };
    let inputs = vec![
        input("p_fc_weight", "parameter", Some("fc.weight")),
        input("c_one", "constant", Some("one")),
        input("x", "user", None),
    ];
    Signature { version: 1, inputs, outputs: vec!["add".to_owned()] }
}

fn file(tensors: &[(&str, Dtype, &[usize])]) -> Vec<u8> {
    let data: Vec<Vec<u8>> = (0..tensors.len())
        .map(|i| {
            let (_, dtype, shape) = tensors[i];
            vec![i as u8; shape.iter().product::<usize>() * dtype.bitsize() / 8]
        })
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, dtype, shape), bytes)| {
        (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

const SHAPE: (Dtype, &[usize]) = (Dtype::F16, &[2, 3]);

/// First bytes of the parameter and the argument, when they were read from a
/// file with these two names: 0 and 1 in the names' order.
fn read(names: [&str; 2], signature: Option<&Signature>) -> Result<[u8; 2], String> {
    let file = file(&names.map(|name| (name, SHAPE.0, SHAPE.1)));
    let inputs = read_inputs(&file, &plan(), signature).map_err(|e| e.to_string())?;
    assert!(inputs[1].bytes.is_empty(), "a constant is not read");
    Ok([inputs[0].bytes[0], inputs[2].bytes[0]])
}

#[test]
fn inputs_are_found_by_name_or_position() {
    let signature = signature();
    assert_eq!(read(["in0", "in1"], None), Ok([0, 1]), "by position among those given");
    assert_eq!(read(["in2", "in0"], None), Ok([1, 0]), "by the plan's names");
    assert_eq!(read(["in0", "in1"], Some(&signature)), Ok([0, 1]));
    assert_eq!(read(["x", "p_fc_weight"], Some(&signature)), Ok([1, 0]), "by the graph's names");
    assert_eq!(read(["x", "fc.weight"], Some(&signature)), Ok([1, 0]), "by the module's names");
    assert_eq!(read(["x", "in0"], Some(&signature)), Ok([1, 0]));
}

#[test]
fn a_name_in_the_graph_goes_before_one_in_the_module() {
    let mut signature = signature();
    signature.inputs[2].name = "fc.weight".to_owned();
    assert_eq!(read(["fc.weight", "p_fc_weight"], Some(&signature)), Ok([1, 0]));
    let refused = read(["fc.weight", "x"], Some(&signature)).unwrap_err();
    assert!(refused.contains("no input \"x\""), "{refused}");
}

#[test]
fn wrong_inputs_are_named() {
    let refused = |tensors: &[_]| {
        read_inputs(&file(tensors), &plan(), Some(&signature())).unwrap_err().to_string()
    };
    let weight = ("fc.weight", SHAPE.0, SHAPE.1);
    let missing = refused(&[weight]);
    assert!(missing.contains("input \"x\" is missing"), "{missing}");
    assert!(missing.contains("p_fc_weight (parameter f16 [2, 3]), x (user"), "{missing}");
    let extra = refused(&[weight, ("x", SHAPE.0, SHAPE.1), ("y", SHAPE.0, SHAPE.1)]);
    assert!(extra.contains("no input \"y\""), "{extra}");
    let other = refused(&[weight, ("x", Dtype::F32, &[2, 3])]);
    assert!(other.contains("input \"x\" is f32 [2, 3], not f16 [2, 3]"), "{other}");
    let rank = refused(&[weight, ("x", Dtype::F16, &[6])]);
    assert!(rank.contains("input \"x\" is f16 [6], not f16 [2, 3]"), "{rank}");
    assert!(read_inputs(b"nonsense", &plan(), None).is_err());
}

#[test]
fn inputs_take_the_strides_of_the_plan_and_outputs_lose_them() {
    let bytes: Vec<u8> = (0..12).collect();
    let tensor = Tensor::new(DType::F16, &[2, 3], bytes.clone()).unwrap();
    let layout = |strides| wanted("", "user", strides).layout(&[]).unwrap();
    assert_eq!(*tensor.laid_out(&layout([3, 1])), bytes);
    let turned = tensor.laid_out(&layout([1, 2]));
    assert_eq!(*turned, [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
    let back = Tensor::gathered(DType::F16, &layout([1, 2]), turned.into_owned());
    assert_eq!(back, tensor);
    // Rows that lie apart.
    let apart = tensor.laid_out(&layout([5, 1])).into_owned();
    assert_eq!(apart, [0, 1, 2, 3, 4, 5, 0, 0, 0, 0, 6, 7, 8, 9, 10, 11]);
    assert_eq!(Tensor::gathered(DType::F16, &layout([5, 1]), apart), tensor);
}

#[test]
fn a_tensor_has_the_bytes_of_its_shape() {
    assert!(Tensor::new(DType::F32, &[2], vec![0; 8]).is_ok());
    assert!(Tensor::new(DType::F32, &[2, 0], vec![]).is_ok());
    assert!(Tensor::new(DType::F32, &[], vec![0; 4]).is_ok());
    assert!(Tensor::new(DType::F32, &[2], vec![0; 7]).is_err());
    assert!(Tensor::new(DType::F32, &[usize::MAX, 3], vec![]).is_err());
}

#[test]
fn outputs_of_every_type_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.safetensors");
    let tensors: Vec<Tensor<'_>> = TYPES
        .iter()
        .map(|(dtype, _)| {
            let bytes: Vec<u8> = (0..3 * dtype.bytes() as u8).collect();
            Tensor::new(*dtype, &[3, 1], bytes).unwrap()
        })
        .collect();
    write_outputs(
        &path,
        (0..tensors.len()).map(|i| format!("out{i}")).collect(),
        &tensors,
        HashMap::new(),
    )
    .unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    for (index, tensor) in tensors.iter().enumerate() {
        let view = read.tensor(&format!("out{index}")).unwrap();
        assert_eq!((view.data(), view.shape()), (&*tensor.bytes, &[3, 1][..]));
        assert_eq!(from_file(view.dtype()), Some(tensor.dtype));
    }
}
