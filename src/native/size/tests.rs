use proptest::prelude::*;

use super::{Atom, Bounds, Size};
use crate::core::Range;

fn size(text: &str) -> Size {
    Size::parse(text, &["s0", "s1"]).unwrap()
}

fn i(var: usize) -> Size {
    Size::var(var)
}

fn k(number: i64) -> Size {
    Size::from(number)
}

#[test]
fn the_exporters_expressions_are_read() {
    for (text, at, expected) in [
        ("2*s0 + 1", [5, 0], 11),
        ("Max(1, s0)*s1", [0, 7], 7),
        ("(s0//2)", [7, 0], 3),
        ("FloorDiv(s0 + 1, 2) - 1", [7, 0], 3),
        ("Mod(s0, 4)", [7, 0], 3),
        ("s0**2*3", [4, 0], 48),
        ("-s0 + s1", [4, 9], 5),
    ] {
        assert_eq!(size(text).value(&at), Some(expected), "{text}");
    }
    for wrong in ["", "s0 +", "s9", "(s0", "s0 s1", "s0//0", "Foo(s0)", "2..3"] {
        assert!(Size::parse(wrong, &["s0", "s1"]).is_err(), "{wrong}");
    }
}

#[test]
fn what_is_written_as_the_exporter_does_reads_back() {
    for text in ["0", "-3", "s0", "64*s0", "s0*s1 + 2*s0 - 1", "-2*s1 + s0", "3*s0*s0 + s1"] {
        let size = size(text);
        assert_eq!(Size::parse(&size.formula(&["s0", "s1"]), &["s0", "s1"]), Ok(size), "{text}");
    }
    for text in
        ["((s0 + 1)//2)*3", "Max(1, s0)*s1", "Min(s0, s1) - s0", "Mod(s0, 4) + (s1//(s0 + 1))"]
    {
        let size = size(text);
        assert_eq!(Size::parse(&size.formula(&["s0", "s1"]), &["s0", "s1"]), Ok(size), "{text}");
    }
    assert_eq!(size("s0*64").formula(&["s77", "s27"]), "64*s77");
    assert_eq!(size("1 + s1*2").formula(&["s77", "s27"]), "2*s27 + 1");
}

#[test]
fn equal_forms_are_equal() {
    assert_eq!(size("(s0 + 1)*(s0 + 1)"), size("s0*s0 + 2*s0 + 1"));
    assert_eq!(size("s0*64//64"), size("s0"));
    assert_eq!(size("(64*s0*s1 + 64*s1)//(64*s1)"), size("s0 + 1"));
    assert_eq!(size("2*s0 - s0 - s0"), k(0));
}

#[test]
fn a_dividend_that_is_never_negative_stays_so() {
    // Element i of a roll by two is element i - 2, modulo the size.
    let extents = [size("s0")];
    let symbols = [Range { min: 5, max: 64 }];
    let bounds = Bounds { symbols: &symbols, vars: &extents };
    let from = &(&i(0) + &size("s0")) - &k(2);
    let quotient = from.div_in(&size("s0"), &bounds);
    assert_eq!(quotient, Size::atom(Atom::Floor(Box::new([from, size("s0")]))));
}

#[test]
fn a_view_that_splits_and_joins_a_dimension_leaves_no_division() {
    // [b, s, 1024] seen as [b, s, 16, 64], s symbolic.
    let extents = [size("s0"), size("s1"), k(16), k(64)];
    let bounds = Bounds {
        symbols: &[Range { min: 1, max: 64 }, Range { min: 1, max: i64::MAX }],
        vars: &extents,
    };
    let flat = &(&(&(&i(0) * &size("s1")) * &k(1024)) + &(&i(1) * &k(1024)))
        + &(&(&i(2) * &k(64)) + &i(3));
    let inner = flat.mod_in(&k(1024), &bounds);
    assert_eq!(inner, &(&i(2) * &k(64)) + &i(3));
    let row = flat.div_in(&k(1024), &bounds);
    assert_eq!(row.mod_in(&size("s1"), &bounds), i(1));
    assert_eq!(row.div_in(&size("s1"), &bounds), i(0));
}

#[test]
fn an_index_taken_apart_and_put_together_is_itself() {
    let extents = [k(2 * 16 * 64)];
    let bounds = Bounds { symbols: &[], vars: &extents };
    let e = i(0);
    let (head, inner) = (e.div_in(&k(64), &bounds), e.mod_in(&k(64), &bounds));
    let (batch, head) = (head.div_in(&k(16), &bounds), head.mod_in(&k(16), &bounds));
    let joined = &(&(&(&batch * &k(16)) + &head) * &k(64)) + &inner;
    assert_eq!(joined, e);
    assert!(bounds.is_within(&inner, &k(64)) && bounds.is_within(&head, &k(16)));
}

