//! A typed graph to primitives: views become walks, compound operations their parts.
//!
//! Invariant: no arrangement of elements is computed unless an affine walk
//! cannot express it, and then by one copy.

use kiln_proto::{
    Failure,
    graph::{DType, Dim, Node, TensorType, ValueId},
};

use super::{
    archive::invalid,
    infer::{Args, Typed},
    ops::{self, Arrange, Binary, Op, Product, Unary},
    prim::{Access, Compute, Operand, Prim, Prims, Scalar, Source},
    strided::Strided,
    types::broadcast,
};

/// Primitives of the live part of a graph.
pub(super) fn lower(typed: &Typed<'_>) -> Result<Prims, Failure> {
    let graph = typed.graph;
    let mut lowering = Lowering {
        typed,
        prims: Prims::default(),
        values: vec![None; graph.values.len()],
        origin: 0,
    };
    for (i, input) in graph.inputs.iter().enumerate() {
        let value = graph.value(input.value);
        let walk = fixed_walk(&value.ty)
            .ok_or_else(|| invalid(format!("input {:?} has strides of no tensor", value.name)))?;
        lowering.prims.inputs.push(value.ty.dtype);
        lowering.values[input.value.0] = Some(Access { source: Source::Input(i), walk });
    }
    for index in &typed.order {
        let node = &graph.nodes[*index];
        lowering.origin = *index;
        let access = lowering
            .node(node)
            .map_err(|why| invalid(format!("node {:?} ({}): {why}", node.name, node.op)))?;
        lowering.values[node.outputs[0].0] = Some(access);
    }
    for output in &graph.outputs {
        let prim = lowering.output(*output).map_err(invalid)?;
        lowering.prims.outputs.push(prim);
    }
    Ok(lowering.prims)
}

fn fixed_walk(ty: &TensorType) -> Option<Strided> {
    let fixed = |dims: &[Dim]| -> Option<Vec<usize>> {
        dims.iter().map(|dim| usize::try_from(dim.known()?).ok()).collect()
    };
    let walk = Strided { shape: fixed(&ty.shape)?, strides: fixed(&ty.strides)? };
    // An exporter's strides span a tensor's storage: far ones are nonsense.
    let span = walk.shape.iter().zip(&walk.strides).try_fold(0usize, |sum, (size, stride)| {
        sum.checked_add((size - 1).checked_mul(*stride)?)
    })?;
    (span < 1 << 44).then_some(walk)
}

struct Lowering<'a> {
    typed: &'a Typed<'a>,
    prims: Prims,
    values: Vec<Option<Access>>,
    origin: usize,
}

