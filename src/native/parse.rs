//! A torch.export archive to a [`Graph`].
//!
//! Invariant: the graph that comes out is well formed (ids in range, defined
//! before used) or there is a failure that says what is wrong.

use std::collections::{BTreeMap, HashMap};

use kiln_proto::{
    Digest, Failure, FailureKind,
    graph::{
        Argument, Constant, DType, Dim, Graph, Input, InputKind, Node, Symbol, TensorType, Value,
        ValueId,
    },
};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::{
    archive::{Archive, invalid},
    ops, schema,
};

/// The exporter's major version that is read here.
const SCHEMA_MAJOR: u32 = 8;
/// Bytes of the graph's JSON.
const LARGEST_MODEL: u64 = 256 << 20;
/// Bytes of all baked constants together.
const LARGEST_CONSTANTS: u64 = 64 << 20;
/// Layout number of dense tensors.
const STRIDED: i64 = 7;
/// Argument names that hold sizes, which may follow from the inputs' shapes.
const SIZE_ARGUMENTS: [&str; 3] = ["size", "shape", "sizes"];

/// Reads the graph of the program in `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Result<Graph, Failure> {
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
    let mut reader = Reader { archive, model, graph: Graph::default(), names: HashMap::new() };
    reader.read(program)?;
    Ok(reader.graph)
}

struct Reader<'a> {
    archive: Archive<'a>,
    model: String,
    graph: Graph,
    names: HashMap<String, ValueId>,
}

