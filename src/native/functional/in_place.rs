//! Which operations write to their first tensor, and what that is then.
//!
//! Invariant: what is written has the element type and shape of what it is written to.

use kiln_proto::{
    Failure,
    graph::{Argument, DType, Node, TensorType, ValueId},
};

use super::Writer;
use crate::decompose::in_place_type;

/// Operations that change what their tensor looks like, not its elements, or that draw
/// random numbers: they stay as they are, and no rule knows them.
const NO_FORM: [&str; 18] = [
    "unsqueeze_",
    "squeeze_",
    "transpose_",
    "t_",
    "swapaxes_",
    "swapdims_",
    "resize_",
    "set_",
    "as_strided_",
    "resize_as_",
    "rename_",
    "bernoulli_",
    "normal_",
    "uniform_",
    "random_",
    "exponential_",
    "geometric_",
    "cauchy_",
];

/// Whether an operation of that name writes to one of its inputs: `aten.add_.Tensor`,
/// `aten.add.out`. `detach_` changes nothing that a graph has.
pub(crate) fn mutates(op: &str) -> bool {
    let mut parts = op.split('.').skip(1);
    let (name, overload) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let in_place = name.ends_with('_') && !name.ends_with("__") && name != "detach_";
    let operator = matches!(name, "__iadd__" | "__isub__" | "__imul__" | "__idiv__")
        || matches!(name, "__iand__" | "__ior__" | "__ixor__" | "__ilshift__" | "__irshift__");
    in_place
        || operator
        || name == "_index_put_impl_"
        || overload == "out"
        || overload.ends_with("_out")
}

/// The operation that gives what this one writes.
fn form(op: &str) -> Option<String> {
    let (namespace, rest) = op.split_once('.')?;
    let (name, overload) = rest.split_once('.')?;
    if NO_FORM.contains(&name) || overload.ends_with("out") {
        return None;
    }
    let name = match name {
        "_index_put_impl_" => "index_put",
        "__iadd__" => "add",
        "__isub__" => "sub",
        "__imul__" => "mul",
        "__idiv__" => "div",
        "__iand__" => "bitwise_and",
        "__ior__" => "bitwise_or",
        "__ixor__" => "bitwise_xor",
        "__ilshift__" => "bitwise_left_shift",
        "__irshift__" => "bitwise_right_shift",
        name => name.strip_suffix('_')?,
    };
    Some(format!("{namespace}.{name}.{overload}"))
}

impl Writer<'_> {
    /// What `node` writes to its first tensor, which is of type `ty`; its arguments are
    /// those of now. None: it has no such form.
    pub(super) fn in_place(
        &mut self,
        node: &Node,
        args: Vec<(String, Argument)>,
        ty: &TensorType,
    ) -> Result<Option<ValueId>, Failure> {
        let base = node.op.split('.').nth(1).unwrap_or_default();
        let named = |name: &str| {
            let found = args.iter().find(|(other, _)| other == name).map(|(_, arg)| arg.clone());
            found.filter(|arg| *arg != Argument::None)
        };
        let whole = named("self").unwrap_or(Argument::None);
        let full = |number: Argument| vec![("self", whole.clone()), ("fill_value", number)];
        match (base, named("src").or_else(|| named("value"))) {
            ("copy_" | "fill_", Some(Argument::Tensor(from))) => {
                Ok(Some(self.spread(&node.name, from, ty)))
            }
            ("fill_", Some(number)) => {
                let made =
                    self.node(&node.name, "aten.full_like.default", full(number), ty.clone());
                Ok(Some(made))
            }
            ("zero_", _) => {
                let zero = full(Argument::Int(0));
                Ok(Some(self.node(&node.name, "aten.full_like.default", zero, ty.clone())))
            }
            _ => {
                let Some(op) = form(&node.op) else { return Ok(None) };
                Ok(Some(self.computed(node, op, args, ty)))
            }
        }
    }

    /// `from` in the element type and shape of `ty`.
    fn spread(&mut self, name: &str, from: ValueId, ty: &TensorType) -> ValueId {
        let mut now = from;
        let mut has = self.made.value(now).ty.clone();
        if has.dtype != ty.dtype {
            has.dtype = ty.dtype;
            let args = vec![("self", Argument::Tensor(now)), ("dtype", Argument::DType(ty.dtype))];
            now = self.node(name, "aten.to.dtype", args, has.clone());
        }
        if has.shape != ty.shape {
            let size = Argument::Sizes(ty.shape.iter().cloned().map(Some).collect());
            let args = vec![("self", Argument::Tensor(now)), ("size", size)];
            // Dimensions of one in front fall away: there may be more of them than there.
            let more = has.shape.len().checked_sub(ty.shape.len());
            let op = match more {
                Some(1..) => "aten.reshape.default",
                _ => "aten.expand.default",
            };
            now = self.node(name, op, args, ty.clone());
        }
        now
    }

    /// What the operation `op` gives, in the element type of `ty`.
    fn computed(
        &mut self,
        node: &Node,
        op: String,
        args: Vec<(String, Argument)>,
        ty: &TensorType,
    ) -> ValueId {
        let dtype: DType = in_place_type(&op, &args, &self.made).unwrap_or(ty.dtype);
        let own = TensorType { dtype, ..ty.clone() };
        let output = self.fresh(kiln_proto::graph::Value { name: node.name.clone(), ty: own });
        self.made.nodes.push(Node { name: node.name.clone(), op, args, outputs: vec![output] });
        match dtype == ty.dtype {
            true => output,
            false => self.spread(&node.name, output, ty),
        }
    }
}
