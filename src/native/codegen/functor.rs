//! Structures that carry a kernel's fused operations into a template.
//!
//! Invariant: a structure has what its text names: pointers by their place in
//! the kernel's parameters, symbols by number. What is known is an enumerator, not
//! a static member: NVRTC would store those in the module, in an order of its own.

use super::{Params, pointee};
use crate::{
    loops::{Loops, Source},
    size::Size,
};

/// Members of a structure and the values that its kernel gives them, in order.
#[derive(Debug, Default)]
pub(super) struct Members {
    declared: String,
    given: Vec<String>,
}

impl Members {
    /// All pointers and symbols of `params`.
    pub(super) fn of(loops: &Loops, params: &Params) -> Self {
        let mut members = Self::default();
        for (i, read) in params.reads.iter().enumerate() {
            let ty = format!("const {}*", pointee(loops, *read));
            let name = format!("r{}", params.first + i);
            members.member(&ty, &name, name.clone());
        }
        for (i, write) in params.writes.iter().enumerate() {
            let ty = format!("{}*", pointee(loops, Source::Temp(*write)));
            let name = format!("w{}", params.first_write + i);
            members.member(&ty, &name, name.clone());
        }
        members.symbols(params);
        members
    }

    /// The symbols of `params`.
    pub(super) fn symbols(&mut self, params: &Params) {
        for symbol in &params.symbols {
            self.member("kiln_index", &format!("s{symbol}"), format!("s{symbol}"));
        }
    }

    /// A size: a constant of the structure where it is known.
    pub(super) fn size(&mut self, params: &mut Params, name: &str, size: &Size) {
        match size.known() {
            Some(known) => {
                self.declared += &format!("enum : kiln_index {{ {name} = {known} }};\n");
            }
            None => {
                let value = params.size(size, &|_| String::new());
                self.member("kiln_index", name, value);
            }
        }
    }

    /// What is known to hold or not.
    pub(super) fn switch(&mut self, name: &str, on: bool) {
        self.declared += &format!("enum : bool {{ {name} = {on} }};\n");
    }

    /// A function.
    pub(super) fn function(&mut self, text: &str) {
        self.declared += text;
    }

    /// What is read through `value`.
    pub(super) fn pointer(&mut self, pointee: &str, name: &str, value: String) {
        self.member(&format!("const {pointee}*"), name, value);
    }

    fn member(&mut self, ty: &str, name: &str, value: String) {
        self.declared += &format!("{ty} {name};\n");
        self.given.push(value);
    }

    /// The definition of the structure `name`.
    pub(super) fn definition(&self, name: &str) -> String {
        format!("struct {name} {{\n{}}};\n", self.declared)
    }

    /// A value of the structure `name`.
    pub(super) fn value(&self, name: &str) -> String {
        format!("{name}{{{}}}", self.given.join(", "))
    }
}

/// A size for choosing among kernels: itself, or what symbols often are.
pub(super) fn typical(loops: &Loops, size: &Size) -> i64 {
    /// Of a symbol without bounds.
    const OFTEN: i64 = 512;
    let values: Vec<i64> =
        loops.symbols.iter().map(|range| OFTEN.clamp(range.min.max(0), range.max)).collect();
    size.known().or_else(|| size.value(&values)).unwrap_or(OFTEN)
}