impl Reader<'_> {
    fn read(&mut self, program: schema::Program) -> Result<(), Failure> {
        let schema::GraphModule { graph, signature } = program.graph_module;
        let symbols = program.range_constraints.into_iter();
        self.graph.symbols = symbols
            .map(|(name, range)| Symbol { name, min: range.min_val, max: range.max_val })
            .collect();
        unknown_ops(&graph.nodes)?;
        self.inputs(&signature, &graph.tensor_values)?;
        for node in graph.nodes {
            self.node(node, &graph.tensor_values)?;
        }
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
            self.graph.inputs.push(Input { value, kind });
        }
        Ok(())
    }

    fn constants(&mut self) -> Result<BTreeMap<String, Constant>, Failure> {
        let path = format!("data/constants/{}_constants_config.json", self.model);
        let listed: Option<schema::Constants> = json(&mut self.archive, &path, LARGEST_CONSTANTS)?;
        let Some(listed) = listed else { return Ok(BTreeMap::new()) };
        let mut left = LARGEST_CONSTANTS;
        let mut found = BTreeMap::new();
        for (name, entry) in listed.config {
            if entry.use_pickle || entry.tensor_meta.is_none() {
                // Left out: an error only where the graph uses it. Nothing is unpickled.
                continue;
            }
            let path = format!("data/constants/{}", entry.path_name);
            let Some(data) = self.archive.read(&path, left)? else { continue };
            left -= data.len() as u64;
            found.insert(name, Constant { digest: Digest::of(&data), data });
        }
        Ok(found)
    }

    fn check_constant(&self, value: ValueId, constant: &Constant) -> Result<(), Failure> {
        let Value { name, ty } = self.graph.value(value);
        let sizes: Option<Vec<u64>> = ty.shape.iter().map(Dim::known).collect();
        let strides: Option<Vec<u64>> = ty.strides.iter().map(Dim::known).collect();
        let (Some(sizes), Some(strides)) = (sizes, strides) else {
            return Err(invalid(format!("constant {name:?} has no fixed shape")));
        };
        let mut expected = 1u64;
        for (size, stride) in sizes.iter().zip(&strides).rev() {
            if *size != 1 && *stride != expected {
                return Err(unsupported(format!("constant {name:?} is not in row-major order")));
            }
            expected = expected.saturating_mul(*size);
        }
        let bytes = expected.saturating_mul(ty.dtype.bytes());
        if bytes != constant.data.len() as u64 {
            let got = constant.data.len();
            return Err(invalid(format!("constant {name:?} has {got} bytes, not {bytes}")));
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
        let mut args = Vec::with_capacity(node.inputs.len());
        for input in node.inputs {
            let argument = self.argument(&name, &input.name, &input.arg)?;
            args.push((input.name, argument));
        }
        let mut outputs = Vec::with_capacity(node.outputs.len());
        for output in &node.outputs {
            let (tag, body) = one(output, "an output")?;
            let value = body["name"].as_str().filter(|_| tag == "as_tensor");
            let value = value.ok_or_else(|| {
                unsupported(format!("node {name:?} ({op}) gives a {tag}, not a tensor"))
            })?;
            outputs.push(self.define(value, values)?);
        }
        self.graph.nodes.push(Node { name, op, args, outputs });
        Ok(())
    }

    fn argument(
        &self,
        node: &str,
        name: &str,
        tagged: &schema::Tagged,
    ) -> Result<Argument, Failure> {
        let (tag, body) = one(tagged, "an argument")?;
        let wrong = || invalid(format!("node {node:?}: argument {name:?} is no {tag}: {body}"));
        let int = |json: &Json| json.as_i64().ok_or_else(wrong);
        Ok(match tag {
            "as_none" => Argument::None,
            "as_tensor" => Argument::Tensor(self.value(node, body)?),
            "as_optional_tensor" => match body.get("as_tensor") {
                Some(tensor) => Argument::Tensor(self.value(node, tensor)?),
                None => Argument::None,
            },
            "as_bool" => Argument::Bool(body.as_bool().ok_or_else(wrong)?),
            "as_int" => Argument::Int(int(body)?),
            "as_float" => Argument::Float(float(body).ok_or_else(wrong)?),
            "as_ints" if SIZE_ARGUMENTS.contains(&name) => {
                let sizes =
                    body.as_array().ok_or_else(wrong)?.iter().map(|size| match int(size)? {
                        -1 => Ok(None),
                        size => Ok(Some(Dim::Static(u64::try_from(size).map_err(|_| wrong())?))),
                    });
                Argument::Sizes(sizes.collect::<Result<_, _>>()?)
            }
            "as_ints" => {
                let ints = body.as_array().ok_or_else(wrong)?.iter().map(int);
                Argument::Ints(ints.collect::<Result<_, _>>()?)
            }
            "as_sym_ints" => {
                let sizes = body.as_array().ok_or_else(wrong)?.iter().map(|size| {
                    if let Some(name) = size["as_name"].as_str() {
                        return Ok(Some(Dim::Symbolic(name.to_owned())));
                    }
                    match int(&size["as_int"])? {
                        -1 => Ok(None),
                        size => Ok(Some(Dim::Static(u64::try_from(size).map_err(|_| wrong())?))),
                    }
                });
                Argument::Sizes(sizes.collect::<Result<_, _>>()?)
            }
            "as_scalar_type" => {
                let code = body.as_u64().ok_or_else(wrong)?;
                Argument::DType(u32::try_from(code).ok().and_then(dtype).ok_or_else(wrong)?)
            }
            "as_device" => {
                let device: schema::Device =
                    serde_json::from_value(body.clone()).map_err(|_| wrong())?;
                Argument::Device(device_name(&device))
            }
            "as_layout" | "as_memory_format" => Argument::Layout(int(body)?),
            other => Argument::Other(other.to_owned()),
        })
    }

    fn value(&self, node: &str, tensor: &Json) -> Result<ValueId, Failure> {
        let name = tensor["name"].as_str().unwrap_or_default();
        self.names
            .get(name)
            .copied()
            .ok_or_else(|| invalid(format!("node {node:?} reads {name:?} before it is defined")))
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
        if self.names.insert(name.to_owned(), id).is_some() {
            return Err(invalid(format!("{name:?} is defined twice")));
        }
        self.graph.values.push(Value { name: name.to_owned(), ty: tensor_type(name, meta)? });
        Ok(id)
    }

    fn output(&mut self, spec: &schema::Tagged) -> Result<(), Failure> {
        let (tag, body) = one(spec, "an output")?;
        if tag != "user_output" {
            return Err(unsupported(format!("the program has a {tag}: it changes its own state")));
        }
        let Some(tensor) = body["arg"].get("as_tensor") else {
            return Err(unsupported(format!("an output is no tensor: {}", body["arg"])));
        };
        let value = self.value("output", tensor)?;
        self.graph.outputs.push(value);
        Ok(())
    }
}

