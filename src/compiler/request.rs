//! What may be asked of a compiler, and the parts of a key that follow from it.
//!
//! Invariant: a [`CompileInput`] that passed [`CompileInput::validate`] is within
//! every limit below, and neither its name nor anything of this machine enters
//! a component.

use std::collections::BTreeMap;

use bytes::Bytes;
use kiln_native::static_size;
use kiln_proto::{
    Component, Failure, FailureKind, Fingerprint, KeyField, Target, component, graph::Graph,
};

use super::{
    header_tree::{self, HeaderTree},
    options,
};

/// Largest CUDA C++ source in bytes.
const MAX_SOURCE: usize = 16 << 20;
/// Most headers with a request, and their bytes together.
const MAX_HEADERS: usize = 4096;
const MAX_HEADER_BYTES: usize = 64 << 20;
/// Largest exported program in bytes.
const MAX_ARCHIVE: usize = 1 << 30;
/// Most name expressions, and the longest.
const MAX_EXPRESSIONS: usize = 4096;
const MAX_EXPRESSION: usize = 4096;
/// Most options, and the longest with its value.
const MAX_OPTIONS: usize = 1024;
const MAX_OPTION: usize = 64 << 10;
/// Longest name of a source, a header or a namespace.
const MAX_NAME: usize = 255;

/// The tool in a fingerprint that stands for a toolkit's headers.
pub(super) const HEADERS: &str = "headers";

/// One source for one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompileInput {
    /// What to compile.
    pub source: Source,
    /// What it is to run on.
    pub target: Target,
    /// The backend's own options by name.
    pub options: BTreeMap<String, String>,
    /// Tenant; may be empty.
    pub namespace: String,
}

/// The forms of source that Kiln knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// CUDA C++.
    Cuda(CudaSource),
    /// A torch.export archive (`.pt2`).
    Program {
        /// A name to show; in no key.
        name: String,
        /// The archive.
        archive: Bytes,
        /// For this size alone.
        size: Option<StaticSize>,
    },
}

/// A dimension that a program leaves open, as a request fixes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticSize {
    /// Which one: see [`kiln_native::static_size`]; empty: the only one.
    pub symbol: String,
    /// What it is.
    pub size: u64,
}

/// CUDA C++ with what it needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CudaSource {
    /// A name to show; in no key.
    pub name: String,
    /// The text.
    pub source: Bytes,
    /// Headers by the name that the source includes.
    pub headers: BTreeMap<String, Bytes>,
    /// Options as NVRTC spells them, without the target.
    pub options: Vec<String>,
    /// Name expressions to be lowered: instances of templates.
    pub name_expressions: Vec<String>,
}

impl Source {
    /// The form's name, for messages.
    pub const fn form(&self) -> &'static str {
        match self {
            Self::Cuda(_) => "CUDA C++ source",
            Self::Program { .. } => "exported program",
        }
    }

    /// The archive of an exported program: all that the compiler named takes.
    pub(super) fn program(&self, compiler: &str) -> Result<&Bytes, Failure> {
        let incompatible = |why| Err(Failure::new(FailureKind::Incompatible, why));
        match self {
            Self::Program { archive, size: None, .. } => Ok(archive),
            Self::Program { .. } => {
                incompatible(format!("the {compiler} compiler has no compile sizes"))
            }
            other => incompatible(format!("the {compiler} compiler takes no {}", other.form())),
        }
    }

    /// The graph of an exported program, for the size that is asked for, and its own name.
    pub(super) fn graph(&self, compiler: &str) -> Result<(Graph, String), Failure> {
        let Self::Program { archive, size: Some(StaticSize { symbol, size }), .. } = self else {
            let archive = self.program(compiler)?;
            return Ok((kiln_native::read_graph(archive)?, kiln_native::archive_name(archive)));
        };
        let graph = static_size::fixed(&kiln_native::read_graph(archive)?, symbol, *size)?;
        Ok((graph, kiln_native::archive_name(archive)))
    }

    /// The one size that it is for.
    pub fn size(&self) -> Option<&StaticSize> {
        match self {
            Self::Program { size, .. } => size.as_ref(),
            Self::Cuda(_) => None,
        }
    }

    /// What an artifact of it is called: `own_name` where the caller gave no name.
    pub(super) fn title(&self, own_name: &str) -> String {
        let name = if self.label().is_empty() { own_name } else { self.label() };
        match self.size() {
            None => name.to_owned(),
            Some(StaticSize { symbol, size }) if symbol.is_empty() => format!("{name} {size}"),
            Some(StaticSize { symbol, size }) => format!("{name} {symbol}={size}"),
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Cuda(cuda) => {
                let headers = cuda.headers.values().map(Bytes::len).sum::<usize>();
                cuda.source.len() + headers
            }
            Self::Program { archive, .. } => archive.len(),
        }
    }

    /// The name to show.
    pub fn label(&self) -> &str {
        match self {
            Self::Cuda(cuda) => &cuda.name,
            Self::Program { name, .. } => name,
        }
    }
}

