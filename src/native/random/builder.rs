//! A graph under construction, and what is known of each value in it.
//!
//! Invariant: a value's interval holds all its finite elements, exact and
//! computed; what is not finite in it comes from an input with such elements.

use kiln_proto::graph::{
    Argument, DType, Dim, Graph, Input, InputKind, Node, Symbol, TensorType, Value, ValueId,
};

use super::{Bound, Random, data::Content, rng::Rng};
use crate::size::{Atom, Size};

/// Most elements of a tensor, at the greatest sizes: the emulator is slow.
const MOST_ELEMENTS: i64 = 3000;

/// What is known of a value.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) id: ValueId,
    pub(super) dtype: DType,
    pub(super) shape: Vec<Size>,
    /// Least and greatest finite element.
    pub(super) low: f64,
    pub(super) high: f64,
    /// Greatest difference that rounding can make; zero: bit for bit the same.
    pub(super) error: f64,
    /// All elements are whole numbers.
    pub(super) whole: bool,
    /// Some may be NaN or infinite.
    pub(super) special: bool,
}

impl Known {
    pub(super) fn most(&self) -> f64 {
        self.low.abs().max(self.high.abs())
    }

    pub(super) fn is_float(&self) -> bool {
        is_float(self.dtype)
    }

    /// Computed without rounding, or always rounded the same way.
    pub(super) fn is_exact(&self) -> bool {
        self.error == 0.0
    }
}

pub(super) const fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Distance of neighbours at one, and the greatest number that is safe to reach.
pub(super) const fn precision(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F16 => (1.0 / 1024.0, 6e4),
        DType::BF16 => (1.0 / 128.0, 1e30),
        DType::F32 => (1.0 / 8_388_608.0, 1e30),
        DType::I32 => (0.0, 1e9),
        _ => (0.0, 1e15),
    }
}

/// Up to where a type has all whole numbers.
pub(super) fn whole_up_to(dtype: DType) -> f64 {
    match is_float(dtype) {
        true => 2.0 / precision(dtype).0,
        false => precision(dtype).1,
    }
}

pub(super) struct Builder {
    pub(super) rng: Rng,
    pub(super) graph: Graph,
    pub(super) known: Vec<Known>,
    /// Content of each input.
    contents: Vec<Content>,
    /// Order of each input's dimensions in memory, outermost first, and the
    /// distance of the innermost neighbours.
    layouts: Vec<(Vec<usize>, i64)>,
    /// Least and greatest value of each symbol.
    pub(super) symbols: Vec<(i64, i64)>,
    /// Whether inputs may have NaN and infinities.
    pub(super) special: bool,
    /// The type that new inputs have most often.
    pub(super) favourite: DType,
}

