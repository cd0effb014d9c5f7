//! The same elements: in another type, as a copy, under another name.
//!
//! Invariant: a cast is the only thing that is computed.

use super::{super::core::ValueId, Args, Outputs, Rule, one, unsupported};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "to.dtype" | "to.dtype_layout" | "to.device" | "_to_copy.default" | "to.prim_Device"
        | "_to_copy.dtype" | "to.prim_dtype" => cast,
        "to.other" | "type_as.default" => cast_as,
        "alias.default"
        | "clone.default"
        | "contiguous.default"
        | "detach.default"
        | "lift_fresh_copy.default"
        | "lift_fresh.default"
        | "view_of.default"
        | "alias_copy.default"
        | "detach_.default"
        | "detach_copy.default"
        | "_conj.default"
        | "resolve_conj.default"
        | "resolve_neg.default" => same,
        "copy.default" => copy,
        "dropout.default"
        | "feature_dropout.default"
        | "alpha_dropout.default"
        | "native_dropout.default" => dropout,
        _ => return None,
    })
}

fn cast(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = args.dtype()?.unwrap_or(args.b.dtype(x));
    one(args.b.cast(x, dtype))
}

fn cast_as(args: &mut Args<'_>) -> Outputs {
    let (x, other) = (args.tensor("self")?, args.tensor("other")?);
    one(args.b.cast(x, args.b.dtype(other)))
}

fn same(args: &mut Args<'_>) -> Outputs {
    one(args.tensor("self")?)
}

/// `src` in the type and shape of `self`.
fn copy(args: &mut Args<'_>) -> Outputs {
    let (x, src) = (args.tensor("self")?, args.tensor("src")?);
    let src = args.b.cast(src, args.b.dtype(x));
    let shape = args.b.shape(x);
    one(args.b.expand(src, shape))
}

fn dropout(args: &mut Args<'_>) -> Outputs {
    let x: ValueId = match args.maybe_tensor("input")? {
        Some(x) => x,
        None => args.tensor("self")?,
    };
    if args.flag("train", false)? && args.float("p", 0.5)? != 0.0 {
        return unsupported("dropout in training: export the model after `.eval()`");
    }
    one(x)
}
