//! NVRTC behind a safe face.
//!
//! Invariants: only a worker process calls this; the library is the one whose
//! path was given, never another that the loader would find by name; and every
//! program is destroyed, whatever happened to it.

use std::{
    ffi::{CStr, CString, c_char, c_int},
    path::Path,
    ptr,
    time::Instant,
};

use cudarc::nvrtc::{
    result::{self, NvrtcError},
    sys::{self, nvrtcProgram, nvrtcResult},
};
use kiln_proto::{BinaryKind, Failure, FailureKind};
use libloading::Library;

use super::protocol::{Compiled, Octets, Program};

/// The name under which NVRTC sees every source. Static variables are mangled
/// with it, so a name of the caller's would change the output.
pub(crate) const SOURCE_NAME: &str = "kernel.cu";

/// Longest log that travels: failures are replicated to all nodes.
const LONGEST_LOG: usize = 16 << 10;

/// A loaded NVRTC.
pub(super) struct Nvrtc {
    library: Library,
}

impl Nvrtc {
    /// Loads the library at `path`, and makes sure that cudarc calls that one.
    pub(super) fn load(path: &Path) -> Result<Self, Failure> {
        let missing = |why: String| Failure::new(FailureKind::ToolchainMissing, why);
        // SAFETY: NVRTC's initialisers have no requirements; this process exists to run them.
        let library = unsafe { Library::new(path) }
            .map_err(|e| missing(format!("load NVRTC from {}: {e}", path.display())))?;
        // cudarc opens its library by a bare name and panics where there is none.
        // SAFETY: as above.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing(format!("{} is not found under its own name", path.display())));
        }
        let ours = address(&library)?;
        // SAFETY: present, as was just seen.
        let theirs = address(unsafe { sys::culib() })?;
        if ours != theirs {
            let why = "the loader finds another NVRTC before the one that was chosen";
            return Err(missing(format!("{why}: {}", path.display())));
        }
        Ok(Self { library })
    }

    /// Compute capabilities times ten.
    pub(super) fn architectures(&self) -> Result<Vec<u32>, Failure> {
        let mut count: c_int = 0;
        // SAFETY: an out-pointer to a live integer.
        unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) }.result().map_err(internal)?;
        let mut found = vec![0 as c_int; usize::try_from(count).unwrap_or_default()];
        // SAFETY: room for as many as the library just announced.
        unsafe { sys::nvrtcGetSupportedArchs(found.as_mut_ptr()) }.result().map_err(internal)?;
        Ok(found.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect())
    }

    /// Whether the library brings headers: older ones lack the call for them, and cudarc panics
    /// on a missing symbol.
    pub(super) fn has_headers(&self) -> bool {
        let has = |symbol: &[u8]| {
            // SAFETY: the symbol is only looked at, not called.
            unsafe { self.library.get::<*const ()>(symbol) }.is_ok()
        };
        if !has(b"nvrtcInstallBundledHeaders\0") || !has(b"nvrtcGetBundledHeadersInfo\0") {
            return false;
        }
        let mut info = std::mem::MaybeUninit::zeroed();
        let mut why: *const c_char = ptr::null();
        // SAFETY: out-pointers that live through the call; zeros are a value of all its fields.
        let (told, info) = unsafe {
            let told = sys::nvrtcGetBundledHeadersInfo(info.as_mut_ptr(), &mut why);
            (told, info.assume_init())
        };
        told.result().is_ok() && info.available != 0
    }

    /// Writes the headers that the library brings into `folder`: there are [`Self::has_headers`].
    pub(super) fn install_headers(&self, folder: &Path) -> Result<(), Failure> {
        const FORCE_OVERWRITE: u32 = 1;
        let path = c_string(folder.as_os_str().as_encoded_bytes())?;
        let mut why: *const c_char = ptr::null();
        // SAFETY: a NUL-terminated path and an out-pointer that lives through the call.
        let done =
            unsafe { sys::nvrtcInstallBundledHeaders(path.as_ptr(), FORCE_OVERWRITE, &mut why) };
        done.result().map_err(|e| {
            let why = match why.is_null() {
                true => String::new(),
                // SAFETY: not null: the library's own NUL-terminated message.
                false => unsafe { CStr::from_ptr(why) }.to_string_lossy().into_owned(),
            };
            let at = folder.display();
            Failure::new(
                FailureKind::ToolchainMissing,
                format!("write CUDA's headers to {at}: {e} {why}"),
            )
        })
    }

    /// The full version, as the compiler writes it into PTX: `nvrtcVersion` has no
    /// third part, and a patch release can change output.
    pub(super) fn version(&self, ptx: &[u8]) -> Result<String, Failure> {
        let text = String::from_utf8_lossy(ptx);
        let version = text
            .lines()
            .find(|line| line.contains("Cuda compilation tools"))
            .and_then(|line| line.rsplit_once(", V"))
            .map(|(_, version)| version.trim().to_owned());
        version.ok_or_else(|| {
            let why = "the library's PTX does not name its version";
            Failure::new(FailureKind::ToolchainMissing, why)
        })
    }

    /// Compiles one program, with `include` folders after its own headers.
    pub(super) fn compile(&self, job: &Program, include: &[String]) -> Result<Compiled, Failure> {
        let started = Instant::now();
        let (program, _texts) = Handle::create(job)?;
        let names: Vec<CString> = job
            .name_expressions
            .iter()
            .map(|name| c_string(name.as_bytes()))
            .collect::<Result<_, _>>()?;
        for name in &names {
            // SAFETY: a live program and a NUL-terminated name.
            unsafe { sys::nvrtcAddNameExpression(program.0, name.as_ptr()) }
                .result()
                .map_err(|e| program.failed(e))?;
        }
        let options = arguments(job, include);
        // SAFETY: a live program; options without NUL, as validated.
        unsafe { result::compile_program(program.0, &options) }.map_err(|e| program.failed(e))?;
        let module = match job.target.kind {
            BinaryKind::Cubin => {
                program.bytes(sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN).map_err(internal)?
            }
            BinaryKind::Files => {
                let why = "NVRTC makes PTX or CUBIN";
                return Err(Failure::new(FailureKind::Incompatible, why));
            }
            BinaryKind::Ptx => {
                let text =
                    program.bytes(sys::nvrtcGetPTXSize, sys::nvrtcGetPTX).map_err(internal)?;
                until_nul(text)
            }
        };
        let mut lowered = Vec::with_capacity(names.len());
        for (expression, name) in job.name_expressions.iter().zip(&names) {
            lowered.push((expression.clone(), program.lowered(name)?));
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok(Compiled { module: Octets(module.into()), lowered, log: program.log(), seconds })
    }
}