impl CompileInput {
    /// Refuses what is beyond a limit or cannot be represented.
    pub fn validate(&self) -> Result<(), Failure> {
        name("the namespace", &self.namespace)?;
        name("the source's name", self.source.label())?;
        at_most("options", self.options.len(), MAX_OPTIONS)?;
        for (option, value) in &self.options {
            at_most("bytes in one option", option.len() + value.len(), MAX_OPTION)?;
        }
        match &self.source {
            Source::Cuda(cuda) => cuda.validate(),
            Source::Program { archive, size, .. } => {
                if let Some(StaticSize { symbol, .. }) = size {
                    name("a size's symbol", symbol)?;
                }
                at_most("bytes of exported program", archive.len(), MAX_ARCHIVE)
            }
        }
    }
}

impl CudaSource {
    fn validate(&self) -> Result<(), Failure> {
        if self.source.is_empty() {
            return Err(invalid("the source is empty"));
        }
        at_most("bytes of source", self.source.len(), MAX_SOURCE)?;
        at_most("headers", self.headers.len(), MAX_HEADERS)?;
        let total = self.headers.values().map(Bytes::len).sum();
        at_most("bytes of headers", total, MAX_HEADER_BYTES)?;
        at_most("options", self.options.len(), MAX_OPTIONS)?;
        at_most("name expressions", self.name_expressions.len(), MAX_EXPRESSIONS)?;
        for option in &self.options {
            at_most("bytes in one option", option.len(), MAX_OPTION)?;
        }
        for expression in &self.name_expressions {
            at_most("bytes in one name expression", expression.len(), MAX_EXPRESSION)?;
            if expression.trim().is_empty() || expression.contains(['\0', '\n']) {
                return Err(invalid("a name expression is empty or has a line break"));
            }
        }
        for header in self.headers.keys() {
            if header.is_empty() {
                return Err(invalid("a header has no name"));
            }
            name("a header's name", header)?;
        }
        if self.source.contains(&0) {
            return Err(invalid("the source contains a NUL byte"));
        }
        if let Some(tree) = self.nvrtc_options()?.tree {
            return self.check_tree(&tree);
        }
        for text in std::iter::once(&self.source).chain(self.headers.values()) {
            if text.contains(&0) {
                return Err(invalid("a header contains a NUL byte"));
            }
            self.check_includes(text)?;
        }
        Ok(())
    }

    /// Headers that are files of a tree: whoever sent them looked for all that the source
    /// may include, so what is not there is not there for the compiler either.
    fn check_tree(&self, tree: &HeaderTree) -> Result<(), Failure> {
        for (name, text) in &self.headers {
            if name.starts_with('/') {
                // It has its absolute path for a name, and is no file on the node.
                if text.contains(&0) {
                    return Err(invalid(format!("the header {name:?} contains a NUL byte")));
                }
            } else if !header_tree::is_path(name) {
                let why = format!("the header {name:?} lies outside the folder of the headers");
                return Err(invalid(why));
            }
        }
        for (file, other) in &tree.same {
            if !self.headers.contains_key(file) || self.headers.contains_key(other) {
                return Err(invalid(format!(
                    "{other:?} is to be {file:?}, which was not sent once"
                )));
            }
        }
        match tree.conflict(self.headers.keys().map(String::as_str)) {
            Some(why) => Err(invalid(format!("the headers are no tree of files: {why}"))),
            None => Ok(()),
        }
    }

