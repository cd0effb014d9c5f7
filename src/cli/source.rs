//! What is to be compiled, as the command line says it.
//!
//! Invariant: no path of this machine goes into a request, so that the same
//! source gives the same key wherever it lies.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use kiln::compiler::HeaderTree;
use kiln_proto::{FailureKind, Target, pb};

use super::{
    CliError, NamespaceArgs,
    client::check_size,
    includes::{self, Sent},
    sizes::CompileSizes,
};

/// Every zip archive, so every torch.export archive, starts with this.
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// Options that decide a key.
#[derive(Debug, Clone, Args)]
pub(crate) struct SourceArgs {
    /// What the output runs on: sm_90 or sm_90a for machine code, compute_90
    /// for PTX; gpu_90 with Inductor; cpu with Inductor or eager. May be given
    /// several times; each target is a key of its own.
    #[arg(
        long = "target",
        visible_alias = "targets",
        value_name = "ARCH",
        env = "KILN_TARGET",
        default_value = "sm_90",
        default_value_if("backend", "eager", "cpu"),
        value_delimiter = ','
    )]
    targets: Vec<Target>,
    /// Which compiler; auto takes `cuda` for CUDA C++, and for a .pt2 `native`,
    /// or `eager` where the target is the CPU. What `native` refuses is compiled in
    /// pieces by `mixed`: those that it refuses by Inductor, the others by itself; where
    /// nobody has Inductor by `mixed-eager`, which leaves those to PyTorch.
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    backend: Backend,
    /// An option of the backend, by name.
    #[arg(long = "option", value_name = "KEY=VALUE", value_parser = key_value)]
    options: Vec<(String, String)>,
    /// Folder whose headers the source includes; they are sent along.
    #[arg(short = 'I', value_name = "DIR")]
    include: Vec<PathBuf>,
    /// Define a macro.
    #[arg(short = 'D', value_name = "NAME[=VALUE]")]
    define: Vec<String>,
    /// Instantiate this template and record its lowered name (CUDA only).
    #[arg(long = "name-expression", value_name = "EXPR")]
    name_expressions: Vec<String>,
    /// Whether an exported program is compiled in pieces: equal layers are one piece, all
    /// nodes compile, and what failed leaves the rest.
    #[arg(long, value_enum, default_value_t = Piecewise::Auto, value_name = "WHEN")]
    piecewise: Piecewise,
    /// Whether what a program became is run, on inputs made up for it, and compared with
    /// the reference interpreter before anybody is given it: each piece, then the whole.
    /// `sampled`: one key of eight, the same ones on every node. Where a node has no device
    /// of the target, the answer says that it was not checked, and why.
    #[arg(long, value_enum, default_value_t = Verify::Sampled, value_name = "WHEN")]
    verify: Verify,
    /// Compile an exported program for these static sizes of its open dimension as well:
    /// 1,8,512; where several are open, name one: x.1=1,8,512 (dimension 1 of the input x).
    /// What runs it takes the code for the size of its inputs, else the dynamic one.
    #[arg(long, value_name = "[DIM=]SIZES")]
    compile_sizes: Option<CompileSizes>,
    #[command(flatten)]
    pub(crate) namespace: NamespaceArgs,
    /// NVRTC's own options: `-- -use_fast_math --maxrregcount=64`.
    #[arg(last = true, value_name = "NVRTC_OPTION")]
    compiler_options: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    Auto,
    Cuda,
    Native,
    Eager,
    Inductor,
    InductorStandalone,
    Mixed,
    MixedEager,
}

