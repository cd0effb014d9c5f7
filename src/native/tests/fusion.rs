//! Properties of the partition into kernels, over random programs.

use std::collections::BTreeSet;

use kiln_proto::graph::DType;
use proptest::prelude::*;

use crate::{
    fuse::{Group, Kind, fuse},
    prim::{Access, Compute, Operand, Prim, Prims, Scalar, Source},
    strided::{Strided, same_walk},
};

const ROWS: usize = 6;
const COLUMNS: usize = 4;

/// One step of a random program, by small numbers.
type Step = (u8, usize, usize);

/// A program over [6, 4] matrices: maps, transposes, sums of rows, products.
fn program(steps: &[Step]) -> Prims {
    let full = vec![ROWS, COLUMNS];
    let mut prims = Prims { inputs: vec![DType::F32; 3], ..Prims::default() };
    let mut values: Vec<Access> =
        (0..3).map(|i| Access { source: Source::Input(i), walk: Strided::dense(&full) }).collect();
    for (kind, a, b) in steps {
        let a = values[a % values.len()].clone();
        let b = values[b % values.len()].clone();
        let mut push = |compute: Compute, shape: &[usize]| {
            let origin = prims.list.len();
            prims.list.push(Prim { compute, shape: shape.to_vec(), dtype: DType::F32, origin });
            Access { source: Source::Prim(origin), walk: Strided::dense(shape) }
        };
        let value = match kind % 5 {
            0 | 1 => {
                let operands = vec![Operand::Read(a), Operand::Read(b)];
                push(Compute::Map(Scalar::Add, operands), &full)
            }
            2 => {
                let sum = push(Compute::Sum { read: a, lead: 1 }, &[ROWS]);
                let column = sum.walk.reshaped(&[ROWS, 1]).unwrap();
                Access { source: sum.source, walk: column.broadcast(&full) }
            }
            3 => {
                // Another order of the elements: a read at other coordinates.
                let turned = a.walk.permuted(&[1, 0]);
                let copy = push(
                    Compute::Map(
                        Scalar::Copy,
                        vec![Operand::Read(Access { source: a.source, walk: turned })],
                    ),
                    &[COLUMNS, ROWS],
                );
                Access { source: copy.source, walk: copy.walk.reshaped(&full).unwrap() }
            }
            _ => {
                let turned = Access { source: b.source, walk: b.walk.permuted(&[1, 0]) };
                let square = push(Compute::Product { a: a.clone(), b: turned }, &[ROWS, ROWS]);
                push(Compute::Product { a: square, b: a }, &full)
            }
        };
        values.push(value);
    }
    prims.outputs = prims.list.len().checked_sub(1).into_iter().collect();
    prims
}

fn check(prims: &Prims, groups: &[Group]) {
    let mut done = BTreeSet::new();
    for group in groups {
        let inside: BTreeSet<usize> = group.members.iter().map(|member| member.prim).collect();
        let mut so_far = BTreeSet::new();
        let products = group
            .members
            .iter()
            .filter(|member| matches!(prims.list[member.prim].compute, Compute::Product { .. }));
        assert_eq!(products.count(), usize::from(group.kind == Kind::Product));
        for member in &group.members {
            let prim = &prims.list[member.prim];
            for access in prim.reads() {
                let Source::Prim(read) = access.source else { continue };
                assert!(done.contains(&read) || so_far.contains(&read), "reads what is to come");
                if inside.contains(&read) {
                    let is_product = matches!(prim.compute, Compute::Product { .. });
                    assert!(!is_product, "a product cannot read its own kernel's values");
                    let place = &group.members.iter().find(|m| m.prim == read).unwrap().place;
                    let reads = member.reads.iter().filter(|(s, _)| *s == access.source);
                    for (_, strides) in reads {
                        assert!(same_walk(&group.shape, strides, place), "at other coordinates");
                    }
                }
            }
            assert!(so_far.insert(member.prim), "computed twice in a kernel");
        }
        for prim in so_far {
            assert!(done.insert(prim), "computed in two kernels");
        }
    }
    assert_eq!(done, (0..prims.list.len()).collect(), "every primitive is computed");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_primitive_is_computed_once_and_in_order(
        steps in proptest::collection::vec((any::<u8>(), 0usize..40, 0usize..40), 1..24),
    ) {
        let prims = program(&steps);
        check(&prims, &fuse(&prims, false).unwrap());
        check(&prims, &fuse(&prims, true).unwrap());
    }
}

/// Found by the property above: a path through groups whose own members all
/// come before the two that were to be joined.
#[test]
fn groups_never_wait_for_each_other() {
    let steps = [
        (69, 0, 0),
        (148, 3, 0),
        (2, 0, 0),
        (32, 5, 0),
        (0, 5, 19),
        (0, 0, 0),
        (0, 17, 0),
        (2, 0, 0),
        (0, 5, 5),
        (57, 0, 0),
        (0, 0, 0),
        (0, 0, 5),
        (0, 0, 5),
        (105, 3, 5),
        (0, 0, 5),
        (0, 5, 0),
        (0, 0, 0),
        (0, 5, 0),
        (25, 25, 5),
    ];
    let prims = program(&steps);
    check(&prims, &fuse(&prims, true).unwrap());
}

#[test]
fn a_map_that_goes_around_a_product_does_not_join_it() {
    // 0 = a + a; 2 = (0 x 0') x 0; 3 = 2 + 0: joined with 0, 3 would wait for itself.
    let prims = program(&[(0, 0, 0), (4, 3, 3), (0, 4, 3)]);
    let groups = fuse(&prims, true).unwrap();
    check(&prims, &groups);
    let members = |group: &Group| group.members.iter().map(|m| m.prim).collect::<Vec<_>>();
    assert_eq!(groups.iter().map(members).collect::<Vec<_>>(), [vec![0], vec![1], vec![2, 3]]);
}