impl Builder {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let count = *rng.pick(&[0, 0, 0, 1, 1, 2]);
        let symbols = (0..count).map(|_| {
            let low = rng.int(1, 3);
            (low, low + rng.int(1, 12))
        });
        let symbols: Vec<(i64, i64)> = symbols.collect();
        let special = rng.one_in(5);
        let favourite = *rng.pick(&[DType::F32, DType::F32, DType::BF16, DType::F16]);
        let graph = Graph {
            symbols: (0..)
                .zip(&symbols)
                .map(|(i, (low, high))| Symbol {
                    name: format!("s{i}"),
                    min: Some(*low),
                    max: Some(*high),
                })
                .collect(),
            ..Graph::default()
        };
        let mut builder = Self {
            rng,
            graph,
            known: Vec::new(),
            contents: Vec::new(),
            layouts: Vec::new(),
            symbols,
            special,
            favourite,
        };
        // What decides the symbols comes first.
        if !builder.symbols.is_empty() {
            let mut shape: Vec<Size> = (0..builder.symbols.len()).map(Size::symbol).collect();
            if builder.rng.one_in(2) {
                shape.push(Size::from(builder.rng.int(1, 8)));
            }
            builder.floats(shape);
        }
        for _ in 0..builder.rng.int(1, 2) {
            let shape = builder.shape();
            builder.floats(shape);
        }
        builder
    }

    /// One operation more, if one of several tries finds one that fits.
    pub(super) fn step(&mut self) {
        for _ in 0..30 {
            let done = match self.rng.below(20) {
                0..=3 => self.unary(),
                4..=7 => self.binary(),
                8 => self.choice(),
                9..=10 => self.reduction(),
                11 => self.normalised(),
                12..=13 => self.product(),
                _ => self.moved(),
            };
            if done.is_some() {
                return;
            }
        }
    }

    /// A value to work on: the newer, the likelier.
    pub(super) fn operand(&mut self) -> Known {
        let usable: Vec<usize> = (0..self.known.len()).filter(|i| self.is_usable(*i)).collect();
        let recent = &usable[usable.len().saturating_sub(4)..];
        let from = if self.rng.one_in(3) { &usable[..] } else { recent };
        let index = *self.rng.pick(from);
        self.known[index].clone()
    }

    /// Whether there is more to it than what rounding left.
    fn is_usable(&self, index: usize) -> bool {
        let known = &self.known[index];
        known.error <= 0.05 * known.most()
    }

    /// A float operand of moderate size.
    pub(super) fn float_operand(&mut self) -> Option<Known> {
        (0..6).map(|_| self.operand()).find(|x| x.is_float() && x.most() <= 1e3)
    }

    /// Fixed sizes of up to four dimensions, now and then zero.
    pub(super) fn shape(&mut self) -> Vec<Size> {
        let rank = *self.rng.pick(&[0, 1, 2, 2, 3, 3, 4]);
        let zero = self.rng.one_in(25);
        let sizes = (0..rank).map(|_| match self.rng.below(8) {
            0 => 1,
            1 if zero => 0,
            2 => self.rng.int(16, 40),
            _ => self.rng.int(2, 9),
        });
        let mut shape: Vec<Size> = sizes.map(Size::from).collect();
        while !self.fits(&shape) {
            shape.pop();
        }
        shape
    }

    /// A size at its greatest.
    pub(super) fn greatest(&self, size: &Size) -> i64 {
        let highest: Vec<i64> = self.symbols.iter().map(|(_, high)| *high).collect();
        size.value(&highest).unwrap_or(i64::MAX)
    }

    /// A size at its least.
    pub(super) fn least(&self, size: &Size) -> i64 {
        let lowest: Vec<i64> = self.symbols.iter().map(|(low, _)| *low).collect();
        size.value(&lowest).unwrap_or(0)
    }

    /// Elements at the greatest sizes.
    pub(super) fn count(&self, shape: &[Size]) -> i64 {
        shape.iter().fold(1, |n, size| n.saturating_mul(self.greatest(size)))
    }

    pub(super) fn fits(&self, shape: &[Size]) -> bool {
        self.count(shape) <= MOST_ELEMENTS && shape.len() <= 6
    }

    /// A new input of floats.
    pub(super) fn floats(&mut self, shape: Vec<Size>) -> Known {
        let dtype = match self.rng.below(8) {
            0 => *self.rng.pick(&[DType::F32, DType::BF16, DType::F16]),
            _ => self.favourite,
        };
        self.floats_of(dtype, shape)
    }

    pub(super) fn floats_of(&mut self, dtype: DType, shape: Vec<Size>) -> Known {
        let special = self.special && self.rng.one_in(2);
        let content = match self.rng.below(10) {
            0 => Content::Whole { low: -4, high: 4 },
            1 if self.special => Content::Extreme,
            2 => Content::Floats { low: 0.25, high: 3.0, special: false },
            _ => Content::Floats { low: -2.0, high: 2.0, special },
        };
        self.input(dtype, shape, content)
    }

    /// A new input.
    pub(super) fn input(&mut self, dtype: DType, shape: Vec<Size>, content: Content) -> Known {
        let mut order: Vec<usize> = (0..shape.len()).collect();
        let mut step = 1;
        if self.rng.one_in(4) {
            self.rng.shuffle(&mut order);
        }
        if self.rng.one_in(10) && !shape.is_empty() {
            step = 2;
        }
        let strides = strides(&shape, &order, step);
        let fixed = shape.iter().chain(&strides).all(|size| size.known().is_some());
        let dense = step == 1 && order.is_sorted();
        let kind = match self.rng.below(6) {
            0 => InputKind::Parameter,
            1 => InputKind::Buffer,
            2 if fixed && dense => {
                InputKind::Constant(content.constant(dtype, &shape, &mut self.rng))
            }
            _ => InputKind::User,
        };
        let (low, high) = content.interval(dtype);
        let id = self.define(dtype, &shape, &strides);
        self.graph.inputs.push(Input { value: id, kind });
        self.layouts.push((order, step));
        let known = Known {
            id,
            dtype,
            shape,
            low,
            high,
            error: 0.0,
            whole: content.is_whole() || !is_float(dtype),
            special: content.is_special(),
        };
        self.contents.push(content);
        self.known.push(known.clone());
        known
    }

    fn define(&mut self, dtype: DType, shape: &[Size], strides: &[Size]) -> ValueId {
        let id = ValueId(self.graph.values.len());
        let ty = TensorType {
            dtype,
            shape: shape.iter().map(dim).collect(),
            strides: strides.iter().map(dim).collect(),
            offset: Dim::Static(0),
            device: "cpu".to_owned(),
        };
        self.graph.values.push(Value { name: format!("v{}", id.0), ty });
        id
    }

    /// A node whose results look like `results`; refused where they would be too
    /// many, too large or outside of their type.
    pub(super) fn node(
        &mut self,
        op: &str,
        args: Vec<(&str, Argument)>,
        results: Vec<Known>,
    ) -> Option<()> {
        let keeps = |r: &Known| r.most() <= precision(r.dtype).1 || (r.is_exact() && r.special);
        let sound = |r: &Known| r.low <= r.high && r.error.is_finite();
        if !results.iter().all(|r| self.fits(&r.shape) && keeps(r) && sound(r)) {
            return None;
        }
        let mut outputs = Vec::with_capacity(results.len());
        for mut known in results {
            let order: Vec<usize> = (0..known.shape.len()).collect();
            known.id = self.define(known.dtype, &known.shape, &strides(&known.shape, &order, 1));
            outputs.push(known.id);
            if !known.is_exact() {
                let (ulp, _) = precision(known.dtype);
                let rounding = known.most() * (2.0 * ulp + 1e-5) + 1e-6;
                known.error = known.error.min(known.high - known.low + rounding);
            }
            self.known.push(known);
        }
        let name = format!("n{}", self.graph.nodes.len());
        let args = args.into_iter().map(|(name, arg)| (name.to_owned(), arg)).collect();
        self.graph.nodes.push(Node { name, op: format!("aten.{op}"), args, outputs });
        Some(())
    }

    /// The last value that was made.
    pub(super) fn last(&self) -> Known {
        self.known[self.known.len() - 1].clone()
    }

    /// The graph as it is: what nothing reads is an output, and some of the rest.
    pub(super) fn finish(mut self, seed: u64) -> Random {
        let read: Vec<ValueId> = self.graph.nodes.iter().flat_map(Node::tensors).collect();
        let inputs: Vec<ValueId> = self.graph.inputs.iter().map(|input| input.value).collect();
        let mut bounds = Vec::new();
        for known in self.known.clone() {
            let is_leaf = !read.contains(&known.id);
            if inputs.contains(&known.id) || !(is_leaf || self.rng.one_in(6)) {
                continue;
            }
            self.graph.outputs.push(known.id);
            bounds.push(Bound { error: known.error, low: known.low, high: known.high });
        }
        let calls = if self.symbols.is_empty() { 1 } else { 2 };
        let cases = (0..calls).map(|_| {
            let rng = &mut self.rng;
            let sizes = self.symbols.iter().map(|(low, high)| rng.int(*low, *high));
            let sizes: Vec<i64> = sizes.collect();
            let inputs = self.graph.inputs.iter().zip(self.contents.iter().zip(&self.layouts));
            inputs
                .map(|(input, (content, (order, step)))| {
                    let known = self.known.iter().find(|k| k.id == input.value);
                    let shape = known.map(|k| k.shape.as_slice()).unwrap_or_default();
                    let dtype = self.graph.value(input.value).ty.dtype;
                    if let InputKind::Constant(constant) = &input.kind {
                        return Content::baked(dtype, shape, constant);
                    }
                    content.tensor(dtype, shape, &strides(shape, order, *step), &sizes, rng)
                })
                .collect()
        });
        let cases = cases.collect();
        Random { seed, graph: self.graph, cases, bounds }
    }
}

/// Strides of dimensions that lie in memory in `order`, outermost first.
fn strides(shape: &[Size], order: &[usize], step: i64) -> Vec<Size> {
    let mut strides = vec![Size::default(); shape.len()];
    let mut next = Size::from(step);
    for dim in order.iter().rev() {
        strides[*dim] = next.clone();
        if !shape[*dim].is(0) {
            next = &next * &shape[*dim];
        }
    }
    strides
}

/// As the exporter writes it.
pub(super) fn dim(size: &Size) -> Dim {
    match size.known() {
        Some(known) => Dim::Static(known.unsigned_abs()),
        None => Dim::Symbolic(formula(size)),
    }
}

pub(super) fn formula(size: &Size) -> String {
    size.text(&|atom| match atom {
        Atom::Symbol(symbol) => format!("s{symbol}"),
        other => format!("{other:?}"),
    })
}
