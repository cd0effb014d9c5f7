//! A plan with all of its sizes known: what one call launches.
//!
//! Invariant: a call exists only for shapes that the plan admits; its pointers
//! lie in the memory that it names, and its grids are what a device takes.

use super::{Arg, Expr, Kernel, Memory, Plan, Tensor, TensorMap};

/// Blocks of a grid, at most.
const MOST_BLOCKS: [i64; 3] = [i32::MAX as i64, 65_535, 65_535];

/// Why a plan does not take these inputs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Give other inputs.
    #[error("{0}")]
    Inputs(String),
    /// The plan does not hang together: no input makes it run.
    #[error("the plan is broken: {0}")]
    Plan(String),
}

/// A tensor's sizes and strides, in elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Sizes.
    pub shape: Vec<usize>,
    /// Distance between neighbours.
    pub strides: Vec<usize>,
    /// From the first element to the end of the last one; 0 of an empty tensor.
    pub bytes: u64,
}

/// What one call launches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Of the plan's symbols.
    pub symbols: Vec<i64>,
    /// Of the plan's inputs.
    pub inputs: Vec<Layout>,
    /// Of the plan's outputs.
    pub outputs: Vec<Layout>,
    /// Scratch memory.
    pub workspace_bytes: u64,
    /// In order; kernels without blocks are left out.
    pub launches: Vec<Launch>,
}

/// One kernel's launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Position in [`Plan::kernels`].
    pub kernel: usize,
    /// Blocks, none of them 0.
    pub grid: [u32; 3],
    /// In the order of the kernel's parameters.
    pub values: Vec<Value>,
}

/// Memory that a call is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// An input's start.
    Input(usize),
    /// An output's start.
    Output(usize),
    /// The workspace's start.
    Workspace,
}

/// A kernel's argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A pointer: so many bytes from there.
    Pointer(Base, u64),
    /// 64 bits.
    Size(i64),
    /// A tensor map of what starts there.
    Map(Box<Tile>),
}

/// A [`TensorMap`] whose sizes are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tile {
    /// Its memory, and bytes from there to the first element.
    pub start: (Base, u64),
    /// Of the elements.
    pub dtype: kiln_proto::graph::DType,
    /// Innermost first.
    pub sizes: Vec<u64>,
    /// In bytes, from the second dimension on.
    pub strides: Vec<u64>,
    /// Elements of a tile.
    pub tile: Vec<u32>,
    /// 0, 32, 64 or 128 bytes.
    pub swizzle: u32,
}

impl Plan {
    /// What a call with inputs of these shapes launches: one for each of the
    /// plan's inputs, those of constants ignored.
    pub fn call(&self, shapes: &[&[usize]]) -> Result<Call, CallError> {
        if shapes.len() != self.inputs.len() {
            let (got, wanted) = (shapes.len(), self.inputs.len());
            return Err(CallError::Inputs(format!("{got} inputs, not {wanted}")));
        }
        let symbols = self.symbol_values(shapes)?;
        let inputs = layouts(&self.inputs, &symbols)?;
        let outputs = layouts(&self.outputs, &symbols)?;
        for ((tensor, wanted), given) in self.inputs.iter().zip(&inputs).zip(shapes) {
            if tensor.kind != super::CONSTANT && wanted.shape != *given {
                let why = self.disagreement(tensor, &wanted.shape, given, &symbols);
                return Err(CallError::Inputs(why));
            }
        }
        let workspace_bytes = size(&self.workspace_bytes, &symbols, "the workspace")?;
        let mut call = Call { symbols, inputs, outputs, workspace_bytes, launches: Vec::new() };
        for (index, kernel) in self.kernels.iter().enumerate() {
            if let Some(launch) = self.launch(index, kernel, &call)? {
                call.launches.push(launch);
            }
        }
        Ok(call)
    }

    /// The shapes of what a call with inputs of these shapes gives; `None`: the plan does
    /// not take them.
    pub fn output_shapes(&self, shapes: &[&[usize]]) -> Option<Vec<Vec<usize>>> {
        if shapes.len() != self.inputs.len() {
            return None;
        }
        let symbols = self.symbol_values(shapes).ok()?;
        let fits = |(tensor, given): (&Tensor, &&[usize])| {
            let known = tensor.layout(&symbols).is_some_and(|layout| layout.shape == *given);
            known || tensor.kind == super::CONSTANT
        };
        if !self.inputs.iter().zip(shapes).all(fits) {
            return None;
        }
        let shape = |output: &Tensor| Some(output.layout(&symbols)?.shape);
        self.outputs.iter().map(shape).collect()
    }

