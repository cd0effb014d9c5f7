//! Who may compile what another compiler did not.
//!
//! Invariant: pure; the source and what it is to compute stay as they are, and each
//! compiler is given its own options and its own form of the target.

use kiln_proto::{BinaryKind, Target};

use super::{CompileInput, Compilers, MixedCompiler, Source, mixed};

/// Of Inductor's, the one whose artifacts run under a program's own memory.
const INDUCTOR: &str = "inductor-standalone";
const NATIVE: &str = "native";

impl Compilers {
    /// The request as the compiler of that name takes a piece of it.
    pub fn part(&self, name: &str, input: &CompileInput) -> CompileInput {
        let (for_native, for_inductor) = mixed::inputs(input);
        match name {
            NATIVE => for_native,
            INDUCTOR => for_inductor,
            _ => input.clone(),
        }
    }

    /// The compiler after the one of that name, with the request as it takes it.
    pub fn other(&self, name: &str, input: &CompileInput) -> Option<(&'static str, CompileInput)> {
        if !matches!(input.source, Source::Program { .. }) {
            return None;
        }
        let (for_native, for_inductor) = mixed::inputs(input);
        match name {
            NATIVE | MixedCompiler::NAME | MixedCompiler::WITH_EAGER | "eager" => {
                Some((INDUCTOR, for_inductor))
            }
            "inductor" | INDUCTOR if input.target.compute > 0 => {
                let target = Target { kind: BinaryKind::Cubin, ..input.target };
                Some((NATIVE, CompileInput { target, ..for_native }))
            }
            // No compiler of ours makes machine code of a CPU.
            _ => None,
        }
    }
}
