//! What any compiler of exported graphs needs for its key, whether or not the
//! native one can compile the graph.
//!
//! Invariant: two archives share an identity only if they compute the same. The
//! canonical form is taken where every operation and argument of the graph is
//! one that it knows; else all of the program's JSON counts but its metadata, so
//! that a doubt costs a compile and never a wrong answer. `form` says which.

use kiln_proto::{
    Component, Digest, Failure, FailureKind, Hasher, KeyField, component,
    graph::{Argument, Graph},
};
use serde_json::Value as Json;

use super::{
    archive::{self, Archive, invalid},
    canonical, parse,
};

/// Bytes of the program's JSON, and of all that is baked in.
const LARGEST_MODEL: u64 = 256 << 20;
const LARGEST_CONSTANTS: u64 = 1 << 30;

/// The parts of a key that follow from an archive alone.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The component of that name.
    pub graph: Component,
    /// The component of that name.
    pub inputs: Component,
    /// The archive's own name, to show.
    pub name: String,
}

/// The identity of the program in `archive`.
pub fn identify(archive: &[u8]) -> Result<Identity, Failure> {
    let name = archive::name(archive);
    match parse::parse(archive) {
        Ok(graph) => match identify_graph(&graph, name.clone()) {
            Some(identity) => Ok(identity),
            None => as_exported(archive, name),
        },
        Err(failure) if failure.kind == FailureKind::UnsupportedOp => as_exported(archive, name),
        Err(failure) => Err(failure),
    }
}

/// The identity of a graph alone: the same as that of an archive with it. `None`:
/// the canonical form does not have all of it.
pub fn identify_graph(graph: &Graph, name: String) -> Option<Identity> {
    if !is_exact(graph) {
        return None;
    }
    let Component { name: of, mut fields, .. } = canonical::graph_component(graph);
    fields.insert(0, KeyField::new("form", "canonical"));
    let inputs = canonical::inputs_component(graph);
    Some(Identity { graph: Component::new(of, fields), inputs, name })
}

/// Whether the canonical form has all of the graph: it names arguments of forms
/// that it does not know by their form alone.
fn is_exact(graph: &Graph) -> bool {
    let mut arguments = graph.nodes.iter().flat_map(|node| &node.args);
    !arguments.any(|(_, argument)| matches!(argument, Argument::Other(_)))
}

fn as_exported(bytes: &[u8], name: String) -> Result<Identity, Failure> {
    let mut archive = Archive::open(bytes)?;
    let model = archive.model()?;
    let path = format!("models/{model}.json");
    let text = archive.read(&path, LARGEST_MODEL)?;
    let text = text.ok_or_else(|| invalid("the archive's model is missing"))?;
    let mut json: Json = serde_json::from_slice(&text)
        .map_err(|e| invalid(format!("{path} is not what torch.export writes: {e}")))?;
    forget_origins(&mut json);
    let mut program = Hasher::new();
    hash(&json, &mut program);
    let mut constants = Hasher::new();
    let mut left = LARGEST_CONSTANTS;
    for path in archive.paths_below("data/constants/") {
        let Some(data) = archive.read(&path, left)? else { continue };
        left -= data.len() as u64;
        write(&mut constants, path.as_bytes());
        write(&mut constants, &data);
    }
    let digest = |hasher: Hasher| format!("blake3:{}", Digest::from(hasher.finalize()));
    let fields = vec![
        KeyField::new("form", "as exported"),
        KeyField::new("program", digest(program)),
        KeyField::new("constants", digest(constants)),
    ];
    Ok(Identity {
        graph: Component::new(component::GRAPH, fields),
        inputs: Component::new(component::INPUTS, Vec::new()),
        name,
    })
}

/// Drops where a program was traced and what was checked then: nothing of it is compiled.
fn forget_origins(program: &mut Json) {
    if let Some(program) = program.as_object_mut() {
        program.remove("guards_code");
    }
    let nodes = program.pointer_mut("/graph_module/graph/nodes").and_then(Json::as_array_mut);
    for node in nodes.into_iter().flatten().filter_map(Json::as_object_mut) {
        node.remove("metadata");
    }
}

/// Hashes JSON by content: the order of keys does not count.
fn hash(json: &Json, hasher: &mut Hasher) {
    match json {
        Json::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            write(hasher, format!("{{{}", fields.len()).as_bytes());
            for (name, value) in fields {
                write(hasher, name.as_bytes());
                hash(value, hasher);
            }
        }
        Json::Array(items) => {
            write(hasher, format!("[{}", items.len()).as_bytes());
            items.iter().for_each(|item| hash(item, hasher));
        }
        Json::String(text) => {
            write(hasher, b"\"");
            write(hasher, text.as_bytes());
        }
        other => write(hasher, other.to_string().as_bytes()),
    }
}

fn write(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_be_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Identity {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
        identify(&std::fs::read(format!("{folder}/{name}")).unwrap()).unwrap()
    }

    fn form(identity: &Identity) -> &str {
        &identity.graph.fields[0].value
    }

    #[test]
    fn a_known_graph_is_identified_by_its_structure() {
        let ours = fixture("block_f32.new.pt2");
        assert_eq!(form(&ours), "canonical");
        for same in ["block_f32.211.pt2", "block_f32_renamed.new.pt2"] {
            assert_eq!(fixture(same).graph, ours.graph, "{same}");
        }
        assert_ne!(fixture("block_f32_eps.new.pt2").graph, ours.graph);
        let dynamic = fixture("block_f32_dynamic.new.pt2");
        assert_eq!(form(&dynamic), "canonical", "the native compiler cannot lower it");
        assert_ne!(dynamic.inputs, ours.inputs);
    }

    #[test]
    fn an_unknown_graph_is_identified_by_all_of_it() {
        let ours = fixture("unknown.new.pt2");
        assert_eq!(form(&ours), "as exported");
        assert_eq!(ours.graph, fixture("unknown.new.pt2").graph);
        assert_ne!(ours.graph, fixture("unknown.211.pt2").graph);
    }

    #[test]
    fn a_nodes_metadata_and_the_order_of_keys_do_not_count() {
        let digest = |text: &str| {
            let mut json = serde_json::from_str(text).unwrap();
            forget_origins(&mut json);
            let mut hasher = Hasher::new();
            hash(&json, &mut hasher);
            hasher.finalize()
        };
        let program =
            |node: &str| format!(r#"{{"graph_module": {{"graph": {{"nodes": [{node}]}}}}}}"#);
        let ours = digest(&program(r#"{"target": "x", "metadata": {"id": "1"}}"#));
        assert_eq!(ours, digest(&program(r#"{"metadata": {}, "target": "x"}"#)));
        for other in [r#"{"target": "y"}"#, r#"{"target": ["x"]}"#, r#"{"target": "x", "a": null}"#]
        {
            assert_ne!(ours, digest(&program(other)), "{other}");
        }
        // A value may be called anything.
        let named = |of: &str| format!(r#"{{"tensor_values": {{"metadata": {of}}}}}"#);
        assert_ne!(digest(&named("1")), digest(&named("2")));
    }
}
