//! Running sums and selections: a block for each row, or where many are wanted in order, a block
//! for each chunk of a row, and then a thread for each element.
//!
//! Invariant: every thread of a block takes part in every step, whether or not
//! it has a column.

use std::collections::BTreeMap;

use super::{Emitted, Kernel, body::Body, map::Split, params::Params, table};
use crate::{
    loops::{COLUMN, Def, Domain, Id, Loops, ROW, Source},
    schedule::Fused,
    size::Size,
};

/// Threads of a block, at most.
const THREADS: i64 = 256;
/// Columns of a short row.
const SHORT: i64 = 256;
/// Elements that a block sorts by itself.
const LEAST_SORTED: i64 = 64;
const MOST_SORTED: i64 = 1024;

pub(super) fn emit(loops: &mut Loops, fused: &Fused, temp: usize, name: &str) -> Emitted {
    let split = Split::of(loops, fused, COLUMN, 1);
    let value = split.places[&temp].1;
    let mut params = Params::default();
    match loops.temps[temp].def.clone() {
        Def::Runs { largest, rows, columns, .. } => {
            let sorted = Sorted { rows, columns, largest, value };
            return sorted.runs(loops, params, temp, name);
        }
        Def::TopK { k, largest, positions, rows, columns, runs: Some(runs), .. } => {
            let sorted = Sorted { rows, columns, largest, value };
            return sorted.merged(loops, params, temp, (runs, k, positions), name);
        }
        _ => {}
    }
    let threads = match &loops.temps[temp].def {
        Def::TopK { columns, .. } => threads_of(columns),
        _ => THREADS,
    };
    let (text, rows) = match loops.temps[temp].def.clone() {
        Def::Scan { domain, rows, columns, .. } => {
            (scan(loops, &mut params, temp, value, domain, &columns), rows)
        }
        Def::TopK { k, largest, positions, rows, columns, .. } => {
            let kind = (k, largest, positions);
            (top_k(loops, &mut params, (temp, value), kind, &columns, threads), rows)
        }
        _ => (String::new(), Size::default()),
    };
    let text = format!("const kiln_index row = blockIdx.x;\n{text}");
    Emitted {
        before: String::new(),
        kernel: Kernel::plain(name, "rows", params, text, threads),
        grid: rows,
        variant: format!("a block of {threads} threads for each row"),
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

/// Threads that find the first of a row: of a short one, a warp, which need not wait for others.
fn threads_of(columns: &Size) -> i64 {
    match columns.known() {
        Some(columns) if columns <= SHORT => 32,
        _ => THREADS,
    }
}

fn top_k(
    loops: &Loops,
    params: &mut Params,
    (temp, value): (usize, Id),
    (k, largest, positions): (i64, bool, bool),
    columns: &Size,
    threads: i64,
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
         for (kiln_index c = threadIdx.x; c < {limit}; c += {threads}) {{\n{inner}\
         const kiln_best<{register}> next = {{{x}, (kiln_int)c}};\n\
         const bool after = i == 0 || (next.at != last.at && {order}{{}}(last, next).at == last.at);\n\
         if (after) best = best.at == KILN_INT_MAX ? next : {order}{{}}(best, next);\n\
         }}\n\
         best = kiln_across<{threads}, {order}>(best);\n\
         last = best;\n\
         if (threadIdx.x == 0) kiln_set({to}[row * {k} + i], {given});\n\
         }}\n"
    )
}

/// Rows to be put in order.
struct Sorted {
    rows: Size,
    columns: Size,
    largest: bool,
    /// An element of them.
    value: Id,
}

impl Sorted {
    /// Elements that a block sorts.
    fn chunk(&self) -> i64 {
        let columns = self.columns.known().unwrap_or(MOST_SORTED).clamp(LEAST_SORTED, MOST_SORTED);
        (columns as u64).next_power_of_two() as i64
    }

    fn order(&self) -> &'static str {
        if self.largest { "kiln_first_greatest" } else { "kiln_last_greatest" }
    }

    /// What gives element `c` of the row, as text, and its type.
    fn elements(&self, loops: &Loops, params: &mut Params) -> (String, &'static str) {
        let register = table::register(loops.exprs.domain(self.value));
        let mut body = body(loops, params);
        let x = body.value(self.value).replace("[v]", "[0]");
        let (outer, inner) = (body.take_outer(), body.take_inner());
        let text = format!(
            "{outer}auto element = [&](kiln_index c) -> {register} {{\n{inner}return {x};\n}};\n"
        );
        (text, register)
    }

    fn emitted(params: Params, name: &str, text: String, grid: Size, variant: String) -> Emitted {
        let kernel = Kernel {
            parts: vec![include_str!("sort.cu")],
            ..Kernel::plain(name, "rows", params, text, THREADS)
        };
        Emitted { before: String::new(), kernel, grid, variant }
    }

    fn runs(&self, loops: &Loops, mut params: Params, temp: usize, name: &str) -> Emitted {
        let (chunk, order) = (self.chunk(), self.order());
        let (elements, register) = self.elements(loops, &mut params);
        let chunks = self.columns.div_ceil(&Size::from(chunk));
        let [count, limit] =
            [&chunks, &self.columns].map(|size| params.size(size, &|_| String::new()));
        let to = params.write(temp);
        let text = format!(
            "const kiln_index row = (kiln_index)blockIdx.x / ({count});\n{elements}\
             kiln_sort_chunk<{chunk}, {order}, {register}>(element, {limit}, \
             (kiln_index)blockIdx.x % ({count}), {to} + row * ({limit}));\n"
        );
        let variant = format!("chunks of {chunk} in order");
        Self::emitted(params, name, text, &self.rows * &chunks, variant)
    }

    fn merged(
        &self,
        loops: &Loops,
        mut params: Params,
        temp: usize,
        (runs, k, positions): (usize, i64, bool),
        name: &str,
    ) -> Emitted {
        let (chunk, order) = (self.chunk(), self.order());
        let (elements, register) = self.elements(loops, &mut params);
        let blocks = self.columns.div_ceil(&Size::from(THREADS));
        let [count, limit] =
            [&blocks, &self.columns].map(|size| params.size(size, &|_| String::new()));
        let (from, to) = (params.read(Source::Temp(runs)), params.write(temp));
        let given = if positions { "one.at" } else { "one.value" };
        let text = format!(
            "const kiln_index row = (kiln_index)blockIdx.x / ({count});\n{elements}\
             const kiln_index own = (kiln_index)blockIdx.x % ({count}) * {THREADS} + threadIdx.x;\n\
             kiln_merge_chunks<{chunk}, {order}, {register}>(element, {from} + row * ({limit}), \
             {limit}, {k}, own, [&](kiln_index place, kiln_best<{register}> one) {{\n\
             kiln_set({to}[row * {k} + place], {given});\n}});\n"
        );
        let variant = format!("chunks of {chunk} joined in order");
        Self::emitted(params, name, text, &self.rows * &blocks, variant)
    }
}
