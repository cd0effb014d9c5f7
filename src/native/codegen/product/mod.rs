//! Products of matrices with what follows from their elements.
//!
//! Invariant: the problem's structure says what is known and no more; a choice
//! changes how fast a product is, never what it is.

pub(crate) mod choose;
pub(crate) mod tiles;

use std::collections::BTreeMap;

use kiln_proto::{Failure, Target};

use self::choose::{Choice, CopyBox, Dense, Extent, Problem, Variant};
use super::{
    Emitted, Kernel, NAME,
    body::{Body, Params},
    bug,
    functor::{Members, typical},
    map::Split,
};
use crate::{
    loops::{Def, Loops, Matrix, Product, ROW},
    plan,
    schedule::Fused,
    size::{Atom, Size},
};

/// Neighbours that the epilogue takes at once.
const WIDE: i64 = 8;

pub(super) fn emit(
    loops: &mut Loops,
    fused: &Fused,
    temp: usize,
    stored: &[usize],
    target: Target,
) -> Result<Emitted, Failure> {
    let Def::Product(product) = loops.temps[temp].def.clone() else {
        return Err(bug("a product that is none"));
    };
    let problem = problem(loops, &product);
    let choice = choose::choose(&problem, target);
    let wide = product.n.power_of_two(WIDE) == WIDE && product.n.known().is_some();
    let lanes = if wide && choice.variant != Variant::Vector { WIDE } else { 1 };
    let split = Split::of(loops, fused, 2, lanes);
    let mut params = Params::default();
    let vars = BTreeMap::from([(0, "z".to_owned()), (1, "m".to_owned())]);
    let mut body = Body::new(&loops.exprs, &mut params, lanes, vars);
    body.define(temp, "x", true);
    for temp in stored {
        let (place, value) = &split.places[temp];
        body.store(*temp, place, *value, super::element_of(loops, *temp));
    }
    let (outer, inner) = (body.take_outer(), body.take_inner());
    let mut write = Members::of(loops, &params);
    write.function(&format!(
        "template <int V> __device__ __forceinline__ void row(kiln_index z, kiln_index m, \
         kiln_index n, const float (&x)[V]) const {{\n\
         static_assert(V == {lanes}, \"\");\n\
         const kiln_index c = n / {lanes};\n{outer}{inner}}}\n"
    ));
    let structure = structure(&mut params, &product, &problem, wide);
    // The operands are parameters of their own, even where the epilogue reads them too.
    let first = params.reads.len();
    params.reads.extend([product.a.source, product.b.source]);
    let (p, w) = (format!("{NAME}_problem"), format!("{NAME}_write"));
    let call = choice.call.replace("<P,", &format!("<{p},"));
    let text = format!(
        "const {p} p = {};\n{call}(r{first}, r{}, p, {});\n",
        structure.value(&p),
        first + 1,
        write.value(&w)
    );
    let along = |size: &Size, tile: i64| size.div_ceil(&Size::from(tile));
    let tiles = &along(&product.m, choice.tile[0]) * &along(&product.n, choice.tile[1]);
    let grid = &(&tiles * &product.batch) * &Size::from(i64::from(choice.split));
    let before = structure.definition(&p) + &write.definition(&w);
    let mut kernel = kernel(&choice, params, text);
    if let Some(boxes) = &choice.maps {
        let operands = [(&product.a, &product.m), (&product.b, &product.n)];
        for (place, (operand, copied)) in operands.into_iter().zip(boxes).enumerate() {
            let map = tensor_map(loops, operand, &product.k, copied);
            kernel.maps.push((first + place, map));
        }
    }
    Ok(Emitted { before, kernel, grid, variant: choice.why })
}

fn kernel(choice: &Choice, params: Params, text: String) -> Kernel {
    let mut attributes = format!("__launch_bounds__({}, {})", choice.threads, choice.blocks);
    if choice.split > 1 {
        attributes += &format!(" __cluster_dims__({}, 1, 1)", choice.split);
    }
    Kernel {
        parts: choice.sources().to_vec(),
        attributes,
        shared_bytes: choice.shared_bytes,
        ..Kernel::plain(NAME, "product", params, text, i64::from(choice.threads))
    }
}