    /// Whether the plan hangs together, as far as that depends on no size.
    pub fn check(&self) -> Result<(), CallError> {
        for symbol in &self.symbols {
            let shape = self.inputs.get(symbol.input).map(|input| &input.shape);
            if symbol.scale <= 0 || shape.is_none_or(|shape| symbol.dim >= shape.len()) {
                return Err(CallError::Plan("a symbol has no dimension".to_owned()));
            }
        }
        let workspace = self.workspace_bytes.known();
        for kernel in &self.kernels {
            let memory = kernel.args.iter().filter_map(|arg| match arg {
                Arg::Memory(memory) => Some(memory),
                Arg::Map(map) => Some(&map.memory),
                Arg::Size(_) => None,
            });
            let missing = |memory: &Memory| match memory {
                Memory::Input(at) => self.inputs.get(*at).is_none_or(|i| i.kind == super::CONSTANT),
                Memory::Output(at) => *at >= self.outputs.len(),
                Memory::Workspace(offset) => offset.known() > workspace.or(Some(i64::MAX)),
            };
            let grid = kernel.grid.iter().any(|blocks| blocks.known().is_some_and(|n| n < 0));
            if grid || kernel.block.contains(&0) || memory.into_iter().any(missing) {
                return Err(CallError::Plan(format!("kernel {} cannot be launched", kernel.name)));
            }
        }
        Ok(())
    }

    /// The symbols' values, each from the one dimension that defines it.
    fn symbol_values(&self, shapes: &[&[usize]]) -> Result<Vec<i64>, CallError> {
        let value = |(index, symbol): (usize, &super::Symbol)| {
            let place = self.inputs.get(symbol.input).zip(shapes.get(symbol.input));
            let usable = symbol.scale > 0 && symbol.min >= 0;
            let Some((tensor, shape)) =
                place.filter(|(tensor, _)| usable && tensor.shape.len() > symbol.dim)
            else {
                return Err(CallError::Plan(format!("symbol s{index} has no dimension")));
            };
            let refuse = |why: String| {
                let (name, dim) = (&tensor.name, symbol.dim);
                Err(CallError::Inputs(format!("{name}, shape {shape:?}: dimension {dim} {why}")))
            };
            let Some(given) = shape.get(symbol.dim).map(|size| *size as i64) else {
                let (name, wanted) = (&tensor.name, shown(&tensor.shape));
                return Err(CallError::Inputs(format!("{name} has shape {shape:?}, not {wanted}")));
            };
            let rest = given - symbol.offset;
            if rest % symbol.scale != 0 {
                let size = &tensor.shape[symbol.dim];
                return refuse(format!("is {size} for no whole s{index}"));
            }
            let value = rest / symbol.scale;
            if value < symbol.min || symbol.max.is_some_and(|max| value > max) {
                let max = symbol.max.map_or("any".to_owned(), |max| max.to_string());
                let min = symbol.min;
                return refuse(format!("makes s{index} {value}: compiled for {min} to {max}"));
            }
            Ok(value)
        };
        self.symbols.iter().enumerate().map(value).collect()
    }

    /// Two inputs that make a symbol different, or just another shape.
    fn disagreement(
        &self,
        tensor: &Tensor,
        wanted: &[usize],
        given: &[usize],
        symbols: &[i64],
    ) -> String {
        let mut why = format!("{} has shape {given:?}, not {wanted:?}", tensor.name);
        if wanted.len() == given.len() {
            let differs = |dim: &usize| wanted[*dim] != given[*dim];
            let used: Vec<usize> = (0..given.len())
                .filter(differs)
                .flat_map(|dim| tensor.shape[dim].symbols())
                .collect();
            for symbol in used {
                let (place, value) = (&self.symbols[symbol], symbols[symbol]);
                let (from, dim) = (&self.inputs[place.input].name, place.dim);
                why += &format!(": s{symbol} is {value} by dimension {dim} of {from}");
            }
        }
        why
    }

    fn launch(
        &self,
        index: usize,
        kernel: &Kernel,
        call: &Call,
    ) -> Result<Option<Launch>, CallError> {
        let broken = |why: &str| CallError::Plan(format!("kernel {}: {why}", kernel.name));
        let mut grid = [0u32; 3];
        for ((blocks, expr), most) in grid.iter_mut().zip(&kernel.grid).zip(MOST_BLOCKS) {
            let number =
                expr.value(&call.symbols).ok_or_else(|| broken("its grid is no number"))?;
            if number < 0 || number > most {
                let why = format!("{number} blocks, at most {most}: an input is too large");
                return Err(CallError::Inputs(format!("kernel {}: {why}", kernel.name)));
            }
            *blocks = number as u32;
        }
        if kernel.block.contains(&0) {
            return Err(broken("a block has no threads"));
        }
        if grid.contains(&0) {
            return Ok(None);
        }
        let values = kernel.args.iter().map(|arg| self.value(arg, call));
        let values = values.collect::<Result<_, _>>().map_err(broken)?;
        Ok(Some(Launch { kernel: index, grid, values }))
    }

