//! Infers every value's type from the inputs and holds it against what the
//! exporter declared.
//!
//! Invariant: after `infer`, each live node's arguments are present and of the
//! kinds that lowering reads, and all types are fixed and supported.

use kiln_proto::{
    Failure, FailureKind,
    graph::{Argument, DType, Dim, Graph, Node, ValueId},
};

use super::{
    archive::invalid,
    canonical::live_order,
    ops::{self, Arrange, Binary, Op, Product},
    types::{Operand, Type, broadcast, dimension, elements, is_supported, promote},
};

/// Most operations of one program; the passes after this one are not linear.
const MOST_NODES: usize = 50_000;

/// A graph of which every live value's type is known.
pub(super) struct Typed<'a> {
    pub(super) graph: &'a Graph,
    /// The live nodes, in canonical order.
    pub(super) order: Vec<usize>,
    types: Vec<Option<Type>>,
}

impl Typed<'_> {
    /// The type of a value that an input or a live node defines.
    pub(super) fn ty(&self, value: ValueId) -> Result<&Type, String> {
        self.types[value.0].as_ref().ok_or_else(|| {
            format!("{:?} is not computed by the graph", self.graph.value(value).name)
        })
    }
}

/// Types of all live values of `graph`.
pub(super) fn infer(graph: &Graph) -> Result<Typed<'_>, Failure> {
    let order = live_order(graph);
    if order.len() > MOST_NODES {
        return Err(invalid(format!("{} operations, at most {MOST_NODES}", order.len())));
    }
    let mut typed = Typed { graph, order, types: vec![None; graph.values.len()] };
    for input in &graph.inputs {
        let ty = declared(graph, input.value)?;
        typed.types[input.value.0] = Some(ty);
    }
    for index in typed.order.clone() {
        let node = &graph.nodes[index];
        let about = |why: String| invalid(format!("node {:?} ({}): {why}", node.name, node.op));
        let [output] = node.outputs[..] else {
            return Err(about(format!("{} outputs, not one", node.outputs.len())));
        };
        let inferred = Args { typed: &typed, node }.result().map_err(about)?;
        elements(&inferred.shape).map_err(about)?;
        let declared = declared(graph, output)?;
        if inferred != declared {
            return Err(about(format!(
                "declared as {} {:?}, computes {} {:?}",
                declared.dtype, declared.shape, inferred.dtype, inferred.shape
            )));
        }
        typed.types[output.0] = Some(inferred);
    }
    for node in graph.nodes.iter().filter(|n| ops::lookup(&n.op) == Some(Op::Check)) {
        check(&typed, node)?;
    }
    Ok(typed)
}

/// What an `_assert_tensor_metadata` of a live value claims.
fn check(typed: &Typed<'_>, node: &Node) -> Result<(), Failure> {
    let (Some(Argument::Tensor(value)), Some(Argument::DType(claimed))) =
        (node.arg("a"), node.arg("dtype"))
    else {
        return Ok(());
    };
    match &typed.types[value.0] {
        Some(ty) if ty.dtype != *claimed => Err(invalid(format!(
            "node {:?}: the program asserts {claimed}, it computes {}",
            node.name, ty.dtype
        ))),
        _ => Ok(()),
    }
}

fn declared(graph: &Graph, value: ValueId) -> Result<Type, Failure> {
    let unsupported = |why: String| Failure::new(FailureKind::UnsupportedOp, why);
    let value = graph.value(value);
    if !is_supported(value.ty.dtype) {
        return Err(unsupported(format!(
            "tensor {:?} is {}; `native` computes f32, f16 and bf16",
            value.name, value.ty.dtype
        )));
    }
    let mut shape = Vec::with_capacity(value.ty.shape.len());
    for dim in &value.ty.shape {
        match dim {
            Dim::Static(size) => shape.push(usize::try_from(*size).unwrap_or(usize::MAX)),
            Dim::Symbolic(expression) => {
                return Err(unsupported(format!(
                    "tensor {:?} has the size {expression}; `native` compiles fixed sizes: \
                     export without dynamic_shapes",
                    value.name
                )));
            }
        }
    }
    elements(&shape).map_err(|why| unsupported(format!("tensor {:?}: {why}", value.name)))?;
    Ok(Type { dtype: value.ty.dtype, shape })
}

