//! A torch.export archive to a [`Graph`].
//!
//! Invariant: the graph that comes out is well formed (ids in range, defined
//! before used) or there is a failure that says what is wrong.

mod argument;
mod constants;
mod expression;

use std::collections::{BTreeMap, HashMap};

use kiln_proto::{
    Failure, FailureKind,
    graph::{Argument, Graph, Input, InputKind, Node, Symbol, Value, ValueId},
};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::{
    archive::{Archive, invalid},
    decompose,
    functional::{functional, mutates},
    live::live_order,
    schema,
};
use argument::{Names, formula, one, tensor_type};

/// The exporter's major version that is read here.
const SCHEMA_MAJOR: u32 = 8;
/// Bytes of the graph's JSON.
const LARGEST_MODEL: u64 = 256 << 20;
/// How outputs say in which input something is left: its kind, what has its name, and the tag.
const LEFT: [(&str, &str, &str); 3] = [
    ("parameter", "parameter_name", "parameter_mutation"),
    ("buffer", "buffer_name", "buffer_mutation"),
    ("input", "user_input_name", "user_input_mutation"),
];

/// Reads the graph of the program in `bytes`, if all of its operations have a rule.
pub(super) fn parse(bytes: &[u8]) -> Result<Graph, Failure> {
    let graph = parse_any(bytes)?;
    unknown_ops(&graph)?;
    Ok(graph)
}

/// Reads the graph of the program in `bytes`, whatever its operations.
pub(super) fn parse_any(bytes: &[u8]) -> Result<Graph, Failure> {
    let mut archive = Archive::open(bytes)?;
    match archive.read("byteorder", 16)? {
        Some(order) if order != b"little" => return Err(invalid("the archive is big-endian")),
        _ => {}
    }
    let model = archive.model()?;
    let program: schema::Program =
        json(&mut archive, &format!("models/{model}.json"), LARGEST_MODEL)?
            .ok_or_else(|| invalid("the archive's model is missing"))?;
    let schema::SchemaVersion { major, minor } = program.schema_version;
    if major != SCHEMA_MAJOR {
        return Err(invalid(format!(
            "export schema {major}.{minor}, this version reads {SCHEMA_MAJOR}.x (torch 2.8 to 2.15)"
        )));
    }
    let mut reader = Reader {
        archive,
        model,
        graph: Graph::default(),
        names: Names::default(),
        positions: HashMap::new(),
        left: Vec::new(),
    };
    reader.read(program)?;
    functional(reader.graph, reader.left)
}

struct Reader<'a> {
    archive: Archive<'a>,
    model: String,
    graph: Graph,
    names: Names,
    /// Positions of the inputs by kind and name: in the module, or in the graph.
    positions: HashMap<(&'static str, String), usize>,
    /// What the program leaves in inputs, by their positions.
    left: Vec<(usize, ValueId)>,
}