impl Backend {
    const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cuda => "cuda",
            Self::Native => "native",
            Self::Eager => "eager",
            Self::Inductor => "inductor",
            Self::InductorStandalone => "inductor-standalone",
            Self::Mixed => "mixed",
            Self::MixedEager => "mixed-eager",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Piecewise {
    /// As the graph suggests: what is large, or has equal layers.
    Auto,
    /// A program that cannot be split is refused.
    Always,
    /// In one compile.
    Never,
}

impl From<Piecewise> for pb::Piecewise {
    fn from(when: Piecewise) -> Self {
        match when {
            Piecewise::Auto => Self::Auto,
            Piecewise::Always => Self::Always,
            Piecewise::Never => Self::Never,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Verify {
    /// Also what is stored already.
    Always,
    /// One key of eight, unless it was checked before.
    Sampled,
    /// Nothing.
    Never,
}

impl From<Verify> for pb::Verify {
    fn from(when: Verify) -> Self {
        match when {
            Verify::Always => Self::Always,
            Verify::Sampled => Self::Sampled,
            Verify::Never => Self::Never,
        }
    }
}

/// What a node needs of a torch.export archive, so that a model of any size can
/// be sent; `None` for another kind of file.
pub(crate) fn archive(file: &Path) -> Result<Option<Vec<u8>>, CliError> {
    let mut opened = File::open(file).with_context(reading(file))?;
    let mut magic = Vec::new();
    opened
        .by_ref()
        .take(ZIP_MAGIC.len() as u64)
        .read_to_end(&mut magic)
        .with_context(reading(file))?;
    if magic != ZIP_MAGIC {
        // The name says what it should be: no compiler of text is asked what it thinks of it.
        if file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("pt2")) {
            return Err(CliError::failed(
                FailureKind::InvalidInput,
                format!(
                    "{} is no .pt2 archive: it does not begin as one. Write it again with \
                     torch.export.save",
                    file.display()
                ),
            ));
        }
        return Ok(None);
    }
    let slim = kiln_native::slim(BufReader::new(opened));
    slim.map(Some).map_err(|failure| {
        CliError::failed(failure.kind, format!("{}: {}", file.display(), failure.message))
    })
}

fn reading(file: &Path) -> impl FnOnce() -> String {
    let file = file.display().to_string();
    move || format!("read {file}")
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".into()),
    }
}

impl SourceArgs {
    /// How many answers a request gets.
    pub(crate) fn targets(&self) -> usize {
        self.targets.len()
    }

    /// Whether everything is to be checked.
    pub(crate) fn verifies(&self) -> bool {
        self.verify == Verify::Always
    }

    /// Reads `file` and all that it includes.
    pub(crate) fn request(&self, file: &Path) -> Result<pb::CompileRequest, CliError> {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let archive = archive(file)?;
        let compile_sizes = match (&self.compile_sizes, &archive) {
            (None, _) => None,
            (Some(sizes), Some(archive)) => Some(self.sizes(sizes, file, archive)?),
            (Some(_), None) => {
                let why = "--compile-sizes is for exported programs, not for CUDA sources";
                return Err(CliError::Usage(format!("{}: {why}", file.display())));
            }
        };
        let source = match archive {
            Some(archive) => self.program(name, archive)?,
            None => self.cuda(name, std::fs::read(file).with_context(reading(file))?, file)?,
        };
        let options = self.options.iter().cloned();
        let request = pb::CompileRequest {
            targets: self.targets.iter().map(|target| (*target).into()).collect(),
            backend: self.backend.name().into(),
            options: options.map(|(name, value)| pb::Field { name, value }).collect(),
            namespace: self.namespace.namespace.clone(),
            disable_cache: false,
            deadline_ms: 0,
            forwarded: false,
            piecewise: pb::Piecewise::from(self.piecewise).into(),
            piece: None,
            verify: pb::Verify::from(self.verify).into(),
            compile_sizes,
            fallback: pb::FallbackPolicy::Auto.into(),
            source: Some(source),
        };
        check_size(&request, &format!("{} with what it includes", file.display()))?;
        Ok(request)
    }

    fn sizes(
        &self,
        sizes: &CompileSizes,
        file: &Path,
        archive: &[u8],
    ) -> Result<pb::CompileSizes, CliError> {
        if matches!(self.backend, Backend::Inductor | Backend::InductorStandalone) {
            let why = "--compile-sizes is for the native and the eager backend; with Inductor \
                       use --option runtime_shape=SIZE";
            return Err(CliError::Usage(why.into()));
        }
        sizes.request(file, archive)
    }

    fn program(
        &self,
        name: String,
        archive: Vec<u8>,
    ) -> Result<pb::compile_request::Source, CliError> {
        let only_cuda = [
            ("-D", self.define.is_empty()),
            ("-I", self.include.is_empty()),
            ("--name-expression", self.name_expressions.is_empty()),
            ("options after --", self.compiler_options.is_empty()),
        ];
        if let Some((flag, _)) = only_cuda.iter().find(|(_, absent)| !absent) {
            return Err(CliError::Usage(format!(
                "{name} is an exported program, and {flag} is for CUDA sources; use --option KEY=VALUE"
            )));
        }
        Ok(pb::compile_request::Source::Program(pb::ExportedProgram {
            name,
            archive: archive.into(),
        }))
    }

