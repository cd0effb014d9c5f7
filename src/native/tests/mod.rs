//! The compiler as a whole, on archives that PyTorch wrote.

mod attend;
mod attention;
mod build;
mod core_ops;
mod decoding;
mod decompose;
mod emulator;
mod inputs;
mod keys;
mod models;
mod numerics;
mod operations;
mod overlaps;
mod product_kernels;
mod products;
mod random;
mod rows;
mod split;
mod static_size;
mod together;
mod twins;
mod updates;
mod wide;
mod writes;

use std::collections::BTreeMap;

use kiln_proto::{Failure, Target};

/// The emulator has no instructions of sm_90 alone.
const EMULATED: Target = Target::cubin(80);

use super::{Lowered, lower};

pub(super) fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/../../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn options(given: &[(&str, &str)]) -> BTreeMap<String, String> {
    given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn compile(name: &str, given: &[(&str, &str)]) -> Result<Lowered, Failure> {
    lower(&fixture(name), &options(given), EMULATED)
}