/// A node's arguments, by kind; errors name the argument.
pub(super) struct Args<'a> {
    pub(super) typed: &'a Typed<'a>,
    pub(super) node: &'a Node,
}

impl<'a> Args<'a> {
    /// A tensor that must be there.
    pub(super) fn tensor(&self, name: &str) -> Result<(ValueId, &'a Type), String> {
        self.maybe_tensor(name)?.ok_or_else(|| format!("argument {name:?} is no tensor"))
    }

    /// A tensor, if that is what the argument is.
    pub(super) fn maybe_tensor(&self, name: &str) -> Result<Option<(ValueId, &'a Type)>, String> {
        match self.node.arg(name) {
            Some(Argument::Tensor(value)) => Ok(Some((*value, self.typed.ty(*value)?))),
            _ => Ok(None),
        }
    }

    /// A number, if that is what the argument is.
    pub(super) fn scalar(&self, name: &str) -> Result<Option<f64>, String> {
        match self.node.arg(name) {
            Some(Argument::Int(int)) => Ok(Some(*int as f64)),
            Some(Argument::Float(float)) => Ok(Some(*float)),
            Some(Argument::Tensor(_)) | None => Ok(None),
            Some(other) => Err(format!("argument {name:?} is no number: {other:?}")),
        }
    }

    /// A factor: one where it is absent.
    pub(super) fn factor(&self, name: &str) -> Result<f64, String> {
        Ok(self.scalar(name)?.unwrap_or(1.0))
    }

    fn int(&self, name: &str) -> Result<i64, String> {
        match self.node.arg(name) {
            Some(Argument::Int(int)) => Ok(*int),
            other => Err(format!("argument {name:?} is no dimension: {other:?}")),
        }
    }

    fn flag(&self, name: &str) -> bool {
        self.node.arg(name) == Some(&Argument::Bool(true))
    }

    /// Element type asked for, if any.
    pub(super) fn dtype(&self) -> Option<DType> {
        match self.node.arg("dtype") {
            Some(Argument::DType(dtype)) => Some(*dtype),
            _ => None,
        }
    }

    /// Dimensions in the argument `name`, each once, in the order given.
    pub(super) fn dims(&self, name: &str, rank: usize) -> Result<Option<Vec<usize>>, String> {
        let given: &[i64] = match self.node.arg(name) {
            Some(Argument::Ints(ints)) => ints,
            Some(Argument::Int(int)) => std::slice::from_ref(int),
            None => return Ok(None),
            Some(other) => return Err(format!("argument {name:?} has no dimensions: {other:?}")),
        };
        let mut dims = Vec::with_capacity(given.len());
        for dim in given {
            let dim = dimension(*dim, rank)?;
            if dims.contains(&dim) {
                return Err(format!("dimension {dim} is given twice"));
            }
            dims.push(dim);
        }
        Ok(Some(dims))
    }

    fn sizes(&self) -> Result<Vec<Option<usize>>, String> {
        let argument = self.node.arg("size").or_else(|| self.node.arg("shape"));
        let Some(Argument::Sizes(sizes)) = argument else { return Err("no sizes".to_owned()) };
        let size = |size: &Option<Dim>| match size {
            None => Ok(None),
            Some(Dim::Static(size)) => usize::try_from(*size).map(Some).map_err(|e| e.to_string()),
            Some(Dim::Symbolic(name)) => Err(format!("the size {name} is not fixed")),
        };
        sizes.iter().map(size).collect()
    }

