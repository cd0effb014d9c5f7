//! The native graph compiler: a torch.export archive to CUDA C++ and a launch plan.
//!
//! ```text
//! archive -> parse -> functional -> canonical (key)
//!                                -> decompose -> core program -> interp
//!                                                             -> attend -> lower -> loops -> schedule -> codegen -> plan
//! ```
//!
//! Invariant: pure. The same archive, options and target give the same bytes,
//! and two archives with equal components give the same bytes too: nothing
//! that is not in the key (a name, a path, an order) reaches the output.
//!
//! `random` and `fixtures` are what tests compare, those of other crates too. They are no part of
//! a release build. A feature of Cargo in their place would compile Kiln once more for its tests.

mod archive;
mod attend;
pub mod bind;
mod canonical;
mod codegen;
pub mod core;
pub mod cubin;
pub mod decompose;
pub mod eager;
#[cfg(any(test, debug_assertions))]
pub mod fixtures;
mod float8;
mod functional;
mod identity;
pub mod interp;
mod live;
mod loops;
mod lower;
mod parse;
pub mod plan;
mod portable;
#[cfg(any(test, debug_assertions))]
pub mod random;
mod schedule;
mod schema;
mod signature;
pub mod size;
mod slim;
pub mod split;
pub mod static_size;
mod updates;
pub mod version;

use std::collections::BTreeMap;

use kiln_proto::{BinaryKind, Component, Failure, FailureKind, Target, graph::Graph};

pub use identity::{Identity, identify, identify_graph};
pub use plan::Plan;
pub use portable::{Portable, portable};
pub use signature::{
    NamedInput, SIGNATURE_FILE, Signature, VERSION as SIGNATURE_VERSION, signature,
};
pub use slim::slim;

/// What a graph becomes before NVRTC.
#[derive(Debug, Clone)]
pub struct Lowered {
    /// The key's component of that name.
    pub graph: Component,
    /// The key's component of that name.
    pub inputs: Component,
    /// CUDA C++, complete in itself: needs no header.
    pub source: String,
    /// All options by name, the defaults of those not given among them.
    pub options: Vec<(&'static str, &'static str)>,
    /// What NVRTC is to compile for.
    pub target: Target,
    /// For NVRTC, besides the architecture.
    pub nvrtc_options: Vec<String>,
    /// How to run the module.
    pub plan: Plan,
    /// The archive's own name, to show.
    pub name: String,
}

/// The names of this compiler's options, each `on` or `off`.
pub const OPTIONS: [&str; 3] = ["fast_math", "fuse", PARALLEL];
/// Whether kernels are optimised at the same time, which takes memory for each.
pub const PARALLEL: &str = "parallel";

/// The options of this compiler.
#[derive(Debug, Clone, Copy)]
struct Options {
    fuse: bool,
    fast_math: bool,
    parallel: bool,
}

/// Reads the graph in a torch.export archive.
pub fn read_graph(archive: &[u8]) -> Result<Graph, Failure> {
    parse::parse(archive)
}

/// The same, with operations that no compiler here has a rule for: others may.
pub fn read_any_graph(archive: &[u8]) -> Result<Graph, Failure> {
    parse::parse_any(archive)
}

/// Whether the compilers here have a rule for the operation of that name.
pub fn has_rule(op: &str) -> bool {
    decompose::is_known(op)
}

/// The `graph` and `inputs` components of a graph's key.
pub fn components(graph: &Graph) -> (Component, Component) {
    (canonical::graph_component(graph), canonical::inputs_component(graph))
}

/// The nodes that a graph's outputs need, in the order in which artifacts number them
/// ([`plan::Kernel::computes`]): positions among [`Graph::nodes`], and what artifacts call
/// their operations.
pub fn numbered(graph: &Graph) -> Vec<(usize, &str)> {
    let name = |at: usize| (at, canonical::canonical_name(&graph.nodes[at].op));
    live::live_order(graph).into_iter().map(name).collect()
}

