//! Scalar expressions, each stored once.
//!
//! Invariant: two [`Id`]s are equal exactly if their expressions are; an
//! expression's operands are in the arena before it.

use std::collections::{BTreeSet, HashMap};

use kiln_proto::graph::DType;

use crate::{
    core::{self, Fun},
    size::{Atom, Bounds, Size},
};

/// An expression in an arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(pub(crate) usize);

/// Where elements come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    /// An input of the graph, by position.
    Input(usize),
    /// A temporary.
    Temp(usize),
}

/// The arithmetic of an expression, and so the type of the register that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Domain {
    /// `f32`.
    Float,
    /// `f64`.
    Double,
    /// `i64`, wrapping.
    Int,
    /// Truth values.
    Bool,
}

impl Domain {
    /// `domain` of the core program, where an operand or the result is `f64` if `wide`.
    pub(crate) fn of(domain: core::Domain, wide: bool) -> Self {
        match domain {
            core::Domain::Float if wide => Self::Double,
            core::Domain::Float => Self::Float,
            core::Domain::Int => Self::Int,
            core::Domain::Bool => Self::Bool,
        }
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::Float | Self::Double)
    }
}

/// A number for each point of a loop.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Expr {
    /// The element at `index`.
    Load { source: Source, dtype: DType, index: Size },
    /// A whole number.
    Index(Size),
    /// The bits of an `f64`, an `i64` or a `bool`.
    Number(Domain, u64),
    /// Operands of that domain; `Where` has a truth value first.
    Apply(Fun, Domain, Vec<Id>),
    /// To another domain, as a cast does.
    Convert(Domain, Id),
    /// To what the type holds: floats to the nearest, whole numbers to the low bits.
    Round(DType, Id),
    /// Whether the first is less.
    Below(Size, Size),
    /// `yes` where `cond` holds, else `no`; `yes` may load only there, `no` only elsewhere.
    Guard { cond: Id, yes: Id, no: Id },
    /// What the group's reduction or product of that temporary gives here: made
    /// by fusion, and not a load any more.
    Result(usize, Domain),
}

/// An arena of expressions.
#[derive(Debug, Default)]
pub(crate) struct Exprs {
    list: Vec<Expr>,
    ids: HashMap<Expr, Id>,
}

/// The domain in which elements of `dtype` are computed.
pub(crate) fn domain_of(dtype: DType) -> Domain {
    match dtype {
        DType::Bool => Domain::Bool,
        DType::F64 => Domain::Double,
        DType::F16 | DType::BF16 | DType::F32 | DType::F8E4M3 | DType::F8E5M2 => Domain::Float,
        _ => Domain::Int,
    }
}

/// Whether results of `fun` are truth values whatever its domain is.
pub(crate) fn is_test(fun: Fun) -> bool {
    use Fun::*;
    matches!(fun, Not | IsNan | IsInf | Eq | Ne | Lt | Le | Gt | Ge)
}

impl Exprs {
    pub(crate) fn get(&self, id: Id) -> &Expr {
        &self.list[id.0]
    }

    pub(crate) fn add(&mut self, expr: Expr) -> Id {
        if let Some(id) = self.ids.get(&expr) {
            return *id;
        }
        let id = Id(self.list.len());
        self.ids.insert(expr.clone(), id);
        self.list.push(expr);
        id
    }

    pub(crate) fn domain(&self, id: Id) -> Domain {
        match self.get(id) {
            Expr::Load { dtype, .. } => domain_of(*dtype),
            Expr::Index(_) => Domain::Int,
            Expr::Number(domain, _) | Expr::Convert(domain, _) | Expr::Result(_, domain) => *domain,
            Expr::Apply(fun, domain, _) => {
                if is_test(*fun) {
                    Domain::Bool
                } else {
                    *domain
                }
            }
            Expr::Round(dtype, _) => domain_of(*dtype),
            Expr::Below(..) => Domain::Bool,
            Expr::Guard { yes, .. } => self.domain(*yes),
        }
    }

    /// `id` in `domain`.
    pub(crate) fn convert(&mut self, id: Id, domain: Domain) -> Id {
        if self.domain(id) == domain {
            return id;
        }
        match (self.get(id), domain) {
            (Expr::Number(Domain::Int, bits), _) if domain.is_float() => {
                let number = *bits as i64 as f64;
                self.add(Expr::Number(domain, number.to_bits()))
            }
            _ => self.add(Expr::Convert(domain, id)),
        }
    }

    /// `id`, which is in the domain of `dtype`, as a buffer of it holds it.
    pub(crate) fn rounded(&mut self, id: Id, dtype: DType) -> Id {
        let held = match self.get(id) {
            Expr::Load { dtype: of, .. } | Expr::Round(of, _) => *of == dtype,
            _ => false,
        };
        match dtype {
            DType::F32 | DType::F64 | DType::I64 | DType::Bool => id,
            _ if held => id,
            _ => self.add(Expr::Round(dtype, id)),
        }
    }

    /// Whole numbers as an index.
    pub(crate) fn as_size(&self, id: Id) -> Size {
        match self.get(id) {
            Expr::Index(size) => size.clone(),
            Expr::Number(Domain::Int, bits) => Size::from(*bits as i64),
            _ => Size::atom(Atom::Value(id.0)),
        }
    }