impl Reader<'_> {
    fn read(&mut self, program: schema::Program) -> Result<(), Failure> {
        let schema::GraphModule { graph, signature } = program.graph_module;
        let symbols = program.range_constraints.into_iter();
        self.graph.symbols = symbols
            .map(|(name, range)| Symbol { name, min: range.min_val, max: range.max_val })
            .collect();
        self.inputs(&signature, &graph.tensor_values)?;
        self.nodes(graph.nodes, &graph.tensor_values, &graph.sym_int_values)?;
        for spec in &signature.output_specs {
            self.output(spec)?;
        }
        Ok(())
    }

    fn inputs(
        &mut self,
        signature: &schema::Signature,
        values: &BTreeMap<String, schema::TensorMeta>,
    ) -> Result<(), Failure> {
        let mut constants = None;
        for spec in &signature.input_specs {
            let (tag, body) = one(spec, "an input")?;
            if tag == "constant_input" {
                // A number or nothing, already in the arguments of those who read it.
                continue;
            }
            let arg = &body["arg"];
            let name = arg["name"].as_str().or_else(|| arg["as_tensor"]["name"].as_str());
            let Some(name) = name.filter(|_| tag != "custom_obj" && tag != "token") else {
                return Err(unsupported(format!("an input of kind {tag:?} is no tensor: {body}")));
            };
            let value = self.define(name, values)?;
            let kind = match tag {
                "parameter" => InputKind::Parameter,
                "buffer" => InputKind::Buffer,
                "user_input" => InputKind::User,
                "tensor_constant" => {
                    if constants.is_none() {
                        constants = Some(self.constants()?);
                    }
                    let constant = body["tensor_constant_name"].as_str().unwrap_or_default();
                    let known = constants.as_mut().and_then(|c| c.remove(constant));
                    let constant = known.ok_or_else(|| {
                        invalid(format!("the data of constant {constant:?} is not in the archive"))
                    })?;
                    self.check_constant(value, &constant)?;
                    InputKind::Constant(constant)
                }
                other => return Err(unsupported(format!("input {name:?} is of kind {other:?}"))),
            };
            let (of, name) = match tag {
                "parameter" => ("parameter", body["parameter_name"].as_str()),
                "buffer" => ("buffer", body["buffer_name"].as_str()),
                _ => ("input", Some(name)),
            };
            let name = name.unwrap_or_default().to_owned();
            self.positions.insert((of, name), self.graph.inputs.len());
            self.graph.inputs.push(Input { value, kind });
        }
        Ok(())
    }

    fn nodes(
        &mut self,
        nodes: Vec<schema::Node>,
        values: &BTreeMap<String, schema::TensorMeta>,
        sizes: &BTreeMap<String, schema::Tagged>,
    ) -> Result<(), Failure> {
        for (name, size) in sizes {
            let (tag, body) = one(size, "a size")?;
            let formula = match tag {
                "as_int" => body.as_i64().map(|known| known.to_string()),
                _ => formula(body),
            };
            self.names.sizes.extend(formula.map(|formula| (name.clone(), formula)));
        }
        for node in nodes {
            match op_name(&node.target) {
                op if computes_no_tensor(op) => {}
                op if op.starts_with("higher_order.wrap_with_") => self.inline(node)?,
                _ => self.node(node, values)?,
            }
        }
        Ok(())
    }

    fn node(
        &mut self,
        node: schema::Node,
        values: &BTreeMap<String, schema::TensorMeta>,
    ) -> Result<(), Failure> {
        let op = op_name(&node.target).to_owned();
        let name = node.name.unwrap_or_else(|| op.clone());
        let known = decompose::is_known(&op);
        let mut args = Vec::with_capacity(node.inputs.len());
        for input in node.inputs {
            let argument = match self.names.argument(&name, &input.name, &input.arg) {
                Err(_) if !known => Argument::Other("not read".to_owned()),
                argument => argument?,
            };
            args.push((input.name, argument));
        }
        let mut outputs = Vec::with_capacity(node.outputs.len());
        for output in &node.outputs {
            let (tag, body) = one(output, "an output")?;
            let tensors = match tag {
                "as_tensor" => std::slice::from_ref(body),
                "as_tensors" => body.as_array().map(Vec::as_slice).unwrap_or_default(),
                // Numbers are in the exporter's table of sizes; others nobody here reads.
                _ => &[],
            };
            for tensor in tensors {
                let tensor = tensor["name"].as_str().unwrap_or_default();
                outputs.push(self.define(tensor, values)?);
            }
        }
        self.graph.nodes.push(Node { name, op, args, outputs });
        Ok(())
    }

    /// A part of the program that ran under other settings of autograd or autocast.
    fn inline(&mut self, node: schema::Node) -> Result<(), Failure> {
        let name = node.name.unwrap_or_default();
        let at = node.inputs.iter().position(|input| input.arg.contains_key("as_graph"));
        let at = at.ok_or_else(|| invalid(format!("node {name:?} has no graph to run")))?;
        let is_autocast = node.target.ends_with("wrap_with_autocast");
        let off =
            |input: &schema::NamedArgument| input.arg.get("as_bool") == Some(&Json::Bool(false));
        if is_autocast && !node.inputs[..at].iter().any(off) {
            return Err(unsupported(format!("node {name:?} runs under autocast")));
        }
        let graph: schema::Graph =
            serde_json::from_value(node.inputs[at].arg["as_graph"]["graph"].clone())
                .map_err(|e| invalid(format!("the graph of node {name:?} is none: {e}")))?;
        let mut inner = Names::default();
        for (input, given) in graph.inputs.iter().zip(&node.inputs[at + 1..]) {
            let inside = input.get("as_tensor").and_then(|tensor| tensor["name"].as_str());
            let outside = self.names.argument(&name, &given.name, &given.arg)?;
            if let (Some(inside), Argument::Tensor(value)) = (inside, outside) {
                inner.tensors.insert(inside.to_owned(), value);
            }
        }
        let outer = std::mem::replace(&mut self.names, inner);
        let ran = self.nodes(graph.nodes, &graph.tensor_values, &graph.sym_int_values);
        let inner = std::mem::replace(&mut self.names, outer);
        ran?;
        let tensors = |outputs: &[schema::Tagged]| -> Vec<Json> {
            let tensors = outputs.iter().flat_map(|output| match output.iter().next() {
                Some((tag, body)) if tag == "as_tensors" => {
                    body.as_array().cloned().unwrap_or_default()
                }
                Some((_, body)) => vec![body.clone()],
                None => Vec::new(),
            });
            tensors.collect()
        };
        for (inside, outside) in tensors(&graph.outputs).iter().zip(tensors(&node.outputs)) {
            let value = inner.tensor(&name, inside)?;
            let outside = outside["name"].as_str().unwrap_or_default().to_owned();
            self.names.tensors.insert(outside, value);
        }
        Ok(())
    }

    fn define(
        &mut self,
        name: &str,
        values: &BTreeMap<String, schema::TensorMeta>,
    ) -> Result<ValueId, Failure> {
        let meta = values.get(name).ok_or_else(|| {
            unsupported(format!("{name:?} is no tensor: only tensors are handled"))
        })?;
        let id = ValueId(self.graph.values.len());
        if self.names.tensors.insert(name.to_owned(), id).is_some() {
            return Err(invalid(format!("{name:?} is defined twice")));
        }
        self.graph.values.push(Value { name: name.to_owned(), ty: tensor_type(name, meta)? });
        Ok(id)
    }

    fn output(&mut self, spec: &schema::Tagged) -> Result<(), Failure> {
        let (tag, body) = one(spec, "an output")?;
        if let Some((tag, named, _)) = LEFT.iter().find(|(_, _, spec)| *spec == tag) {
            let name = body[*named].as_str().unwrap_or_default();
            let input = self.positions.get(&(*tag, name.to_owned())).copied();
            let input =
                input.ok_or_else(|| invalid(format!("{name:?} is written to, and is no {tag}")))?;
            let value = self.names.tensor("output", &body["arg"])?;
            self.left.push((input, value));
            return Ok(());
        }
        if tag != "user_output" {
            return Err(unsupported(format!("the program has a {tag}: that is no inference")));
        }
        if body["arg"].get("as_none").is_some() {
            return Ok(());
        }
        let Some(tensor) = body["arg"].get("as_tensor") else {
            return Err(unsupported(format!("an output is no tensor: {}", body["arg"])));
        };
        let value = self.names.tensor("output", tensor)?;
        self.graph.outputs.push(value);
        Ok(())
    }
}

