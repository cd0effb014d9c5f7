//! A module on a device, or the modules of a stitched whole.
//!
//! Invariant: the driver is probed before it is called, and a module exists only
//! where its machine code runs and its plan hangs together. Equal machine code is
//! loaded once.

use std::{collections::HashMap, path::Path, sync::Arc};

use cudarc::{
    driver::{CudaContext, CudaFunction, CudaModule, sys},
    nvrtc::Ptx,
};
use kiln_native::{Plan, Signature, plan::Kernel};
use kiln_proto::{Digest, Target};

use super::{
    ExecError, Session, Tensor,
    error::During,
    launching,
    program::{Code, Program},
};

/// Dynamic shared memory that every kernel gets unasked.
const PLAIN_SHARED: u32 = 48 << 10;

/// A compiled graph on the device, ready to run.
pub struct Module {
    pub(super) program: Program,
    pub(super) device: String,
    pub(super) context: Arc<CudaContext>,
    /// As the program has its kernels.
    pub(super) functions: Vec<CudaFunction>,
    /// Whether launches may overlap where their kernels allow it.
    pub(super) overlaps: bool,
}

impl Module {
    /// Loads the artifact in `dir` onto device `ordinal`: `module.cubin` and
    /// `plan.json`, or a `stitching.json` and those of its pieces; and those for static
    /// sizes beside it. A whole of which pieces run on the CPU is for [`super::Patched`].
    pub fn load(dir: &Path, ordinal: usize) -> Result<Arc<Self>, ExecError> {
        let mut program = Program::read(dir)?;
        // SAFETY: it only tries to open the driver's library.
        if !unsafe { sys::is_culib_present() } {
            return Err(ExecError::NoDriver);
        }
        let context = CudaContext::new(ordinal)
            .map_err(|error| ExecError::NoDevice { device: ordinal, error })?;
        let device = context.name().during("name the device")?;
        let mut loaded: HashMap<Digest, Arc<CudaModule>> = HashMap::new();
        let mut functions = Vec::with_capacity(program.kernels.len());
        for Code { path, bytes, kernels } in std::mem::take(&mut program.codes) {
            check_device(&program.plan, &path, &context, &device)?;
            let digest = Digest::of(&bytes);
            let module = match loaded.get(&digest) {
                Some(module) => module.clone(),
                None => {
                    let module = context.load_module(Ptx::from_binary(bytes));
                    module.during("load the module")?
                }
            };
            for kernel in &program.kernels[kernels] {
                functions.push(function(&module, kernel)?);
            }
            loaded.insert(digest, module);
        }
        let overlaps = launching::overlaps().during("ask for the driver's version")?;
        Ok(Arc::new(Self { program, device, context, functions, overlaps }))
    }

    /// What it takes and gives, and how; of a stitched whole without the kernels.
    pub fn plan(&self) -> &Plan {
        &self.program.plan
    }

    /// What the program calls its inputs, where the artifact was compiled from
    /// it and not fetched by its key.
    pub fn signature(&self) -> Option<&Signature> {
        self.program.signature.as_ref()
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// What the device's memory moves at most, in 10^9 bytes a second, by its clock and its
    /// width; `None`: the driver does not say.
    pub fn peak_gb_s(&self) -> Option<f64> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH as WIDTH,
            CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE as CLOCK,
        };
        let attribute = |of| self.context.attribute(of).ok().filter(|number| *number > 0);
        let (kilohertz, bits) = (attribute(CLOCK)?, attribute(WIDTH)?);
        // Memory moves twice in each cycle.
        Some(2.0 * f64::from(kilohertz) * 1e3 * f64::from(bits) / 8.0 / 1e9)
    }

    /// The static size whose code a call with inputs of these shapes runs; none: the
    /// dynamic one, which runs for every size that has no code of its own.
    pub fn size_for(&self, shapes: &[&[usize]]) -> Option<u64> {
        self.program.size_for(shapes)
    }

    /// Memory and a stream to run it with, again and again.
    pub fn session(self: &Arc<Self>) -> Result<Session, ExecError> {
        Session::new(self.clone())
    }

    /// Runs once, from host memory to host memory. `inputs` are in the plan's
    /// order; what is given for a constant is not read.
    pub fn run(self: &Arc<Self>, inputs: &[Tensor<'_>]) -> Result<Vec<Tensor<'static>>, ExecError> {
        self.ran(inputs)?.outputs()
    }

    /// A session that ran once.
    pub(super) fn ran(self: &Arc<Self>, inputs: &[Tensor<'_>]) -> Result<Session, ExecError> {
        let mut session = self.session()?;
        session.set_all(inputs)?;
        session.launch()?;
        Ok(session)
    }
}

fn function(module: &Arc<CudaModule>, kernel: &Kernel) -> Result<CudaFunction, ExecError> {
    let function = module.load_function(&kernel.name).during("find a kernel")?;
    if kernel.shared_bytes > PLAIN_SHARED {
        let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let asked = function.set_attribute(most, kernel.shared_bytes as i32);
        asked.during("ask for shared memory")?;
    }
    Ok(function)
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
    if runs_on(target, compute) {
        return Ok(());
    }
    let (target, device, ordinal) = (plan.target.clone(), device.to_owned(), context.ordinal());
    Err(ExecError::WrongDevice { target, ordinal, device, compute })
}

fn runs_on(target: Target, compute: u32) -> bool {
    match target.arch_specific {
        true => target.compute == compute,
        false => target.compute / 10 == compute / 10 && target.compute <= compute,
    }
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
            Module::load(dir.path(), 0).err().unwrap().to_string()
        };
        assert!(refused("{", b"\x7fELF").contains("plan.json"));
        assert!(refused(EMPTY, b"text").contains("no machine code"));
        assert!(
            refused(&EMPTY.replace("\"version\":2", "\"version\":1"), b"").contains("version 1")
        );
        let kernel = r#""kernels":[{"name":"k","kind":"map","grid":[1,1,1],"block":[32,1,1],
            "shared_bytes":0,"args":[{"memory":{"workspace":512}}],"computes":[]}]"#;
        assert!(refused(&EMPTY.replace("\"kernels\":[]", kernel), b"").contains("kernel k"));
        assert!(Module::load(Path::new("/nowhere"), 0).is_err());
        let dir = artifact(EMPTY, b"\x7fELF");
        let other = r#"{"version":1,"inputs":[{"name":"x","kind":"user"}],"outputs":[]}"#;
        std::fs::write(dir.path().join("signature.json"), other).unwrap();
        let refused = Module::load(dir.path(), 0).err().unwrap().to_string();
        assert!(refused.contains("signature.json: 1 inputs, not 0"), "{refused}");
    }

    #[test]
    fn a_machine_without_a_gpu_says_so() {
        let dir = artifact(EMPTY, b"\x7fELF");
        // With a driver at hand, the load fails on the made-up machine code instead.
        let refused = Module::load(dir.path(), 0).err().unwrap();
        let expected = matches!(
            refused,
            ExecError::NoDriver
                | ExecError::NoDevice { .. }
                | ExecError::Driver { .. }
                | ExecError::WrongDevice { .. }
        );
        assert!(expected, "{refused}");
    }

    #[test]
    fn machine_code_runs_on_its_architecture() {
        let runs = |target: &str, compute| runs_on(target.parse().unwrap(), compute);
        assert!(runs("sm_90", 90) && runs("sm_80", 86) && runs("sm_90a", 90));
        assert!(!runs("sm_89", 86) && !runs("sm_80", 90) && !runs("sm_90a", 91));
    }
}
