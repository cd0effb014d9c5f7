//! The part of torch.export's JSON that decides what a program computes.
//!
//! Invariant: fields not named here (metadata, stack traces, module paths,
//! versions) are skipped unread, so they cannot reach a key.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Name of an argument's or dimension's variant to its content: `{"as_int": 3}`.
pub(super) type Tagged = BTreeMap<String, Value>;

#[derive(Deserialize)]
pub(super) struct Program {
    pub(super) graph_module: GraphModule,
    #[serde(default)]
    pub(super) range_constraints: BTreeMap<String, RangeConstraint>,
    pub(super) schema_version: SchemaVersion,
}

#[derive(Deserialize)]
pub(super) struct SchemaVersion {
    pub(super) major: u32,
    pub(super) minor: u32,
}

#[derive(Deserialize)]
pub(super) struct RangeConstraint {
    pub(super) min_val: Option<i64>,
    pub(super) max_val: Option<i64>,
}

#[derive(Deserialize)]
pub(super) struct GraphModule {
    pub(super) graph: Graph,
    pub(super) signature: Signature,
}

#[derive(Deserialize)]
pub(super) struct Graph {
    pub(super) inputs: Vec<Tagged>,
    pub(super) outputs: Vec<Tagged>,
    pub(super) nodes: Vec<Node>,
    pub(super) tensor_values: BTreeMap<String, TensorMeta>,
    #[serde(default)]
    pub(super) sym_int_values: BTreeMap<String, Tagged>,
}

#[derive(Deserialize)]
pub(super) struct Signature {
    pub(super) input_specs: Vec<BTreeMap<String, Value>>,
    pub(super) output_specs: Vec<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
pub(super) struct Node {
    pub(super) target: String,
    pub(super) inputs: Vec<NamedArgument>,
    pub(super) outputs: Vec<Tagged>,
    pub(super) name: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct NamedArgument {
    pub(super) name: String,
    pub(super) arg: Tagged,
}

#[derive(Deserialize)]
pub(super) struct TensorMeta {
    pub(super) dtype: u32,
    pub(super) sizes: Vec<Tagged>,
    pub(super) strides: Vec<Tagged>,
    pub(super) storage_offset: Tagged,
    pub(super) device: Device,
    pub(super) layout: i64,
}

#[derive(Deserialize)]
pub(super) struct Device {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) index: Option<i64>,
}

/// `data/constants/*_constants_config.json`.
#[derive(Deserialize)]
pub(super) struct Constants {
    pub(super) config: BTreeMap<String, Constant>,
}

#[derive(Deserialize)]
pub(super) struct Constant {
    pub(super) path_name: String,
    #[serde(default)]
    pub(super) use_pickle: bool,
    pub(super) tensor_meta: Option<TensorMeta>,
}
