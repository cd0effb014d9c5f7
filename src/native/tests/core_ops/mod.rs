//! Each core operation: compiled kernels in the emulator against the
//! interpreter, with sizes that are known and with symbols.

mod maps;
mod moves;
mod products;
mod reductions;

use kiln_proto::{
    Target,
    graph::{self, Argument, DType, Dim, Graph, InputKind, TensorType},
};

use super::emulator::Module;
use crate::{
    codegen,
    core::{Domain, Empty, Fun, Input, Node, Number, Op, Operand, Program, Range, Value, ValueId},
    interp::{self, Precision, Settings, Tensor},
    lower, schedule,
    size::Size,
};

/// Sizes that are symbols in the symbolic run, and what they are made of.
const S0: usize = 5;
const S1: usize = 7;

/// A program under construction, with its inputs.
struct Bench {
    symbolic: bool,
    program: Program,
    inputs: Vec<Tensor<'static>>,
    /// Of each output: what it is, for messages.
    labels: Vec<String>,
}

/// Runs what `build` builds with known sizes, fused, and with symbols, one by one.
fn check(build: impl Fn(&mut Bench)) {
    let mut wrong = Vec::new();
    for (symbolic, fuse) in [(false, true), (true, false)] {
        let mut bench = Bench::new(symbolic);
        build(&mut bench);
        let found = bench.differences(fuse);
        let how = format!("symbolic {symbolic}, fuse {fuse}");
        wrong.extend(found.into_iter().map(|why| format!("{how}: {why}")));
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

impl Bench {
    fn new(symbolic: bool) -> Self {
        let mut program = Program::default();
        if symbolic {
            program.symbols = vec![Range { min: 0, max: 100 }; 2];
        }
        let mut bench = Self { symbolic, program, inputs: Vec::new(), labels: Vec::new() };
        if symbolic {
            // Whatever else is read, this says what the symbols are.
            bench.input(DType::F32, &[S0, S1], &[0.0; S0 * S1]);
        }
        bench
    }

    /// `n` as a size of the program.
    fn size(&self, n: usize) -> Size {
        let (s0, s1) = (Size::symbol(0), Size::symbol(1));
        match n {
            S0 if self.symbolic => s0,
            S1 if self.symbolic => s1,
            35 if self.symbolic => &s0 * &s1,
            12 if self.symbolic => &s0 + &s1,
            _ => Size::from(n),
        }
    }

    fn value(&mut self, dtype: DType, shape: &[usize]) -> ValueId {
        let shape = shape.iter().map(|n| self.size(*n)).collect();
        self.program.values.push(Value { dtype, shape });
        ValueId(self.program.values.len() - 1)
    }

    /// An input with those elements, repeated as often as it takes.
    fn input(&mut self, dtype: DType, shape: &[usize], elements: &[f64]) -> ValueId {
        let value = self.value(dtype, shape);
        let sizes = self.program.value(value).shape.clone();
        let mut strides = vec![Size::from(1); shape.len()];
        for dim in (1..shape.len()).rev() {
            strides[dim - 1] = &strides[dim] * &sizes[dim];
        }
        self.program.inputs.push(Input { value, position: self.inputs.len(), strides });
        let count: usize = shape.iter().product();
        let all: Vec<f64> = elements.iter().copied().cycle().take(count).collect();
        self.inputs.push(tensor(dtype, shape, &all));
        value
    }

    /// An operation whose result others read.
    fn node(&mut self, op: Op, reads: &[ValueId], dtype: DType, shape: &[usize]) -> ValueId {
        let writes = self.value(dtype, shape);
        self.program.nodes.push(Node { op, reads: reads.to_vec(), writes, origin: 0 });
        writes
    }

    /// An operation whose result is compared.
    fn output(&mut self, op: Op, reads: &[ValueId], dtype: DType, shape: &[usize]) -> ValueId {
        self.labels.push(format!("{op:?} to {dtype} {shape:?}"));
        let value = self.node(op, reads, dtype, shape);
        self.program.outputs.push(value);
        value
    }

    /// The graph that the program could have come from, as far as anything looks at it.
    fn graph(&self) -> Graph {
        let names = ["s0", "s1"];
        let dim = |size: &Size| match size.known() {
            Some(known) => Dim::Static(known as u64),
            None => Dim::Symbolic(size.to_string()),
        };
        let mut graph = Graph::default();
        for value in &self.program.values {
            let ty = TensorType {
                dtype: value.dtype,
                shape: value.shape.iter().map(dim).collect(),
                strides: Vec::new(),
                offset: Dim::Static(0),
                device: "cpu".to_owned(),
            };
            let name = format!("v{}", graph.values.len());
            graph.values.push(graph::Value { name, ty });
        }
        let id = |value: ValueId| graph::ValueId(value.0);
        for input in &self.program.inputs {
            let strides = input.strides.iter().map(dim).collect();
            graph.values[input.value.0].ty.strides = strides;
            let input = graph::Input { value: id(input.value), kind: InputKind::User };
            graph.inputs.push(input);
        }
        let reads = self.program.inputs.iter().map(|input| Argument::Tensor(id(input.value)));
        graph.nodes = vec![graph::Node {
            name: "node".to_owned(),
            op: "aten.core.default".to_owned(),
            args: reads.enumerate().map(|(i, read)| (format!("x{i}"), read)).collect(),
            outputs: self.program.nodes.iter().map(|node| id(node.writes)).collect(),
        }];
        graph.outputs = self.program.outputs.iter().map(|output| id(*output)).collect();
        graph.symbols = (self.program.symbols.iter().zip(names))
            .map(|(range, name)| graph::Symbol {
                name: name.to_owned(),
                min: Some(range.min),
                max: Some(range.max),
            })
            .collect();
        graph
    }

    fn differences(&self, fuse: bool) -> Vec<String> {
        let graph = self.graph();
        let target = Target::cubin(80);
        let compiled = lower::lower(&self.program, &graph, &Default::default(), target).and_then(
            |mut loops| {
                let groups = schedule::schedule(&mut loops, fuse)?;
                codegen::generate(&graph, &self.program, &mut loops, &groups, target)
            },
        );
        let code = match compiled {
            Ok(code) => code,
            Err(failure) => return vec![format!("not compiled: {failure}")],
        };
        if std::env::var_os("KILN_SHOW").is_some() {
            println!("{}", code.source);
        }
        let module = Module::of(&code.source, &code.plan);
        let inputs: Vec<Vec<u8>> = self.inputs.iter().map(|x| x.bytes.to_vec()).collect();
        let shapes: Vec<&[usize]> = self.inputs.iter().map(|x| x.shape.as_slice()).collect();
        let wanted = interp::run(&self.program, &self.inputs, &Settings::default()).unwrap();
        let found = module.run_shaped(&inputs, &shapes);
        let outputs = wanted.iter().zip(found).zip(&self.labels);
        outputs
            .filter_map(|((wanted, found), label)| {
                let found = Tensor::dense(wanted.dtype, &wanted.shape, found);
                compare(&found, wanted, label.starts_with("Attention"))
                    .map(|why| format!("{label}: {why}"))
            })
            .collect()
    }
}

fn tensor(dtype: DType, shape: &[usize], elements: &[f64]) -> Tensor<'static> {
    let mut program = Program::default();
    let size: Vec<Size> = shape.iter().map(|n| Size::from(*n)).collect();
    let value = |dtype| Value { dtype, shape: size.clone() };
    program.values = vec![value(DType::F64), value(dtype)];
    program.inputs = vec![Input { value: ValueId(0), position: 0, strides: Vec::new() }];
    let op = Op::Map { fun: Fun::Id, domain: Domain::Float, args: vec![Operand::Read(0)] };
    program.nodes = vec![Node { op, reads: vec![ValueId(0)], writes: ValueId(1), origin: 0 }];
    program.outputs = vec![ValueId(1)];
    let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
    let given = Tensor::dense(DType::F64, shape, bytes);
    let settings = Settings { precision: Precision::Rounded, ..Settings::default() };
    interp::run(&program, &[given], &settings).unwrap().remove(0)
}

/// Where they differ by more than the last place.
fn compare(found: &Tensor<'_>, wanted: &Tensor<'_>, attention: bool) -> Option<String> {
    let (relative, floor) = match wanted.dtype {
        DType::F64 => (1e-13, 1e-300),
        DType::F32 => (1e-5, 1e-30),
        DType::F16 => (1e-3, 1e-4),
        DType::BF16 => (8e-3, 1e-30),
        _ => (0.0, 0.0),
    };
    let (found, wanted) = (found.to_f64().unwrap(), wanted.to_f64().unwrap());
    // What cancels in a mean over keys is as inexact as what does not.
    let finite = wanted.iter().filter(|x| x.is_finite());
    let most = finite.fold(0.0, |most: f64, x| most.max(x.abs()));
    let floor = if attention { most } else { floor };
    let near = |a: f64, b: f64| match b.is_finite() {
        true => (a - b).abs() <= relative * b.abs().max(floor),
        false => a == b || (a.is_nan() && b.is_nan()),
    };
    let wrong: Vec<String> = (found.iter().zip(&wanted).enumerate())
        .filter(|(_, (a, b))| !near(**a, **b))
        .map(|(i, (a, b))| format!("[{i}] {a:?} for {b:?}"))
        .collect();
    (!wrong.is_empty()).then(|| wrong[..wrong.len().min(6)].join(", "))
}

fn map(fun: Fun, domain: Domain, operands: usize) -> Op {
    Op::Map { fun, domain, args: (0..operands).map(Operand::Read).collect() }
}