#[test]
fn the_lanes_of_a_vector_share_what_does_not_split_them() {
    // e = 8 t + lane
    let extents = [k(32), k(8)];
    let bounds = Bounds { symbols: &[], vars: &extents };
    let e = &(&i(0) * &k(8)) + &i(1);
    assert_eq!(e.div_in(&k(64), &bounds), i(0).div_in(&k(8), &bounds));
    assert!(e.div_in(&k(12), &bounds).has_var(1));
}

/// Whether something that is below zero is divided, at that place.
fn divides_negative(size: &Size, x: i64, y: i64, symbols: [i64; 2]) -> bool {
    size.any(&|atom| match atom {
        Atom::Floor(parts) => {
            let with = |atom: &Atom| match atom {
                Atom::Var(var) => Some(k([x, y][*var])),
                Atom::Symbol(symbol) => Some(k(symbols[*symbol])),
                _ => None,
            };
            parts[0].substituted(&Bounds::default(), &with).known().unwrap() < 0
        }
        _ => false,
    })
}

/// What runs cuts quotients off: of numbers below zero they would be wrong.
#[test]
fn what_is_not_negative_is_not_taken_apart_into_what_is() {
    let extents = [k(5), k(7)];
    let bounds = Bounds { symbols: &[], vars: &extents };
    let back = &(&k(34) - &(&i(0) * &k(7))) - &i(1);
    let quotient = back.div_in(&k(5), &bounds);
    for (x, y) in (0..5).flat_map(|x| (0..7).map(move |y| (x, y))) {
        assert_eq!(at(&quotient, x, y), (34 - 7 * x - y) / 5);
        assert!(!divides_negative(&quotient, x, y, [0, 0]), "{quotient:?} at {x}, {y}");
    }
    let symbols = [Range { min: 0, max: 100 }; 2];
    let extents = [size("s0 + s1")];
    let bounds = Bounds { symbols: &symbols, vars: &extents };
    let turned = (&i(0) + &size("s1")).div_in(&size("s0 + s1"), &bounds);
    for x in 0..12 {
        assert!(!divides_negative(&turned, x, 0, [5, 7]), "{turned:?} at {x}");
    }
}

#[test]
fn proofs_use_the_symbols_ranges() {
    let symbols = [Range { min: 2, max: 2048 }];
    let bounds = Bounds { symbols: &symbols, vars: &[] };
    assert!(bounds.is_nonnegative(&size("2048 - s0")));
    assert!(bounds.is_nonnegative(&size("s0*s0 - 4")));
    assert!(!bounds.is_nonnegative(&size("2047 - s0")));
    assert!(!bounds.is_nonnegative(&size("s0 - 3")));
}

/// Expressions over two variables below 12 and 5, with divisions.
fn expression() -> impl Strategy<Value = Size> {
    let leaf = prop_oneof![Just(i(0)), Just(i(1)), (-9i64..9).prop_map(k)];
    leaf.prop_recursive(4, 24, 2, |inner| {
        let two = (inner.clone(), inner.clone());
        let by = (inner, 1i64..9);
        let bounds = || [k(12), k(5)];
        prop_oneof![
            two.clone().prop_map(|(a, b)| &a + &b),
            two.clone().prop_map(|(a, b)| &a - &b),
            two.prop_map(|(a, b)| &a * &b),
            by.clone()
                .prop_map(move |(a, b)| a.div_in(&k(b), &Bounds { symbols: &[], vars: &bounds() })),
            by.prop_map(move |(a, b)| a.mod_in(&k(b), &Bounds { symbols: &[], vars: &bounds() })),
        ]
    })
}

fn at(size: &Size, x: i64, y: i64) -> i64 {
    let with = |atom: &Atom| match atom {
        Atom::Var(0) => Some(k(x)),
        Atom::Var(1) => Some(k(y)),
        _ => None,
    };
    size.substituted(&Bounds::default(), &with).known().unwrap()
}

proptest! {
    #[test]
    fn simplifying_a_division_keeps_its_value(a in expression(), by in 1i64..13) {
        let extents = [k(12), k(5)];
        let bounds = Bounds { symbols: &[], vars: &extents };
        let (quotient, rest) = (a.div_in(&k(by), &bounds), a.mod_in(&k(by), &bounds));
        for (x, y) in (0..12).flat_map(|x| (0..5).map(move |y| (x, y))) {
            let value = at(&a, x, y);
            prop_assert_eq!(at(&quotient, x, y), value.div_euclid(by), "{} / {} = {}", a, by, quotient);
            prop_assert_eq!(at(&rest, x, y), value.rem_euclid(by), "{} % {} = {}", a, by, rest);
        }
    }

    #[test]
    fn what_is_shown_holds(a in expression()) {
        let extents = [k(12), k(5)];
        let bounds = Bounds { symbols: &[], vars: &extents };
        if bounds.is_nonnegative(&a) {
            for (x, y) in (0..12).flat_map(|x| (0..5).map(move |y| (x, y))) {
                prop_assert!(at(&a, x, y) >= 0, "{} at {} {}", a, x, y);
            }
        }
    }
}
