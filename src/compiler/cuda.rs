//! `cuda`: CUDA C++ to PTX or CUBIN.
//!
//! Invariant: NVRTC sees what is in the key and nothing else; the source's name
//! is put back into messages afterwards.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use kiln_proto::{BinaryKind, Failure, FailureKind, Fingerprint};
use tokio_util::sync::CancellationToken;

use super::{
    CompileInput, Compiler, CudaSource, Job, Limits, Output, Prepared, Source,
    engine::Engine,
    worker::{Compiled, Octets, Program, SOURCE_NAME, module_file},
};

/// Compiles CUDA C++ with NVRTC.
#[derive(Debug)]
pub struct CudaCompiler {
    engine: Arc<Engine>,
}

impl CudaCompiler {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

#[async_trait]
impl Compiler for CudaCompiler {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Cuda(_))
    }

    async fn settled(&self) {
        self.engine.settled().await;
    }

    fn fingerprint(&self) -> Result<Fingerprint, Failure> {
        self.engine.toolchain(|found| Fingerprint::new(self.name(), found.versions()))
    }

    fn prepare(
        &self,
        input: &CompileInput,
        fingerprint: &Fingerprint,
    ) -> Result<Prepared, Failure> {
        input.validate()?;
        let refuse = |why: String| Err(Failure::new(FailureKind::Incompatible, why));
        let Source::Cuda(cuda) = &input.source else {
            return refuse(format!("the cuda compiler takes no {}", input.source.form()));
        };
        if let Some(option) = input.options.keys().next() {
            return refuse(format!(
                "the cuda compiler has no option {option:?}: NVRTC's options come with the source"
            ));
        }
        if input.target.kind == BinaryKind::Files {
            return refuse(format!(
                "CUDA C++ compiles to machine code or PTX, not to {}: ask for sm_90 or compute_90",
                input.target
            ));
        }
        let options = cuda.nvrtc_options()?;
        let own = [cuda.graph(), CudaSource::inputs(), options.component()];
        let program = Program {
            source: Octets(cuda.source.clone()),
            headers: cuda.headers.iter().map(|(n, t)| (n.clone(), Octets(t.clone()))).collect(),
            options: options.arguments(),
            tree: options.tree,
            name_expressions: cuda.name_expressions.clone(),
            target: input.target,
            memory_bytes: 0,
            cpu_seconds: 0,
        };
        let job = Job::Nvrtc { program, extra: Vec::new() };
        Ok(Prepared::new(input, fingerprint, own, None, "", job))
    }

    /// Measured: `tests/compiler/outputs.rs`.
    fn is_deterministic(&self) -> bool {
        self.engine.toolchain(|toolchain| toolchain.fixed).unwrap_or(false)
    }

    fn asks_the_time(&self, prepared: &Prepared) -> bool {
        let Ok((program, _)) = prepared.nvrtc() else { return true };
        program.texts().any(names_the_time)
    }

    fn free(&self) -> usize {
        self.engine.free()
    }

    async fn until_free(&self) {
        self.engine.until_free().await;
    }

    async fn compile(
        &self,
        prepared: &Prepared,
        limits: &Limits,
        stop: CancellationToken,
    ) -> Result<Output, Failure> {
        let named = |text: String| match prepared.label.as_str() {
            "" => text,
            label => text.replace(SOURCE_NAME, label),
        };
        let done = self.engine.run(&self.fingerprint()?, prepared, limits, stop).await;
        let done = done.map_err(|f| Failure::new(f.kind, named(f.message)))?;
        let Compiled { module, lowered, log, seconds } = done;
        let mut files = vec![(module_file(prepared.target.kind).to_owned(), module.0)];
        if !lowered.is_empty() {
            files.push(("names.json".to_owned(), names_json(lowered)));
        }
        files.extend(prepared.nvrtc()?.1.iter().cloned());
        files.sort();
        Ok(Output { files, compile_seconds: seconds, log: named(log) })
    }
}

/// Whether a text names a macro whose value is the time of the compilation: also where a line of
/// it is broken within the name.
fn names_the_time(text: &[u8]) -> bool {
    const MACROS: [&[u8]; 3] = [b"__DATE__", b"__TIME__", b"__TIMESTAMP__"];
    let named = |text: &[u8]| {
        let at = |at: usize| MACROS.iter().any(|of| text[at..].starts_with(of));
        text.windows(2).enumerate().any(|(n, two)| two == b"__" && at(n))
    };
    if named(text) {
        return true;
    }
    let mut joined = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        joined.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
        match rest {
            [b'\r', b'\n', after @ ..] | [b'\n', after @ ..] => rest = after,
            _ => joined.push(b'\\'),
        }
    }
    joined.extend_from_slice(rest);
    named(&joined)
}

/// `{"scale<float>": "_Z5scaleIfEvPT_"}`, in the order asked.
fn names_json(lowered: Vec<(String, String)>) -> Bytes {
    let names = lowered.into_iter().map(|(expression, name)| (expression, name.into()));
    serde_json::Value::Object(names.collect()).to_string().into()
}

#[cfg(test)]
mod tests {
    use super::names_the_time;

    #[test]
    fn a_source_that_asks_the_time_is_known_by_the_name_however_its_lines_are_broken() {
        for text in [
            "const char* when = __DATE__;",
            "x = __TIME__",
            "#define NOW __TIMESTAMP__",
            "-DWHEN=__TIME__",
            "__DA\\\nTE__",
            "__\\\r\nTI\\\nME__",
            "\\ ___DATE__",
        ] {
            assert!(names_the_time(text.as_bytes()), "{text:?}");
        }
        for text in
            ["", "__global__ void f() {}", "__DATE _TIME__ DATE", "__DA\\ \nTE__", "\\", "_"]
        {
            assert!(!names_the_time(text.as_bytes()), "{text:?}");
        }
    }
}
