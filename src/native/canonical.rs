//! What of a graph decides the output: the `graph` and `inputs` components.
//!
//! Invariant: values are numbered by the order in which the outputs need them,
//! so names, metadata, module paths, the order of independent nodes, dead nodes
//! and the exporter's version leave no trace. `structure` does not move with
//! the inputs' types or the constants; what does move with them is in fields of
//! its own, so that `kiln why` can name the one that was changed.

use std::{collections::HashMap, fmt::Write};

use kiln_proto::{
    Component, KeyField, component,
    graph::{Argument, Dim, Graph, InputKind, Node, SymInt, TensorType, ValueId},
};

use super::{decompose::is_known, live::live_order};

/// Arguments that are operands: their numbers are constants, not structure.
pub(super) const OPERANDS: [&str; 11] =
    ["self", "other", "exponent", "alpha", "beta", "eps", "value", "fill_value", "min", "max", "s"];
/// Switches that are on where they are not given.
const ON: [&str; 5] = ["largest", "sorted", "unbiased", "count_include_pad", "include_self"];

/// The `graph` component of `graph`.
///
/// - `structure`: operations, topology, dimensions and switches; casts are left out
/// - `constants`: scalar operands and baked tensors, by content
/// - `types` (derived): the same graph with its casts and sizes
pub(super) fn graph_component(graph: &Graph) -> Component {
    let structure = encode(graph, Detail::Structure);
    let types = encode(graph, Detail::Types);
    Component::new(
        component::GRAPH,
        vec![
            KeyField::of_bytes("structure", structure.text.as_bytes()),
            KeyField::new("constants", structure.constants),
            KeyField::of_bytes("types", types.text.as_bytes()).derived(),
        ],
    )
}

/// The `inputs` component of `graph`: four fields for each input, in order.
pub(super) fn inputs_component(graph: &Graph) -> Component {
    let symbols = Symbols::of(graph);
    let mut fields = Vec::with_capacity(graph.inputs.len() * 4);
    for (i, input) in graph.inputs.iter().enumerate() {
        let ty = &graph.value(input.value).ty;
        let strides = match is_contiguous(ty) {
            true => "contiguous".to_owned(),
            false => symbols.dims(&ty.strides),
        };
        fields.push(KeyField::new(format!("{i}.dtype"), ty.dtype.name()));
        fields.push(KeyField::new(format!("{i}.shape"), symbols.dims(&ty.shape)));
        fields.push(KeyField::new(format!("{i}.strides"), strides));
        fields.push(KeyField::new(format!("{i}.device"), ty.device.as_str()));
    }
    Component::new(component::INPUTS, fields)
}

#[derive(Clone, Copy, PartialEq)]
enum Detail {
    Structure,
    Types,
}

struct Encoded {
    text: String,
    constants: String,
}

fn encode(graph: &Graph, detail: Detail) -> Encoded {
    let symbols = Symbols::of(graph);
    let (mut text, mut constants) = (String::new(), String::new());
    let mut numbers: HashMap<ValueId, usize> = HashMap::new();
    for (i, input) in graph.inputs.iter().enumerate() {
        numbers.insert(input.value, i);
        let kind = match &input.kind {
            InputKind::Parameter => "parameter",
            InputKind::Buffer => "buffer",
            InputKind::User => "user",
            InputKind::Constant(constant) => {
                push(&mut constants, &format!("%{i}={}", constant.digest));
                "constant"
            }
        };
        push(&mut text, &format!("%{i}={kind};"));
    }
    let mut next = graph.inputs.len();
    for index in live_order(graph) {
        let node = &graph.nodes[index];
        if detail == Detail::Structure && is_transparent(node) {
            let through = node.tensors().next().and_then(|read| numbers.get(&read).copied());
            if let (Some(number), Some(output)) = (through, node.outputs.first()) {
                numbers.insert(*output, number);
                continue;
            }
        }
        let mut args = String::new();
        for (name, argument) in sorted_args(node) {
            let shown = match argument {
                Argument::Tensor(value) => format!("%{}", numbers[value]),
                Argument::Tensors(values) => {
                    let named = values.iter().map(|value| match value {
                        Some(value) => format!("%{}", numbers[value]),
                        None => "-".to_owned(),
                    });
                    format!("[{}]", named.collect::<Vec<_>>().join(","))
                }
                Argument::SymInt(_) | Argument::SymInts(_) if detail == Detail::Structure => {
                    "*".to_owned()
                }
                Argument::SymInt(formula) => symbols.formula(formula),
                Argument::SymInts(ints) => {
                    let shown = ints.iter().map(|int| match int {
                        SymInt::Known(known) => known.to_string(),
                        SymInt::Symbolic(formula) => symbols.formula(formula),
                    });
                    format!("[{}]", shown.collect::<Vec<_>>().join(","))
                }
                Argument::Floats(floats) => format!("{floats:?}"),
                Argument::Bools(bools) => format!("{bools:?}"),
                Argument::String(text) => format!("{text:?}"),
                Argument::Int(_) | Argument::Float(_) if OPERANDS.contains(&name.as_str()) => {
                    push(&mut constants, &format!("%{next}.{name}={}", number(argument)));
                    "#".to_owned()
                }
                Argument::Sizes(_) | Argument::DType(_) if detail == Detail::Structure => {
                    "*".to_owned()
                }
                Argument::Sizes(sizes) => symbols.sizes(sizes),
                Argument::DType(dtype) => dtype.name().to_owned(),
                Argument::Device(device) => device.clone(),
                Argument::Bool(switch) => switch.to_string(),
                Argument::Int(_) | Argument::Float(_) => number(argument),
                Argument::Ints(ints) => format!("{ints:?}"),
                Argument::Layout(layout) => layout.to_string(),
                Argument::Other(tag) => tag.clone(),
                Argument::None => "none".to_owned(),
            };
            push(&mut args, &format!("{name}={shown}"));
        }
        for (k, output) in node.outputs.iter().enumerate() {
            numbers.insert(*output, next + k);
        }
        push(&mut text, &format!("%{next}={}({args});", canonical_name(&node.op)));
        next += node.outputs.len().max(1);
    }
    let (returned, left) = graph.outputs.split_at(graph.returned());
    for output in returned {
        push(&mut text, &format!("return %{};", numbers[output]));
    }
    for (input, value) in graph.updates.iter().zip(left) {
        push(&mut text, &format!("leave %{input}=%{};", numbers[value]));
    }
    Encoded { text, constants }
}

