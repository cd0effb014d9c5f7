//! Element-wise operations to expressions.
//!
//! Invariant: the expression's value is rounded as the core program says: what
//! a buffer would hold and what is computed again are the same bits.

use kiln_proto::graph::DType;

use super::{Lazy, Lowering};
use crate::{
    core::{self, Fun, Node, Number, Operand, Value},
    loops::{Domain, Expr, Id, domain_of},
    size::{Bounds, Size},
};

impl Lowering<'_> {
    pub(super) fn map(
        &mut self,
        node: &Node,
        fun: Fun,
        domain: core::Domain,
        args: &[Operand],
        out: &Value,
    ) -> Result<Lazy, String> {
        let mut types = node.reads.iter().map(|read| self.program.value(*read).dtype);
        let wide = out.dtype == DType::F64 || types.any(|dtype| dtype == DType::F64);
        let domain = Domain::of(domain, wide);
        let mut exprs = Vec::with_capacity(args.len());
        let mut same_type = true;
        for (place, arg) in args.iter().enumerate() {
            let expr = match arg {
                Operand::Read(read) => {
                    let read = self.read(node.reads[*read])?;
                    let is_test = fun == Fun::Where && place == 0;
                    same_type &= read.dtype == out.dtype || is_test;
                    self.broadcast(&read, &out.shape)?.expr
                }
                Operand::Number(number) => {
                    same_type = false;
                    self.number(number, domain)
                }
            };
            let domain = if fun == Fun::Where && place == 0 { Domain::Bool } else { domain };
            exprs.push(self.loops.exprs.convert(expr, domain));
        }
        let expr = self.apply(fun, domain, exprs, &out.shape);
        let exact = matches!(fun, Fun::Id | Fun::Neg | Fun::Abs | Fun::Min | Fun::Max | Fun::Where);
        let expr = match same_type && exact && domain_of(out.dtype) == domain {
            true => expr,
            false => self.rounded(expr, out.dtype),
        };
        Ok(Lazy { expr, dtype: out.dtype, shape: out.shape.clone() })
    }

    fn apply(&mut self, fun: Fun, domain: Domain, args: Vec<Id>, shape: &[Size]) -> Id {
        if fun == Fun::Id {
            return args[0];
        }
        let bounds = Bounds { symbols: &self.program.symbols, vars: shape };
        let exprs = &mut self.loops.exprs;
        let index = |id: &Id| match exprs.get(*id) {
            Expr::Index(size) => Some(size.clone()),
            Expr::Number(Domain::Int, bits) => Some(Size::from(*bits as i64)),
            _ => None,
        };
        // Positions stay positions: comparisons of them are decided or cheap.
        if let (Domain::Int, [a, b]) = (domain, &args[..])
            && let (Some(a), Some(b)) = (index(a), index(b))
        {
            let one = Size::from(1);
            match fun {
                Fun::Add => return exprs.add(Expr::Index(&a + &b)),
                Fun::Sub => return exprs.add(Expr::Index(&a - &b)),
                Fun::Mul => return exprs.add(Expr::Index(&a * &b)),
                Fun::Lt => return exprs.below(&a, &b, &bounds),
                Fun::Le => return exprs.below(&a, &(&b + &one), &bounds),
                Fun::Gt => return exprs.below(&b, &a, &bounds),
                Fun::Ge => return exprs.below(&b, &(&a + &one), &bounds),
                _ => {}
            }
        }
        exprs.add(Expr::Apply(fun, domain, args))
    }

    pub(super) fn iota(&mut self, start: &Number, step: &Number, out: &Value) -> Lazy {
        let exprs = &mut self.loops.exprs;
        let int = |number: &Number| match number {
            Number::Int(int) => Some(Size::from(*int)),
            Number::Size(size) => Some(size.clone()),
            Number::Bool(bit) => Some(Size::from(i64::from(*bit))),
            Number::Float(_) => None,
        };
        let expr = match (int(start), int(step)) {
            (Some(start), Some(step)) => exprs.add(Expr::Index(&start + &(&step * &Size::var(0)))),
            _ => {
                let domain = Domain::of(core::Domain::Float, out.dtype == DType::F64);
                let position = exprs.add(Expr::Index(Size::var(0)));
                let position = exprs.convert(position, domain);
                let (start, step) = (self.number(start, domain), self.number(step, domain));
                let exprs = &mut self.loops.exprs;
                let along = exprs.add(Expr::Apply(Fun::Mul, domain, vec![position, step]));
                exprs.add(Expr::Apply(Fun::Add, domain, vec![start, along]))
            }
        };
        let expr = match (out.dtype, self.loops.exprs.get(expr)) {
            // Positions of a tensor fit.
            (DType::I32, Expr::Index(_)) => expr,
            _ => self.rounded(expr, out.dtype),
        };
        Lazy { expr, dtype: out.dtype, shape: out.shape.clone() }
    }
}