    fn cuda(
        &self,
        name: String,
        bytes: Vec<u8>,
        file: &Path,
    ) -> Result<pb::compile_request::Source, CliError> {
        if bytes.contains(&0) {
            let why = "is neither a .pt2 archive nor CUDA C++ text: it has NUL bytes";
            return Err(CliError::Usage(format!("{name} {why}")));
        }
        let of_nvrtc = OfNvrtc::read(&self.compiler_options)?;
        let folders: Vec<_> = self.include.iter().cloned().chain(of_nvrtc.folders).collect();
        let defines: Vec<_> = self.define.iter().cloned().chain(of_nvrtc.defines).collect();
        let given = includes::Given {
            folders: &folders,
            defines: &defines,
            pre_includes: &of_nvrtc.pre_includes,
            beside: of_nvrtc.beside,
        };
        let Sent { headers, tree } = match bytes.len() < kiln_proto::MAX_MESSAGE_BYTES {
            true => includes::collect(file, &bytes, &given)?,
            // No node takes it, which is told of the request as a whole.
            false => Sent::default(),
        };
        let defines = self.define.iter().map(|define| format!("-D{define}"));
        let tree = tree.iter().flat_map(HeaderTree::options);
        Ok(pb::compile_request::Source::Cuda(pb::CudaSource {
            headers: headers.into_iter().map(|(name, bytes)| (name, bytes.into())).collect(),
            options: defines.chain(of_nvrtc.others).chain(tree).collect(),
            name_expressions: self.name_expressions.clone(),
            name,
            source: bytes.into(),
        }))
    }
}

/// NVRTC's options, apart by who reads them.
struct OfNvrtc {
    folders: Vec<PathBuf>,
    pre_includes: Vec<String>,
    /// Also among the others.
    defines: Vec<String>,
    beside: bool,
    others: Vec<String>,
}

impl OfNvrtc {
    /// What names files is read here; the rest is the node's to read.
    fn read(options: &[String]) -> Result<Self, CliError> {
        let mut found = Self {
            folders: Vec::new(),
            pre_includes: Vec::new(),
            defines: Vec::new(),
            beside: true,
            others: Vec::new(),
        };
        let mut rest = options.iter().map(|option| option.trim());
        while let Some(option) = rest.next() {
            let mut value = |names: &[&str]| {
                let after = names.iter().find_map(|name| option.strip_prefix(name))?;
                Some(match after.trim_start_matches(['=', ' ']) {
                    "" => rest.next().unwrap_or_default().to_owned(),
                    text => text.to_owned(),
                })
            };
            if let Some(name) = value(&["--pre-include", "-pre-include", "-include=", "-include "])
            {
                found.pre_includes.push(name);
            } else if option == "-include" {
                found.pre_includes.push(value(&["-include"]).unwrap_or_default());
            } else if option.starts_with("-include-path") || !option.starts_with("-include") {
                if let Some(folder) = value(&["--include-path", "-include-path", "-I"]) {
                    found.folders.push(folder.into());
                } else if let Some(define) = value(&["--define-macro", "-D"]) {
                    found.others.push(format!("-D{define}"));
                    found.defines.push(define);
                } else if ["--no-source-include", "-no-source-include"].contains(&option) {
                    found.beside = false;
                } else {
                    found.others.push(option.to_owned());
                }
            } else {
                found.others.push(option.to_owned());
            }
        }
        if found.pre_includes.iter().any(String::is_empty)
            || found.folders.iter().any(|folder| folder.as_os_str().is_empty())
        {
            return Err(CliError::Usage(
                "an option that names a file or folder has no value".into(),
            ));
        }
        found.others.extend(found.pre_includes.iter().map(|name| format!("--pre-include={name}")));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;
    use kiln_proto::convert;

    use super::*;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        source: SourceArgs,
    }

    fn parse(line: &str) -> SourceArgs {
        Probe::try_parse_from(line.split(' ')).unwrap().source
    }

