//! Attention kernels with masks before the softmax and what follows after it.
//!
//! Invariant: the problem's structure says what is known and no more.

use kiln_proto::{Failure, Target, graph::DType};

use super::{Bounds, Problem, choose};
use crate::{
    codegen::{
        Emitted, Kernel, NAME, body::Body, bug, functor::Members, map::Split, params::Params, table,
    },
    loops::{Attention, Def, Domain, Heads, Id, Loops},
    schedule::Fused,
    size::{Bounds as Known, Size},
};

pub(crate) fn emit(
    loops: &mut Loops,
    fused: &Fused,
    temp: usize,
    stored: &[usize],
    target: Target,
) -> Result<Emitted, Failure> {
    let Def::Attention(attention) = loops.temps[temp].def.clone() else {
        return Err(bug("an attention that is none"));
    };
    let problem = problem(loops, &attention);
    let choice = choose(&problem, target);
    let (p, s, w) = (format!("{NAME}_problem"), format!("{NAME}_score"), format!("{NAME}_write"));
    let most = if problem.dtype == DType::F32 { 4 } else { 8 };
    let lanes = if attention.e % most == 0 { most } else { 1 };
    let mut params = Params::default();
    let wide = written(loops, fused, &mut params, (temp, stored), lanes);
    let each = written(loops, fused, &mut params, (temp, stored), 1);
    let mut write = Members::of(loops, &params);
    write.function(&write_row(lanes, &wide, &each));
    let mut masked = Params::default();
    let score = score(loops, &mut masked, &attention, params.reads.len());
    params.symbols.extend(masked.symbols.iter().copied());
    let problem_struct = structure(&mut params, &attention, &problem);
    params.reads.extend(masked.reads);
    let first = params.reads.len();
    let heads = [&attention.q, &attention.k, &attention.v];
    params.reads.extend(heads.map(|heads| heads.source));
    let operands: Vec<String> = heads
        .iter()
        .enumerate()
        .map(|(i, heads)| {
            let offset = params.size(&heads.offset, &|_| String::new());
            if offset == "0" {
                format!("r{}", first + i)
            } else {
                format!("r{} + ({offset})", first + i)
            }
        })
        .collect();
    let text = format!(
        "{}({}, {}, {}, {});\n",
        choice.call(&p),
        operands.join(", "),
        problem_struct.value(&p),
        score.value(&s),
        write.value(&w)
    );
    let rows = attention.rows.div_ceil(&Size::from(choice.grid.rows as i64));
    let heads = &attention.batch * &Size::from(attention.heads / choice.grid.heads as i64);
    let blocks = &(&rows * &heads) * &Size::from(choice.grid.times as i64);
    let grid = match choice.grid.most {
        Some(most) => blocks.min_of(&Size::from(most as i64)),
        None => blocks,
    };
    let before = problem_struct.definition(&p) + &score.definition(&s) + &write.definition(&w);
    let attributes = format!(
        "__launch_bounds__({}, {}) {}",
        choice.threads, choice.blocks_per_sm, choice.attributes
    );
    let kernel = Kernel {
        parts: choice.sources.clone(),
        attributes,
        shared_bytes: choice.shared_bytes,
        ..Kernel::plain(NAME, "attention", params, text, i64::from(choice.threads))
    };
    Ok(Emitted { before, kernel, grid, variant: choice.why })
}

/// The statements that store what follows from `lanes` neighbours of the output.
fn written(
    loops: &mut Loops,
    fused: &Fused,
    params: &mut Params,
    (temp, stored): (usize, &[usize]),
    lanes: i64,
) -> String {
    let split = Split::of(loops, fused, 3, lanes);
    let vars = ["b", "h", "i"].iter().enumerate().map(|(i, v)| (i, (*v).to_owned()));
    let mut body = Body::new(&loops.exprs, params, lanes, vars.collect());
    body.define(temp, "x", true);
    for temp in stored {
        let (place, value) = &split.places[temp];
        body.store(*temp, place, *value, crate::codegen::element_of(loops, *temp));
    }
    body.take_outer() + &body.take_inner()
}

/// As many neighbours as the template has are taken at once, others one by one.
fn write_row(lanes: i64, wide: &str, each: &str) -> String {
    format!(
        "template <int V> __device__ __forceinline__ void row(kiln_index b, kiln_index h, \
         kiln_index i, kiln_index e, const float (&values)[V]) const {{\n\
         if constexpr (V == {lanes}) {{\nconst auto& x = values;\n\
         const kiln_index c = e / {lanes};\n{wide}}} else {{\n\
         for (int lane = 0; lane < V; ++lane) {{\nconst float x[1] = {{values[lane]}};\n\
         const kiln_index c = e + lane;\n{each}}}\n}}\n}}\n"
    )
}

