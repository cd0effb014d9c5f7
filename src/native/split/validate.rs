//! Whether items are the whole.
//!
//! Invariant: items that pass compute what the whole does if each computes what
//! its graph says: every node is in one of them, each has what it reads before it
//! runs, and all that the whole gives is made.

use std::collections::{HashMap, HashSet};

use kiln_proto::graph::{Graph, Node, ValueId};

use super::{
    carried::{TURNED, inverse, turn},
    item::SplitItem,
};
use crate::live::live_order;

/// What is wrong with items.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// An item that is not where its index says.
    #[error("item {at} says that it is item {index}")]
    Misplaced {
        /// Where it is.
        at: usize,
        /// Where it says that it is.
        index: usize,
    },
    /// A node that the graph does not have, or that nothing needs.
    #[error("item {item} has node {node}, which the graph does not need")]
    UnknownNode {
        /// In which item.
        item: usize,
        /// Which.
        node: usize,
    },
    /// A node twice.
    #[error("node {node} is in item {first} and in item {second}")]
    NodeTwice {
        /// Which.
        node: usize,
        /// In which item.
        first: usize,
        /// In which other.
        second: usize,
    },
    /// A node nowhere.
    #[error("node {node} is in no item")]
    NodeMissing {
        /// Which.
        node: usize,
    },
    /// A node of an item reads what is neither made in it before nor given to it.
    #[error("item {item}: node {node} reads {value:?}, which it does not have")]
    ReadMissing {
        /// In which item.
        item: usize,
        /// Which node.
        node: usize,
        /// Name of what it reads.
        value: String,
    },
    /// An item is given what nobody makes.
    #[error("item {item} is given {value:?}, which no item makes")]
    InputMissing {
        /// Which item.
        item: usize,
        /// Name of the value.
        value: String,
    },
    /// An item needs, perhaps through others, what it makes itself.
    #[error("item {item} needs {value:?}, which is made of what it makes itself")]
    Cycle {
        /// Which item.
        item: usize,
        /// Name of the value.
        value: String,
    },
    /// An item runs before what it needs.
    #[error("item {item} needs {value:?} of item {from}, which runs after it")]
    Late {
        /// Which item.
        item: usize,
        /// Which one makes it.
        from: usize,
        /// Name of the value.
        value: String,
    },
    /// An item claims to give what it does not make, or gives it twice.
    #[error("item {item} gives {value:?}, which it does not make once")]
    OutputNotMade {
        /// Which item.
        item: usize,
        /// Name of the value.
        value: String,
    },
    /// The whole gives what no item does.
    #[error("the whole gives {value:?}, which no item gives")]
    OutputMissing {
        /// Name of the value.
        value: String,
    },
    /// An item's graph is another one than its nodes.
    #[error("item {item}: its graph has {what} other than its own")]
    OtherGraph {
        /// Which item.
        item: usize,
        /// What is different.
        what: &'static str,
    },
}

/// Checks that `items` are `graph`.
pub fn validate(graph: &Graph, items: &[SplitItem]) -> Result<(), Invalid> {
    nodes(graph, items)?;
    let mut maker: HashMap<ValueId, usize> = HashMap::new();
    for (at, item) in items.iter().enumerate() {
        makes(graph, item)?;
        for output in &item.outputs {
            // A node is in one item, so nothing is given by two.
            maker.insert(output.value, at);
        }
    }
    let given: HashSet<ValueId> = graph.inputs.iter().map(|input| input.value).collect();
    for (at, item) in items.iter().enumerate() {
        for input in item.inputs.iter().filter(|input| !given.contains(&input.value)) {
            let value = || graph.value(input.value).name.clone();
            match maker.get(&input.value) {
                None => return Err(Invalid::InputMissing { item: at, value: value() }),
                Some(from) if *from >= at => {
                    return Err(match needs(items, &maker, *from, at) {
                        true => Invalid::Cycle { item: at, value: value() },
                        false => Invalid::Late { item: at, from: *from, value: value() },
                    });
                }
                Some(_) => {}
            }
        }
    }
    let made = |value: &&ValueId| !given.contains(value) && !maker.contains_key(value);
    match graph.outputs.iter().find(made) {
        Some(value) => Err(Invalid::OutputMissing { value: graph.value(*value).name.clone() }),
        None => Ok(()),
    }
}