impl Lowering<'_> {
    fn node(&mut self, node: &Node) -> Result<Access, String> {
        let args = Args { typed: self.typed, node };
        let ty = self.typed.ty(node.outputs[0])?.clone();
        match ops::lookup(&node.op).ok_or("unknown")? {
            Op::Unary(unary) => {
                let read = self.read(&args, "self")?;
                Ok(self.map(unary_scalar(unary), vec![Operand::Read(read)], &ty.shape, ty.dtype))
            }
            Op::Binary(binary) => self.binary(&args, binary, &ty.shape, ty.dtype),
            Op::Mean => self.mean(&args, ty.dtype, &ty.shape),
            Op::Cast => {
                let read = self.read(&args, "self")?;
                Ok(self.cast(read, ty.dtype))
            }
            Op::Product(product) => self.product(&args, product, &ty.shape, ty.dtype),
            Op::Arrange(arrange) => self.arrange(&args, arrange, &ty.shape),
            Op::Same => self.read(&args, "self"),
            Op::Check => Err("computes nothing".to_owned()),
        }
    }

    fn binary(
        &mut self,
        args: &Args<'_>,
        binary: Binary,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Access, String> {
        let left = Operand::Read(self.read(args, "self")?.broadcast(shape));
        let name = if binary == Binary::Pow { "exponent" } else { "other" };
        let mut right = match args.scalar(name)? {
            Some(number) => Operand::Scalar(number),
            None => Operand::Read(self.read(args, name)?.broadcast(shape)),
        };
        if let (Binary::Pow, Operand::Scalar(exponent)) = (binary, &right) {
            return Ok(self.power(left, *exponent, shape, dtype));
        }
        let alpha = args.factor("alpha")?;
        if alpha != 1.0 {
            right = match right {
                Operand::Scalar(number) => Operand::Scalar(number * alpha),
                read => {
                    let operands = vec![read, Operand::Scalar(alpha)];
                    Operand::Read(self.map(Scalar::Mul, operands, shape, dtype))
                }
            };
        }
        let scalar = match binary {
            Binary::Add => Scalar::Add,
            Binary::Sub => Scalar::Sub,
            Binary::Mul => Scalar::Mul,
            Binary::Div => Scalar::Div,
            Binary::Pow => Scalar::Pow,
        };
        Ok(self.map(scalar, vec![left, right], shape, dtype))
    }

    /// Small powers by multiplication, as PyTorch does.
    fn power(&mut self, base: Operand, exponent: f64, shape: &[usize], dtype: DType) -> Access {
        let one = |scalar| (scalar, vec![base.clone()]);
        let square = vec![base.clone(), base.clone()];
        let (scalar, operands) = match exponent {
            1.0 => one(Scalar::Copy),
            0.5 => one(Scalar::Sqrt),
            -0.5 => one(Scalar::Rsqrt),
            -1.0 => one(Scalar::Reciprocal),
            2.0 => (Scalar::Mul, square),
            3.0 => {
                let squared = self.map(Scalar::Mul, square, shape, dtype);
                (Scalar::Mul, vec![Operand::Read(squared), base])
            }
            _ => (Scalar::Pow, vec![base, Operand::Scalar(exponent)]),
        };
        self.map(scalar, operands, shape, dtype)
    }

    fn mean(&mut self, args: &Args<'_>, dtype: DType, shape: &[usize]) -> Result<Access, String> {
        let read = self.read(args, "self")?;
        let rank = read.walk.shape.len();
        let over = args.reduced(rank)?;
        // What is summed over goes last.
        let kept: Vec<usize> = (0..rank).filter(|dim| !over.contains(dim)).collect();
        let mut order = kept.clone();
        order.extend((0..rank).filter(|dim| over.contains(dim)));
        let walk = read.walk.permuted(&order);
        let count: usize = walk.shape[kept.len()..].iter().product();
        let outer = walk.shape[..kept.len()].to_vec();
        let read = Access { source: read.source, walk };
        // Sums are kept in f32: a mean in a short type is rounded once.
        let compute = Compute::Sum { read, lead: kept.len() };
        let sum = self.push(compute, &outer, DType::F32);
        let operands = vec![Operand::Read(sum), Operand::Scalar(count as f64)];
        let mean = self.map(Scalar::Div, operands, &outer, dtype);
        self.reshape(mean, shape)
    }

    fn product(
        &mut self,
        args: &Args<'_>,
        product: Product,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Access, String> {
        let (a, b, added) = match product {
            Product::Linear => {
                let weight = self.read(args, "weight")?.permuted(&[1, 0]);
                (self.read(args, "input")?, weight, Some("bias"))
            }
            Product::Mm | Product::Bmm => {
                (self.read(args, "self")?, self.read(args, "mat2")?, None)
            }
            Product::Matmul => (self.read(args, "self")?, self.read(args, "other")?, None),
            Product::Addmm => (self.read(args, "mat1")?, self.read(args, "mat2")?, Some("self")),
        };
        let product = self.matmul(a, b, shape, dtype)?;
        let Some(name) = added else { return Ok(product) };
        if args.maybe_tensor(name)?.is_none() {
            return Ok(product);
        }
        let mut added = self.read(args, name)?.broadcast(shape);
        let mut product = product;
        for (operand, factor) in [(&mut product, "alpha"), (&mut added, "beta")] {
            let factor = args.factor(factor)?;
            if factor != 1.0 {
                let operands = vec![Operand::Read(operand.clone()), Operand::Scalar(factor)];
                *operand = self.map(Scalar::Mul, operands, shape, dtype);
            }
        }
        let operands = vec![Operand::Read(product), Operand::Read(added)];
        Ok(self.map(Scalar::Add, operands, shape, dtype))
    }

    fn matmul(
        &mut self,
        a: Access,
        b: Access,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Access, String> {
        // Vectors are matrices with one row or column.
        let mut a = a;
        if a.walk.shape.len() == 1 {
            let row = [1, a.walk.shape[0]];
            a = self.reshape(a, &row)?;
        }
        let mut b = b;
        if b.walk.shape.len() == 1 {
            let column = [b.walk.shape[0], 1];
            b = self.reshape(b, &column)?;
        }
        let (ra, rb) = (a.walk.shape.len(), b.walk.shape.len());
        let (m, k, n) = (a.walk.shape[ra - 2], a.walk.shape[ra - 1], b.walk.shape[rb - 1]);
        // A batch against one matrix is one product with more rows.
        if rb == 2 && ra > 2 {
            let rows: usize = a.walk.shape[..ra - 1].iter().product();
            let a = self.reshape(a, &[rows, k])?;
            let flat = self.push(Compute::Product { a, b }, &[rows, n], dtype);
            return self.reshape(flat, shape);
        }
        let batch = broadcast(&a.walk.shape[..ra - 2], &b.walk.shape[..rb - 2])?;
        let with = |last: [usize; 2]| [batch.as_slice(), &last].concat();
        let (a, b) = (a.broadcast(&with([m, k])), b.broadcast(&with([k, n])));
        let out = self.push(Compute::Product { a, b }, &with([m, n]), dtype);
        self.reshape(out, shape)
    }

    fn arrange(
        &mut self,
        args: &Args<'_>,
        arrange: Arrange,
        shape: &[usize],
    ) -> Result<Access, String> {
        let read = self.read(args, "self")?;
        match arrange {
            Arrange::Permute | Arrange::Transpose | Arrange::Flip => {
                Ok(read.permuted(&args.permutation(arrange, read.walk.shape.len())?))
            }
            Arrange::Expand => Ok(read.broadcast(shape)),
            Arrange::Reshape | Arrange::Unsqueeze | Arrange::Squeeze => self.reshape(read, shape),
        }
    }

    /// The primitive that computes an output: its own, dense, and nobody else's.
    fn output(&mut self, value: ValueId) -> Result<usize, String> {
        let access = self.value(value)?;
        let dtype = self.typed.ty(value)?.dtype;
        if let Source::Prim(prim) = access.source {
            let whole = access.walk.shape.iter().product::<usize>()
                == self.prims.list[prim].shape.iter().product::<usize>();
            if whole && access.walk.is_dense() && !self.prims.outputs.contains(&prim) {
                return Ok(prim);
            }
        }
        let shape = access.walk.shape.clone();
        match self.map(Scalar::Copy, vec![Operand::Read(access)], &shape, dtype).source {
            Source::Prim(prim) => Ok(prim),
            Source::Input(_) => Err("an output is no primitive".to_owned()),
        }
    }

    fn cast(&mut self, read: Access, dtype: DType) -> Access {
        if self.prims.dtype(read.source) == dtype {
            return read;
        }
        let shape = read.walk.shape.clone();
        self.map(Scalar::Cast, vec![Operand::Read(read)], &shape, dtype)
    }

    /// `access` under another shape: a walk, or a copy where none reaches it.
    fn reshape(&mut self, access: Access, shape: &[usize]) -> Result<Access, String> {
        if let Some(walk) = access.walk.reshaped(shape) {
            return Ok(Access { source: access.source, walk });
        }
        let (from, dtype) = (access.walk.shape.clone(), self.prims.dtype(access.source));
        let copy = self.map(Scalar::Copy, vec![Operand::Read(access)], &from, dtype);
        let walk = copy
            .walk
            .reshaped(shape)
            .ok_or_else(|| format!("shape {from:?} has not as many elements as {shape:?}"))?;
        Ok(Access { source: copy.source, walk })
    }

    fn map(
        &mut self,
        scalar: Scalar,
        operands: Vec<Operand>,
        shape: &[usize],
        dtype: DType,
    ) -> Access {
        self.push(Compute::Map(scalar, operands), shape, dtype)
    }

    fn push(&mut self, compute: Compute, shape: &[usize], dtype: DType) -> Access {
        let prim = self.prims.list.len();
        let origin = self.origin;
        self.prims.list.push(Prim { compute, shape: shape.to_vec(), dtype, origin });
        Access { source: Source::Prim(prim), walk: Strided::dense(shape) }
    }

    fn read(&self, args: &Args<'_>, name: &str) -> Result<Access, String> {
        self.value(args.tensor(name)?.0)
    }

    fn value(&self, value: ValueId) -> Result<Access, String> {
        self.values[value.0].clone().ok_or_else(|| "reads what is not computed".to_owned())
    }
}

impl Access {
    fn permuted(&self, order: &[usize]) -> Self {
        Self { source: self.source, walk: self.walk.permuted(order) }
    }

    fn broadcast(&self, shape: &[usize]) -> Self {
        Self { source: self.source, walk: self.walk.broadcast(shape) }
    }
}

fn unary_scalar(unary: Unary) -> Scalar {
    match unary {
        Unary::Neg => Scalar::Neg,
        Unary::Exp => Scalar::Exp,
        Unary::Sqrt => Scalar::Sqrt,
        Unary::Rsqrt => Scalar::Rsqrt,
        Unary::Sigmoid => Scalar::Sigmoid,
        Unary::Silu => Scalar::Silu,
        Unary::Reciprocal => Scalar::Reciprocal,
    }
}
