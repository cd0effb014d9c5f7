//! A program for one size alone of a dimension that it leaves open.
//!
//! ```text
//! --compile-sizes 1,8:         the one symbol of the program
//! --compile-sizes s77=1,8:     the symbol that the exporter calls so
//! --compile-sizes x.1=1,8:     the one that is dimension 1 of the input x
//! ```
//!
//! The symbol becomes a number in every shape, stride and argument. What comes out is an
//! ordinary graph with an ordinary key: that of the same program exported for this size,
//! so a piece of it is shared with whatever program has the same piece.
//!
//! Invariant: a graph is fixed to a size only if the program says that it takes it; where
//! other symbols are left, their formulas are those of the exporter's form, so that equal
//! sizes are equal texts.

use kiln_proto::{
    Failure, FailureKind,
    graph::{Argument, Dim, Graph, InputKind, SymInt, Symbol},
};

use crate::size::{Atom, Bounds, Size};

/// A dimension that a program leaves open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSize<'g> {
    /// What the exporter calls it, and its range.
    pub symbol: &'g Symbol,
    /// Where it is a whole dimension of an input: `x.1`.
    pub places: Vec<String>,
}

impl OpenSize<'_> {
    fn shown(&self) -> String {
        let name = &self.symbol.name;
        match self.places.first() {
            Some(place) => format!("{name} ({place}, {})", range(self.symbol)),
            None => format!("{name} ({})", range(self.symbol)),
        }
    }
}

/// The dimensions that `graph` leaves open, in the order of its inputs.
pub fn open_sizes(graph: &Graph) -> Vec<OpenSize<'_>> {
    let mut found: Vec<OpenSize<'_>> = Vec::new();
    for input in &graph.inputs {
        let value = graph.value(input.value);
        for (dim, size) in value.ty.shape.iter().enumerate() {
            let Dim::Symbolic(formula) = size else { continue };
            for word in words(formula) {
                let Some(symbol) = graph.symbols.iter().find(|symbol| symbol.name == word) else {
                    continue;
                };
                let at = found.iter().position(|open| open.symbol.name == word);
                let at = at.unwrap_or_else(|| {
                    found.push(OpenSize { symbol, places: Vec::new() });
                    found.len() - 1
                });
                if formula == word && matches!(input.kind, InputKind::User) {
                    found[at].places.push(format!("{}.{dim}", value.name));
                }
            }
        }
    }
    found
}

/// The symbol that `named` means: empty where there is one only. Refused too where a size
/// in `sizes` is none that the program takes.
pub fn symbol_of<'g>(graph: &'g Graph, named: &str, sizes: &[u64]) -> Result<&'g Symbol, Failure> {
    let open = open_sizes(graph);
    let all = || open.iter().map(OpenSize::shown).collect::<Vec<_>>().join(", ");
    let found = match (&open[..], named) {
        ([], _) => return Err(invalid("the program leaves no size open: all are fixed already")),
        ([one], "") => one,
        (several, "") => {
            let (count, first) = (several.len(), &several[0].symbol.name);
            let why = format!("{count} sizes are open: {}; say which one: {first}=..", all());
            return Err(invalid(why));
        }
        (_, named) => {
            let is = |open: &&OpenSize<'_>| {
                open.symbol.name == named || open.places.iter().any(|place| place == named)
            };
            let found = open.iter().find(is);
            found.ok_or_else(|| invalid(format!("no open size {named:?}: there is {}", all())))?
        }
    };
    let symbol = found.symbol;
    match sizes.iter().find(|size| !admits(symbol, **size)) {
        None => Ok(symbol),
        Some(size) => {
            Err(invalid(format!("size {size} is outside of what {} takes", found.shown())))
        }
    }
}