/// Every option as NVRTC gets it.
fn arguments(job: &Program, include: &[String]) -> Vec<String> {
    let mut all = vec![
        // NVRTC keeps a cache of its own; Kiln is the cache here.
        "--no-cache".to_owned(),
        format!("--gpu-architecture={}", job.target),
    ];
    all.extend(job.options.iter().cloned());
    all.extend(include.iter().map(|folder| format!("--include-path={folder}")));
    all
}

/// A program that destroys itself.
struct Handle(nvrtcProgram);

type SizeOf = unsafe fn(nvrtcProgram, *mut usize) -> nvrtcResult;
type BytesOf = unsafe fn(nvrtcProgram, *mut c_char) -> nvrtcResult;

impl Handle {
    /// The program, and the texts that it may refer to while it lives.
    fn create(job: &Program) -> Result<(Self, Vec<CString>), Failure> {
        let source = c_string(&job.source.0)?;
        let name = c_string(SOURCE_NAME.as_bytes())?;
        let (mut texts, mut names) = (Vec::new(), Vec::new());
        for (name, text) in &job.headers {
            names.push(c_string(name.as_bytes())?);
            texts.push(c_string(&text.0)?);
        }
        let text_pointers: Vec<_> = texts.iter().map(|t| t.as_ptr()).collect();
        let name_pointers: Vec<_> = names.iter().map(|n| n.as_ptr()).collect();
        let count = c_int::try_from(texts.len()).map_err(|e| invalid(e.to_string()))?;
        let mut program = ptr::null_mut();
        // SAFETY: NUL-terminated texts, and two arrays of `count` pointers to such.
        unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                count,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        }
        .result()
        .map_err(internal)?;
        texts.extend(names);
        texts.extend([source, name]);
        Ok((Self(program), texts))
    }

    fn bytes(&self, size_of: SizeOf, bytes_of: BytesOf) -> Result<Vec<u8>, NvrtcError> {
        let mut size = 0;
        // SAFETY: a live program and an out-pointer.
        unsafe { size_of(self.0, &mut size) }.result()?;
        let mut bytes = vec![0u8; size];
        // SAFETY: room for as many bytes as the library just announced.
        unsafe { bytes_of(self.0, bytes.as_mut_ptr().cast()) }.result()?;
        Ok(bytes)
    }

    fn log(&self) -> String {
        let log = self.bytes(sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog);
        let log = String::from_utf8_lossy(&until_nul(log.unwrap_or_default())).into_owned();
        bounded(log, LONGEST_LOG)
    }

    fn lowered(&self, name: &CStr) -> Result<String, Failure> {
        let mut found: *const c_char = ptr::null();
        // SAFETY: a live program, a name that was added to it, an out-pointer.
        unsafe { sys::nvrtcGetLoweredName(self.0, name.as_ptr(), &mut found) }
            .result()
            .map_err(|e| self.failed(e))?;
        // SAFETY: on success a NUL-terminated text that lives as long as the program.
        Ok(unsafe { CStr::from_ptr(found) }.to_string_lossy().into_owned())
    }

    /// What an error code means to the caller.
    fn failed(&self, error: NvrtcError) -> Failure {
        use nvrtcResult as Code;
        let log = self.log();
        // The front end says so in its log alone, and calls it a compile error.
        let exhausted = log.contains("catastrophic error") && log.contains("out of memory");
        // What optimises several kernels at a time says nothing: a source that is refused is
        // refused for a reason.
        let silent = error.0 == Code::NVRTC_ERROR_COMPILATION && log.trim().is_empty();
        let kind = match error.0 {
            Code::NVRTC_ERROR_OUT_OF_MEMORY => FailureKind::OutOfMemory,
            _ if exhausted || silent => FailureKind::OutOfMemory,
            Code::NVRTC_ERROR_COMPILATION | Code::NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID => {
                FailureKind::CompileError
            }
            Code::NVRTC_ERROR_INVALID_OPTION => FailureKind::Incompatible,
            Code::NVRTC_ERROR_BUILTIN_OPERATION_FAILURE => FailureKind::ToolchainMissing,
            _ => FailureKind::Crashed,
        };
        let log = match log.trim() {
            "" if silent => "NVRTC ended without a word, as it does where memory is refused".into(),
            "" => format!("NVRTC: {error}"),
            text => text.to_owned(),
        };
        Failure::new(kind, log)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: a live program, destroyed once. A failure leaks it in a process
        // that ends with this job.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Where the library has one of its functions.
fn address(library: &Library) -> Result<usize, Failure> {
    // SAFETY: only the address is taken.
    let symbol = unsafe { library.get::<unsafe extern "C" fn()>(b"nvrtcVersion\0") };
    let symbol = symbol.map_err(|e| {
        Failure::new(FailureKind::ToolchainMissing, format!("the library is no NVRTC: {e}"))
    })?;
    Ok(*symbol as usize)
}

/// `text` cut to `most` bytes, with a word on what is missing.
pub(super) fn bounded(mut text: String, most: usize) -> String {
    if text.len() > most {
        let cut = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let rest = text.len() - cut;
        text.truncate(cut);
        text.push_str(&format!("\n... and {rest} bytes more"));
    }
    text
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn c_string(bytes: &[u8]) -> Result<CString, Failure> {
    CString::new(bytes).map_err(|_| invalid("a text contains a NUL byte"))
}

fn invalid(why: impl Into<String>) -> Failure {
    Failure::new(FailureKind::InvalidInput, why)
}

fn internal(error: NvrtcError) -> Failure {
    Failure::new(FailureKind::Crashed, format!("NVRTC: {error}"))
}
