//! What is chosen for which problem, and that a device takes it.
//!
//! Invariant: nothing here depends on a GPU.

use super::*;

fn linear(m: i64, n: i64, k: i64) -> Problem {
    let known = |typical: i64| Extent { typical, known: true };
    Problem {
        m: known(m),
        n: known(n),
        beside: [0; 3],
        k: known(k),
        batch: known(1),
        dtype: DType::BF16,
        a: Dense::Reduced,
        b: Dense::Reduced,
        aligned: true,
        groups: None,
    }
}

const HOPPER_ONLY: Target = Target { arch_specific: true, ..Target::cubin(90) };

fn why(problem: Problem, target: Target) -> String {
    choose(&problem, target).why
}

#[test]
fn the_fastest_measured_tiles_are_chosen() {
    // (m, n, k): the fastest of all that were run on an H100, or one within 3% of it; those
    // that stream, on an H200.
    let fastest = [
        ((4096, 4096, 4096), "persistent wgmma: tile 128x256x64, 4 stages"),
        ((4096, 2048, 1024), "persistent wgmma: tile 128x256x64, 4 stages"),
        ((256, 2048, 1024), "wgmma: tile 64x64x64, 8 stages"),
        ((256, 1024, 2048), "wgmma: tile 64x32x64, 12 stages"),
        ((256, 1024, 3072), "wgmma: tile 64x32x64, 12 stages"),
        ((256, 3072, 1024), "wgmma: tile 64x96x64, 8 stages"),
        ((256, 4096, 1024), "wgmma: tile 64x128x64, 8 stages"),
        ((16, 1024, 3072), "mma: tile 16x64x64, 4 stages, split 8"),
        ((1, 3072, 1024), "vector: 2 of 4 warps for 1 columns"),
        ((1, 151_936, 1024), "stream: 256 columns, 6 stages of 8, 1 warps each"),
        ((1, 14_336, 4096), "stream: 55 columns, 6 stages of 2, 4 warps each"),
        ((1, 4096, 14_336), "stream: 16 columns, 3 stages of 1, 8 warps each"),
    ];
    for ((m, n, k), best) in fastest {
        assert_eq!(why(linear(m, n, k), HOPPER_ONLY), best, "{m} x {n} x {k}");
    }
}

#[test]
fn a_kernel_is_chosen_only_where_it_is_right() {
    let big = linear(4096, 4096, 4096);
    let unknown = |typical: i64| Extent { typical, known: false };
    let variant = |problem: Problem, target: Target| choose(&problem, target).variant;
    let persistent = Variant::Persistent { stages: 4, groups: 2 };
    assert_eq!(variant(big, HOPPER_ONLY), persistent);
    assert_eq!(variant(Problem { m: unknown(4096), ..big }, HOPPER_ONLY), persistent);
    assert_eq!(variant(linear(256, 2048, 1024), HOPPER_ONLY), Variant::Wgmma);
    // Not what sm_90 has, nor with unknown strides, batches or sums, nor unaligned.
    assert_eq!(variant(big, Target::cubin(90)), Variant::Mma);
    for problem in [
        Problem { aligned: false, ..big },
        Problem { b: Dense::Neither, ..big },
        Problem { batch: unknown(1), ..big },
        Problem { batch: Extent { typical: 2, known: true }, ..big },
        Problem { k: unknown(4096), ..big },
    ] {
        assert_eq!(variant(problem, HOPPER_ONLY), Variant::Mma, "{problem:?}");
    }
    assert_eq!(variant(big, Target::cubin(75)), Variant::Cores);
    assert_eq!(variant(Problem { dtype: DType::F32, ..big }, HOPPER_ONLY), Variant::Cores);
    // Vectors: a known number of rows, whole loads.
    let few = linear(4, 1024, 1024);
    assert_eq!(variant(few, Target::cubin(75)), Variant::Vector);
    assert_eq!(variant(Problem { dtype: DType::F32, ..few }, HOPPER_ONLY), Variant::Vector);
    for problem in [
        Problem { m: unknown(4), ..few },
        Problem { k: Extent { typical: 1028, known: true }, ..few },
        Problem { b: Dense::Other, ..few },
        Problem { aligned: false, ..few },
    ] {
        assert_ne!(variant(problem, HOPPER_ONLY), Variant::Vector, "{problem:?}");
    }
}

