//! Reductions, running sums and selections: rows of what is kept, columns of
//! what is not.
//!
//! Invariant: columns are in row-major order of the reduced dimensions.

use kiln_proto::graph::DType;

use super::{Lazy, Lowering, numel, unflattened, without_ones};
use crate::{
    core::{Fun, Node, Reduction, Value},
    loops::{COLUMN, Def, Domain, Expr, Id, ROW, domain_of},
    size::{Atom, Bounds, Size},
};

/// From this many columns on, few rows are summed in parts.
const LONG: i64 = 32_768;
/// So many rows, one below the other, are added up in place.
const FEW_ROWS: i64 = 8;
/// Parts of an expression of one of them, at most.
const MOST_PARTS_OF_FEW: usize = 64;
/// Neighbours that are taken together there.
const NEIGHBOURS: i64 = 8;
/// So many of a row are found one after the other; of more, the row is sorted.
const FEW_OF_A_ROW: i64 = 16;
/// Fewer rows than this leave a GPU idle.
const FEW: i64 = 64;

impl Lowering<'_> {
    pub(super) fn reduce(
        &mut self,
        node: &Node,
        how: Reduction,
        dims: &[usize],
        out: &Value,
    ) -> Result<Lazy, String> {
        let read = self.read(node.reads[0])?;
        if let Some(few) = self.few_in_place(&read, how, dims, out) {
            return Ok(few);
        }
        let kept: Vec<usize> = (0..read.shape.len()).filter(|dim| !dims.contains(dim)).collect();
        // Rows in the order in which they lie in memory.
        let order = self.memory_order(&read);
        let kept_order: Vec<usize> = order.iter().copied().filter(|d| kept.contains(d)).collect();
        let domain = match how {
            Reduction::Any | Reduction::All => Domain::Bool,
            Reduction::Sum | Reduction::Prod => domain_of(out.dtype),
            _ => domain_of(read.dtype),
        };
        let sizes =
            |dims: &[usize]| dims.iter().map(|d| read.shape[*d].clone()).collect::<Vec<_>>();
        let (rows, columns) = (numel(&sizes(&kept_order)), numel(&sizes(dims)));
        let (of, rows, columns) = self.in_rows(&read, &kept_order, dims, rows, columns, domain);
        let temp = match self.parts(how, &rows, &columns) {
            Some(parts) => self.reduce_in_parts(how, domain, (rows, columns, of), parts, out),
            None => {
                let def = Def::Reduce { how, domain, rows: rows.clone(), columns, of };
                self.temp(out.dtype, rows, def)
            }
        };
        let ordered = self.dense(temp, out.dtype, &sizes(&kept_order));
        let back: Vec<usize> =
            kept.iter().filter_map(|dim| kept_order.iter().position(|d| d == dim)).collect();
        let kept = self.permuted(&ordered, &back);
        Ok(self.reshaped(&kept, &out.shape))
    }

    /// A few rows that lie one below the other: added up element by element, so that neighbours
    /// are taken together.
    fn few_in_place(
        &mut self,
        read: &Lazy,
        how: Reduction,
        dims: &[usize],
        out: &Value,
    ) -> Option<Lazy> {
        let (fun, domain) = match how {
            Reduction::Sum => (Fun::Add, domain_of(out.dtype)),
            Reduction::Max => (Fun::Max, domain_of(read.dtype)),
            Reduction::Min => (Fun::Min, domain_of(read.dtype)),
            _ => return None,
        };
        let ([dim], Some(last)) = (dims, read.shape.len().checked_sub(1)) else { return None };
        let count = read.shape[*dim].known().filter(|count| (1..=FEW_ROWS).contains(count))?;
        let below = *dim < last && read.shape[last].power_of_two(NEIGHBOURS) == NEIGHBOURS;
        let dense = |part: &Id| match self.loops.exprs.get(*part) {
            Expr::Load { index, .. } => {
                index.linear_in(&Atom::Var(last)).is_some_and(|(step, _)| step.is(1))
            }
            _ => false,
        };
        let parts = self.loops.exprs.reachable([read.expr]);
        let lies = parts.len() <= MOST_PARTS_OF_FEW && parts.iter().any(dense);
        if !below || !lies || domain == Domain::Bool {
            return None;
        }
        // Of the result's dimensions; it may keep the one that is reduced, as one.
        let keeps = out.shape.len() == read.shape.len();
        let bounds = Bounds { symbols: &self.program.symbols, vars: &out.shape };
        // Sums begin with zero, of which the sign counts.
        let begins = how == Reduction::Sum && domain.is_float();
        let mut sum = begins.then(|| self.loops.exprs.add(Expr::Number(domain, 0)));
        for row in 0..count {
            let of = |own: usize| match own.cmp(dim) {
                std::cmp::Ordering::Equal => Size::from(row),
                std::cmp::Ordering::Greater if !keeps => Size::var(own - 1),
                _ => Size::var(own),
            };
            let at: Vec<Size> = (0..=last).map(of).collect();
            let at = without_ones(&at, &read.shape);
            let exprs = &mut self.loops.exprs;
            let element = exprs.substitute(read.expr, &bounds, &at, &mut |_, _, _| None);
            let element = exprs.convert(element, domain);
            sum = Some(match sum {
                None => element,
                Some(sum) => exprs.add(Expr::Apply(fun, domain, vec![sum, element])),
            });
        }
        let exprs = &mut self.loops.exprs;
        let expr = exprs.convert(sum?, domain_of(out.dtype));
        let expr = exprs.rounded(expr, out.dtype);
        Some(self.stored(&Lazy { expr, dtype: out.dtype, shape: out.shape.clone() }))
    }

    /// `read` over rows (of the dimensions `outer`) and columns (of `inner`).
    fn in_rows(
        &mut self,
        read: &Lazy,
        outer: &[usize],
        inner: &[usize],
        rows: Size,
        columns: Size,
        domain: Domain,
    ) -> (Id, Size, Size) {
        let sizes =
            |dims: &[usize]| dims.iter().map(|d| read.shape[*d].clone()).collect::<Vec<_>>();
        let extents = [rows.clone(), columns.clone()];
        let bounds = Bounds { symbols: &self.program.symbols, vars: &extents };
        let mut at = vec![Size::default(); read.shape.len()];
        for (var, dims) in [(ROW, outer), (COLUMN, inner)] {
            let indices = unflattened(&Size::var(var), &sizes(dims), &bounds);
            for (dim, index) in dims.iter().zip(indices) {
                at[*dim] = index;
            }
        }
        let expr = self.loops.exprs.substitute(read.expr, &bounds, &at, &mut |_, _, _| None);
        (self.loops.exprs.convert(expr, domain), rows, columns)
    }

    /// In how many parts to reduce rows that are few and long.
    fn parts(&self, how: Reduction, rows: &Size, columns: &Size) -> Option<i64> {
        let positions = matches!(how, Reduction::ArgMax | Reduction::ArgMin);
        let (rows, columns) = (rows.known()?, columns.known()?);
        if positions || rows >= FEW || columns < LONG {
            return None;
        }
        (64..=1024).rev().find(|parts| columns % (parts * 8) == 0)
    }

    fn reduce_in_parts(
        &mut self,
        how: Reduction,
        domain: Domain,
        (rows, columns, of): (Size, Size, Id),
        parts: i64,
        out: &Value,
    ) -> usize {
        use kiln_proto::graph::DType;
        let parts = Size::from(parts);
        let (many, short) = (&rows * &parts, columns.div_floor(&parts));
        let extents = [many.clone(), short.clone()];
        let bounds = Bounds { symbols: &self.program.symbols, vars: &extents };
        let row = Size::var(ROW).div_in(&parts, &bounds);
        let part = Size::var(ROW).mod_in(&parts, &bounds);
        let column = &(&part * &short) + &Size::var(COLUMN);
        let first = self.loops.exprs.substitute(of, &bounds, &[row, column], &mut |_, _, _| None);
        let between = match domain {
            Domain::Float => DType::F32,
            Domain::Double => DType::F64,
            Domain::Int => DType::I64,
            Domain::Bool => DType::Bool,
        };
        let def = Def::Reduce { how, domain, rows: many.clone(), columns: short, of: first };
        let temp = self.temp(between, many, def);
        let index = &(&Size::var(ROW) * &parts) + &Size::var(COLUMN);
        let of = self.load(temp, between, index, &[]).expr;
        let def = Def::Reduce { how, domain, rows: rows.clone(), columns: parts, of };
        self.temp(out.dtype, rows, def)
    }

    pub(super) fn cumsum(&mut self, node: &Node, dim: usize, out: &Value) -> Result<Lazy, String> {
        let read = self.read(node.reads[0])?;
        let outer: Vec<usize> = (0..read.shape.len()).filter(|d| *d != dim).collect();
        let sizes: Vec<Size> = outer.iter().map(|d| read.shape[*d].clone()).collect();
        let (rows, columns) = (numel(&sizes), read.shape[dim].clone());
        let domain = domain_of(out.dtype);
        let (of, rows, columns) = self.in_rows(&read, &outer, &[dim], rows, columns, domain);
        let total = &rows * &columns;
        let temp = self.temp(out.dtype, total, Def::Scan { domain, rows, columns, of });
        let mut last = outer.clone();
        last.push(dim);
        let ordered: Vec<Size> = last.iter().map(|d| read.shape[*d].clone()).collect();
        let dense = self.dense(temp, out.dtype, &ordered);
        let back: Vec<usize> =
            (0..last.len()).filter_map(|dim| last.iter().position(|d| *d == dim)).collect();
        Ok(self.permuted(&dense, &back))
    }

    pub(super) fn top_k(
        &mut self,
        node: &Node,
        k: usize,
        largest: bool,
        positions: bool,
        out: &Value,
    ) -> Result<Lazy, String> {
        let k = i64::try_from(k).map_err(|_| "k is too large")?;
        let columns = self.read(node.reads[0])?.shape.last().and_then(Size::known);
        let sorts = k > FEW_OF_A_ROW && columns.is_some_and(|count| i32::try_from(count).is_ok());
        // Read again and again there.
        if sorts && self.loaded(node.reads[0]).is_none() {
            self.store_for_reading(node.reads[0])?;
        }
        let read = self.read(node.reads[0])?;
        // A tensor without dimensions is a row of one.
        let inner: Vec<usize> = read.shape.len().checked_sub(1).into_iter().collect();
        let outer: Vec<usize> = (0..read.shape.len().saturating_sub(1)).collect();
        let rows = numel(&read.shape[..outer.len()]);
        let columns = numel(&read.shape[outer.len()..]);
        let domain = domain_of(read.dtype);
        let (of, rows, columns) = self.in_rows(&read, &outer, &inner, rows, columns, domain);
        let total = &rows * &Size::from(k);
        let runs = sorts.then(|| {
            let known = self.runs.get(&(node.reads[0].0, largest)).copied();
            known.unwrap_or_else(|| {
                let (rows, columns) = (rows.clone(), columns.clone());
                let numel = &rows * &columns;
                self.temp(DType::I32, numel, Def::Runs { largest, rows, columns, of })
            })
        });
        self.runs.extend(runs.map(|runs| ((node.reads[0].0, largest), runs)));
        let def = Def::TopK { k, largest, positions, rows, columns, of, runs };
        let temp = self.temp(out.dtype, total, def);
        Ok(self.dense(temp, out.dtype, &out.shape))
    }
}