/// The operand `matrix`, of `other` rows (or columns) of `k` elements, as the
/// tensor memory accelerator sees it. The plan says where it lies.
fn tensor_map(
    loops: &Loops,
    (matrix, other): (&Matrix, &Size),
    k: &Size,
    copied: &CopyBox,
) -> plan::TensorMap {
    let (sizes, stride) = match copied.inner {
        Dense::Reduced => ([k, other], &matrix.outer),
        Dense::Other | Dense::Neither => ([other, k], &matrix.reduced),
    };
    plan::TensorMap {
        memory: plan::Memory::Input(0),
        offset: matrix.offset.to_plan(),
        dtype: loops.dtype(matrix.source),
        sizes: sizes.map(Size::to_plan).to_vec(),
        strides: vec![stride.to_plan()],
        tile: copied.tile.to_vec(),
        swizzle: 128,
    }
}

fn problem(loops: &Loops, product: &Product) -> Problem {
    let extent =
        |size: &Size| Extent { typical: typical(loops, size), known: size.known().is_some() };
    let dtype = loops.dtype(product.a.source);
    let dense = |matrix: &Matrix| match matrix {
        Matrix { reduced, .. } if reduced.is(1) => Dense::Reduced,
        Matrix { outer, .. } if outer.is(1) => Dense::Other,
        _ => Dense::Neither,
    };
    let elements = 16 / dtype.bytes() as i64;
    let whole = |size: &Size| size.power_of_two(elements) == elements;
    let aligned = |matrix: &Matrix| {
        let step = if matrix.reduced.is(1) { &matrix.outer } else { &matrix.reduced };
        // A constant is an array of the module: no plan can say where it lies.
        let given = !loops.constants.contains(&matrix.source);
        given && dense(matrix) != Dense::Neither && whole(step) && whole(&matrix.offset)
    };
    Problem {
        m: extent(&product.m),
        n: extent(&product.n),
        k: extent(&product.k),
        batch: extent(&product.batch),
        dtype,
        a: dense(&product.a),
        b: dense(&product.b),
        aligned: aligned(&product.a) && aligned(&product.b),
    }
}

/// The problem as the templates read it: see `tensor.cu`.
fn structure(params: &mut Params, product: &Product, problem: &Problem, wide: bool) -> Members {
    let mut members = Members::default();
    let sizes = [
        ("M", &product.m),
        ("N", &product.n),
        ("K", &product.k),
        ("BATCH", &product.batch),
        ("AM", &product.a.outer),
        ("AK", &product.a.reduced),
        ("BN", &product.b.outer),
        ("BK", &product.b.reduced),
    ];
    for (name, size) in sizes {
        members.size(params, name, size);
    }
    let switches = [
        ("ALIGNED", problem.aligned),
        ("A_ALONG_K", problem.a == Dense::Reduced),
        ("A_ALONG_M", problem.a == Dense::Other),
        ("B_ALONG_K", problem.b == Dense::Reduced),
        ("B_ALONG_N", problem.b == Dense::Other),
        ("WIDE", wide),
    ];
    for (name, switch) in switches {
        members.constant("bool", name, &switch.to_string());
    }
    let mut offsets = Params::default();
    for (name, matrix) in [("A_BATCH", &product.a), ("B_BATCH", &product.b)] {
        let offset = offsets.size(&matrix.offset, &|atom| match atom {
            Atom::Var(ROW) => "z".to_owned(),
            _ => String::new(),
        });
        members.function(&format!(
            "__device__ __forceinline__ kiln_index {name}(kiln_index z) const {{ return {offset}; }}\n"
        ));
    }
    members.symbols(&offsets);
    params.symbols.extend(offsets.symbols);
    members
}