/// `graph` with the symbol that `named` means (see [`symbol_of`]) fixed to `size`.
pub fn fixed(graph: &Graph, named: &str, size: u64) -> Result<Graph, Failure> {
    let name = symbol_of(graph, named, &[size])?.name.clone();
    let names: Vec<&str> = graph.symbols.iter().map(|symbol| symbol.name.as_str()).collect();
    let at = names.iter().position(|known| *known == name);
    let number = i64::try_from(size).map_err(|_| invalid(format!("size {size} is too large")))?;
    let fix = Fix { names: &names, name: &name, symbol: at.unwrap_or_default(), size: number };
    let mut fixed = graph.clone();
    for value in &mut fixed.values {
        let ty = &mut value.ty;
        let dims = ty.shape.iter_mut().chain(&mut ty.strides).chain([&mut ty.offset]);
        for dim in dims {
            fix.dim(dim)?;
        }
    }
    for node in &mut fixed.nodes {
        for (_, argument) in &mut node.args {
            fix.argument(argument)?;
        }
    }
    fixed.symbols.retain(|symbol| symbol.name != name);
    Ok(fixed)
}

/// Puts a number in the place of a symbol.
struct Fix<'a> {
    names: &'a [&'a str],
    name: &'a str,
    symbol: usize,
    size: i64,
}

impl Fix<'_> {
    /// What `formula` becomes; `None`: it has not the symbol.
    fn formula(&self, formula: &str) -> Result<Option<SymInt>, Failure> {
        if !words(formula).any(|word| word == self.name) {
            return Ok(None);
        }
        let unread = |why: String| Failure::new(FailureKind::UnsupportedOp, why);
        let size = Size::parse(formula, self.names).map_err(unread)?;
        let number = Size::from(self.size);
        let with = |atom: &Atom| (*atom == Atom::Symbol(self.symbol)).then(|| number.clone());
        let size = size.substituted(&Bounds::default(), &with);
        Ok(Some(match size.known() {
            Some(known) => SymInt::Known(known),
            None => SymInt::Symbolic(size.formula(self.names)),
        }))
    }

    fn dim(&self, dim: &mut Dim) -> Result<(), Failure> {
        let Dim::Symbolic(formula) = &*dim else { return Ok(()) };
        match self.formula(formula)? {
            None => {}
            Some(SymInt::Symbolic(formula)) => *dim = Dim::Symbolic(formula),
            Some(SymInt::Known(known)) => {
                let size = u64::try_from(known).map_err(|_| {
                    invalid(format!("{formula} is {known} where {} is {}", self.name, self.size))
                })?;
                *dim = Dim::Static(size);
            }
        }
        Ok(())
    }

    fn argument(&self, argument: &mut Argument) -> Result<(), Failure> {
        match argument {
            Argument::SymInt(formula) => match self.formula(formula)? {
                None => {}
                Some(SymInt::Known(known)) => *argument = Argument::Int(known),
                Some(SymInt::Symbolic(formula)) => *argument = Argument::SymInt(formula),
            },
            Argument::SymInts(ints) => {
                for int in ints.iter_mut() {
                    let SymInt::Symbolic(formula) = &*int else { continue };
                    if let Some(fixed) = self.formula(formula)? {
                        *int = fixed;
                    }
                }
                // As the exporter writes numbers that are all known.
                let known = ints.iter().map(|int| match int {
                    SymInt::Known(known) => Some(*known),
                    SymInt::Symbolic(_) => None,
                });
                if let Some(known) = known.collect() {
                    *argument = Argument::Ints(known);
                }
            }
            Argument::Sizes(sizes) => {
                for dim in sizes.iter_mut().flatten() {
                    self.dim(dim)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn admits(symbol: &Symbol, size: u64) -> bool {
    let Ok(size) = i64::try_from(size) else { return false };
    symbol.min.is_none_or(|min| size >= min) && symbol.max.is_none_or(|max| size <= max)
}

/// `2 to 64`
fn range(symbol: &Symbol) -> String {
    let (min, max) = (symbol.min.unwrap_or(0).max(0), symbol.max);
    max.map_or_else(|| format!("{min} or more"), |max| format!("{min} to {max}"))
}

fn words(formula: &str) -> impl Iterator<Item = &str> {
    formula.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
}

fn invalid(why: impl Into<String>) -> Failure {
    Failure::new(FailureKind::InvalidInput, why)
}