    /// The order of dimensions after a `permute`, `transpose` or `t`.
    pub(super) fn permutation(&self, arrange: Arrange, rank: usize) -> Result<Vec<usize>, String> {
        let mut order: Vec<usize> = (0..rank).collect();
        match arrange {
            Arrange::Transpose => {
                let (a, b) = (self.int("dim0")?, self.int("dim1")?);
                order.swap(dimension(a, rank)?, dimension(b, rank)?);
            }
            Arrange::Flip if rank <= 2 => order.reverse(),
            Arrange::Flip => return Err(format!("a tensor with {rank} dimensions")),
            _ => order = self.dims("dims", rank)?.ok_or("no dimensions")?,
        }
        match order.len() == rank {
            true => Ok(order),
            false => Err(format!("{} dimensions of {rank}", order.len())),
        }
    }

    /// The dimensions over which a mean goes: all, where none are named.
    pub(super) fn reduced(&self, rank: usize) -> Result<Vec<usize>, String> {
        let dims = self.dims("dim", rank)?.unwrap_or_default();
        Ok(if dims.is_empty() { (0..rank).collect() } else { dims })
    }

    fn result(&self) -> Result<Type, String> {
        let op = ops::lookup(&self.node.op).ok_or("unknown")?;
        match op {
            Op::Unary(_) | Op::Same => Ok(self.tensor("self")?.1.clone()),
            Op::Binary(binary) => self.binary(binary),
            Op::Mean => self.mean(),
            Op::Cast => {
                let ty = self.tensor("self")?.1;
                Ok(Type { dtype: self.dtype().unwrap_or(ty.dtype), shape: ty.shape.clone() })
            }
            Op::Product(product) => self.product(product),
            Op::Arrange(arrange) => self.arranged(arrange),
            Op::Check => Err("computes nothing".to_owned()),
        }
    }

    fn binary(&self, binary: Binary) -> Result<Type, String> {
        let right = if binary == Binary::Pow { "exponent" } else { "other" };
        if self.node.arg("rounding_mode").is_some() {
            return Err("division with rounding".to_owned());
        }
        let a = self.tensor("self")?.1;
        let Some((_, b)) = self.maybe_tensor(right)? else {
            self.scalar(right)?.ok_or_else(|| format!("argument {right:?} is missing"))?;
            return Ok(a.clone());
        };
        let dtype = promote(&[Operand::Tensor(a), Operand::Tensor(b), Operand::Scalar]);
        let shape = broadcast(&a.shape, &b.shape)?;
        Ok(Type { dtype: dtype.ok_or("nothing to promote")?, shape })
    }

    fn mean(&self) -> Result<Type, String> {
        let ty = self.tensor("self")?.1;
        let over = self.reduced(ty.shape.len())?;
        let keep = self.flag("keepdim");
        let shape = ty.shape.iter().enumerate().filter_map(|(dim, size)| {
            match (over.contains(&dim), keep) {
                (false, _) => Some(*size),
                (true, true) => Some(1),
                (true, false) => None,
            }
        });
        Ok(Type { dtype: self.dtype().unwrap_or(ty.dtype), shape: shape.collect() })
    }

    fn product(&self, product: Product) -> Result<Type, String> {
        let (left, right) = match product {
            Product::Linear => ("input", "weight"),
            Product::Mm | Product::Bmm => ("self", "mat2"),
            Product::Matmul => ("self", "other"),
            Product::Addmm => ("mat1", "mat2"),
        };
        let (a, b) = (self.tensor(left)?.1, self.tensor(right)?.1);
        if a.dtype != b.dtype {
            return Err(format!("a product of {} and {}", a.dtype, b.dtype));
        }
        let mut right = b.shape.clone();
        let ranks = (a.shape.len(), right.len());
        match (product, ranks) {
            (Product::Linear, (1.., 2)) => right.swap(0, 1),
            (Product::Mm | Product::Addmm, (2, 2))
            | (Product::Bmm, (3, 3))
            | (Product::Matmul, (1.., 1..)) => {}
            _ => return Err(format!("a product of shapes {:?} and {:?}", a.shape, b.shape)),
        }
        let shape = matmul_shape(&a.shape, &right)?;
        let added = match product {
            Product::Linear => self.maybe_tensor("bias")?,
            Product::Addmm => Some(self.tensor("self")?),
            _ => None,
        };
        if let Some((_, added)) = added
            && (added.dtype != a.dtype || broadcast(&added.shape, &shape)? != shape)
        {
            return Err(format!("{} {:?} cannot be added", added.dtype, added.shape));
        }
        Ok(Type { dtype: a.dtype, shape })
    }