    /// An include that leaves the include path would make the output depend on
    /// files of one machine. The worker's sandbox stops what is computed by
    /// macros; this names the plain case in words.
    fn check_includes(&self, text: &[u8]) -> Result<(), Failure> {
        for line in text.split(|b| *b == b'\n') {
            let Some(file) = included(line) else { continue };
            let given = self.headers.contains_key(file);
            if !given && (file.starts_with('/') || file.split('/').any(|part| part == "..")) {
                let why = format!(
                    "`#include {file:?}` reads a file of one machine: send the header along \
                     under that name"
                );
                return Err(Failure::new(FailureKind::Incompatible, why));
            }
        }
        Ok(())
    }

    /// The `graph` component: every text by its digest.
    pub(super) fn graph(&self) -> Component {
        let source = KeyField::of_bytes("source", &self.source);
        let headers = self.headers.iter();
        let headers =
            headers.map(|(name, text)| KeyField::of_bytes(format!("header.{name}"), text));
        let names = self.name_expressions.iter().enumerate();
        let names = names.map(|(i, e)| KeyField::new(format!("name_expression.{i}"), e.as_str()));
        Component::new(component::GRAPH, [source].into_iter().chain(headers).chain(names).collect())
    }

    /// The `inputs` component: source says nothing of what kernels are given.
    pub(super) fn inputs() -> Component {
        Component::new(component::INPUTS, Vec::new())
    }

    /// The `options` component and the options as NVRTC gets them.
    pub(super) fn nvrtc_options(&self) -> Result<options::Canonical, Failure> {
        options::canonical(&self.options)
    }
}

/// The file that a plain include directive names.
fn included(line: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(line).ok()?.trim_start();
    let rest = line.strip_prefix('#')?.trim_start().strip_prefix("include")?.trim_start();
    let close = match rest.as_bytes().first()? {
        b'"' => '"',
        b'<' => '>',
        _ => return None,
    };
    rest[1..].split_once(close).map(|(file, _)| file)
}

/// The components that every compiler shares: toolchain, target and tenant.
pub(super) fn common_components(
    input: &CompileInput,
    fingerprint: &Fingerprint,
    derived: Option<KeyField>,
) -> [Component; 3] {
    let mut versions = vec![KeyField::new("compiler", fingerprint.compiler.as_str())];
    let tools = fingerprint.versions.iter();
    versions.extend(tools.map(|(tool, version)| {
        let field = KeyField::new(tool.as_str(), version.as_str());
        // Headers change with their toolkit: named only where they alone differ.
        if tool == HEADERS { field.derived() } else { field }
    }));
    versions.extend(derived);
    let target = vec![
        KeyField::new("arch", input.target.to_string()),
        KeyField::new("min_driver", input.target.min_driver.to_string()),
    ];
    let tenant = vec![KeyField::new("namespace", input.namespace.as_str())];
    [
        Component::new(component::FINGERPRINT, versions),
        Component::new(component::TARGET, target),
        Component::new(component::NAMESPACE, tenant),
    ]
}

fn name(what: &str, text: &str) -> Result<(), Failure> {
    if text.len() > MAX_NAME || text.chars().any(char::is_control) {
        return Err(invalid(format!(
            "{what} has at most {MAX_NAME} bytes, none a control character"
        )));
    }
    Ok(())
}

fn at_most(what: &str, found: usize, most: usize) -> Result<(), Failure> {
    if found > most {
        return Err(invalid(format!("{found} {what}, at most {most}")));
    }
    Ok(())
}