fn problem(loops: &Loops, attention: &Attention) -> Problem {
    let dtype = loops.dtype(attention.q.source);
    let known = Known { symbols: &loops.symbols, vars: &[] };
    let bounds = |size: &Size| match size.known() {
        Some(size) => Bounds::known(size.max(0) as u64),
        None => {
            let least = [64i64, 16, 9, 1]
                .into_iter()
                .find(|least| known.is_nonnegative(&(size - &Size::from(*least))));
            let most = loops.most(size).map_or(u64::MAX, |most| most.max(0) as u64);
            Bounds { least: least.unwrap_or(0) as u64, most }
        }
    };
    let elements = 16 / dtype.bytes() as i64;
    let whole = |size: &Size| size.power_of_two(elements) == elements;
    let aligned = |heads: &Heads, sizes: [&Size; 3]| {
        let steps = heads.strides.iter().zip(sizes).all(|(step, size)| size.is(1) || whole(step));
        steps && whole(&heads.offset)
    };
    let heads = Size::from(attention.heads);
    let groups = Size::from(attention.heads / attention.group.max(1));
    let aligned = aligned(&attention.q, [&attention.batch, &heads, &attention.rows])
        && aligned(&attention.k, [&attention.batch, &groups, &attention.keys])
        && aligned(&attention.v, [&attention.batch, &groups, &attention.keys]);
    Problem {
        dtype,
        batch: bounds(&attention.batch),
        heads: attention.heads as u64,
        group: attention.group as u64,
        rows: bounds(&attention.rows),
        keys: bounds(&attention.keys),
        d: attention.d as u64,
        e: attention.e as u64,
        aligned,
    }
}

/// The problem as the templates read it: see `common.cu`.
fn structure(params: &mut Params, attention: &Attention, problem: &Problem) -> Members {
    let mut members = Members::default();
    let number = |number: i64| Size::from(number);
    let [qb, qh, qs] = &attention.q.strides;
    let [kb, kg, kt] = &attention.k.strides;
    let [vb, vg, vt] = &attention.v.strides;
    let sizes = [
        ("B", &attention.batch),
        ("H", &number(attention.heads)),
        ("S", &attention.rows),
        ("T", &attention.keys),
        ("D", &number(attention.d)),
        ("E", &number(attention.e)),
        ("GROUP", &number(attention.group)),
        ("QB", qb),
        ("QH", qh),
        ("QS", qs),
        ("KB", kb),
        ("KG", kg),
        ("KT", kt),
        ("VB", vb),
        ("VG", vg),
        ("VT", vt),
    ];
    for (name, size) in sizes {
        members.size(params, name, size);
    }
    members.function(&format!(
        "static __device__ constexpr float scale() {{ return {}; }}\n",
        table::literal(Domain::Float, attention.scale)
    ));
    members.switch("CAUSAL", attention.causal);
    members.switch("ALIGNED", problem.aligned);
    members
}

/// What masks make of a score. Its reads come after `first` others.
fn score(loops: &Loops, params: &mut Params, attention: &Attention, first: usize) -> Members {
    let Some(mask) = attention.mask else {
        let mut members = Members::default();
        members.switch("NONE", true);
        members.switch("EMPTY_ZERO", attention.empty_zero);
        members.function(&operator("", "return x;"));
        return members;
    };
    let boolean = loops.exprs.domain(mask) == Domain::Bool;
    let vars = ["b", "h", "i", "j"].iter().enumerate().map(|(i, v)| (i, (*v).to_owned()));
    // Places are given out as in the kernel: those before belong to the epilogue.
    params.first = first;
    let mut body = Body::new(&loops.exprs, params, 1, vars.collect());
    let value = scalar(&mut body, mask);
    let (outer, inner) = (body.take_outer(), body.take_inner());
    let mut members = Members::of(loops, params);
    members.switch("NONE", false);
    members.switch("EMPTY_ZERO", attention.empty_zero);
    let given = match boolean {
        true => {
            format!("return {value} ? x : {};", table::literal(Domain::Float, attention.hidden))
        }
        false => format!("return x + {value};"),
    };
    members.function(&operator(&format!("{outer}{inner}"), &given));
    members
}

fn scalar(body: &mut Body<'_>, id: Id) -> String {
    body.value(id).replace("[v]", "[0]")
}

fn operator(statements: &str, given: &str) -> String {
    format!(
        "__device__ __forceinline__ float operator()(kiln_index b, kiln_index h, kiln_index i, \
         kiln_index j, float x) const {{\n{statements}{given}\n}}\n"
    )
}