/// Refuses operations without an entry in the table, all at once.
fn unknown_ops(nodes: &[schema::Node]) -> Result<(), Failure> {
    let unknown: Vec<String> = nodes
        .iter()
        .filter(|node| ops::lookup(op_name(&node.target)).is_none())
        .map(|node| {
            let name = node.name.as_deref().unwrap_or("?");
            format!("{} (node {name:?})", op_name(&node.target))
        })
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(unsupported(format!("operations that `native` does not know: {}", unknown.join(", "))))
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

fn one<'a>(tagged: &'a schema::Tagged, what: &str) -> Result<(&'a str, &'a Json), Failure> {
    match tagged.iter().next() {
        Some((tag, body)) if tagged.len() == 1 => Ok((tag, body)),
        _ => Err(invalid(format!("{what} has {} variants, not one", tagged.len()))),
    }
}

fn tensor_type(name: &str, meta: &schema::TensorMeta) -> Result<TensorType, Failure> {
    if meta.layout != STRIDED {
        return Err(unsupported(format!("{name:?} is not dense (layout {})", meta.layout)));
    }
    if meta.sizes.len() != meta.strides.len() {
        return Err(invalid(format!("{name:?} has as many sizes as strides, or none")));
    }
    let dims = |dims: &[schema::Tagged]| -> Result<Vec<Dim>, Failure> {
        dims.iter().map(|d| dim(name, d)).collect()
    };
    Ok(TensorType {
        dtype: dtype(meta.dtype)
            .ok_or_else(|| invalid(format!("{name:?}: element type {} is unknown", meta.dtype)))?,
        shape: dims(&meta.sizes)?,
        strides: dims(&meta.strides)?,
        offset: dim(name, &meta.storage_offset)?,
        device: device_name(&meta.device),
    })
}

fn dim(name: &str, tagged: &schema::Tagged) -> Result<Dim, Failure> {
    let (tag, body) = one(tagged, "a size")?;
    match tag {
        "as_int" => body.as_u64().map(Dim::Static),
        "as_expr" => body["expr_str"].as_str().map(|e| Dim::Symbolic(e.to_owned())),
        _ => None,
    }
    .ok_or_else(|| invalid(format!("{name:?} has a size that cannot be read: {body}")))
}

fn device_name(device: &schema::Device) -> String {
    match device.index {
        Some(index) => format!("{}:{index}", device.kind),
        None => device.kind.clone(),
    }
}

/// JSON has no infinity: the exporter writes it as text.
fn float(json: &Json) -> Option<f64> {
    match json.as_str() {
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some("NaN") => Some(f64::NAN),
        Some(_) => None,
        None => json.as_f64(),
    }
}

fn dtype(code: u32) -> Option<DType> {
    Some(match code {
        1 => DType::U8,
        2 => DType::I8,
        3 => DType::I16,
        4 => DType::I32,
        5 => DType::I64,
        6 => DType::F16,
        7 => DType::F32,
        8 => DType::F64,
        9 => DType::C32,
        10 => DType::C64,
        11 => DType::C128,
        12 => DType::Bool,
        13 => DType::BF16,
        28 => DType::U16,
        29 => DType::F8E4M3,
        30 => DType::F8E5M2,
        31 => DType::F8E4M3Fnuz,
        32 => DType::F8E5M2Fnuz,
        _ => return None,
    })
}

fn unsupported(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::UnsupportedOp, message)
}