/// Compiles a torch.export archive to CUDA C++ and a launch plan.
///
/// Options: `fuse` (default `on`), `fast_math` (default `off`), `parallel` (default `on`).
pub fn lower(
    archive: &[u8],
    options: &BTreeMap<String, String>,
    target: Target,
) -> Result<Lowered, Failure> {
    let options = Options::read(options)?;
    check_target(target)?;
    let graph = parse::parse(archive)?;
    let name = archive::name(archive);
    lower_graph(&graph, name, options, target)
}

/// The name of a torch.export archive, to show.
pub fn archive_name(archive: &[u8]) -> String {
    archive::name(archive)
}

/// Refuses what this compiler makes nothing for.
pub fn check_target(target: Target) -> Result<(), Failure> {
    if target.kind != BinaryKind::Cubin {
        let why = format!("`native` compiles machine code: ask for sm_{}", target.compute);
        return Err(Failure::new(FailureKind::Incompatible, why));
    }
    Ok(())
}

/// All options by name, the defaults of those not given among them.
pub fn merged_options(
    given: &BTreeMap<String, String>,
) -> Result<Vec<(&'static str, &'static str)>, Failure> {
    Ok(Options::read(given)?.merged())
}

/// Compiles a graph that was read or made before.
pub fn lower_parsed(
    graph: &Graph,
    options: &BTreeMap<String, String>,
    target: Target,
) -> Result<Lowered, Failure> {
    lower_graph(graph, String::new(), Options::read(options)?, target)
}

fn lower_graph(
    graph: &Graph,
    name: String,
    options: Options,
    target: Target,
) -> Result<Lowered, Failure> {
    let mut program = decompose::decompose(graph)?;
    let origins =
        if options.fuse { attend::attend(&mut program, graph) } else { Default::default() };
    let target = exact(target);
    let mut loops = lower::lower(&program, graph, &origins, target)?;
    updates::place(&program, graph, &mut loops)?;
    let groups = schedule::schedule(&mut loops, options.fuse)?;
    let code = codegen::generate(graph, &program, &mut loops, &groups, target)?;
    let (graph_component, inputs) = components(graph);
    let mut nvrtc_options = vec!["--std=c++17".to_owned()];
    if options.fast_math {
        nvrtc_options.push("--use_fast_math".to_owned());
    }
    Ok(Lowered {
        graph: graph_component,
        inputs,
        source: code.source,
        options: options.merged(),
        target,
        nvrtc_options,
        plan: code.plan,
        name,
    })
}

/// The target with the instructions that only it has: no other device has the
/// major version 9, so nothing is lost.
fn exact(target: Target) -> Target {
    Target { arch_specific: target.arch_specific || target.compute == 90, ..target }
}

impl Options {
    fn read(given: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let mut options = Self { fuse: true, fast_math: false, parallel: true };
        for (name, value) in given {
            let incompatible = |why| Err(Failure::new(FailureKind::Incompatible, why));
            let option = match name.as_str() {
                "fuse" => &mut options.fuse,
                "fast_math" => &mut options.fast_math,
                PARALLEL => &mut options.parallel,
                _ => {
                    return incompatible(format!(
                        "`native` has no option {name:?}; it has \"fuse\", \"fast_math\" and \
                         \"parallel\""
                    ));
                }
            };
            *option = match value.as_str() {
                "on" => true,
                "off" => false,
                _ => return incompatible(format!("option {name:?} is on or off, not {value:?}")),
            };
        }
        Ok(options)
    }

    /// Each option with its value, in name order; `parallel`, which is younger than the keys
    /// that there are, where it is off.
    fn merged(self) -> Vec<(&'static str, &'static str)> {
        let switch = |on| if on { "on" } else { "off" };
        let mut all = vec![("fast_math", switch(self.fast_math)), ("fuse", switch(self.fuse))];
        if !self.parallel {
            all.push((PARALLEL, "off"));
        }
        all
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
