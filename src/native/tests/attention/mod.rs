//! The attention kernels at sizes that fit none of their tiles, against f64.

mod case;
mod emulate;
mod reference;
mod variant;

use kiln_proto::{Target, graph::DType};

use self::{
    case::{BASE, Case, Layout, Mask},
    emulate::check,
    variant::{Variant, chosen, tiled},
};
use crate::codegen::attention::{Bounds, Problem, choose};

#[test]
fn tensor_cores_compute_tails_masks_and_groups() {
    let sizes = |sizes| Case { sizes, ..BASE };
    check(&[
        tiled(sizes([1, 2, 2, 33, 33, 64, 64]), [32, 32, 1]),
        tiled(Case { causal: true, ..sizes([2, 2, 1, 50, 50, 32, 32]) }, [16, 32, 1]),
        tiled(
            Case { causal: true, layout: Layout::Split, ..sizes([1, 4, 2, 70, 70, 16, 16]) },
            [64, 64, 1],
        ),
        tiled(Case { mask: Mask::Float, ..sizes([2, 2, 1, 19, 75, 48, 80]) }, [16, 32, 2]),
        tiled(
            Case { mask: Mask::Bool, causal: true, ..sizes([2, 2, 2, 40, 40, 40, 24]) },
            [32, 64, 4],
        ),
        tiled(Case { mask: Mask::Lowest, ..sizes([1, 2, 1, 19, 75, 48, 80]) }, [16, 32, 2]),
        tiled(Case { mask: Mask::Lowest, ..sizes([1, 1, 1, 40, 140, 32, 32]) }, [32, 32, 1]),
        tiled(Case { layout: Layout::Odd, ..sizes([1, 2, 1, 17, 35, 20, 10]) }, [16, 64, 2]),
        tiled(Case { causal: true, ..sizes([1, 1, 1, 20, 90, 16, 7]) }, [16, 64, 4]),
        tiled(Case { causal: true, ..sizes([1, 1, 1, 90, 20, 16, 32]) }, [32, 32, 2]),
        tiled(
            Case { scale: -0.2, dtype: DType::F16, ..sizes([1, 2, 2, 16, 40, 160, 144]) },
            [16, 32, 1],
        ),
        tiled(
            Case { dtype: DType::F16, mask: Mask::Bool, ..sizes([1, 1, 1, 10, 33, 256, 256]) },
            [16, 32, 2],
        ),
        tiled(sizes([2, 1, 1, 5, 0, 32, 32]), [16, 32, 1]),
        tiled(Case { mask: Mask::Float, ..sizes([1, 1, 1, 5, 0, 32, 32]) }, [16, 32, 2]),
    ]);
}

#[test]
fn ordinary_cores_compute_any_width_and_type() {
    let sizes = |sizes| Case { dtype: DType::F32, sizes, ..BASE };
    let forced = |case: Case, [rows, keys, width]: [u64; 3]| {
        let [b, h, _, s, _, _, e] = case.sizes;
        let (_, mut variant) = chosen(Case { dtype: DType::F32, ..BASE });
        variant.call = format!("kiln_attention_cores<PROBLEM, {rows}, {keys}, {width}>");
        variant.blocks = (s as u64).div_ceil(rows) * (b * h) as u64 * (e as u64).div_ceil(width);
        (case, variant)
    };
    check(&[
        forced(sizes([1, 2, 2, 33, 33, 64, 64]), [32, 64, 64]),
        forced(Case { causal: true, ..sizes([2, 2, 1, 40, 40, 36, 32]) }, [32, 64, 64]),
        forced(Case { mask: Mask::Float, ..sizes([1, 2, 1, 30, 70, 33, 51]) }, [64, 64, 64]),
        forced(
            Case {
                mask: Mask::Bool,
                causal: true,
                layout: Layout::Odd,
                ..sizes([2, 1, 1, 65, 66, 7, 140])
            },
            [64, 64, 128],
        ),
        forced(
            Case { scale: -0.1, layout: Layout::Split, ..sizes([1, 2, 2, 9, 12, 300, 260]) },
            [32, 64, 128],
        ),
        forced(Case { dtype: DType::BF16, ..sizes([1, 1, 1, 9, 12, 300, 264]) }, [32, 64, 128]),
        forced(Case { mask: Mask::Lowest, ..sizes([1, 1, 1, 30, 150, 33, 51]) }, [64, 64, 64]),
        forced(sizes([1, 1, 1, 3, 0, 8, 8]), [32, 64, 64]),
    ]);
}