/// Ops whose presence depends on the inputs' types, or that compute nothing.
fn is_transparent(node: &Node) -> bool {
    matches!(
        node.op.as_str(),
        "aten.to.dtype"
            | "aten.to.dtype_layout"
            | "aten._to_copy.default"
            | "aten.alias.default"
            | "aten.clone.default"
            | "aten.contiguous.default"
            | "aten.detach.default"
            | "aten.lift_fresh_copy.default"
    )
}

/// Spellings of one operation under one name.
pub(super) fn canonical_name(op: &str) -> &str {
    match op {
        "aten.view.default" | "aten._unsafe_view.default" | "aten.reshape.default" => {
            "aten.reshape"
        }
        "aten.to.dtype" | "aten._to_copy.default" => "aten.to",
        other => other,
    }
}

/// Arguments by name, less those that say what the schema says anyway: of the
/// operations with a rule, every factor defaults to one and every switch to
/// false but those in [`ON`]. Of others nothing is known: all of them count.
pub(super) fn sorted_args(node: &Node) -> Vec<&(String, Argument)> {
    let all = !is_known(&node.op);
    let mut args: Vec<_> = node
        .args
        .iter()
        .filter(|(name, argument)| match argument {
            _ if all => true,
            Argument::None => false,
            Argument::Bool(switch) => *switch != ON.contains(&name.as_str()),
            Argument::Int(1) => name != "alpha" && name != "beta",
            _ => true,
        })
        .collect();
    args.sort_by(|a, b| a.0.cmp(&b.0));
    args
}

/// Rust prints the shortest decimal that reads back as the same number.
fn number(argument: &Argument) -> String {
    match argument {
        Argument::Int(int) => int.to_string(),
        Argument::Float(float) => format!("{float:?}"),
        _ => String::new(),
    }
}

fn push(text: &mut String, part: &str) {
    let separator = if text.is_empty() { "" } else { " " };
    // Writing to a String cannot fail.
    let _ = write!(text, "{separator}{part}");
}

/// Whether `ty` is dense in row-major order, as far as its sizes are known.
pub(super) fn is_contiguous(ty: &TensorType) -> bool {
    let mut expected = Some(1u64);
    for (size, stride) in ty.shape.iter().zip(&ty.strides).rev() {
        if *size == Dim::Static(1) {
            continue;
        }
        if expected.is_none() || stride.known() != expected {
            return false;
        }
        expected = match (expected, size.known()) {
            (Some(so_far), Some(size)) => so_far.checked_mul(size),
            _ => None,
        };
    }
    true
}

/// New names and ranges for symbols, by first appearance in the inputs.
struct Symbols<'a> {
    names: HashMap<&'a str, String>,
}

impl<'a> Symbols<'a> {
    fn of(graph: &'a Graph) -> Self {
        let known = graph.symbols.iter().map(|s| (s.name.as_str(), s)).collect::<HashMap<_, _>>();
        let mut names = HashMap::new();
        for input in &graph.inputs {
            for dim in &graph.value(input.value).ty.shape {
                let Dim::Symbolic(expression) = dim else { continue };
                for word in words(expression).filter(|word| known.contains_key(word)) {
                    let next = names.len();
                    names.entry(word).or_insert_with(|| {
                        let bound = |b: Option<i64>| b.map(|b| b.to_string()).unwrap_or_default();
                        let symbol = known[word];
                        format!("s{next}{{{}..{}}}", bound(symbol.min), bound(symbol.max))
                    });
                }
            }
        }
        Self { names }
    }

    fn dims(&self, dims: &[Dim]) -> String {
        let shown: Vec<String> = dims.iter().map(|dim| self.dim(dim)).collect();
        format!("[{}]", shown.join(","))
    }

    fn sizes(&self, sizes: &[Option<Dim>]) -> String {
        let shown = sizes.iter().map(|size| match size {
            Some(dim) => self.dim(dim),
            None => "-1".to_owned(),
        });
        format!("[{}]", shown.collect::<Vec<_>>().join(","))
    }

    fn dim(&self, dim: &Dim) -> String {
        match dim {
            Dim::Static(size) => size.to_string(),
            Dim::Symbolic(formula) => self.formula(formula),
        }
    }

    fn formula(&self, expression: &str) -> String {
        let mut shown = String::with_capacity(expression.len());
        let mut rest = expression;
        for word in words(expression) {
            let at = rest.find(word).unwrap_or(0);
            shown.push_str(&rest[..at]);
            shown.push_str(self.names.get(word).map_or(word, String::as_str));
            rest = &rest[at + word.len()..];
        }
        shown + rest
    }
}

/// The identifiers and numbers in an expression.
fn words(expression: &str) -> impl Iterator<Item = &str> {
    expression
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| !word.is_empty())
}
