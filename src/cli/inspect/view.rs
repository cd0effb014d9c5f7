//! What `kiln inspect` shows, as JSON and in tables.
//!
//! Invariant: sizes that depend on symbols are shown as expressions; a figure
//! that the artifact does not have is absent.

use kiln::exec::parse_plan;
use kiln_native::{
    Signature,
    cubin::{self, Cubin, Resources},
    plan::{self, Plan, shown},
    version,
};
use kiln_proto::FailureKind;
use serde::Serialize;

use super::{
    super::{CliError, output::size},
    Files,
    pieces::{self, Piece},
};

#[derive(Debug, Serialize)]
pub(super) struct View {
    /// Absent: no graph's artifact.
    pub(super) target: Option<String>,
    /// Absent: no machine code.
    module: Option<Module>,
    pub(super) workspace_bytes: Option<String>,
    pub(super) symbols: Vec<Symbol>,
    pub(super) tensors: Vec<Tensor>,
    pub(super) kernels: Vec<Kernel>,
    pub(super) buffers: Vec<Buffer>,
    pub(super) files: Vec<File>,
    /// Artifacts that it is stitched of.
    pub(super) pieces: Vec<Piece>,
}

#[derive(Debug, Serialize)]
struct Module {
    bytes: u64,
    constant_bytes: u64,
    global_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Symbol {
    name: String,
    min: i64,
    max: Option<i64>,
    /// The dimension that decides it.
    is: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Tensor {
    /// `in0`, `out0`.
    position: String,
    /// As the program calls it, where that is known.
    name: Option<String>,
    kind: String,
    dtype: String,
    shape: String,
    strides: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Kernel {
    name: String,
    kind: Option<String>,
    variant: Option<String>,
    grid: Option<[String; 3]>,
    block: Option<[u32; 3]>,
    dynamic_shared_bytes: Option<u32>,
    /// It may begin before the launch before it has ended.
    overlaps: bool,
    #[serde(flatten)]
    resources: Option<Resources>,
    /// The graph's operations, one fusion group.
    pub(super) computes: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Buffer {
    dtype: String,
    shape: String,
    offset: String,
    written_by: String,
    last_read_by: String,
}

#[derive(Debug, Serialize)]
pub(super) struct File {
    pub(super) path: String,
    pub(super) bytes: u64,
}

impl View {
    pub(super) fn new(files: &Files) -> Result<Self, CliError> {
        let corrupt = |name: &str, why: String| {
            CliError::failed(FailureKind::Corrupt, format!("{name}: {why}"))
        };
        let versions = [
            ("plan.json", kiln_native::plan::PLAIN, kiln_native::plan::VERSION),
            (
                kiln_native::SIGNATURE_FILE,
                kiln_native::SIGNATURE_VERSION,
                kiln_native::SIGNATURE_VERSION,
            ),
        ];
        for (name, oldest, known) in versions {
            let other = files.get(name).map(|bytes| version::check_from(bytes, oldest, known));
            other.transpose().map_err(|why| {
                CliError::failed(FailureKind::Incompatible, format!("{name}: {why}"))
            })?;
        }
        let plan = files.get("plan.json").map(|bytes| parse_plan(bytes));
        let plan = plan.transpose().map_err(|why| corrupt("plan.json", why))?;
        let cubin = files.get("module.cubin").map(|bytes| cubin::read(bytes));
        let cubin = cubin.transpose().map_err(|why| corrupt("module.cubin", why))?;
        let signature = files.get(kiln_native::SIGNATURE_FILE);
        let signature = signature.map(|bytes| Signature::read(bytes));
        let signature =
            signature.transpose().map_err(|why| corrupt(kiln_native::SIGNATURE_FILE, why))?;
        let list = |(path, bytes): (&String, &Vec<u8>)| File {
            path: path.clone(),
            bytes: bytes.len() as u64,
        };
        let mut view = Self {
            target: None,
            module: None,
            workspace_bytes: None,
            symbols: Vec::new(),
            tensors: Vec::new(),
            kernels: Vec::new(),
            buffers: Vec::new(),
            files: files.iter().map(list).collect(),
            pieces: Vec::new(),
        };
        if let Some(plan) = &plan {
            view.describe(plan, signature.as_ref());
        }
        view.kernels = kernels(plan.as_ref(), cubin.as_ref());
        view.module = cubin.map(|Cubin { bytes, constant_bytes, global_bytes, .. }| Module {
            bytes,
            constant_bytes,
            global_bytes,
        });
        Ok(view)
    }

    /// What a plan says of itself; `signature` has the program's own names.
    pub(super) fn describe(&mut self, plan: &Plan, signature: Option<&Signature>) {
        self.target = Some(plan.target.clone());
        self.workspace_bytes = Some(plan.workspace_bytes.to_string());
        self.symbols = plan
            .symbols
            .iter()
            .enumerate()
            .map(|(i, symbol)| {
                let (tensor, dim) = (&plan.inputs[symbol.input], symbol.dim);
                let is = match (symbol.scale, symbol.offset) {
                    (1, 0) => String::new(),
                    _ => format!(", which is {}", tensor.shape[dim]),
                };
                Symbol {
                    name: format!("s{i}"),
                    min: symbol.min,
                    max: symbol.max,
                    is: format!("dimension {dim} of {}{is}", tensor.name),
                }
            })
            .collect();
        let inputs = signature.map(|s| s.inputs.iter().map(|input| input.name.clone()));
        let outputs = signature.map(|s| s.outputs.iter().cloned());
        let names: [Vec<String>; 2] =
            [inputs.map(Iterator::collect), outputs.map(Iterator::collect)]
                .map(Option::unwrap_or_default);
        for (tensors, names) in [&plan.inputs, &plan.outputs].into_iter().zip(names) {
            for (i, tensor) in tensors.iter().enumerate() {
                self.tensors.push(Tensor {
                    position: tensor.name.clone(),
                    name: names.get(i).cloned(),
                    kind: tensor.kind.clone(),
                    dtype: tensor.dtype.to_string(),
                    shape: shown(&tensor.shape),
                    strides: shown(&tensor.strides),
                });
            }
        }
        let kernel = |index: usize| match plan.kernels.get(index) {
            Some(kernel) => kernel.name.clone(),
            None => index.to_string(),
        };
        self.buffers = plan
            .buffers
            .iter()
            .map(|buffer| Buffer {
                dtype: buffer.dtype.to_string(),
                shape: shown(&buffer.shape),
                offset: buffer.offset.to_string(),
                written_by: kernel(buffer.from),
                last_read_by: kernel(buffer.to),
            })
            .collect();
    }

    /// The line above the tables.
    pub(super) fn summary(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        parts.extend(self.target.clone());
        // The kernels of a whole are its pieces'.
        if let Some(whole) = pieces::summary(&self.pieces) {
            return whole;
        }
        parts.push(match self.kernels.len() {
            1 => "1 kernel".to_owned(),
            count => format!("{count} kernels"),
        });
        if let Some(module) = &self.module {
            parts.push(format!("module {}", size(module.bytes)));
            let data = [(module.constant_bytes, "constants"), (module.global_bytes, "global data")];
            let data = data.into_iter().filter(|(bytes, _)| *bytes > 0);
            parts.extend(data.map(|(bytes, what)| format!("{} of {what}", size(bytes))));
        }
        if let Some(bytes) = &self.workspace_bytes {
            let bytes = bytes.parse().map_or_else(|_| format!("{bytes} bytes"), size);
            parts.push(format!("workspace {bytes}"));
        }
        parts.join(", ")
    }
}

/// In the order of launching; without a plan, those of the module.
fn kernels(plan: Option<&Plan>, cubin: Option<&Cubin>) -> Vec<Kernel> {
    let resources = |name: &str| cubin.and_then(|cubin| cubin.kernels.get(name)).copied();
    let Some(plan) = plan else {
        let names = cubin.into_iter().flat_map(|cubin| cubin.kernels.keys());
        let unplanned = |name: &String| Kernel {
            name: name.clone(),
            kind: None,
            variant: None,
            grid: None,
            block: None,
            dynamic_shared_bytes: None,
            overlaps: false,
            resources: resources(name),
            computes: Vec::new(),
        };
        return names.map(unplanned).collect();
    };
    let planned = |kernel: &plan::Kernel| Kernel {
        name: kernel.name.clone(),
        kind: Some(kernel.kind.clone()),
        variant: (!kernel.variant.is_empty()).then(|| kernel.variant.clone()),
        grid: Some(kernel.grid.clone().map(|blocks| blocks.to_string())),
        block: Some(kernel.block),
        dynamic_shared_bytes: Some(kernel.shared_bytes),
        overlaps: kernel.overlaps,
        resources: resources(&kernel.name),
        computes: kernel.computes.clone(),
    };
    plan.kernels.iter().map(planned).collect()
}

impl Symbol {
    pub(super) fn row(&self) -> [String; 4] {
        let max = self.max.map_or("any".to_owned(), |max| max.to_string());
        [self.name.clone(), self.min.to_string(), max, self.is.clone()]
    }
}

impl Tensor {
    pub(super) fn row(&self) -> [String; 6] {
        let Self { position, name, kind, dtype, shape, strides } = self;
        let name = name.clone().unwrap_or_else(|| "-".to_owned());
        [position.clone(), name, kind.clone(), dtype.clone(), shape.clone(), strides.clone()]
    }
}

impl Kernel {
    pub(super) fn row(&self) -> [String; 10] {
        let dash = || "-".to_owned();
        let figure = |get: fn(&Resources) -> u64| {
            self.resources.as_ref().map_or_else(dash, |resources| get(resources).to_string())
        };
        let shared = match (self.resources, self.dynamic_shared_bytes) {
            (Some(resources), Some(dynamic)) if dynamic > 0 => {
                format!("{}+{dynamic}", resources.shared_bytes)
            }
            (None, Some(dynamic)) => dynamic.to_string(),
            _ => figure(|r| r.shared_bytes),
        };
        let kind = self.kind.clone().unwrap_or_else(dash);
        let kind = self.variant.iter().fold(kind, |kind, variant| format!("{kind} {variant}"));
        [
            self.name.clone(),
            kind,
            self.grid.as_ref().map_or_else(dash, |grid| by(grid.iter())),
            self.block.map_or_else(dash, |block| by(block.iter())),
            figure(|r| r.registers.into()),
            shared,
            figure(|r| r.local_bytes),
            figure(|r| r.parameter_bytes),
            figure(|r| r.code_bytes),
            self.computes.join(", "),
        ]
    }
}

/// `8 x 4`: trailing ones say nothing.
fn by<T: ToString>(sizes: impl Iterator<Item = T>) -> String {
    let mut sizes: Vec<String> = sizes.map(|size| size.to_string()).collect();
    while sizes.len() > 1 && sizes.last().is_some_and(|size| size == "1") {
        sizes.pop();
    }
    sizes.join(" x ")
}

impl Buffer {
    pub(super) fn row(&self, index: usize) -> [String; 6] {
        let Self { dtype, shape, offset, written_by, last_read_by } = self;
        [
            index.to_string(),
            dtype.clone(),
            shape.clone(),
            offset.clone(),
            written_by.clone(),
            last_read_by.clone(),
        ]
    }
}

#[cfg(test)]
mod tests;
