//! Which piece a node takes first.
//!
//! Invariant: each piece has one node that begins with it, as long as all know the same
//! nodes; any node takes any piece in the end.

use std::sync::Arc;

use kiln_cluster::{Index, Wanted};
use kiln_proto::{ArtifactKey, Hasher, NodeId};

/// The positions of a list, as `me` takes them: its own first, and then those of others,
/// each time those that take longest.
pub(super) fn order(index: &Index, me: NodeId, list: &Wanted) -> Arc<[usize]> {
    let nodes = index.nodes();
    let able = nodes.iter().filter(|(_, node)| node.facts.compilers.contains(&list.fingerprint));
    let able: Vec<NodeId> = able.map(|(id, _)| *id).collect();
    let keys: Vec<(ArtifactKey, f32)> = list.pieces.iter().map(|p| (p.key, p.seconds)).collect();
    among(&able, me, &keys).into()
}

fn among(nodes: &[NodeId], me: NodeId, pieces: &[(ArtifactKey, f32)]) -> Vec<usize> {
    let others = nodes.iter().filter(|id| **id != me);
    let is_first = |key: &ArtifactKey| {
        let mine = weight(me, key);
        others.clone().all(|id| weight(*id, key) < mine)
    };
    let mut order: Vec<(bool, f32, [u8; 32], usize)> = pieces
        .iter()
        .enumerate()
        .map(|(at, (key, seconds))| (!is_first(key), -seconds, weight(me, key), at))
        .collect();
    order.sort_by(|a, b| (a.0.cmp(&b.0)).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
    order.into_iter().map(|(.., at)| at).collect()
}

/// How much a node is for a piece.
fn weight(node: NodeId, key: &ArtifactKey) -> [u8; 32] {
    *Hasher::new().update(&node.to_le_bytes()).update(key.as_bytes()).finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use kiln_proto::Digest;

    use super::*;

    fn pieces(n: u32) -> Vec<(ArtifactKey, f32)> {
        let key = |i: u32| ArtifactKey::from_bytes(*Digest::of(&i.to_le_bytes()).as_bytes());
        (0..n).map(|i| (key(i), (i % 7) as f32)).collect()
    }

    #[test]
    fn every_node_begins_with_pieces_of_its_own() {
        let (nodes, pieces) = ([1, 2, 3], pieces(300));
        let mut firsts = vec![0; pieces.len()];
        for me in nodes {
            let order = among(&nodes, me, &pieces);
            let mut all = order.clone();
            all.sort_unstable();
            assert_eq!(all, (0..300).collect::<Vec<_>>(), "all are taken in the end");
            // Those of its own come first, and both parts go from long to short.
            let seconds: Vec<f32> = order.iter().map(|at| pieces[*at].1).collect();
            let falls = seconds.windows(2).position(|pair| pair[0] < pair[1]).unwrap() + 1;
            assert!(seconds[falls..].is_sorted_by(|a, b| a >= b));
            assert!((50..150).contains(&falls), "{falls} of 300");
            order[..falls].iter().for_each(|at| firsts[*at] += 1);
        }
        assert!(firsts.iter().all(|nodes| *nodes == 1), "each piece has one first node");
    }

    #[test]
    fn a_node_alone_goes_from_long_to_short() {
        let pieces = pieces(9);
        let order = among(&[], 5, &pieces);
        let seconds: Vec<f32> = order.iter().map(|at| pieces[*at].1).collect();
        assert_eq!(seconds, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 1.0, 0.0, 0.0]);
    }
}
