//! Which change of a program shows in which field of its key.

use kiln_proto::{Components, Difference, graph::Argument};

use super::{
    super::{components, read_graph},
    compile, fixture,
};

fn key(name: &str) -> Components {
    let (graph, inputs) = components(&read_graph(&fixture(name)).unwrap());
    Components::new(vec![graph, inputs])
}

/// Fields in which two programs differ, as `component.field`.
fn differing(a: &str, b: &str) -> Vec<String> {
    let found = key(a).differences(&key(b));
    found.iter().map(|Difference { component, field, .. }| format!("{component}.{field}")).collect()
}

#[test]
fn torch_2_11_and_the_newest_agree() {
    for name in
        ["block_f32", "block_bf16", "block_f32_dynamic", "block_bf16_core", "ops", "ops_core"]
    {
        let (old, new) = (format!("{name}.211.pt2"), format!("{name}.new.pt2"));
        assert_eq!(differing(&old, &new), [""; 0], "{name}");
        assert_eq!(key(&old).key(), key(&new).key());
    }
}

#[test]
fn equal_keys_have_equal_output() {
    let pairs = [
        ("block_f32.211.pt2", "block_f32.new.pt2"),
        ("block_f32.211.pt2", "block_f32_renamed.new.pt2"),
        ("ops_core.211.pt2", "ops_core.new.pt2"),
    ];
    for (a, b) in pairs {
        let (a, b) = (compile(a, &[]).unwrap(), compile(b, &[]).unwrap());
        assert_eq!(a.source, b.source);
        assert_eq!(a.plan, b.plan);
        assert_eq!(a.graph, b.graph);
    }
}

#[test]
fn renamed_modules_and_arguments_have_the_same_key() {
    assert_eq!(differing("block_f32.211.pt2", "block_f32_renamed.211.pt2"), [""; 0]);
}

#[test]
fn another_constant_shows_as_a_constant() {
    assert_eq!(differing("block_f32.211.pt2", "block_f32_eps.211.pt2"), ["graph.constants"]);
    let found = key("block_f32.211.pt2").differences(&key("block_f32_eps.211.pt2"));
    assert!(found[0].ours.contains("1e-6") && found[0].theirs.contains("1e-5"), "{found:?}");
}

#[test]
fn another_batch_shows_as_a_shape() {
    assert_eq!(differing("block_f32.211.pt2", "block_f32_batch.211.pt2"), ["inputs.4.shape"]);
}

#[test]
fn another_dtype_shows_as_a_dtype() {
    for (a, b) in [("block_f32", "block_bf16"), ("block_f16", "block_bf16")] {
        let found = differing(&format!("{a}.211.pt2"), &format!("{b}.new.pt2"));
        let expected: Vec<String> = (0..5).map(|i| format!("inputs.{i}.dtype")).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn a_free_dimension_shows_as_a_shape_with_its_range() {
    let (fixed, free) = (key("block_f32.211.pt2"), key("block_f32_dynamic.211.pt2"));
    let found = fixed.differences(&free);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].field, "4.shape");
    assert!(found[0].theirs.contains("s0{2..64}"), "{found:?}");
}

#[test]
fn another_program_shows_as_structure() {
    let found = differing("block_f32.211.pt2", "ops.211.pt2");
    assert!(found.contains(&"graph.structure".to_owned()), "{found:?}");
}

/// A switch that is on where nothing is said is told apart where it is off.
#[test]
fn what_is_combined_without_the_element_itself_is_another_program() {
    let graph = read_graph(&fixture("ops/scatter_f32.pt2")).unwrap();
    let mut changed = graph.clone();
    let switches = changed.nodes.iter_mut().flat_map(|node| &mut node.args);
    let mut off = switches
        .filter(|(name, switch)| name == "include_self" && *switch == Argument::Bool(false));
    off.next().unwrap().1 = Argument::None;
    assert_ne!(components(&graph).0, components(&changed).0);
}

/// What a program leaves in its inputs is part of what it computes, as is in which.
#[test]
fn what_is_left_in_inputs_shows_in_the_key() {
    let graph = read_graph(&fixture("state/counting.pt2")).unwrap();
    let mut returned = graph.clone();
    returned.updates.clear();
    let mut fewer = graph.clone();
    fewer.updates.pop();
    fewer.outputs.pop();
    let mut elsewhere = graph.clone();
    *elsewhere.updates.last_mut().unwrap() = 2;
    let of = |graph| format!("{:?}", components(graph).0);
    let texts = [&graph, &returned, &fewer, &elsewhere].map(of);
    let distinct: std::collections::HashSet<_> = texts.iter().collect();
    assert_eq!(distinct.len(), texts.len());
}