    fn arranged(&self, arrange: Arrange) -> Result<Type, String> {
        let ty = self.tensor("self")?.1;
        let rank = ty.shape.len();
        let shape = match arrange {
            Arrange::Reshape => reshaped(&ty.shape, &self.sizes()?)?,
            Arrange::Permute | Arrange::Transpose | Arrange::Flip => {
                self.permutation(arrange, rank)?.into_iter().map(|dim| ty.shape[dim]).collect()
            }
            Arrange::Unsqueeze => {
                let mut shape = ty.shape.clone();
                shape.insert(dimension(self.int("dim")?, rank + 1)?, 1);
                shape
            }
            Arrange::Squeeze => {
                let dims = self.dims("dim", rank)?;
                let goes = |dim: usize| dims.as_ref().is_none_or(|dims| dims.contains(&dim));
                let kept = ty.shape.iter().enumerate().filter(|(dim, s)| **s != 1 || !goes(*dim));
                kept.map(|(_, size)| *size).collect()
            }
            Arrange::Expand => expanded(&ty.shape, &self.sizes()?)?,
        };
        Ok(Type { dtype: ty.dtype, shape })
    }
}

fn matmul_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let wrong = || format!("a product of shapes {a:?} and {b:?}");
    let (rows, k) = match a {
        [] => return Err(wrong()),
        [k] => (None, *k),
        [.., m, k] => (Some(*m), *k),
    };
    let (k2, columns) = match b {
        [] => return Err(wrong()),
        [k] => (*k, None),
        [.., k, n] => (*k, Some(*n)),
    };
    if k != k2 {
        return Err(wrong());
    }
    let batch = |shape: &[usize]| shape[..shape.len().saturating_sub(2)].to_vec();
    let mut shape = broadcast(&batch(a), &batch(b))?;
    shape.extend(rows);
    shape.extend(columns);
    Ok(shape)
}

fn reshaped(from: &[usize], to: &[Option<usize>]) -> Result<Vec<usize>, String> {
    let wrong = || format!("shape {from:?} viewed as {to:?}");
    let total = elements(from)?;
    let known = to.iter().flatten().try_fold(1usize, |all, size| all.checked_mul(*size));
    let known = known.filter(|k| *k > 0 && total.is_multiple_of(*k)).ok_or_else(wrong)?;
    let missing = to.iter().filter(|size| size.is_none()).count();
    if missing > 1 || (missing == 0 && known != total) {
        return Err(wrong());
    }
    Ok(to.iter().map(|size| size.unwrap_or(total / known)).collect())
}

fn expanded(from: &[usize], to: &[Option<usize>]) -> Result<Vec<usize>, String> {
    let wrong = || format!("shape {from:?} expanded to {to:?}");
    let new = to.len().checked_sub(from.len()).ok_or_else(wrong)?;
    let size = |(i, size): (usize, &Option<usize>)| match (i.checked_sub(new), size) {
        (Some(i), None) => Ok(from[i]),
        (Some(i), Some(size)) if from[i] == 1 || from[i] == *size => Ok(*size),
        (None, Some(size)) => Ok(*size),
        _ => Err(wrong()),
    };
    to.iter().enumerate().map(size).collect()
}
