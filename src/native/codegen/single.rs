//! Running sums and selections: a block for each row.
//!
//! Invariant: every thread of a block takes part in every step, whether or not
//! it has a column.

use std::collections::BTreeMap;

use super::{Emitted, Kernel, body::Body, map::Split, params::Params, table};
use crate::{
    loops::{COLUMN, Def, Domain, Id, Loops, ROW},
    schedule::Fused,
    size::Size,
};

const THREADS: i64 = 256;

pub(super) fn emit(loops: &mut Loops, fused: &Fused, temp: usize, name: &str) -> Emitted {
    let split = Split::of(loops, fused, COLUMN, 1);
    let value = split.places[&temp].1;
    let mut params = Params::default();
    let (text, rows) = match loops.temps[temp].def.clone() {
        Def::Scan { domain, rows, columns, .. } => {
            (scan(loops, &mut params, temp, value, domain, &columns), rows)
        }
        Def::TopK { k, largest, positions, rows, columns, .. } => {
            let kind = (k, largest, positions);
            (top_k(loops, &mut params, temp, value, kind, &columns), rows)
        }
        _ => (String::new(), Size::default()),
    };
    let text = format!("const kiln_index row = blockIdx.x;\n{text}");
    Emitted {
        before: String::new(),
        kernel: Kernel::plain(name, "rows", params, text, THREADS),
        grid: rows,
        variant: "a block for each row".to_owned(),
    }
}

fn body<'a>(loops: &'a Loops, params: &'a mut Params) -> Body<'a> {
    Body::new(&loops.exprs, params, 1, BTreeMap::from([(ROW, "row".to_owned())]))
}

fn scan(
    loops: &Loops,
    params: &mut Params,
    temp: usize,
    value: Id,
    domain: Domain,
    columns: &Size,
) -> String {
    let register = table::register(domain);
    let mut body = body(loops, params);
    let x = body.value(value).replace("[v]", "[0]");
    let (outer, inner) = (body.take_outer(), body.take_inner());
    let limit = params.size(columns, &|_| String::new());
    let to = params.write(temp);
    format!(
        "__shared__ {register} parts[2][{THREADS}];\n\
         {outer}{register} carry = 0;\n\
         for (kiln_index start = 0; start < {limit}; start += {THREADS}) {{\n\
         const kiln_index c = start + threadIdx.x;\n\
         {register} sum = 0;\n\
         if (c < {limit}) {{\n{inner}sum = {x};\n}}\n\
         parts[0][threadIdx.x] = sum;\n\
         __syncthreads();\n\
         int now = 0;\n\
         for (int step = 1; step < {THREADS}; step *= 2, now ^= 1) {{\n\
         sum = parts[now][threadIdx.x];\n\
         if (threadIdx.x >= step) sum = parts[now][threadIdx.x - step] + sum;\n\
         parts[now ^ 1][threadIdx.x] = sum;\n\
         __syncthreads();\n\
         }}\n\
         sum = carry + parts[now][threadIdx.x];\n\
         carry = carry + parts[now][{THREADS} - 1];\n\
         if (c < {limit}) kiln_set({to}[row * ({limit}) + c], sum);\n\
         __syncthreads();\n\
         }}\n"
    )
}

fn top_k(
    loops: &Loops,
    params: &mut Params,
    temp: usize,
    value: Id,
    (k, largest, positions): (i64, bool, bool),
    columns: &Size,
) -> String {
    let domain = loops.exprs.domain(value);
    let register = table::register(domain);
    let order = if largest { "kiln_first_greatest" } else { "kiln_last_greatest" };
    let mut body = body(loops, params);
    let x = body.value(value).replace("[v]", "[0]");
    let (outer, inner) = (body.take_outer(), body.take_inner());
    let limit = params.size(columns, &|_| String::new());
    let to = params.write(temp);
    let given = if positions { "best.at" } else { "best.value" };
    // Each round takes the best of those that come after the last one taken.
    format!(
        "{outer}kiln_best<{register}> last = {{}};\n\
         for (int i = 0; i < {k}; ++i) {{\n\
         kiln_best<{register}> best = {{{register}(), KILN_INT_MAX}};\n\
         for (kiln_index c = threadIdx.x; c < {limit}; c += {THREADS}) {{\n{inner}\
         const kiln_best<{register}> next = {{{x}, (kiln_int)c}};\n\
         const bool after = i == 0 || (next.at != last.at && {order}{{}}(last, next).at == last.at);\n\
         if (after) best = best.at == KILN_INT_MAX ? next : {order}{{}}(best, next);\n\
         }}\n\
         best = kiln_across<{THREADS}, {order}>(best);\n\
         last = best;\n\
         if (threadIdx.x == 0) kiln_set({to}[row * {k} + i], {given});\n\
         }}\n"
    )
}