/// Every live node is in one item.
fn nodes(graph: &Graph, items: &[SplitItem]) -> Result<(), Invalid> {
    let live = live_order(graph);
    let mut home: HashMap<usize, Option<usize>> = live.iter().map(|node| (*node, None)).collect();
    for (at, item) in items.iter().enumerate() {
        if item.index != at {
            return Err(Invalid::Misplaced { at, index: item.index });
        }
        for node in &item.nodes {
            let home = home.get_mut(node).ok_or(Invalid::UnknownNode { item: at, node: *node })?;
            if let Some(first) = home.replace(at) {
                return Err(Invalid::NodeTwice { node: *node, first, second: at });
            }
        }
    }
    match live.into_iter().find(|node| home[node].is_none()) {
        Some(node) => Err(Invalid::NodeMissing { node }),
        None => Ok(()),
    }
}

/// An item makes what it says of what it says, and its graph does the same.
fn makes(graph: &Graph, item: &SplitItem) -> Result<(), Invalid> {
    let (index, own) = (item.index, &item.graph);
    let name = |value: ValueId| graph.value(value).name.clone();
    let other = |what| Invalid::OtherGraph { item: index, what };
    if own.inputs.len() != item.inputs.len() {
        return Err(other("inputs"));
    }
    // What each of the graph's values is in the whole.
    let mut whole: HashMap<ValueId, ValueId> = HashMap::new();
    let mut nodes = own.nodes.iter();
    for (input, edge) in own.inputs.iter().zip(&item.inputs) {
        let value = match &edge.order {
            None => Some(input.value),
            Some(order) => turned(nodes.next(), input.value, &inverse(order)),
        };
        whole.insert(value.ok_or_else(|| other("inputs"))?, edge.value);
    }
    if nodes.len() < item.nodes.len() {
        return Err(other("nodes"));
    }
    let mut has: HashSet<ValueId> = item.inputs.iter().map(|edge| edge.value).collect();
    let mut made = HashSet::new();
    for (node, same) in item.nodes.iter().zip(nodes.by_ref()) {
        let ours = &graph.nodes[*node];
        if let Some(read) = ours.tensors().find(|read| !has.contains(read)) {
            return Err(Invalid::ReadMissing { item: index, node: *node, value: name(read) });
        }
        let reads = same.tensors().map(|read| whole.get(&read).copied());
        if same.op != ours.op || !reads.eq(ours.tensors().map(Some)) {
            return Err(other("nodes"));
        }
        has.extend(&ours.outputs);
        made.extend(ours.outputs.iter().copied());
        whole.extend(same.outputs.iter().copied().zip(ours.outputs.iter().copied()));
    }
    for output in &item.outputs {
        if !made.remove(&output.value) {
            return Err(Invalid::OutputNotMade { item: index, value: name(output.value) });
        }
    }
    for edge in &item.outputs {
        let Some(order) = &edge.order else { continue };
        let node = nodes.next();
        let read = node.and_then(|node| node.tensors().next()).ok_or_else(|| other("nodes"))?;
        let to = turned(node, read, order).ok_or_else(|| other("nodes"))?;
        whole.insert(to, whole.get(&read).copied().ok_or_else(|| other("nodes"))?);
    }
    if nodes.next().is_some() {
        return Err(other("nodes"));
    }
    let outputs = own.outputs.iter().map(|output| whole.get(output).copied());
    match outputs.eq(item.outputs.iter().map(|edge| Some(edge.value))) {
        true => Ok(()),
        false => Err(other("outputs")),
    }
}

/// What `node` makes, if it turns `value` to `order` and does nothing else.
fn turned(node: Option<&Node>, value: ValueId, order: &[usize]) -> Option<ValueId> {
    let node = node?;
    let to = *node.outputs.first()?;
    (*node == turn(node.name.strip_suffix(TURNED)?, value, order, to)).then_some(to)
}

/// Whether item `from` needs, perhaps through others, what item `of` makes.
fn needs(items: &[SplitItem], maker: &HashMap<ValueId, usize>, from: usize, of: usize) -> bool {
    let (mut seen, mut left) = (HashSet::new(), vec![from]);
    while let Some(item) = left.pop() {
        if item == of {
            return true;
        }
        if seen.insert(item) {
            left.extend(items[item].inputs.iter().filter_map(|edge| maker.get(&edge.value)));
        }
    }
    false
}