#[test]
fn decoding_shares_keys_among_heads() {
    let forced = |case: Case, [rows, warps]: [u64; 2]| {
        let [b, h, g, s, ..] = case.sizes;
        let (_, mut variant) = chosen(Case { sizes: [1, 1, 1, 1, 1, 8, 8], ..BASE });
        variant.call = format!("kiln_attention_decode<PROBLEM, {rows}, {warps}, 1>");
        variant.blocks = ((s * h / g) as u64).div_ceil(rows) * (b * g) as u64;
        variant.threads = warps as u32 * 32;
        (case, variant)
    };
    let sizes = |sizes| Case { sizes, ..BASE };
    check(&[
        forced(sizes([2, 4, 2, 1, 300, 128, 128]), [2, 4]),
        forced(sizes([2, 4, 2, 1, 1, 128, 128]), [2, 1]),
        forced(Case { causal: true, ..sizes([1, 2, 2, 5, 40, 64, 32]) }, [8, 2]),
        forced(Case { causal: true, mask: Mask::Float, ..sizes([1, 4, 1, 3, 90, 32, 64]) }, [4, 2]),
        forced(Case { mask: Mask::Bool, ..sizes([5, 3, 1, 1, 33, 80, 96]) }, [1, 2]),
        forced(
            Case { mask: Mask::Bool, dtype: DType::F32, ..sizes([5, 2, 1, 1, 70, 256, 200]) },
            [2, 2],
        ),
        forced(
            Case { layout: Layout::Odd, dtype: DType::F16, ..sizes([1, 2, 1, 2, 37, 9, 13]) },
            [4, 1],
        ),
        forced(
            Case { layout: Layout::Split, scale: -0.2, ..sizes([1, 2, 2, 1, 50, 512, 300]) },
            [1, 4],
        ),
        forced(Case { mask: Mask::Lowest, ..sizes([1, 5, 5, 1, 200, 16, 16]) }, [1, 2]),
        forced(sizes([1, 2, 2, 1, 0, 16, 16]), [1, 2]),
    ]);
}

#[test]
fn decoding_several_rows_shares_keys_on_the_tensor_cores() {
    let forced = |case: Case, [rows, warps]: [u64; 2]| {
        let [b, h, g, s, ..] = case.sizes;
        let (_, mut variant) = chosen(Case { sizes: [1, 4, 1, 1, 1, 32, 64], ..BASE });
        variant.call = format!("kiln_attention_decode_mma<PROBLEM, {rows}, {warps}, 1>");
        variant.blocks = ((s * h / g) as u64).div_ceil(rows) * (b * g) as u64;
        variant.threads = warps as u32 * 32;
        (case, variant)
    };
    let sizes = |sizes| Case { sizes, ..BASE };
    check(&[
        forced(sizes([2, 8, 2, 1, 300, 128, 128]), [4, 4]),
        forced(sizes([1, 4, 1, 1, 1, 32, 64]), [4, 1]),
        forced(Case { causal: true, ..sizes([1, 2, 2, 5, 40, 64, 64]) }, [8, 2]),
        forced(
            Case { causal: true, mask: Mask::Float, ..sizes([1, 4, 1, 3, 90, 32, 64]) },
            [16, 2],
        ),
        forced(Case { mask: Mask::Bool, ..sizes([5, 3, 1, 1, 33, 96, 192]) }, [4, 2]),
        forced(Case { dtype: DType::F16, ..sizes([1, 16, 1, 1, 47, 256, 256]) }, [16, 2]),
        forced(
            Case { layout: Layout::Split, scale: -0.2, ..sizes([1, 6, 2, 2, 50, 64, 64]) },
            [2, 4],
        ),
        forced(Case { mask: Mask::Lowest, ..sizes([1, 5, 1, 1, 200, 32, 64]) }, [8, 2]),
        forced(sizes([1, 4, 1, 1, 0, 32, 64]), [4, 2]),
    ]);
}

