//! Graphs to modules on the device, in this process.

use std::{
    collections::BTreeMap,
    ffi::{CString, c_char},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use cudarc::nvrtc::{result, sys};
use kiln::exec::Module;
use kiln_native::Lowered;
use kiln_proto::Target;
use libloading::Library;

/// What the device's code is compiled for.
pub(crate) fn target() -> Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    *TARGET.get_or_init(|| {
        let context = cudarc::driver::CudaContext::new(0).expect("a GPU: these tests need one");
        let (major, minor) = context.compute_capability().unwrap();
        Target::cubin((major * 10 + minor) as u32)
    })
}

/// The options of a request.
pub(crate) fn options() -> BTreeMap<String, String> {
    BTreeMap::new()
}

/// Makes sure that cudarc finds the library: it panics where there is none.
fn load_nvrtc() {
    static LOADED: OnceLock<Option<Library>> = OnceLock::new();
    LOADED.get_or_init(|| {
        let folders = std::env::var_os("KILN_NVRTC_DIR").map(PathBuf::from);
        let folders = folders.into_iter().chain([
            PathBuf::from("/usr/local/cuda/lib64"),
            PathBuf::from("/usr/local/cuda/targets/x86_64-linux/lib"),
        ]);
        for path in folders.flat_map(|f| [f.join("libnvrtc.so.13"), f.join("libnvrtc.so.12")]) {
            if path.exists() {
                // SAFETY: NVRTC's initialisers have no requirements.
                return Some(unsafe { Library::new(&path) }.unwrap());
            }
        }
        None
    });
    // SAFETY: it only tries to open the library.
    assert!(unsafe { sys::is_culib_present() }, "no NVRTC: set KILN_NVRTC_DIR");
}

/// The version of the NVRTC that compiles here.
pub(crate) fn nvrtc() -> (i32, i32) {
    load_nvrtc();
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two numbers to write to.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().unwrap();
    (major, minor)
}

/// Machine code for `lowered`.
pub(crate) fn cubin(lowered: &Lowered) -> Result<Vec<u8>, String> {
    load_nvrtc();
    let source = CString::new(lowered.source.as_str()).map_err(|e| e.to_string())?;
    let program = result::create_program(&source, None).map_err(|e| e.to_string())?;
    let mut options =
        vec!["--no-cache".to_owned(), format!("--gpu-architecture={}", lowered.plan.target)];
    options.extend(lowered.nvrtc_options.iter().cloned());
    // SAFETY: a live program; destroyed once, at the end.
    unsafe {
        let compiled = result::compile_program(program, &options);
        let done = compiled.map_err(|e| format!("{e}: {}", log(program))).and_then(|()| {
            let mut size = 0;
            sys::nvrtcGetCUBINSize(program, &mut size).result().map_err(|e| e.to_string())?;
            let mut bytes = vec![0u8; size];
            let into = bytes.as_mut_ptr().cast::<c_char>();
            sys::nvrtcGetCUBIN(program, into).result().map_err(|e| e.to_string())?;
            Ok(bytes)
        });
        let _ = result::destroy_program(program);
        done
    }
}

fn log(program: sys::nvrtcProgram) -> String {
    // SAFETY: a live program.
    let log = unsafe { result::get_program_log(program) }.unwrap_or_default();
    let text: Vec<u8> = log.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    String::from_utf8_lossy(&text).chars().take(2000).collect()
}

/// Compiles `lowered` into `dir`, as its artifact has it.
pub(crate) fn write(dir: &Path, lowered: &Lowered) -> Result<(), String> {
    std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(Path::join(dir, name), bytes).map_err(|e| e.to_string())
    };
    write("module.cubin", &cubin(lowered)?)?;
    write("plan.json", &serde_json::to_vec(&lowered.plan).map_err(|e| e.to_string())?)
}

/// The module on the device.
pub(crate) fn module(lowered: &Lowered) -> Result<Arc<Module>, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    write(dir.path(), lowered)?;
    Module::load(dir.path(), 0).map_err(|e| e.to_string())
}
