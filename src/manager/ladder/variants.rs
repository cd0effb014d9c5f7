//! The request of each rung.
//!
//! Invariant: pure; what a rung asks for follows from the request and the compiler that it
//! was for. `None`: there is no such way, or the caller does not want it.

use std::sync::Arc;

use kiln_proto::Target;

use super::{FallbackPolicy, Rung};
use crate::{
    check::Verify,
    compiler::{
        CompileInput, Compiler, Compilers, EagerCompiler, MixedCompiler, Piecewise, Source,
        StitchPiece,
    },
    manager::Request,
};

/// A request that failed, as far as it came.
pub(super) struct Failed<'r> {
    pub(super) request: &'r Request,
    /// Which compiler it was for.
    pub(super) compiler: &'r dyn Compiler,
    /// It was in pieces.
    pub(super) in_pieces: bool,
    /// A node of the cluster has both `native` and Inductor.
    pub(super) has_mixed: bool,
}

/// What a rung asks for.
pub(super) fn request(rung: Rung, failed: &Failed<'_>, compilers: &Compilers) -> Option<Request> {
    let Failed { request, compiler, in_pieces, has_mixed } = *failed;
    if !allows(request, rung) {
        return None;
    }
    let with_options = |options| {
        let mut changed = request.clone();
        changed.input.options = options;
        changed
    };
    let is_program = matches!(request.input.source, Source::Program { .. });
    match rung {
        // The second is no request: see `patch`.
        Rung::Wanted | Rung::Patched => None,
        Rung::Again => Some(request.clone()),
        // A macro that is left out is another program.
        _ if !is_program => None,
        Rung::Defaults => {
            let is_default =
                request.input.options.is_empty() && request.piecewise == Piecewise::Auto;
            let piecewise = Piecewise::Auto;
            (!is_default).then(|| Request { piecewise, ..with_options(Default::default()) })
        }
        Rung::Saving => compiler.saving(&request.input.options).map(with_options),
        Rung::Fewer => compiler.fewer(&request.input.options).map(with_options),
        Rung::Pieces => {
            let may = request.piecewise == Piecewise::Auto && !in_pieces;
            may.then(|| Request { piecewise: Piecewise::Always, ..request.clone() })
        }
        Rung::Mixed => {
            let backend = match has_mixed {
                true => MixedCompiler::NAME,
                false => MixedCompiler::WITH_EAGER,
            };
            // Where the compiler was left to Kiln the first was tried before it failed.
            let may = compiler.name() == "native"
                && !(has_mixed && is_auto(request))
                && request.piecewise != Piecewise::Never;
            may.then(|| Request { backend: backend.into(), ..request.clone() })
        }
        Rung::Other => {
            let (backend, input) = compilers.other(compiler.name(), &request.input)?;
            Some(Request { backend: backend.into(), input, ..request.clone() })
        }
        Rung::Eager => {
            let mut input = request.input.clone();
            let is_eager = input.target == Target::any() && compiler.name() == EagerCompiler::NAME;
            input.target = Target::any();
            input.options.clear();
            // The interpreter is the judge of others: it is not held against itself.
            let (backend, verify) = (EagerCompiler::NAME.into(), Verify::Never);
            let piecewise = Piecewise::Auto;
            let asked = Request { backend, verify, piecewise, input, ..request.clone() };
            (!is_eager).then_some(asked)
        }
    }
}

/// What a rung asks for in the place of one piece: of which compiler, with which options.
pub(super) fn piece(
    rung: Rung,
    request: &Request,
    piece: &StitchPiece,
    compilers: &Compilers,
) -> Option<(Arc<dyn Compiler>, CompileInput)> {
    if !allows(request, rung) {
        return None;
    }
    let name = &piece.prepared.fingerprint.compiler;
    let own = compilers.named(name)?;
    let input = compilers.part(name, &request.input);
    let with_options = |options: Option<_>| {
        let options = options?;
        Some((own.clone(), CompileInput { options, ..input.clone() }))
    };
    match rung {
        Rung::Saving => with_options(own.saving(&input.options)),
        Rung::Fewer => with_options(own.fewer(&input.options)),
        Rung::Other => {
            let (name, input) = compilers.other(name, &request.input)?;
            Some((compilers.named(name)?, input))
        }
        Rung::Eager if name != EagerCompiler::NAME => {
            let (target, options) = (Target::any(), Default::default());
            let input = CompileInput { target, options, ..request.input.clone() };
            Some((compilers.named(EagerCompiler::NAME)?, input))
        }
        // A piece is neither whole nor cut again.
        _ => None,
    }
}

/// Whether the caller wants what a rung gives.
pub(super) fn allows(request: &Request, rung: Rung) -> bool {
    let is_its_own = rung < Rung::Mixed;
    match request.fallback {
        // What is sent on, or not to be stored, is answered as it is or not at all.
        _ if request.forwarded || request.disable_cache || request.piece.is_some() => false,
        FallbackPolicy::None => false,
        FallbackPolicy::Any => true,
        FallbackPolicy::Auto => is_its_own || is_auto(request),
    }
}

fn is_auto(request: &Request) -> bool {
    matches!(request.backend.as_str(), "" | "auto")
}