#[test]
fn several_rows_are_decoded_by_what_reads_them_fastest() {
    let problem = Case { sizes: [8, 32, 8, 1, 16_384, 128, 128], ..BASE }.problem();
    let variant = |problem: &Problem, target| choose(problem, target).variant;
    let hopper = Target { arch_specific: true, ..Target::cubin(90) };
    assert_eq!(choose(&problem, hopper).call("p"), "kiln_attention_decode_mma<p, 4, 8, 2>");
    assert_eq!(
        choose(&problem, Target::cubin(80)).call("p"),
        "kiln_attention_decode_mma<p, 4, 8, 1>"
    );
    assert_eq!(variant(&Problem { group: 16, ..problem }, hopper), "decode mma");
    // Without the instructions, in another type, of few rows, or where chunks do not fit.
    assert_eq!(variant(&problem, Target::cubin(75)), "decode");
    for other in [
        Problem { dtype: DType::F32, ..problem },
        Problem { group: 2, ..problem },
        Problem { aligned: false, ..problem },
        Problem { d: 80, ..problem },
        Problem { e: 96, ..problem },
    ] {
        assert_eq!(variant(&other, hopper), "decode", "{other:?}");
    }
}

#[test]
fn hopper_walks_its_tiles_in_pairs() {
    // Blocks that take turns, or more than there are tiles.
    let forced = |case: Case, keys: u64, turns: bool, blocks: u64| {
        let hopper = Target { arch_specific: true, ..Target::cubin(90) };
        let large = Problem {
            batch: Bounds::known(64),
            ..Case { sizes: [1, 4, 4, 512, 512, 64, 64], ..BASE }.problem()
        };
        let mut variant = Variant::from((choose(&large, hopper), case.sizes));
        variant.call = format!("kiln_attention_wgmma<PROBLEM, {keys}, 2, {turns}>");
        variant.blocks = blocks;
        (case, variant)
    };
    let sizes = |sizes| Case { sizes, ..BASE };
    check(&[
        forced(Case { causal: true, ..sizes([1, 2, 1, 300, 300, 64, 64]) }, 128, false, 2),
        forced(Case { causal: true, ..sizes([1, 1, 1, 200, 200, 64, 128]) }, 64, true, 2),
        forced(Case { layout: Layout::Split, ..sizes([2, 1, 1, 70, 290, 128, 64]) }, 128, true, 1),
        forced(
            Case { mask: Mask::Float, dtype: DType::F16, ..sizes([1, 2, 2, 40, 150, 64, 64]) },
            128,
            false,
            1,
        ),
        forced(
            Case {
                mask: Mask::Bool,
                causal: true,
                scale: -0.2,
                ..sizes([1, 1, 1, 150, 30, 64, 64])
            },
            64,
            false,
            1,
        ),
        forced(Case { mask: Mask::Lowest, ..sizes([1, 1, 1, 30, 290, 64, 64]) }, 128, false, 1),
        forced(sizes([1, 2, 1, 3, 0, 64, 64]), 128, false, 2),
    ]);
}

#[test]
fn choices_compute_what_they_are_chosen_for() {
    let sizes = |dtype, sizes| chosen(Case { dtype, sizes, causal: true, ..BASE });
    check(&[
        sizes(DType::BF16, [1, 2, 1, 40, 40, 128, 128]),
        sizes(DType::F16, [1, 1, 1, 20, 20, 256, 256]),
        sizes(DType::F32, [1, 2, 1, 40, 40, 64, 64]),
        sizes(DType::BF16, [1, 4, 2, 1, 200, 128, 128]),
        sizes(DType::F32, [1, 4, 2, 3, 20, 64, 64]),
        sizes(DType::BF16, [1, 1, 1, 1, 9, 600, 600]),
        sizes(DType::F16, [1, 2, 1, 9, 9, 64, 64]),
    ]);
}
