use kiln_proto::graph::DType;

use super::*;
use crate::plan::{Symbol, VERSION};

fn symbol(index: usize) -> Expr {
    Expr::Symbol(index)
}

fn tensor(name: &str, kind: &str, shape: Vec<Expr>, strides: Vec<Expr>) -> Tensor {
    let (name, kind) = (name.to_owned(), kind.to_owned());
    Tensor { name, kind, dtype: DType::F32, shape, strides, updated: false }
}

/// `in0 [2 * s0 + 1, 4]`, `in1 [4, s0]`, a constant, `out0 [s0]`.
fn plan() -> Plan {
    let grown = Expr::Add(vec![Expr::Mul(vec![Expr::Known(2), symbol(0)]), Expr::Known(1)]);
    let kernel = Kernel {
        name: "k0".to_owned(),
        kind: "map".to_owned(),
        variant: String::new(),
        grid: [Expr::Div(Box::new([symbol(0), Expr::Known(2)])), Expr::Known(1), Expr::Known(1)],
        block: [32, 1, 1],
        shared_bytes: 0,
        overlaps: false,
        follows: false,
        args: vec![
            Arg::Memory(Memory::Input(0)),
            Arg::Size(symbol(0)),
            Arg::Memory(Memory::Workspace(Expr::Mul(vec![symbol(0), Expr::Known(256)]))),
            Arg::Memory(Memory::Output(0)),
        ],
        computes: Vec::new(),
    };
    Plan {
        version: VERSION,
        target: "sm_90".to_owned(),
        symbols: vec![Symbol { min: 0, max: Some(8), input: 0, dim: 0, scale: 2, offset: 1 }],
        inputs: vec![
            tensor(
                "in0",
                "user",
                vec![grown, Expr::Known(4)],
                vec![Expr::Known(4), Expr::Known(1)],
            ),
            tensor("in1", "user", vec![Expr::Known(4), symbol(0)], vec![symbol(0), Expr::Known(1)]),
            tensor("in2", "constant", vec![Expr::Known(3)], vec![Expr::Known(1)]),
        ],
        outputs: vec![tensor("out0", "output", vec![symbol(0)], vec![Expr::Known(1)])],
        workspace_bytes: Expr::Mul(vec![symbol(0), Expr::Known(512)]),
        buffers: Vec::new(),
        kernels: vec![kernel],
    }
}

#[test]
fn sizes_follow_the_inputs() {
    let call = plan().call(&[&[11, 4], &[4, 5], &[]]).unwrap();
    assert_eq!(call.symbols, [5]);
    assert_eq!(call.inputs[0].bytes, 11 * 4 * 4);
    assert_eq!(call.outputs[0].shape, [5]);
    assert_eq!(call.workspace_bytes, 5 * 512);
    let values = vec![
        Value::Pointer(Base::Input(0), 0),
        Value::Size(5),
        Value::Pointer(Base::Workspace, 5 * 256),
        Value::Pointer(Base::Output(0), 0),
    ];
    assert_eq!(call.launches, [Launch { kernel: 0, grid: [2, 1, 1], values }]);
}

#[test]
fn an_empty_call_launches_nothing() {
    let call = plan().call(&[&[1, 4], &[4, 0], &[]]).unwrap();
    assert_eq!((call.launches.len(), call.outputs[0].bytes, call.workspace_bytes), (0, 0, 0));
}

#[test]
fn shapes_that_the_plan_does_not_admit_are_named() {
    let refused = |a: &[usize], b: &[usize]| match plan().call(&[a, b, &[]]) {
        Err(CallError::Inputs(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(refused(&[10, 4], &[4, 5]).contains("dimension 0 is 2*s0 + 1 for no whole s0"));
    assert!(refused(&[19, 4], &[4, 9]).contains("makes s0 9: compiled for 0 to 8"));
    assert!(refused(&[11, 3], &[4, 5]).contains("in0 has shape [11, 3], not [11, 4]"));
    let two = refused(&[11, 4], &[4, 6]);
    assert!(two.contains("in1 has shape [4, 6], not [4, 5]"), "{two}");
    assert!(two.contains("s0 is 5 by dimension 0 of in0"), "{two}");
    assert!(refused(&[], &[4, 5]).contains("in0 has shape [], not [2*s0 + 1, 4]"));
    assert!(refused(&[11, 4], &[4, 5, 1]).contains("in1"));
    assert!(plan().call(&[]).is_err());
    let mut least = plan();
    least.symbols[0].min = 2;
    let few = least.call(&[&[3, 4], &[4, 1], &[]]).unwrap_err().to_string();
    assert!(few.contains("makes s0 1: compiled for 2 to 8"), "{few}");
}

#[test]
fn a_plan_that_does_not_hang_together_says_which_kernel() {
    let broken = |arg: Arg| {
        let mut plan = plan();
        plan.kernels[0].args[0] = arg;
        match plan.call(&[&[11, 4], &[4, 5], &[]]) {
            Err(CallError::Plan(why)) => assert!(why.contains("kernel k0"), "{why}"),
            other => panic!("{other:?}"),
        }
    };
    broken(Arg::Memory(Memory::Input(2)));
    broken(Arg::Memory(Memory::Input(3)));
    broken(Arg::Memory(Memory::Output(1)));
    broken(Arg::Memory(Memory::Workspace(Expr::Known(5 * 512 + 1))));
    broken(Arg::Memory(Memory::Workspace(Expr::Known(-1))));
    broken(Arg::Size(symbol(1)));
    broken(Arg::Size(Expr::Div(Box::new([symbol(0), Expr::Known(0)]))));
}

#[test]
fn a_tensor_map_becomes_bytes() {
    let mut plan = plan();
    let map = TensorMap {
        memory: Memory::Workspace(Expr::Known(256)),
        offset: symbol(0),
        dtype: DType::BF16,
        sizes: vec![Expr::Known(64), symbol(0)],
        strides: vec![Expr::Known(64)],
        tile: vec![64, 8],
        swizzle: 128,
    };
    plan.kernels[0].args = vec![Arg::Map(map.clone())];
    let call = plan.call(&[&[11, 4], &[4, 5], &[]]).unwrap();
    let Value::Map(tile) = &call.launches[0].values[0] else { panic!("{call:?}") };
    assert_eq!(tile.start, (Base::Workspace, 256 + 10));
    assert_eq!((&tile.sizes[..], &tile.strides[..]), (&[64, 5][..], &[128][..]));
    plan.kernels[0].args = vec![Arg::Map(TensorMap { tile: vec![64], ..map })];
    assert!(plan.call(&[&[11, 4], &[4, 5], &[]]).is_err());
}

#[test]
fn a_grid_beyond_the_device_blames_the_inputs() {
    let mut plan = plan();
    plan.kernels[0].grid[1] = Expr::Mul(vec![symbol(0), Expr::Known(65_535)]);
    assert!(plan.call(&[&[3, 4], &[4, 1], &[]]).is_ok());
    let refused = plan.call(&[&[11, 4], &[4, 5], &[]]).unwrap_err().to_string();
    assert!(refused.contains("kernel k0") && refused.contains("too large"), "{refused}");
}