    fn value(&self, arg: &Arg, call: &Call) -> Result<Value, &'static str> {
        match arg {
            Arg::Size(expr) => {
                expr.value(&call.symbols).map(Value::Size).ok_or("a size is no number")
            }
            Arg::Memory(memory) => {
                let (base, offset) = self.base(memory, call)?;
                Ok(Value::Pointer(base, offset))
            }
            Arg::Map(map) => Ok(Value::Map(Box::new(self.tile(map, call)?))),
        }
    }

    fn base(&self, memory: &Memory, call: &Call) -> Result<(Base, u64), &'static str> {
        match memory {
            Memory::Input(at) => match self.inputs.get(*at) {
                Some(input) if input.kind != super::CONSTANT => Ok((Base::Input(*at), 0)),
                _ => Err("no such input"),
            },
            Memory::Output(at) if *at < self.outputs.len() => Ok((Base::Output(*at), 0)),
            Memory::Output(_) => Err("no such output"),
            Memory::Workspace(offset) => {
                let offset = offset.value(&call.symbols).and_then(|o| u64::try_from(o).ok());
                // An empty value may lie at the very end.
                let inside = offset.filter(|offset| *offset <= call.workspace_bytes);
                inside.map(|offset| (Base::Workspace, offset)).ok_or("outside of the workspace")
            }
        }
    }

    fn tile(&self, map: &TensorMap, call: &Call) -> Result<Tile, &'static str> {
        let positive = |expr: &Expr| expr.value(&call.symbols).and_then(|v| u64::try_from(v).ok());
        let all = |exprs: &[Expr], unit: u64| {
            let each = exprs.iter().map(|e| positive(e)?.checked_mul(unit));
            each.collect::<Option<Vec<u64>>>().ok_or("a tensor map without sizes")
        };
        let rank = map.sizes.len();
        if !(1..=5).contains(&rank) || map.strides.len() + 1 != rank || map.tile.len() != rank {
            return Err("a tensor map of no rank");
        }
        let (base, start) = self.base(&map.memory, call)?;
        let bytes = map.dtype.bytes();
        let offset = positive(&map.offset).and_then(|offset| offset.checked_mul(bytes));
        let offset = offset.ok_or("a tensor map without a start")?;
        Ok(Tile {
            start: (base, start + offset),
            dtype: map.dtype,
            sizes: all(&map.sizes, 1)?,
            strides: all(&map.strides, bytes)?,
            tile: map.tile.clone(),
            swizzle: map.swizzle,
        })
    }
}

impl Tensor {
    /// Its sizes and strides, where `symbols` has those of all symbols.
    pub fn layout(&self, symbols: &[i64]) -> Option<Layout> {
        let numbers = |exprs: &[Expr]| {
            let each = exprs.iter().map(|e| usize::try_from(e.value(symbols)?).ok());
            each.collect::<Option<Vec<usize>>>()
        };
        let (shape, strides) = (numbers(&self.shape)?, numbers(&self.strides)?);
        if shape.len() != strides.len() {
            return None;
        }
        let mut last = 0usize;
        for (size, stride) in shape.iter().zip(&strides) {
            last = last.checked_add(size.saturating_sub(1).checked_mul(*stride)?)?;
        }
        let elements = if shape.contains(&0) { 0 } else { last as u64 + 1 };
        let bytes = elements.checked_mul(self.dtype.bytes())?;
        Some(Layout { shape, strides, bytes })
    }
}

fn layouts(tensors: &[Tensor], symbols: &[i64]) -> Result<Vec<Layout>, CallError> {
    let layout = |tensor: &Tensor| {
        let broken = || CallError::Plan(format!("{} has no layout", tensor.name));
        tensor.layout(symbols).ok_or_else(broken)
    };
    tensors.iter().map(layout).collect()
}

fn size(expr: &Expr, symbols: &[i64], what: &str) -> Result<u64, CallError> {
    let value = expr.value(symbols).and_then(|value| u64::try_from(value).ok());
    value.ok_or_else(|| CallError::Plan(format!("{what} has no size")))
}

/// A shape as people read it: `[s0, 64]`.
pub fn shown(shape: &[Expr]) -> String {
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    format!("[{}]", sizes.join(", "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
