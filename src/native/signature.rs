//! What an exported program calls its inputs and outputs.
//!
//! An artifact serves every program of its key, so it has no names: they come
//! from the archive that the client holds, as `signature.json` beside the
//! artifact's files.
//!
//! Invariant: inputs are in the order of the plan's, constants among them.

use std::collections::BTreeMap;

use kiln_proto::Failure;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    archive::{Archive, invalid},
    version,
};

/// The file beside an artifact's own files.
pub const SIGNATURE_FILE: &str = "signature.json";
/// Of the format below.
pub const VERSION: u32 = 1;
/// Bytes of the graph's JSON.
const LARGEST_MODEL: u64 = 256 << 20;

/// Names of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Of the format.
    pub version: u32,
    /// In the order of the plan's.
    pub inputs: Vec<NamedInput>,
    /// In the order of the plan's.
    pub outputs: Vec<String>,
}

impl Signature {
    /// Reads the file; an error says why not.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        version::check(bytes, VERSION)?;
        serde_json::from_slice(bytes).map_err(|e| e.to_string())
    }
}

/// An input's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedInput {
    /// In the graph: `x`, `p_fc_weight`.
    pub name: String,
    /// `parameter`, `buffer`, `user`, `constant`.
    pub kind: String,
    /// In the module, where it is a part of it: `fc.weight`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// The part of the exporter's JSON that is read here.
#[derive(Deserialize)]
struct Program {
    graph_module: GraphModule,
}

#[derive(Deserialize)]
struct GraphModule {
    signature: Specs,
}

#[derive(Deserialize)]
struct Specs {
    input_specs: Vec<BTreeMap<String, Value>>,
    output_specs: Vec<BTreeMap<String, Value>>,
}

/// Reads the names of the program in a torch.export archive.
pub fn signature(archive: &[u8]) -> Result<Signature, Failure> {
    let mut archive = Archive::open(archive)?;
    let path = format!("models/{}.json", archive.model()?);
    let bytes = archive.read(&path, LARGEST_MODEL)?;
    let bytes = bytes.ok_or_else(|| invalid("the archive's model is missing"))?;
    let program: Program =
        serde_json::from_slice(&bytes).map_err(|e| invalid(format!("{path}: {e}")))?;
    let Specs { input_specs, output_specs } = program.graph_module.signature;
    // Numbers, and nothing, are no tensors: `parse` leaves them out too.
    let input_specs = input_specs.iter().filter(|spec| !spec.contains_key("constant_input"));
    let output_specs = output_specs
        .iter()
        .filter(|spec| spec.values().all(|body| body["arg"].get("as_none").is_none()))
        // What is left in an input is no output of the plan's.
        .filter(|spec| !spec.keys().any(|tag| tag.ends_with("_mutation")));
    let inputs = input_specs.map(|spec| {
        let named = spec.iter().next().and_then(|(tag, body)| input(tag, body));
        named.ok_or_else(|| invalid(format!("an input without a name: {spec:?}")))
    });
    let outputs = output_specs.map(|spec| {
        let body = spec.values().next();
        let name = body.and_then(|body| name(&body["arg"]));
        name.ok_or_else(|| invalid(format!("an output without a name: {spec:?}")))
    });
    let (inputs, outputs) = (inputs.collect::<Result<_, _>>()?, outputs.collect::<Result<_, _>>()?);
    Ok(Signature { version: VERSION, inputs, outputs })
}

fn input(tag: &str, body: &Value) -> Option<NamedInput> {
    let (kind, target) = match tag {
        "parameter" => ("parameter", body["parameter_name"].as_str()),
        "buffer" => ("buffer", body["buffer_name"].as_str()),
        "tensor_constant" => ("constant", body["tensor_constant_name"].as_str()),
        _ => ("user", None),
    };
    let name = name(&body["arg"])?;
    Some(NamedInput { name, kind: kind.to_owned(), target: target.map(str::to_owned) })
}

/// `{"name": "x"}`, or tagged by type: `{"as_tensor": {"name": "x"}}`.
fn name(arg: &Value) -> Option<String> {
    let plain = arg["name"].as_str();
    let tagged = || arg.as_object()?.values().find_map(|inner| inner["name"].as_str());
    plain.or_else(tagged).map(str::to_owned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Signature {
        let path = format!("{}/../../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        signature(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn a_program_names_its_inputs_in_the_order_of_the_plan() {
        for name in ["block_f32.211.pt2", "block_f32.new.pt2"] {
            let signature = fixture(name);
            let targets = ["norm.weight", "gate_proj.weight", "up_proj.weight", "down_proj.weight"];
            let parameter = |target: &&str| NamedInput {
                name: format!("p_{}", target.replace('.', "_")),
                kind: "parameter".to_owned(),
                target: Some((*target).to_owned()),
            };
            let mut inputs: Vec<NamedInput> = targets.iter().map(parameter).collect();
            let (name, kind) = ("x".to_owned(), "user".to_owned());
            inputs.push(NamedInput { name, kind, target: None });
            let outputs = vec!["add_1".to_owned()];
            assert_eq!(signature, Signature { version: VERSION, inputs, outputs });
        }
    }

    #[test]
    fn what_is_no_archive_has_no_names() {
        assert!(signature(b"PK").is_err());
    }
}
