//! Runs a compiled graph on the GPU: the module and its plan, as `kiln compile
//! -o DIR` wrote them.
//!
//! Invariant: the driver is probed before it is called, and nothing is launched
//! unless the plan's pointers and the device were checked. The daemon never
//! comes here.

mod error;
mod tensors;

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use cudarc::{
    driver::{
        CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
        sys,
    },
    nvrtc::Ptx,
};
use error::During;
pub use error::ExecError;
use kiln_proto::Target;

use kiln_native::plan::{self, Base, Call, Launch, Layout, Plan, Value};
use safetensors::SafeTensors;

use tensors::{Given, laid_out};

/// Launches of each kernel that are timed.
const TIMED: u32 = 20;

/// A module on the device, ready to run.
pub struct Module {
    plan: Plan,
    device: String,
    stream: Arc<CudaStream>,
    functions: Vec<CudaFunction>,
}

/// What a run took, for people and as JSON.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// The device's name.
    pub device: String,
    /// Of each kernel, in order: name and microseconds of one launch, the mean of several.
    pub kernels: Vec<(String, f32)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: f32 = self.kernels.iter().map(|(_, micros)| micros).sum();
        writeln!(f, "{}: {total:.1} us in {} kernels", self.device, self.kernels.len())?;
        for (name, micros) in &self.kernels {
            writeln!(f, "  {name:<16} {micros:>9.1} us")?;
        }
        Ok(())
    }
}

/// `kiln exec DIR --inputs IN -o OUT`: runs the artifact in `dir` on device 0.
///
/// `inputs` is a safetensors file with `in0`, `in1`, ...: what the plan lists,
/// in the order of the exported program (its parameters, buffers, arguments).
/// `output` gets `out0`, ... and the kernels' times as metadata.
pub fn exec_main(dir: &Path, inputs: &Path, output: &Path) -> Result<Report, ExecError> {
    let module = Module::load(dir)?;
    let file = read(inputs)?;
    let file = SafeTensors::deserialize(&file)
        .map_err(|e| ExecError::Inputs(format!("the inputs are no safetensors file: {e}")))?;
    let given = tensors::read(&file, &module.plan)?;
    let (outputs, report) = module.timed(&given)?;
    let mut notes = HashMap::new();
    for (name, micros) in &report.kernels {
        notes.insert(format!("micros.{name}"), micros.to_string());
    }
    tensors::write(output, &module.plan, &outputs, notes)?;
    Ok(report)
}

impl Module {
    /// Loads `module.cubin` and `plan.json` from `dir` onto device 0.
    pub fn load(dir: &Path) -> Result<Self, ExecError> {
        let (plan, path) = (read_plan(dir)?, dir.join("module.cubin"));
        let cubin = read(&path)?;
        if !cubin.starts_with(b"\x7fELF") {
            return Err(ExecError::Artifact { path, why: "no machine code".to_owned() });
        }
        // SAFETY: it only tries to open the driver's library.
        if !unsafe { sys::is_culib_present() } {
            return Err(ExecError::NoDriver);
        }
        let context = CudaContext::new(0).map_err(ExecError::NoDevice)?;
        let device = context.name().during("name the device")?;
        check_device(&plan, &path, &context, &device)?;
        let module = context.load_module(Ptx::from_binary(cubin)).during("load the module")?;
        let functions = plan
            .kernels
            .iter()
            .map(|kernel| module.load_function(&kernel.name).during("find a kernel"))
            .collect::<Result<_, _>>()?;
        Ok(Self { plan, device, stream: context.default_stream(), functions })
    }

