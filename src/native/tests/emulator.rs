//! Runs generated modules on the CPU: compiled by the C++ compiler against
//! `emulator.h`, launched as the plan says.

use std::{
    ffi::c_void,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Lowered,
    plan::{Base, Call, Plan, Tensor, Value},
};

/// A module as host code.
pub(super) struct Module {
    kernels: Kernels,
    plan: Plan,
}

/// Kernels as host code.
pub(super) struct Kernels {
    library: libloading::Library,
    _dir: tempfile::TempDir,
}

type Entry = unsafe extern "C" fn(u32, u32, u32, u32, *mut *mut c_void);

impl Kernels {
    /// Of `source`, those that are named.
    pub(super) fn build(source: &str, names: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let entry = |name: &&str| format!("KILN_ENTRY({name}, {})\n", cluster(source, name));
        let entries = names.iter().map(entry).collect::<String>();
        let source = [source, include_str!("emulator_tail.h"), &entries];
        std::fs::write(path("module.cpp"), source.join("\n")).unwrap();
        compile(&path("module.cpp"), &path("module.so"));
        // SAFETY: the library was just built from sources of this crate.
        let library = unsafe { libloading::Library::new(path("module.so")).unwrap() };
        Self { library, _dir: dir }
    }

    /// Runs a kernel.
    ///
    /// # Safety
    /// `args` are what its parameters want, all of them as wide as a pointer.
    pub(super) unsafe fn launch(
        &self,
        name: &str,
        [x, y, z]: [u32; 3],
        threads: u32,
        args: &mut [*mut c_void],
    ) {
        let name = format!("emulate_{name}");
        // SAFETY: the entry has this signature; the caller answers for `args`.
        unsafe {
            let entry = self.library.get::<Entry>(name.as_bytes()).unwrap();
            entry(x, y, z, threads, args.as_mut_ptr());
        }
    }
}

/// Blocks of a cluster, as the kernel's attribute says.
fn cluster<'a>(source: &'a str, name: &str) -> &'a str {
    let declared = source.find(&format!(" {name}(")).unwrap_or(0);
    let line = source[..declared].rfind('\n').map_or(0, |newline| newline + 1);
    let attribute = source[line..declared].split_once("__cluster_dims__(");
    attribute.and_then(|(_, rest)| rest.split(',').next()).unwrap_or("1")
}

impl Module {
    pub(super) fn build(lowered: &Lowered) -> Self {
        Self::of(&lowered.source, &lowered.plan)
    }

    /// The module that is `source`, to be run as `plan` says.
    pub(super) fn of(source: &str, plan: &Plan) -> Self {
        let mut names: Vec<&str> = plan.kernels.iter().map(|k| k.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let kernels = Kernels::build(source, &names);
        Self { kernels, plan: plan.clone() }
    }

    /// Runs the plan on inputs of the plan's own shapes, in memory order.
    pub(super) fn run(&self, inputs: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let known = |tensor: &Tensor| {
            let layout = tensor.layout(&[]).expect("a program with symbols: call run_shaped");
            layout.shape
        };
        let shapes: Vec<Vec<usize>> = self.plan.inputs.iter().map(known).collect();
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        self.run_shaped(inputs, &shapes)
    }

    /// Runs the plan on inputs of these shapes, in memory order.
    pub(super) fn run_shaped(&self, inputs: &[Vec<u8>], shapes: &[&[usize]]) -> Vec<Vec<u8>> {
        let call = self.plan.call(shapes).unwrap();
        for (bytes, (tensor, layout)) in
            inputs.iter().zip(self.plan.inputs.iter().zip(&call.inputs))
        {
            assert_eq!(bytes.len() as u64, layout.bytes, "{}", tensor.name);
        }
        let (mut outputs, inputs) = launch_all(&call, inputs, |kernel| (self, kernel));
        // What is left in inputs comes behind the outputs, as in the graph.
        let left = self.plan.inputs.iter().zip(inputs).filter(|(input, _)| input.updated);
        outputs.extend(left.map(|(_, bytes)| bytes));
        outputs
    }
}

/// Launches what `call` says; `of` has for each of its kernels a module and its
/// position there. Gives the outputs, and the inputs as they are then.
pub(super) fn launch_all<'m>(
    call: &Call,
    inputs: &[Vec<u8>],
    of: impl Fn(usize) -> (&'m Module, usize),
) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let mut inputs: Vec<Aligned> = inputs.iter().map(|bytes| Aligned::of(bytes)).collect();
    // What a kernel fails to write must not look right by accident.
    let poisoned = |bytes: u64| Aligned::of(&vec![0xff; bytes as usize]);
    let mut outputs: Vec<Aligned> =
        call.outputs.iter().map(|output| poisoned(output.bytes)).collect();
    let mut workspace = poisoned(call.workspace_bytes);
    for launch in &call.launches {
        let (module, kernel) = of(launch.kernel);
        let kernel = &module.plan.kernels[kernel];
        // By value, as the driver takes them: a pointer and a size have 64 bits.
        let mut args: Vec<*mut c_void> = launch
            .values
            .iter()
            .map(|value| match value {
                Value::Pointer(Base::Input(i), offset) => inputs[*i].at(*offset as usize),
                Value::Pointer(Base::Output(i), offset) => outputs[*i].at(*offset as usize),
                Value::Pointer(Base::Workspace, offset) => workspace.at(*offset as usize),
                Value::Size(size) => *size as *mut c_void,
                Value::Map(_) => {
                    panic!("{}: tensor maps are for the GPU, no emulation has them", kernel.name)
                }
            })
            .collect();
        // SAFETY: the kernel was generated with this signature; the pointers
        // are of the sizes that the plan says.
        unsafe { module.kernels.launch(&kernel.name, launch.grid, kernel.block[0], &mut args) };
        assert_eq!(kernel.block[1..], [1, 1], "{}", kernel.name);
    }
    let bytes = |memory: &[Aligned]| memory.iter().map(Aligned::to_vec).collect();
    (bytes(&outputs), bytes(&inputs))
}

