//! The first of a row in order, where they are many: each element's rank is how many come before
//! it, and what has a place's rank is in that place.
//!
//! Invariant: the ranks of a row are all different. NaN is the greatest, and among equals the
//! first position comes first, as one after the other would be found.

use kiln_proto::graph::DType;

use super::{Lazy, Lowering, without_ones};
use crate::{
    core::{Fun, Node, Reduction, Value},
    loops::{COLUMN, Def, Domain, Expr, Id, ROW, Source, domain_of, numel, unflattened},
    size::{Bounds, Size},
};

/// Found one after the other: so few are as fast that way.
const FEW: i64 = 16;
/// Comparisons that a device does while a block finds one more of a row.
const COMPARED: i64 = 2_000_000;
/// Rows whose blocks a device has at once.
const AT_ONCE: i64 = 1024;
/// Of a size that a call decides.
const OFTEN: i64 = 512;

/// What is wanted of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct First {
    pub(super) k: i64,
    pub(super) largest: bool,
    pub(super) positions: bool,
}

impl Lowering<'_> {
    /// Whether ranks are faster.
    pub(super) fn is_ranked(k: i64, rows: &Size, columns: &Size) -> bool {
        let [rows, columns] = [rows, columns].map(|size| size.known().unwrap_or(OFTEN));
        let compared = rows.saturating_mul(columns).saturating_mul(columns);
        k > FEW && compared <= k.saturating_mul(1 + rows / AT_ONCE).saturating_mul(COMPARED)
    }

    pub(super) fn by_rank(
        &mut self,
        node: &Node,
        first: First,
        out: &Value,
    ) -> Result<Lazy, String> {
        let value = node.reads[0];
        if self.loaded(value).is_none() {
            self.store_for_reading(value)?;
        }
        let read = self.read(value)?;
        let Some((columns, outer)) = read.shape.split_last() else {
            return Err("a row of no dimension".to_owned());
        };
        let (rows, columns) = (numel(outer), columns.clone());
        let known = self.ranks.get(&(value.0, first.largest)).copied();
        let rank = known.unwrap_or_else(|| self.ranks_of(&read, &rows, &columns, first.largest));
        self.ranks.insert((value.0, first.largest), rank);

        let places = &rows * &Size::from(first.k);
        let extents = [places.clone(), columns.clone()];
        let [row, place] = self.split(&[rows, Size::from(first.k)], &extents);
        let index = &(&row * &columns) + &Size::var(COLUMN);
        let is_it = Expr::Load { source: Source::Temp(rank), dtype: DType::I64, index };
        let exprs = &mut self.loops.exprs;
        let operands = vec![exprs.add(is_it), exprs.add(Expr::Index(place))];
        let is_it = exprs.add(Expr::Apply(Fun::Eq, Domain::Int, operands));
        let (how, domain, of) = if first.positions {
            let none = exprs.add(Expr::Number(Domain::Int, 0));
            let position = exprs.add(Expr::Index(Size::var(COLUMN)));
            let of = Expr::Apply(Fun::Where, Domain::Int, vec![is_it, position, none]);
            (Reduction::Sum, Domain::Int, of)
        } else {
            let element = self.element(&read, &row, &Size::var(COLUMN), &extents);
            let (exprs, domain) = (&mut self.loops.exprs, domain_of(read.dtype));
            let least = match domain {
                Domain::Bool => None,
                Domain::Int => Some(i64::MIN as u64),
                Domain::Float | Domain::Double => Some(f64::NEG_INFINITY.to_bits()),
            };
            match least.map(|bits| exprs.add(Expr::Number(domain, bits))) {
                None => {
                    let of = Expr::Apply(Fun::And, domain, vec![is_it, element]);
                    (Reduction::Any, domain, of)
                }
                Some(none) => {
                    let of = Expr::Apply(Fun::Where, domain, vec![is_it, element, none]);
                    (Reduction::Max, domain, of)
                }
            }
        };
        let of = self.loops.exprs.add(of);
        let def = Def::Reduce { how, domain, rows: places.clone(), columns, of };
        let temp = self.temp(out.dtype, places, def);
        Ok(self.dense(temp, out.dtype, &out.shape))
    }

    /// How many of its row come before each element.
    fn ranks_of(&mut self, read: &Lazy, rows: &Size, columns: &Size, largest: bool) -> usize {
        let all = rows * columns;
        let extents = [all.clone(), columns.clone()];
        let [row, own] = self.split(&[rows.clone(), columns.clone()], &extents);
        let mut domain = domain_of(read.dtype);
        if domain == Domain::Bool {
            domain = Domain::Int;
        }
        let [one, other] = [&own, &Size::var(COLUMN)].map(|column| {
            let element = self.element(read, &row, column, &extents);
            self.loops.exprs.convert(element, domain)
        });
        let sooner = self.comes_before(domain, largest, other, one);
        let later = self.comes_before(domain, largest, one, other);
        let exprs = &mut self.loops.exprs;
        let mut test = |fun, of| exprs.add(Expr::Apply(fun, Domain::Bool, of));
        let not_later = test(Fun::Not, vec![later]);
        let left = self.loops.exprs.add(Expr::Below(Size::var(COLUMN), own));
        let exprs = &mut self.loops.exprs;
        let mut test = |fun, of| exprs.add(Expr::Apply(fun, Domain::Bool, of));
        let equal = test(Fun::And, vec![not_later, left]);
        let counts = test(Fun::Or, vec![sooner, equal]);
        let of = self.loops.exprs.convert(counts, Domain::Int);
        let (how, domain) = (Reduction::Sum, Domain::Int);
        let def = Def::Reduce { how, domain, rows: all.clone(), columns: columns.clone(), of };
        self.temp(DType::I64, all, def)
    }

    /// Whether `a` comes before `b` wherever they stand.
    fn comes_before(&mut self, domain: Domain, largest: bool, a: Id, b: Id) -> Id {
        let exprs = &mut self.loops.exprs;
        let fun = if largest { Fun::Gt } else { Fun::Lt };
        let compared = exprs.add(Expr::Apply(fun, domain, vec![a, b]));
        if !domain.is_float() {
            return compared;
        }
        let [a, b] = [a, b].map(|of| exprs.add(Expr::Apply(Fun::IsNan, domain, vec![of])));
        let (is, is_not) = if largest { (a, b) } else { (b, a) };
        let is_not = exprs.add(Expr::Apply(Fun::Not, Domain::Bool, vec![is_not]));
        let alone = exprs.add(Expr::Apply(Fun::And, Domain::Bool, vec![is, is_not]));
        exprs.add(Expr::Apply(Fun::Or, Domain::Bool, vec![compared, alone]))
    }

    /// [`ROW`] as the positions in dimensions of `sizes`.
    fn split(&self, sizes: &[Size; 2], extents: &[Size; 2]) -> [Size; 2] {
        let bounds = Bounds { symbols: &self.program.symbols, vars: extents };
        let mut found = unflattened(&Size::var(ROW), sizes, &bounds).into_iter();
        [found.next().unwrap_or_default(), found.next().unwrap_or_default()]
    }

    /// What `read` has in `row`, counted over all dimensions but the last, and `column`.
    fn element(&mut self, read: &Lazy, row: &Size, column: &Size, extents: &[Size; 2]) -> Id {
        let bounds = Bounds { symbols: &self.program.symbols, vars: extents };
        let mut at = unflattened(row, &read.shape[..read.shape.len() - 1], &bounds);
        at.push(column.clone());
        let at = without_ones(&at, &read.shape);
        self.loops.exprs.substitute(read.expr, &bounds, &at, &mut |_, _, _| None)
    }
}