/// Refuses operations without a rule that the outputs need, or that may write to what the
/// outputs need, all at once.
fn unknown_ops(graph: &Graph) -> Result<(), Failure> {
    let unknown = |index: &usize| !decompose::is_known(&graph.nodes[*index].op);
    let writes = |index: &usize| may_write(&graph.nodes[*index].op);
    let live = live_order(graph).into_iter().filter(unknown);
    let mut unknown: Vec<usize> = live.chain((0..graph.nodes.len()).filter(writes)).collect();
    unknown.sort_unstable();
    unknown.dedup();
    if unknown.is_empty() {
        return Ok(());
    }
    let named = unknown.iter().map(|index| {
        let Node { name, op, .. } = &graph.nodes[*index];
        format!("{op} (node {name:?})")
    });
    let named = named.collect::<Vec<_>>().join(", ");
    Err(unsupported(format!("operations that `native` does not know: {named}")))
}

/// Whether an operation may change what it is given, whatever needs its results: one in
/// place that has no other form, and of other libraries any that is not known.
fn may_write(op: &str) -> bool {
    mutates(op) || !decompose::is_known(op) && !op.starts_with("aten.") && !op.starts_with("prims.")
}

/// Arithmetic of sizes, which the exporter has in a table of its own, and
/// checks of sizes, which hold for all within their ranges.
fn computes_no_tensor(op: &str) -> bool {
    op.starts_with("_operator.")
        || op.starts_with("math.")
        || op.starts_with("torch.sym_")
        || op.starts_with("aten.sym_")
        || (op.starts_with("aten._assert_") && op != "aten._assert_tensor_metadata.default")
}

fn op_name(target: &str) -> &str {
    target.strip_prefix("torch.ops.").unwrap_or(target)
}

fn json<T: DeserializeOwned>(
    archive: &mut Archive<'_>,
    path: &str,
    limit: u64,
) -> Result<Option<T>, Failure> {
    let Some(bytes) = archive.read(path, limit)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| invalid(format!("{path} is not what torch.export writes: {e}")))
}

fn unsupported(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::UnsupportedOp, message)
}
