//! Products of matrices with what follows from their elements.
//!
//! Invariant: the problem's structure says what is known and no more; a choice
//! changes how fast a product is, never what it is.

mod alike;
pub(crate) mod choose;
pub(crate) mod tiles;
mod twins;

use std::collections::BTreeMap;

use kiln_proto::{Failure, Target};

use self::{
    alike::joined,
    choose::{Choice, CopyBox, Dense, Extent, Grouped, Problem, Variant},
};
use super::{
    Emitted, Kernel, NAME,
    beside::{self, Beside, Persistent},
    body::Body,
    bug,
    functor::{Members, typical},
    map::Split,
    params::Params,
    table,
};
use crate::{
    loops::{Loops, Matrix, Product, ROW, Source, domain_of},
    plan,
    schedule::{self, Fused, Group, Space},
    size::{Atom, Size},
};

/// Neighbours that the epilogue takes at once.
const WIDE: i64 = 8;
/// Loads for each of them that are made before the sums are there.
const MOST_EARLY: usize = 4;

pub(super) use twins::twins;

/// One of the products of a launch, or two whose elements meet.
struct Part {
    temps: Vec<usize>,
    products: Vec<Product>,
    fused: Fused,
    problem: Problem,
}

/// The launch of `parts`, products of one matrix side by side.
pub(super) fn emit(
    loops: &mut Loops,
    parts: &[Group],
    stored: &[usize],
    target: Target,
) -> Result<Emitted, Failure> {
    let parts = parts.iter().map(|group| part(loops, group)).collect::<Result<Vec<_>, _>>()?;
    let problem = together(&parts).ok_or_else(|| bug("a launch of no products"))?;
    let choice = match parts[0].temps[..] {
        [first, second] => {
            twins::choice(loops, [first, second], target)
                .ok_or_else(|| bug("twins that are none"))?
                .1
        }
        _ => choose::choose(&problem, target),
    };
    let mut params = Params::default();
    let (mut calls, mut maps) = (Vec::new(), Vec::new());
    for (index, part) in parts.iter().enumerate() {
        let own: Vec<usize> =
            stored.iter().copied().filter(|temp| part.fused.places.contains_key(temp)).collect();
        let (call, own_maps) = one(loops, part, &own, &choice, &mut params, index);
        calls.push(call);
        maps.extend(own_maps);
    }
    // Each copy of that template takes the compiler long; the others are told their operands
    // by the parameters themselves.
    if choice.variant == Variant::Cores {
        calls = joined(calls, &mut params);
    }
    let (mut before, mut beside) = (String::new(), Beside::default());
    for call in calls {
        before += &call.structures;
        beside.add(&mut params, call.text, &call.grid);
    }
    let (text, grid) = match choice.variant {
        Variant::Persistent { stages, groups } => {
            let begin = format!("kiln_pipe pipe;\nkiln_pipe_begin<{groups}, {stages}>();\n");
            let most = choose::PROCESSORS;
            beside.persistent(&mut params, Persistent { begin: &begin, most })
        }
        _ => beside.done(),
    };
    let twins = if parts[0].temps.len() == 2 { "; two of one tile" } else { "" };
    let variant = choice.why.clone() + twins + &beside::shown(parts.len());
    let kernel = Kernel { maps, ..kernel(&choice, params, text) };
    Ok(Emitted { before, kernel, grid, variant })
}

fn part(loops: &mut Loops, group: &Group) -> Result<Part, Failure> {
    let none = || bug("a product that is none");
    let temps = match group.space {
        Space::Product { temp } => vec![temp],
        Space::Twins { temps } => temps.to_vec(),
        _ => return Err(none()),
    };
    let products: Option<Vec<Product>> =
        temps.iter().map(|temp| twins::product(loops, *temp).cloned()).collect();
    let products = products.ok_or_else(none)?;
    let fused = schedule::fused(loops, group).ok_or_else(none)?;
    let problem = problem(loops, products.first().ok_or_else(none)?);
    Ok(Part { temps, products, fused, problem })
}

/// What is to be chosen for all of them.
fn together(parts: &[Part]) -> Option<Problem> {
    let (first, others) = parts.split_first()?;
    let mut problem = first.problem;
    for (beside, other) in problem.beside.iter_mut().zip(others) {
        *beside = other.problem.n.typical;
    }
    problem.aligned = parts.iter().all(|part| part.problem.aligned);
    Some(problem)
}

