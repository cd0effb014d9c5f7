//! Rows that each have a matrix of their own: mixtures of experts.
//!
//! Invariant: rows behind the last group are zero.

use super::{
    super::core::Op, Args, Outputs, Rule, Why, index::whole_numbers, one, promote::is_float,
    shapes::show, unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "_grouped_mm.default" | "grouped_mm.default" => |args| grouped(args, "self", "mat2"),
        _ => return None,
    })
}

/// The same under the name that `transformers` has for it.
pub(super) fn of_transformers(name: &str) -> Option<Rule> {
    (name == "grouped_mm_fallback.default").then_some(|args| grouped(args, "input", "weight"))
}

/// Rows (`[t, k]`, in groups that end at `offs`) by the matrix of their group (`[e, k, n]`).
fn grouped(args: &mut Args<'_>, rows: &str, matrices: &str) -> Outputs {
    let (x, w) = (args.tensor(rows)?, args.tensor(matrices)?);
    let (from, by) = (args.b.shape(x), args.b.shape(w));
    let (Some(offs), [t, k], [e, k2, n]) = (args.maybe_tensor("offs")?, &from[..], &by[..]) else {
        return unsupported(format!("groups of {} by {}", show(&from), show(&by)));
    };
    let offs_shape = args.b.shape(offs);
    if !args.b.same(k, k2) || !args.b.same_shape(&offs_shape, std::slice::from_ref(e)) {
        return Err(Why::Wrong(format!("{} in groups by {}", show(&from), show(&by))));
    }
    whole_numbers(args, offs)?;
    if args.maybe_tensor("bias")?.is_some() {
        return unsupported("a bias for each group");
    }
    let to = args.declared(0)?.0;
    let (x_type, w_type) = (args.b.dtype(x), args.b.dtype(w));
    if x_type != w_type || !is_float(x_type) {
        return Err(Why::Wrong(format!("rows of {x_type} by matrices of {w_type}")));
    }
    one(args.b.push(Op::GroupedMatMul, vec![x, w, offs], to, vec![t.clone(), n.clone()]))
}
