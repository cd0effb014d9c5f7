//! Batch norms in training, which write to their running statistics though their schemas, but
//! for one, do not say so.
//!
//! ```text
//! y = batch_norm(x, w, b, mean, var, True, ..)
//!     ->  y, .., m, v = _native_batch_norm_legit_functional(x, w, b, mean, var, True, ..)
//!         copy_(mean, m);  copy_(var, v)
//! ```
//!
//! Invariant: a graph without any comes out as it went in, and one that comes out has none.

use kiln_proto::{
    Failure,
    graph::{Argument, Graph, Node, Value, ValueId},
};

use super::invalid;

/// Mean and variance that `node` writes to.
fn written(node: &Node) -> Option<[ValueId; 2]> {
    let trains = match node.op.as_str() {
        "aten.batch_norm.default"
        | "aten.native_batch_norm.default"
        | "aten.cudnn_batch_norm.default"
        | "aten._native_batch_norm_legit.default" => {
            node.arg("training") == Some(&Argument::Bool(true))
        }
        "aten._batch_norm_with_update.default" => true,
        _ => false,
    };
    match (trains, node.arg("running_mean"), node.arg("running_var")) {
        (true, Some(Argument::Tensor(mean)), Some(Argument::Tensor(variance))) => {
            Some([*mean, *variance])
        }
        _ => None,
    }
}

/// `graph` with these writes as operations in place of their own.
pub(super) fn told(mut graph: Graph) -> Result<Graph, Failure> {
    if !graph.nodes.iter().any(|node| written(node).is_some()) {
        return Ok(graph);
    }
    for node in std::mem::take(&mut graph.nodes) {
        let Some(both) = written(&node) else {
            graph.nodes.push(node);
            continue;
        };
        // Their types are copied for each norm: one that is long is no running statistic.
        if both.iter().any(|of| graph.value(*of).ty.shape.len() != 1) {
            return Err(invalid("running statistics of a batch norm that are no vector"));
        }
        let Node { name, op, mut args, mut outputs } = node;
        for (name, _) in &mut args {
            // What cuDNN's calls by other names.
            match name.as_str() {
                "exponential_average_factor" => "momentum".clone_into(name),
                "epsilon" => "eps".clone_into(name),
                _ => {}
            }
        }
        // Beside the norm there are mean and scale of the batch, which have the form of these.
        outputs.truncate(3);
        while outputs.len() < 3 {
            outputs.push(alike(&mut graph, both[0], &name));
        }
        let new = both.map(|old| alike(&mut graph, old, &name));
        outputs.extend(new);
        if op == "aten._batch_norm_with_update.default" {
            args.push(("training".to_owned(), Argument::Bool(true)));
        }
        let op = "aten._native_batch_norm_legit_functional.default".to_owned();
        graph.nodes.push(Node { name: name.clone(), op, args, outputs });
        for (old, new) in both.into_iter().zip(new) {
            let args = [("self", old), ("src", new)]
                .map(|(name, value)| (name.to_owned(), Argument::Tensor(value)));
            let outputs = vec![alike(&mut graph, old, &name)];
            let op = "aten.copy_.default".to_owned();
            graph.nodes.push(Node { name: name.clone(), op, args: args.into(), outputs });
        }
    }
    Ok(graph)
}

/// A value of the same type, for the node `name`.
fn alike(graph: &mut Graph, value: ValueId, name: &str) -> ValueId {
    let ty = graph.value(value).ty.clone();
    graph.values.push(Value { name: name.to_owned(), ty });
    ValueId(graph.values.len() - 1)
}