    /// What it takes and gives.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Runs once, and each kernel some more times in its place: by then its
    /// inputs are there, and it writes the same again.
    fn timed(&self, inputs: &[Given<'_>]) -> Result<(Vec<(Layout, Vec<u8>)>, Report), ExecError> {
        let shapes: Vec<&[usize]> = inputs.iter().map(|input| input.shape.as_slice()).collect();
        let call = self.plan.call(&shapes)?;
        let memory = self.upload(&call, inputs)?;
        let event = || {
            let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            self.stream.record_event(flags).during("record an event")
        };
        let mut events = Vec::with_capacity(call.launches.len());
        for launch in &call.launches {
            self.launch(launch, &memory)?;
            let start = event()?;
            for _ in 0..TIMED {
                self.launch(launch, &memory)?;
            }
            events.push((launch.kernel, start, event()?));
        }
        self.stream.synchronize().during("run the kernels")?;
        let outputs = memory.outputs.iter().zip(call.outputs).map(|(output, layout)| {
            let mut bytes = self.stream.clone_dtoh(output).during("copy an output")?;
            bytes.truncate(layout.bytes as usize);
            Ok((layout, bytes))
        });
        let outputs = outputs.collect::<Result<_, ExecError>>()?;
        let times = events.iter().map(|(kernel, start, end)| {
            let millis = start.elapsed_ms(end).during("read an event")?;
            Ok((self.plan.kernels[*kernel].name.clone(), millis * 1000.0 / TIMED as f32))
        });
        let kernels = times.collect::<Result<_, ExecError>>()?;
        Ok((outputs, Report { device: self.device.clone(), kernels }))
    }

    fn upload(&self, call: &Call, inputs: &[Given<'_>]) -> Result<Buffers, ExecError> {
        let zeros = |bytes: u64| {
            self.stream.alloc_zeros::<u8>(bytes.max(1) as usize).during("allocate memory")
        };
        let mut uploaded = Vec::with_capacity(inputs.len());
        for ((given, tensor), layout) in inputs.iter().zip(&self.plan.inputs).zip(&call.inputs) {
            let bytes = laid_out(given.bytes, layout, tensor.dtype.bytes() as usize);
            uploaded.push(match bytes.is_empty() {
                true => zeros(0)?,
                false => self.stream.clone_htod(&*bytes).during("copy an input")?,
            });
        }
        let outputs = call.outputs.iter().map(|layout| zeros(layout.bytes));
        Ok(Buffers {
            inputs: uploaded,
            outputs: outputs.collect::<Result<_, _>>()?,
            workspace: zeros(call.workspace_bytes)?,
        })
    }

    fn launch(&self, launch: &Launch, buffers: &Buffers) -> Result<(), ExecError> {
        let kernel = &self.plan.kernels[launch.kernel];
        let mut words: Vec<u64> = Vec::with_capacity(launch.values.len());
        for value in &launch.values {
            words.push(match value {
                Value::Pointer(base, offset) => buffers.start(*base, &self.stream) + offset,
                Value::Size(size) => *size as u64,
                Value::Map(_) => {
                    let why = format!("kernel {} takes tensor maps", kernel.name);
                    return Err(ExecError::Inputs(why));
                }
            });
        }
        let mut builder = self.stream.launch_builder(&self.functions[launch.kernel]);
        for word in &words {
            builder.arg(word);
        }
        let [(gx, gy, gz), (bx, by, bz)] = [launch.grid, kernel.block].map(|[x, y, z]| (x, y, z));
        let config = LaunchConfig {
            grid_dim: (gx, gy, gz),
            block_dim: (bx, by, bz),
            shared_mem_bytes: kernel.shared_bytes,
        };
        // SAFETY: the kernel was generated with the plan, whose pointers are of
        // the sizes that it says and outlive the stream's work.
        unsafe { builder.launch(config) }.during("launch a kernel")?;
        Ok(())
    }
}

/// Memory on the device for one run.
struct Buffers {
    inputs: Vec<CudaSlice<u8>>,
    outputs: Vec<CudaSlice<u8>>,
    workspace: CudaSlice<u8>,
}

impl Buffers {
    fn start(&self, base: Base, stream: &CudaStream) -> u64 {
        let slice = match base {
            Base::Input(at) => &self.inputs[at],
            Base::Output(at) => &self.outputs[at],
            Base::Workspace => &self.workspace,
        };
        slice.device_ptr(stream).0
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ExecError> {
    std::fs::read(path).map_err(|error| ExecError::File { path: path.to_owned(), error })
}

/// Reads the plan and checks that it hangs together.
fn read_plan(dir: &Path) -> Result<Plan, ExecError> {
    let path: PathBuf = dir.join("plan.json");
    let bytes = read(&path)?;
    let refuse = |why: String| ExecError::Artifact { path: path.clone(), why };
    let plan: Plan = serde_json::from_slice(&bytes).map_err(|e| refuse(e.to_string()))?;
    if plan.version != plan::VERSION {
        return Err(refuse(format!("version {}, not {}", plan.version, plan::VERSION)));
    }
    plan.check().map_err(|why| refuse(why.to_string()))?;
    Ok(plan)
}

/// Machine code runs on its own architecture and on later minor ones of it.
fn check_device(
    plan: &Plan,
    path: &Path,
    context: &CudaContext,
    device: &str,
) -> Result<(), ExecError> {
    let (major, minor) = context.compute_capability().during("ask for the architecture")?;
    let compute = (major * 10 + minor) as u32;
    let target: Target = plan.target.parse().map_err(|e: kiln_proto::ParseTargetError| {
        ExecError::Artifact { path: path.to_owned(), why: e.to_string() }
    })?;
    let runs = match target.arch_specific {
        true => target.compute == compute,
        false => target.compute / 10 == compute / 10 && target.compute <= compute,
    };
    if runs {
        return Ok(());
    }
    let (target, device) = (plan.target.clone(), device.to_owned());
    Err(ExecError::WrongDevice { target, device, compute })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn artifact(plan: &str, cubin: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("plan.json"), plan).unwrap();
        std::fs::write(dir.path().join("module.cubin"), cubin).unwrap();
        dir
    }

    const EMPTY: &str = r#"{"version":2,"target":"sm_90","symbols":[],"inputs":[],"outputs":[],
        "workspace_bytes":0,"buffers":[],"kernels":[]}"#;

    #[test]
    fn broken_artifacts_are_refused_before_the_driver_is_touched() {
        let refused = |plan: &str, cubin: &[u8]| {
            let dir = artifact(plan, cubin);
            Module::load(dir.path()).err().unwrap().to_string()
        };
        assert!(refused("{", b"\x7fELF").contains("plan.json"));
        assert!(refused(EMPTY, b"text").contains("no machine code"));
        assert!(
            refused(&EMPTY.replace("\"version\":2", "\"version\":9"), b"").contains("version 9")
        );
        let kernel = r#""kernels":[{"name":"k","kind":"map","grid":[1,1,1],"block":[32,1,1],"shared_bytes":0,
            "args":[{"memory":{"workspace":512}}],"computes":[]}]"#;
        assert!(refused(&EMPTY.replace("\"kernels\":[]", kernel), b"").contains("kernel k"));
        assert!(Module::load(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn a_machine_without_a_gpu_says_so() {
        let dir = artifact(EMPTY, b"\x7fELF");
        // With a driver at hand, the load fails on the made-up machine code instead.
        let refused = Module::load(dir.path()).err().unwrap();
        let expected = matches!(
            refused,
            ExecError::NoDriver
                | ExecError::NoDevice(_)
                | ExecError::Driver { .. }
                | ExecError::WrongDevice { .. }
        );
        assert!(expected, "{refused}");
    }
}