#[test]
fn eights_are_multiplied_as_they_lie_by_hopper_alone() {
    let of = |m: i64, dtype: DType| Problem { dtype, ..linear(m, 14_336, 4096) };
    for dtype in [DType::F8E4M3, DType::F8E5M2] {
        let many = choose(&of(2048, dtype), HOPPER_ONLY);
        assert_eq!(many.why, "persistent wgmma: tile 128x128x128, 7 stages");
        assert_eq!(many.maps.map(|maps| maps.map(|map| map.tile)), Some([[128, 128]; 2]));
        assert_eq!(choose(&of(64, dtype), HOPPER_ONLY).variant, Variant::Wgmma);
        assert_eq!(choose(&of(1, dtype), HOPPER_ONLY).variant, Variant::Vector);
        assert_eq!(choose(&of(2048, dtype), Target::cubin(90)).variant, Variant::Cores);
        let across = Problem { b: Dense::Other, ..of(2048, dtype) };
        assert_eq!(choose(&across, HOPPER_ONLY).variant, Variant::Cores);
    }
}

#[test]
fn of_few_rows_nothing_is_copied_but_those() {
    let box_of = |problem: &Problem| choose(problem, HOPPER_ONLY).maps.unwrap()[0].tile;
    assert_eq!(box_of(&linear(8, 4096, 14_336)), [64, 8]);
    assert_eq!(box_of(&linear(33, 4096, 14_336)), [64, 40]);
    assert_eq!(box_of(&linear(64, 4096, 14_336)), [64, 64]);
    let open = Extent { typical: 8, known: false };
    assert_eq!(box_of(&Problem { m: open, ..linear(8, 4096, 14_336) }), [64, 64]);
}

#[test]
fn two_products_are_one_kernel_only_where_there_is_a_template_for_it() {
    let large = linear(8192, 14336, 4096);
    let twins = |problem: &Problem, target: Target| twin(problem, target).map(|c| c.variant);
    let of_large = twin(&large, HOPPER_ONLY).map(|choice| (choice.tile, choice.why));
    let why = "persistent wgmma: tile 128x192x64, 5 stages".to_owned();
    assert_eq!(of_large, Some(([128, 96], why)));
    assert_eq!(twins(&linear(1, 14336, 4096), Target::cubin(80)), Some(Variant::Vector));
    for (problem, target) in [
        (large, Target::cubin(90)),
        (Problem { dtype: DType::F32, ..large }, HOPPER_ONLY),
        (Problem { aligned: false, ..large }, HOPPER_ONLY),
        (Problem { k: Extent { typical: 4096, known: false }, ..large }, HOPPER_ONLY),
    ] {
        assert_eq!(twins(&problem, target), None, "{problem:?}");
    }
}

#[test]
fn every_launch_is_one_that_a_device_takes() {
    for m in [1, 3, 8, 9, 100, 256, 1000, 4096] {
        for n in [1, 7, 64, 1000, 3072, 50_257, 151_936] {
            for k in [1, 8, 64, 1000, 4096, 14_336] {
                for (dtype, b) in [
                    (DType::BF16, Dense::Other),
                    (DType::BF16, Dense::Reduced),
                    (DType::F32, Dense::Reduced),
                    (DType::F8E4M3, Dense::Reduced),
                ] {
                    let problem = Problem { dtype, b, ..linear(m, n, k) };
                    for (target, most) in [
                        (Target::cubin(80), 163),
                        (Target::cubin(90), 227),
                        (HOPPER_ONLY, 227),
                        (Target::cubin(100), 227),
                        (Target::cubin(120), 99),
                    ] {
                        let choice = choose(&problem, target);
                        let twin = twin(&problem, target);
                        let shared = twin.map_or(0, |twin| twin.shared_bytes);
                        let shared = shared.max(choice.shared_bytes);
                        assert!(shared <= most << 10, "{target}: {choice:?}");
                        assert!(choice.threads <= 1024 && choice.threads.is_multiple_of(32));
                        assert!(choice.split == 1 || target.compute >= 90, "{choice:?}");
                    }
                }
            }
        }
    }
}