/// What comes before a module's own text.
const HEADERS: &str =
    concat!(include_str!("emulator.h"), "\n", include_str!("emulator_attention.h"));
/// Shared memory is static: if not hidden, all modules of a process would have one, and tests run
/// in parallel. Some compilers have longjmp checked, for one stack: the emulator has one for each
/// thread.
const OPTIONS: [&str; 7] = [
    "-std=c++17",
    "-O1",
    "-w",
    "-fno-strict-aliasing",
    "-fPIC",
    "-fvisibility=hidden",
    "-U_FORTIFY_SOURCE",
];

/// Builds a shared library of what the emulator's headers and a module are.
pub(super) fn compile(source: &Path, library: &Path) {
    run_compiler(&["-shared".as_ref(), "-include".as_ref(), &headers(), source], library);
}

/// The emulator's headers in a file beside the test program, compiled in another beside that: to
/// read them takes longer than many a module. A compiler that makes no use of it reads the text.
fn headers() -> PathBuf {
    let mut hasher = DefaultHasher::new();
    (HEADERS, OPTIONS, std::env::var("CXX").ok()).hash(&mut hasher);
    let program = std::env::current_exe().unwrap();
    let beside = program.parent().unwrap();
    let folder = beside.join(format!("emulator-{:016x}", hasher.finish()));
    if !folder.exists() {
        let made = tempfile::tempdir_in(beside).unwrap();
        let header = made.path().join("emulator.h");
        std::fs::write(&header, HEADERS).unwrap();
        run_compiler(&["-xc++-header".as_ref(), &header], &made.path().join("emulator.h.gch"));
        // Another test may have been faster.
        let placed = std::fs::rename(made.path(), &folder);
        assert!(placed.is_ok() || folder.exists(), "{placed:?}");
    }
    folder.join("emulator.h")
}

fn run_compiler(given: &[&Path], out: &Path) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut command = Command::new(compiler);
    let output = command.args(OPTIONS).args(given).arg("-o").arg(out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Bytes at an address as aligned as a device's.
pub(super) struct Aligned {
    words: Vec<u128>,
    bytes: usize,
}

impl Aligned {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut words = vec![0u128; bytes.len().div_ceil(16)];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks(16)) {
            let mut padded = [0; 16];
            padded[..chunk.len()].copy_from_slice(chunk);
            *word = u128::from_ne_bytes(padded);
        }
        Self { words, bytes: bytes.len() }
    }

    pub(super) fn at(&mut self, offset: usize) -> *mut c_void {
        assert!(offset <= self.bytes && offset.is_multiple_of(16));
        self.words[offset / 16..].as_mut_ptr().cast()
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let bytes = self.words.iter().flat_map(|word| word.to_ne_bytes());
        bytes.take(self.bytes).collect()
    }
}