/// Adds what one product reads and writes to `params`: its text, and its tensor maps.
fn one(
    loops: &mut Loops,
    part: &Part,
    stored: &[usize],
    choice: &Choice,
    params: &mut Params,
    index: usize,
) -> (alike::Part, Vec<(usize, plan::TensorMap)>) {
    let Part { temps, products, fused, .. } = part;
    let product = &products[0];
    let wide = product.n.power_of_two(WIDE) == WIDE && product.n.known().is_some();
    let few = matches!(choice.variant, Variant::Vector | Variant::Stream);
    let lanes = if wide && !few { WIDE } else { 1 };
    let split = Split::of(loops, fused, 2, lanes);
    let (first, first_write) = (params.reads.len(), params.writes.len());
    let mut own = Params { first, first_write, ..Params::default() };
    let vars = BTreeMap::from([(0, "z".to_owned()), (1, "m".to_owned())]);
    let mut body = Body::new(&loops.exprs, &mut own, lanes, vars);
    let sums = ["x", "y"];
    for (temp, name) in temps.iter().zip(sums) {
        body.define(*temp, name, true);
    }
    let persistent = matches!(choice.variant, Variant::Persistent { .. });
    if persistent {
        let values = stored.iter().map(|temp| split.places[temp].1).collect();
        body.load_early(values, MOST_EARLY);
    }
    let early = body.take_straight();
    for temp in stored {
        let (place, value) = &split.places[temp];
        body.store(*temp, place, *value, super::element_of(loops, *temp));
    }
    let (outer, inner) = (body.take_outer(), body.take_inner());
    let register = table::register(domain_of(loops.dtype(product.a.source)));
    let mut write = Members::of(loops, &own);
    let sums: Vec<String> =
        sums[..temps.len()].iter().map(|name| format!("const {register} (&{name})[V]")).collect();
    let sums = sums.join(", ");
    let place = "kiln_index z, kiln_index m, kiln_index n";
    let begin = format!("static_assert(V == {lanes}, \"\");\nconst kiln_index c = n / {lanes};\n");
    write.function(&format!(
        "template <int V> __device__ __forceinline__ void row({place}, {sums}) const {{\n\
         {begin}{outer}{early}{inner}}}\n"
    ));
    if persistent {
        write.function(&format!(
            "template <int V> __device__ __forceinline__ auto early({place}) const {{\n\
             {begin}{outer}{early}return [=, *this]({sums}) {{\n{inner}}};\n}}\n"
        ));
    }
    // The operands are parameters of their own, even where the epilogue reads them too.
    let operands = first + own.reads.len();
    let ends = operands + 1 + products.len();
    let structure = structure(loops, &mut own, part, wide, choice, ends);
    own.reads.push(product.a.source);
    own.reads.extend(products.iter().map(|product| product.b.source));
    own.reads.extend(product.groups.as_ref().map(|groups| groups.ends));
    let number = if index == 0 { String::new() } else { index.to_string() };
    let (p, w) = (format!("{NAME}_problem{number}"), format!("{NAME}_write{number}"));
    let template = choice.call.replace("<P,", &format!("<{p},"));
    let mut maps = Vec::new();
    if let Some(boxes) = &choice.maps {
        let [of_a, of_b] = boxes;
        let map = tensor_map(loops, (&product.a, &product.m), &product.k, of_a);
        maps.push((operands, map));
        for (place, product) in products.iter().enumerate() {
            maps.push((operands + 1 + place, map_of_columns(loops, product, of_b)));
        }
    }
    let elements = |reads: &[Source]| reads.iter().map(|of| super::pointee(loops, *of)).collect();
    let written: Vec<Source> = own.writes.iter().map(|temp| Source::Temp(*temp)).collect();
    let reads = (first..first + own.reads.len(), elements(&own.reads));
    let writes = (first_write..first_write + written.len(), elements(&written));
    params.reads.append(&mut own.reads);
    params.writes.append(&mut own.writes);
    params.symbols.append(&mut own.symbols);
    let along = |size: &Size, tile: i64| size.div_ceil(&Size::from(tile));
    let mut down = along(&product.m, choice.tile[0]);
    if let Some(groups) = &product.groups {
        // A tile of each group, and of what is behind the last, may be cut off; none is empty.
        down = (&(&down + &groups.count) + &Size::from(1)).min_of(&product.m);
    }
    let tiles = &down * &along(&product.n, choice.tile[1]);
    let also = format!("r{}", operands + products.len());
    let (pipe, also) = match choice.variant {
        Variant::Persistent { .. } => ("pipe, ", format!(", {also}")),
        Variant::Vector | Variant::Stream if products.len() == 2 => ("", format!(", {also}")),
        _ => ("", String::new()),
    };
    let call = format!(
        "const {p} p = {};\n{template}(r{operands}, r{}, p, {}, {pipe}block{also});\n",
        structure.value(&p),
        operands + 1,
        write.value(&w)
    );
    let part = alike::Part {
        reads,
        writes,
        index,
        structures: structure.definition(&p) + &write.definition(&w),
        text: call,
        grid: &(&tiles * &product.batch) * &Size::from(i64::from(choice.split)),
    };
    (part, maps)
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
        waits: matches!(
            choice.variant,
            Variant::Vector | Variant::Stream | Variant::Wgmma | Variant::Persistent { .. }
        ),
        ..Kernel::plain(NAME, "product", params, text, i64::from(choice.threads))
    }
}

