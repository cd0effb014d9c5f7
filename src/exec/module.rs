//! A module on a device.
//!
//! Invariant: the driver is probed before it is called, and a module exists only
//! where its machine code runs and its plan hangs together.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use cudarc::{
    driver::{CudaContext, CudaFunction, sys},
    nvrtc::Ptx,
};
use kiln_native::{
    SIGNATURE_FILE, Signature,
    plan::{self, Plan},
};
use kiln_proto::Target;

use super::{ExecError, Session, Tensor, error::During, launching};

/// Dynamic shared memory that every kernel gets unasked.
const PLAIN_SHARED: u32 = 48 << 10;

/// A compiled graph on the device, ready to run.
pub struct Module {
    pub(super) plan: Plan,
    signature: Option<Signature>,
    pub(super) device: String,
    pub(super) context: Arc<CudaContext>,
    pub(super) functions: Vec<CudaFunction>,
    /// Whether launches may overlap where their kernels allow it.
    pub(super) overlaps: bool,
}

impl Module {
    /// Loads `module.cubin` and `plan.json` from `dir` onto device `ordinal`.
    pub fn load(dir: &Path, ordinal: usize) -> Result<Arc<Self>, ExecError> {
        let (mut plan, path) = (read_plan(dir)?, dir.join("module.cubin"));
        let signature = read_signature(dir, &plan)?;
        let cubin = read(&path)?;
        if !cubin.starts_with(b"\x7fELF") {
            return Err(ExecError::Artifact { path, why: "no machine code".to_owned() });
        }
        // SAFETY: it only tries to open the driver's library.
        if !unsafe { sys::is_culib_present() } {
            return Err(ExecError::NoDriver);
        }
        let context = CudaContext::new(ordinal)
            .map_err(|error| ExecError::NoDevice { device: ordinal, error })?;
        let device = context.name().during("name the device")?;
        check_device(&plan, &path, &context, &device)?;
        let module = context.load_module(Ptx::from_binary(cubin)).during("load the module")?;
        let function = |kernel: &plan::Kernel| {
            let function = module.load_function(&kernel.name).during("find a kernel")?;
            if kernel.shared_bytes > PLAIN_SHARED {
                let most =
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                let asked = function.set_attribute(most, kernel.shared_bytes as i32);
                asked.during("ask for shared memory")?;
            }
            Ok(function)
        };
        let functions = plan.kernels.iter().map(function).collect::<Result<_, ExecError>>()?;
        let overlaps = launching::overlaps().during("ask for the driver's version")?;
        rename(&mut plan, signature.as_ref());
        Ok(Arc::new(Self { plan, signature, device, context, functions, overlaps }))
    }

    /// What it takes and gives.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What the program calls its inputs, where the artifact was compiled from
    /// it and not fetched by its key.
    pub fn signature(&self) -> Option<&Signature> {
        self.signature.as_ref()
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Memory and a stream to run it with, again and again.
    pub fn session(self: &Arc<Self>) -> Result<Session, ExecError> {
        Session::new(self.clone())
    }

    /// Runs once, from host memory to host memory. `inputs` are in the plan's
    /// order; what is given for a constant is not read.
    pub fn run(self: &Arc<Self>, inputs: &[Tensor<'_>]) -> Result<Vec<Tensor<'static>>, ExecError> {
        let mut session = self.session()?;
        session.set_all(inputs)?;
        session.launch()?;
        session.outputs()
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, ExecError> {
    std::fs::read(path).map_err(|error| ExecError::File { path: path.to_owned(), error })
}

/// Reads the plan in `dir` and checks that it hangs together.
pub(super) fn read_plan(dir: &Path) -> Result<Plan, ExecError> {
    let path: PathBuf = dir.join("plan.json");
    let bytes = read(&path)?;
    parse_plan(&bytes).map_err(|why| ExecError::Artifact { path, why })
}

/// Reads a `plan.json` and checks that it hangs together; an error says why not.
pub fn parse_plan(bytes: &[u8]) -> Result<Plan, String> {
    // The version first: another version's plan may not even parse.
    let told: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let version = told["version"].as_u64();
    if version != Some(u64::from(plan::VERSION)) {
        let version = version.map_or("none".to_owned(), |version| version.to_string());
        return Err(format!("version {version}, not {}: compile it again", plan::VERSION));
    }
    let plan: Plan = serde_json::from_value(told).map_err(|e| e.to_string())?;
    plan.check().map_err(|why| why.to_string())?;
    Ok(plan)
}

/// The names in `dir`, if there are any: those of another program are refused.
pub(super) fn read_signature(dir: &Path, plan: &Plan) -> Result<Option<Signature>, ExecError> {
    let path = dir.join(SIGNATURE_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let refuse = |why: String| ExecError::Artifact { path: path.clone(), why };
    let signature: Signature =
        serde_json::from_slice(&read(&path)?).map_err(|e| refuse(e.to_string()))?;
    let (got, wanted) = (signature.inputs.len(), plan.inputs.len());
    if got != wanted {
        return Err(refuse(format!("{got} inputs, not {wanted}: of another program")));
    }
    Ok(Some(signature))
}

/// Gives a plan's inputs the program's own names: for messages.
pub(super) fn rename(plan: &mut Plan, signature: Option<&Signature>) {
    for (tensor, named) in plan.inputs.iter_mut().zip(signature.iter().flat_map(|s| &s.inputs)) {
        tensor.name.clone_from(&named.name);
    }
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
