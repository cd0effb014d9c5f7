//! A kernel's parameters, as its text is written.
//!
//! Invariant: what the text names is a parameter, once, and its place is that of
//! its first use.

use std::collections::BTreeSet;

use crate::{
    loops::Source,
    size::{Atom, Size},
};

/// What a kernel reads and writes, in the order of its parameters.
#[derive(Debug, Clone, Default)]
pub(super) struct Params {
    /// Place of the first read, where others come before.
    pub(super) first: usize,
    /// Place of the first write, where others come before.
    pub(super) first_write: usize,
    pub(super) reads: Vec<Source>,
    pub(super) writes: Vec<usize>,
    /// Symbols that the text names.
    pub(super) symbols: BTreeSet<usize>,
}

impl Params {
    /// The name of what is read.
    pub(super) fn read(&mut self, source: Source) -> String {
        let place = self.reads.iter().position(|read| *read == source).unwrap_or_else(|| {
            self.reads.push(source);
            self.reads.len() - 1
        });
        format!("r{}", self.first + place)
    }

    /// The name of what is written.
    pub(super) fn write(&mut self, temp: usize) -> String {
        let place = self.writes.iter().position(|write| *write == temp).unwrap_or_else(|| {
            self.writes.push(temp);
            self.writes.len() - 1
        });
        format!("w{}", self.first_write + place)
    }

    /// A size as text; `vars` has the names of variables.
    pub(super) fn size(&mut self, size: &Size, vars: &dyn Fn(&Atom) -> String) -> String {
        size.each_atom(&mut |atom| {
            if let Atom::Symbol(symbol) = atom {
                self.symbols.insert(*symbol);
            }
        });
        size.text(&|atom| match atom {
            Atom::Symbol(symbol) => format!("s{symbol}"),
            other => vars(other),
        })
    }
}