    #[test]
    fn a_cuda_source_goes_with_its_headers_and_without_paths() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("inc")).unwrap();
        fs::write(dir.path().join("inc/a.h"), "int a;").unwrap();
        fs::write(dir.path().join("k.cu"), "#include \"a.h\"\n").unwrap();
        let line = format!(
            "probe --target sm_90 --target compute_80 -DN=4 -I {0}/inc --option x=y=z -- -use_fast_math",
            dir.path().display()
        );
        let request = parse(&line).request(&dir.path().join("k.cu")).unwrap();
        let targets: Vec<_> =
            request.targets.iter().map(|t| convert::target(t).unwrap().to_string()).collect();
        assert_eq!(targets, ["sm_90", "compute_80"]);
        assert_eq!(request.options[0].value, "y=z");
        let Some(pb::compile_request::Source::Cuda(cuda)) = &request.source else { panic!() };
        assert_eq!((cuda.name.as_str(), &*cuda.headers["kiln-0/a.h"]), ("k.cu", &b"int a;"[..]));
        let tree = ["--source-folder=source", "--include-path=kiln-0"];
        assert_eq!(cuda.options, [&["-DN=4", "-use_fast_math"][..], &tree].concat());
        let said = format!("{request:?}");
        assert!(!said.contains(&dir.path().display().to_string()), "{said}");
    }

    #[test]
    fn an_archive_is_known_by_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("block.bin");
        let mut zip = zip::ZipWriter::new(File::create(&file).unwrap());
        zip.start_file("m/models/model.json", zip::write::SimpleFileOptions::default()).unwrap();
        zip.finish().unwrap();
        let request = parse("probe").request(&file).unwrap();
        assert!(matches!(request.source, Some(pb::compile_request::Source::Program(_))));
        let refused = parse("probe -DX").request(&file).unwrap_err();
        assert_eq!(refused.exit_code(), 2, "{refused}");
        fs::write(&file, [ZIP_MAGIC, b"rest"].concat()).unwrap();
        let refused = parse("probe").request(&file).unwrap_err();
        assert_eq!(refused.exit_code(), 11, "{refused}");
    }

    #[test]
    fn what_no_node_takes_is_refused_before_one_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("large.cu");
        let holds = |bytes: usize| fs::write(&file, vec![b' '; bytes]).unwrap();
        holds(kiln_proto::MAX_MESSAGE_BYTES);
        let refused = parse("probe").request(&file).unwrap_err();
        assert_eq!(refused.exit_code(), 2, "{refused}");
        let told = refused.to_string();
        assert!(told.contains("large.cu") && told.contains("at most 64.0 MiB"), "{told}");
        holds(1 << 20);
        assert!(parse("probe").request(&file).is_ok());
    }

    #[test]
    fn what_names_files_is_read_here_before_and_after_the_dashes() {
        let dir = tempfile::tempdir().unwrap();
        let (file, inc) = (dir.path().join("k.cu"), dir.path().join("inc"));
        fs::create_dir(&inc).unwrap();
        fs::write(inc.join("a.h"), "int a;").unwrap();
        fs::write(&file, "#include <a.h>\n").unwrap();
        let inc = inc.display();
        let same = [
            format!("probe -I {inc} -- -w"),
            format!("probe -I{inc} -- -w"),
            format!("probe -- -I{inc} -w"),
            format!("probe -- -I {inc} -w"),
            format!("probe -- -I={inc} -w"),
            format!("probe -- -w --include-path={inc}"),
            format!("probe -- -w --include-path {inc}"),
        ];
        let requests = same.map(|line| parse(&line).request(&file).unwrap());
        assert!(requests.iter().all(|request| *request == requests[0]), "{requests:?}");
        fs::write(&file, "int b;\n").unwrap();
        for before in ["--pre-include=a.h", "--pre-include a.h", "-include=a.h", "-include a.h"] {
            let request = parse(&format!("probe -I {inc} -- {before}")).request(&file).unwrap();
            let Some(pb::compile_request::Source::Cuda(cuda)) = &request.source else { panic!() };
            assert_eq!(cuda.options[0], "--pre-include=a.h", "{before}");
            assert_eq!(&*cuda.headers["kiln-0/a.h"], b"int a;", "{before}");
        }
    }

    #[test]
    fn the_eager_backend_is_for_the_cpu_unless_told_otherwise() {
        let target = |line: &str| parse(line).targets.iter().map(Target::to_string).collect();
        let targets: Vec<Vec<String>> = [
            "probe --backend eager",
            "probe --backend native",
            "probe --backend eager --target sm_90",
        ]
        .map(target)
        .into();
        assert_eq!(targets, [["any"], ["sm_90"], ["sm_90"]]);
    }

    #[test]
    fn nonsense_is_refused_when_parsing() {
        for line in ["probe --target gpu", "probe --backend gcc", "probe --option x"] {
            assert!(Probe::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