pub(super) fn invalid(why: impl Into<String>) -> Failure {
    Failure::new(FailureKind::InvalidInput, why)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn input(change: impl FnOnce(&mut CudaSource)) -> CompileInput {
        let mut cuda = CudaSource { source: "int x;".into(), ..CudaSource::default() };
        change(&mut cuda);
        CompileInput {
            source: Source::Cuda(cuda),
            target: Target::cubin(90),
            options: BTreeMap::new(),
            namespace: String::new(),
        }
    }

    #[test]
    fn what_is_beyond_a_limit_is_refused() {
        input(|_| {}).validate().unwrap();
        let bad: [fn(&mut CudaSource); 9] = [
            |c| c.source = Bytes::new(),
            |c| c.source = vec![b' '; MAX_SOURCE + 1].into(),
            |c| c.source = "a\0b".into(),
            |c| c.name = "a\nb".into(),
            |c| c.options = vec!["-w".into(); MAX_OPTIONS + 1],
            |c| c.options = vec![format!("-DX={}", "1".repeat(MAX_OPTION))],
            |c| c.name_expressions = vec![" ".into()],
            |c| c.headers = BTreeMap::from([(String::new(), Bytes::new())]),
            |c| c.headers = (0..=MAX_HEADERS).map(|i| (i.to_string(), Bytes::new())).collect(),
        ];
        for (i, change) in bad.into_iter().enumerate() {
            let refused = input(change).validate().unwrap_err();
            assert_eq!(refused.kind, FailureKind::InvalidInput, "case {i}: {refused}");
        }
        let archive = vec![0; MAX_ARCHIVE + 1].into();
        let source = Source::Program { name: String::new(), archive, size: None };
        assert!(CompileInput { source, ..input(|_| {}) }.validate().is_err());
        let namespace = "n".repeat(MAX_NAME + 1);
        assert!(CompileInput { namespace, ..input(|_| {}) }.validate().is_err());
    }

    #[test]
    fn an_include_that_leaves_the_include_path_needs_its_header() {
        for include in ["#include \"/etc/passwd\"", " #  include <../x.h>", "#include\"a/../b\""] {
            let text = format!("int x;\n{include}\n");
            let refused = input(|c| c.source = text.clone().into()).validate().unwrap_err();
            assert_eq!(refused.kind, FailureKind::Incompatible, "{include}");
            let file = included(include.as_bytes()).unwrap().to_owned();
            let given = |c: &mut CudaSource| {
                c.source = text.clone().into();
                c.headers = BTreeMap::from([(file, Bytes::new())]);
            };
            input(given).validate().unwrap();
        }
    }

    #[test]
    fn each_part_of_a_request_is_one_field_of_the_key() {
        let key = |input: &CompileInput| {
            let Source::Cuda(cuda) = &input.source else { unreachable!() };
            let options = cuda.nvrtc_options().unwrap();
            let mut all = vec![cuda.graph(), CudaSource::inputs(), options.component()];
            let fingerprint = Fingerprint::new("cuda", [("nvrtc", "13.5.37")]);
            all.extend(common_components(input, &fingerprint, None));
            kiln_proto::Components::new(all)
        };
        let base = input(|_| {});
        let target = Target { min_driver: 12080, ..Target::cubin(90) };
        let header = BTreeMap::from([("a.h".to_owned(), Bytes::from("1"))]);
        let others = [
            ("source", input(|c| c.source = "int y;".into())),
            ("header.a.h", input(|c| c.headers = header)),
            ("name_expression.0", input(|c| c.name_expressions = vec!["k<int>".into()])),
            ("--fmad", input(|c| c.options = vec!["-fmad=false".into()])),
            ("-DX", input(|c| c.options = vec!["-DX".into()])),
            ("arch", CompileInput { target: Target::cubin(80), ..base.clone() }),
            ("min_driver", CompileInput { target, ..base.clone() }),
            ("namespace", CompileInput { namespace: "team".into(), ..base.clone() }),
        ];
        for (field, other) in others {
            let (ours, theirs) = (key(&base), key(&other));
            assert_ne!(ours.key(), theirs.key(), "{field}");
            let found = ours.differences(&theirs);
            let fields: Vec<&str> = found.iter().map(|d| d.field.as_str()).collect();
            assert_eq!(fields, [field]);
        }
        assert_eq!(key(&base).key(), key(&input(|c| c.name = "other.cu".into())).key());
    }
}