/// The operand b as the accelerator sees it: of groups all matrices, one behind the other.
fn map_of_columns(loops: &Loops, product: &Product, copied: &CopyBox) -> plan::TensorMap {
    let Product { b, n, k, groups, .. } = product;
    let Some((groups, rows)) = groups.as_ref().zip(rows_of_groups(b)) else {
        return tensor_map(loops, (b, n), k, copied);
    };
    let before = &(&groups.count - &Size::from(1)) * &Size::from(rows.rows);
    let first = Matrix { offset: rows.first, ..b.clone() };
    match copied.inner {
        Dense::Reduced => tensor_map(loops, (&first, &(&before + n)), k, copied),
        Dense::Other | Dense::Neither => tensor_map(loops, (&first, n), &(&before + k), copied),
    }
}

/// Where the matrices of groups lie.
struct RowsOfGroups {
    /// Elements before the first.
    first: Size,
    /// From one to the next, in rows (or columns) of the dimension that is not dense.
    rows: i64,
}

/// `None`: not as one matrix that has all of them.
fn rows_of_groups(b: &Matrix) -> Option<RowsOfGroups> {
    let (from_each, first) = b.offset.linear_in(&Atom::Var(ROW))?;
    let step = if b.reduced.is(1) { &b.outer } else { &b.reduced };
    let (from_each, step) = (from_each.known()?, step.known()?);
    let whole = step > 0 && from_each > 0 && from_each % step == 0;
    let outside = !first.any(&|atom| matches!(atom, Atom::Var(_)));
    (whole && outside).then(|| RowsOfGroups { first, rows: from_each / step })
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
        // Of one row (or column) the stride is never taken, but must be valid.
        strides: vec![if stride.is(0) { plan::Expr::Known(64) } else { stride.to_plan() }],
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
    let aligned = |matrix: &Matrix, other: &Size| {
        let step = if matrix.reduced.is(1) { &matrix.outer } else { &matrix.reduced };
        // Repeated rows have no stride that a tensor map takes.
        let repeated = step.is(0) && !other.is(1);
        // A constant is an array of the module: no plan can say where it lies.
        let given = !loops.constants.contains(&matrix.source);
        given
            && !repeated
            && dense(matrix) != Dense::Neither
            && whole(step)
            && whole(&matrix.offset)
    };
    Problem {
        beside: [0; 3],
        m: extent(&product.m),
        n: extent(&product.n),
        k: extent(&product.k),
        batch: extent(&product.batch),
        dtype,
        a: dense(&product.a),
        b: dense(&product.b),
        // A group may begin at any row.
        aligned: (product.groups.is_none() || dense(&product.a) == Dense::Reduced)
            && aligned(&product.a, &product.m)
            && aligned(&product.b, &product.n),
        groups: product.groups.as_ref().map(|groups| Grouped {
            count: typical(loops, &groups.count),
            // What lies behind a matrix is of the next one: a step along k must not reach it.
            as_one: rows_of_groups(&product.b).is_some()
                && (product.b.reduced.is(1) || product.k.power_of_two(64) == 64),
        }),
    }
}

/// The problem as the templates read it: see `tensor.cu`.
fn structure(
    loops: &Loops,
    params: &mut Params,
    part: &Part,
    wide: bool,
    choice: &Choice,
    ends: usize,
) -> Members {
    let Part { products, problem, .. } = part;
    let product = &products[0];
    let given = |product: &Product| loops.settled.contains(&product.b.source);
    let whole = |extent: Extent, tile: i64| extent.known && extent.typical % tile == 0;
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
        ("B_GIVEN", products.iter().all(given)),
        ("TWIN", products.len() == 2),
        ("ROWS_WHOLE", product.groups.is_none() && whole(problem.m, choice.tile[0])),
        ("COLUMNS_WHOLE", whole(problem.n, choice.tile[1])),
    ];
    for (name, switch) in switches {
        members.switch(name, switch);
    }
    if let Some([of_a, _]) = &choice.maps {
        members.size(params, "A_BOX", &Size::from(i64::from(of_a.tile[1])));
    }
    // Of all functions: a structure has each symbol once.
    let mut offsets = Params::default();
    members.switch("GROUPED", product.groups.is_some());
    if let Some(groups) = &product.groups {
        members.size(params, "GROUPS", &groups.count);
        let rows = rows_of_groups(&product.b).map_or(0, |rows| rows.rows);
        members.size(params, "B_ROWS", &Size::from(rows));
        members.pointer(super::pointee(loops, groups.ends), "ends", format!("r{ends}"));
        let at = &groups.offset + &(&groups.step * &Size::var(ROW));
        let at = offsets.size(&at, &|_| "z".to_owned());
        members.function(&format!(
            "__device__ __forceinline__ kiln_index end(kiln_index z) const {{ \
             return (kiln_index)kiln_widen(ends[{at}]); }}\n"
        ));
    }
    if choice.variant == Variant::Cores {
        // Of the dimension along which four neighbours are read.
        let along = |dense: Dense, other| if dense == Dense::Other { other } else { &product.k };
        let fours = |size: &Size| size.power_of_two(4) == 4;
        members.switch("A_FOURS", fours(along(problem.a, &product.m)));
        members.switch("B_FOURS", fours(along(problem.b, &product.n)));
    }
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