    /// Operands, those inside of indices too.
    pub(crate) fn operands(&self, id: Id) -> Vec<Id> {
        match self.get(id) {
            Expr::Load { index, .. } | Expr::Index(index) => values_in(index),
            Expr::Below(a, b) => [values_in(a), values_in(b)].concat(),
            Expr::Number(..) | Expr::Result(..) => Vec::new(),
            Expr::Apply(_, _, args) => args.clone(),
            Expr::Convert(_, x) | Expr::Round(_, x) => vec![*x],
            Expr::Guard { cond, yes, no } => vec![*cond, *yes, *no],
        }
    }

    /// Whether any expression loads from `source`.
    pub(crate) fn any_load(&self, source: Source) -> bool {
        self.list.iter().any(|expr| matches!(expr, Expr::Load { source: s, .. } if *s == source))
    }

    /// Everything that the roots are made of, operands first.
    pub(crate) fn reachable(&self, roots: impl IntoIterator<Item = Id>) -> Vec<Id> {
        let mut seen = BTreeSet::new();
        let mut waiting: Vec<Id> = roots.into_iter().collect();
        while let Some(id) = waiting.pop() {
            if seen.insert(id) {
                waiting.extend(self.operands(id));
            }
        }
        // The arena's order is one in which operands come first.
        seen.into_iter().collect()
    }

    /// What the roots are made of outside of the branches of guards, operands first.
    pub(crate) fn unguarded(&self, roots: impl IntoIterator<Item = Id>) -> Vec<Id> {
        let mut seen = BTreeSet::new();
        let mut waiting: Vec<Id> = roots.into_iter().collect();
        while let Some(id) = waiting.pop() {
            if seen.insert(id) {
                match self.get(id) {
                    Expr::Guard { cond, .. } => waiting.push(*cond),
                    _ => waiting.extend(self.operands(id)),
                }
            }
        }
        seen.into_iter().collect()
    }

    /// `id` with each variable as `vars` says and each load as `load` says
    /// (after its index was substituted; `None`: as it is).
    pub(crate) fn substitute(
        &mut self,
        id: Id,
        bounds: &Bounds<'_>,
        vars: &[Size],
        load: &mut dyn FnMut(&mut Self, Source, &Size) -> Option<Id>,
    ) -> Id {
        let mut done: HashMap<Id, Id> = HashMap::new();
        for old in self.reachable([id]) {
            let new = self.substitute_one(old, bounds, vars, load, &done);
            done.insert(old, new);
        }
        done[&id]
    }

    fn substitute_one(
        &mut self,
        old: Id,
        bounds: &Bounds<'_>,
        vars: &[Size],
        load: &mut dyn FnMut(&mut Self, Source, &Size) -> Option<Id>,
        done: &HashMap<Id, Id>,
    ) -> Id {
        let index = |size: &Size| {
            size.substituted(bounds, &|atom| match atom {
                Atom::Var(var) => vars.get(*var).cloned(),
                Atom::Value(value) => Some(self.as_size(done[&Id(*value)])),
                _ => None,
            })
        };
        let new = match self.get(old) {
            Expr::Load { source, dtype, index: at } => {
                let (source, dtype, at) = (*source, *dtype, index(at));
                if let Some(other) = load(self, source, &at) {
                    return other;
                }
                Expr::Load { source, dtype, index: at }
            }
            Expr::Index(size) => Expr::Index(index(size)),
            Expr::Below(a, b) => {
                let (a, b) = (index(a), index(b));
                return self.below(&a, &b, bounds);
            }
            Expr::Apply(fun, domain, args) => {
                Expr::Apply(*fun, *domain, args.iter().map(|arg| done[arg]).collect())
            }
            Expr::Convert(domain, x) => Expr::Convert(*domain, done[x]),
            Expr::Round(dtype, x) => Expr::Round(*dtype, done[x]),
            Expr::Guard { cond, yes, no } => {
                let (cond, yes, no) = (done[cond], done[yes], done[no]);
                return self.guard(cond, yes, no);
            }
            other @ (Expr::Number(..) | Expr::Result(..)) => other.clone(),
        };
        self.add(new)
    }

    /// Whether `a < b`.
    pub(crate) fn below(&mut self, a: &Size, b: &Size, bounds: &Bounds<'_>) -> Id {
        let known = match () {
            () if bounds.is_less(a, b) => Some(1),
            () if bounds.is_nonnegative(&(a - b)) => Some(0),
            () => None,
        };
        self.add(match known {
            Some(bit) => Expr::Number(Domain::Bool, bit),
            None => Expr::Below(a.clone(), b.clone()),
        })
    }

    /// `yes` where `cond` holds, else `no`.
    pub(crate) fn guard(&mut self, cond: Id, yes: Id, no: Id) -> Id {
        match self.get(cond) {
            Expr::Number(_, 0) => no,
            Expr::Number(..) => yes,
            _ if yes == no => yes,
            _ => self.add(Expr::Guard { cond, yes, no }),
        }
    }
}

fn values_in(size: &Size) -> Vec<Id> {
    let mut found = BTreeSet::new();
    size.each_atom(&mut |atom| {
        if let Atom::Value(value) = atom {
            found.insert(Id(*value));
        }
    });
    found.into_iter().collect()
}
