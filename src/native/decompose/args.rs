//! A node's arguments, by kind.
//!
//! Invariant: an argument that is absent has the default that the caller
//! names, one of another kind is an error that names the argument.

use kiln_proto::graph::{Argument, DType, Dim, Graph, Node, SymInt, ValueId as GraphValue};

use super::{
    super::{
        core::{Number, ValueId},
        size::Size,
    },
    Why,
    builder::{Arg, Builder},
    promote::{Category, Kind, category},
    shapes::{self, Symbols},
};

/// One node, and where its results go.
pub(super) struct Args<'a> {
    pub(super) graph: &'a Graph,
    pub(super) node: &'a Node,
    pub(super) symbols: &'a Symbols<'a>,
    pub(super) values: &'a [Option<ValueId>],
    pub(super) b: &'a mut Builder,
}

impl<'a> Args<'a> {
    fn arg(&self, name: &str) -> Option<&'a Argument> {
        self.node.arg(name)
    }

    fn odd<T>(&self, name: &str, what: &str) -> Result<T, Why> {
        match self.arg(name) {
            Some(Argument::Other(tag)) => {
                super::unsupported(format!("argument {name:?} is given as {tag}"))
            }
            other => Err(Why::Wrong(format!("argument {name:?} is no {what}: {other:?}"))),
        }
    }

    fn value(&self, value: GraphValue) -> Result<ValueId, Why> {
        self.values[value.0].ok_or_else(|| {
            Why::Unsupported(format!("{:?} is not computed", self.graph.value(value).name))
        })
    }

    /// A tensor that must be there.
    pub(super) fn tensor(&self, name: &str) -> Result<ValueId, Why> {
        match self.maybe_tensor(name)? {
            Some(value) => Ok(value),
            None => self.odd(name, "tensor"),
        }
    }

    /// A tensor, if that is what the argument is.
    pub(super) fn maybe_tensor(&self, name: &str) -> Result<Option<ValueId>, Why> {
        match self.arg(name) {
            Some(Argument::Tensor(value)) => self.value(*value).map(Some),
            _ => Ok(None),
        }
    }

    /// A list of tensors, of which some may be absent.
    pub(super) fn maybe_tensors(&self, name: &str) -> Result<Vec<Option<ValueId>>, Why> {
        match self.arg(name) {
            Some(Argument::Tensors(values)) => {
                values.iter().map(|v| v.map(|v| self.value(v)).transpose()).collect()
            }
            _ => self.odd(name, "list of tensors"),
        }
    }

    /// A list of tensors, at least one.
    pub(super) fn tensors(&self, name: &str) -> Result<Vec<ValueId>, Why> {
        let all: Option<Vec<ValueId>> = self.maybe_tensors(name)?.into_iter().collect();
        all.filter(|all| !all.is_empty()).map_or_else(|| self.odd(name, "list of tensors"), Ok)
    }

    /// A number, if that is what the argument is.
    pub(super) fn maybe_number(&self, name: &str) -> Result<Option<Number>, Why> {
        Ok(match self.arg(name) {
            Some(Argument::Int(int)) => Some(Number::Int(*int)),
            Some(Argument::Float(float)) => Some(Number::Float(*float)),
            Some(Argument::Bool(switch)) => Some(Number::Bool(*switch)),
            Some(Argument::SymInt(formula)) => Some(Number::Size(self.formula(formula)?)),
            Some(Argument::Tensor(_)) | None => None,
            Some(_) => return self.odd(name, "number"),
        })
    }

    /// A number that must be there.
    pub(super) fn number(&self, name: &str) -> Result<Number, Why> {
        self.maybe_number(name)?.map_or_else(|| self.odd(name, "number"), Ok)
    }

    /// A tensor or a number.
    pub(super) fn operand(&self, name: &str) -> Result<Arg, Why> {
        match self.maybe_tensor(name)? {
            Some(value) => Ok(value.into()),
            None => self.number(name).map(Arg::from),
        }
    }

    /// A tensor or a number, or nothing.
    pub(super) fn maybe_operand(&self, name: &str) -> Result<Option<Arg>, Why> {
        if self.arg(name).is_none() { Ok(None) } else { self.operand(name).map(Some) }
    }

    /// A number that is known now.
    pub(super) fn float(&self, name: &str, default: f64) -> Result<f64, Why> {
        match self.maybe_number(name)? {
            None if self.arg(name).is_none() => Ok(default),
            Some(Number::Float(float)) => Ok(float),
            Some(Number::Int(int)) => Ok(int as f64),
            Some(Number::Bool(switch)) => Ok(f64::from(u8::from(switch))),
            _ => super::unsupported(format!("argument {name:?} depends on sizes")),
        }
    }

    pub(super) fn maybe_int(&self, name: &str) -> Result<Option<i64>, Why> {
        match self.arg(name) {
            None => Ok(None),
            Some(Argument::Int(int)) => Ok(Some(*int)),
            Some(Argument::SymInt(_)) => {
                super::unsupported(format!("argument {name:?} depends on sizes"))
            }
            Some(_) => self.odd(name, "whole number"),
        }
    }

    pub(super) fn int(&self, name: &str, default: i64) -> Result<i64, Why> {
        Ok(self.maybe_int(name)?.unwrap_or(default))
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, Why> {
        match self.arg(name) {
            None => Ok(default),
            Some(Argument::Bool(switch)) => Ok(*switch),
            Some(_) => self.odd(name, "switch"),
        }
    }

    pub(super) fn text(&self, name: &str, default: &'a str) -> Result<&'a str, Why> {
        match self.arg(name) {
            None => Ok(default),
            Some(Argument::String(text)) => Ok(text),
            Some(_) => self.odd(name, "text"),
        }
    }

    pub(super) fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, Why> {
        match self.arg(name) {
            None => Ok(None),
            Some(Argument::Ints(ints)) => Ok(Some(ints.clone())),
            Some(Argument::Int(int)) => Ok(Some(vec![*int])),
            Some(Argument::SymInts(_)) => {
                super::unsupported(format!("argument {name:?} depends on sizes"))
            }
            // A list without elements has no tag of its own.
            Some(Argument::Tensors(none)) if none.is_empty() => Ok(Some(Vec::new())),
            Some(_) => self.odd(name, "list of whole numbers"),
        }
    }

    /// A whole number that may depend on symbols.
    pub(super) fn maybe_size(&self, name: &str) -> Result<Option<Size>, Why> {
        match self.arg(name) {
            None => Ok(None),
            Some(Argument::Int(int)) => Ok(Some(Size::from(*int))),
            Some(Argument::SymInt(formula)) => self.formula(formula).map(Some),
            Some(_) => self.odd(name, "size"),
        }
    }

    /// Whole numbers that may depend on symbols; -1 is `None` where it stands
    /// for a size that is to be inferred.
    pub(super) fn sizes(&self, name: &str) -> Result<Option<Vec<Option<Size>>>, Why> {
        let dim = |dim: &Dim| self.symbols.size(dim).map_err(Why::Unsupported);
        Ok(Some(match self.arg(name) {
            None => return Ok(None),
            Some(Argument::Sizes(sizes)) => sizes
                .iter()
                .map(|size| size.as_ref().map(dim).transpose())
                .collect::<Result<_, _>>()?,
            Some(Argument::Ints(ints)) => ints.iter().map(|i| Some(Size::from(*i))).collect(),
            Some(Argument::Int(int)) => vec![Some(Size::from(*int))],
            Some(Argument::Tensors(none)) if none.is_empty() => Vec::new(),
            Some(Argument::SymInts(ints)) => {
                let int = |int: &SymInt| match int {
                    SymInt::Known(known) => Ok(Some(Size::from(*known))),
                    SymInt::Symbolic(formula) => self.formula(formula).map(Some),
                };
                ints.iter().map(int).collect::<Result<_, Why>>()?
            }
            Some(_) => return self.odd(name, "list of sizes"),
        }))
    }

    /// Sizes that are all given.
    pub(super) fn shape(&self, name: &str) -> Result<Vec<Size>, Why> {
        let sizes: Option<Vec<Size>> = self.sizes(name)?.unwrap_or_default().into_iter().collect();
        sizes.map_or_else(|| self.odd(name, "shape"), Ok)
    }

    fn formula(&self, formula: &str) -> Result<Size, Why> {
        self.symbols.formula(formula).map_err(Why::Unsupported)
    }

    /// A dimension that may count from the end.
    pub(super) fn dim(&self, name: &str, default: i64, rank: usize) -> Result<usize, Why> {
        Ok(shapes::dimension(self.int(name, default)?, rank)?)
    }

    /// Dimensions, each once, in the order given.
    pub(super) fn dims(&self, name: &str, rank: usize) -> Result<Option<Vec<usize>>, Why> {
        let Some(given) = self.ints(name)? else { return Ok(None) };
        let mut dims = Vec::with_capacity(given.len());
        for dim in given {
            let dim = shapes::dimension(dim, rank)?;
            if dims.contains(&dim) {
                return Err(Why::Wrong(format!("dimension {dim} is given twice")));
            }
            dims.push(dim);
        }
        Ok(Some(dims))
    }

    /// Element type asked for, if any.
    pub(super) fn dtype(&self) -> Result<Option<DType>, Why> {
        match self.arg("dtype") {
            None => Ok(None),
            Some(Argument::DType(dtype)) => Ok(Some(*dtype)),
            Some(_) => self.odd("dtype", "element type"),
        }
    }

    /// What the exporter says of an output.
    pub(super) fn declared(&self, output: usize) -> Result<(DType, Vec<Size>), Why> {
        let value = self.node.outputs.get(output).ok_or("an output is missing")?;
        let ty = &self.graph.value(*value).ty;
        let shape: Result<Vec<Size>, String> =
            ty.shape.iter().map(|dim| self.symbols.size(dim)).collect();
        Ok((ty.dtype, shape.map_err(Why::Unsupported)?))
    }

    /// An operand, as promotion sees it.
    pub(super) fn kind(&self, arg: &Arg) -> Kind {
        match arg {
            Arg::Tensor(value) if self.b.rank(*value) == 0 => Kind::Scalar(self.b.dtype(*value)),
            Arg::Tensor(value) => Kind::Tensor(self.b.dtype(*value)),
            Arg::Number(Number::Float(_)) => Kind::Number(Category::Float),
            Arg::Number(Number::Int(_) | Number::Size(_)) => Kind::Number(Category::Int),
            Arg::Number(Number::Bool(_)) => Kind::Number(Category::Bool),
        }
    }

    /// An operand in the type in which an operation computes.
    pub(super) fn in_type(&mut self, arg: Arg, dtype: DType) -> Arg {
        match arg {
            Arg::Tensor(value) => {
                let exact = match (category(self.b.dtype(value)), category(dtype)) {
                    (Category::Float, Category::Float) => {
                        self.b.dtype(value).bytes() <= dtype.bytes()
                            && (dtype == DType::F32 || self.b.dtype(value) == dtype)
                    }
                    // Zeros and ones are in any type.
                    (Category::Bool, _) => true,
                    (Category::Int, Category::Int) => self.b.dtype(value).bytes() <= dtype.bytes(),
                    _ => false,
                };
                if exact { value.into() } else { self.b.cast(value, dtype).into() }
            }
            number @ Arg::Number(_) => number,
        }
    }
}
