//! A module with memory of its own: inputs are copied to the device once, and
//! run as often as wanted.
//!
//! Invariant: nothing is launched unless all inputs have shapes that the plan
//! admits, and a recorded graph is replayed only while the memory and the
//! sizes that it was recorded with still hold. What a run leaves in an input is
//! what the next one finds there.

mod apart;
mod state;

use std::{borrow::Cow, ffi::c_void, sync::Arc};

use cudarc::driver::{CudaGraph, CudaStream, sys};
use kiln_native::{
    plan::{Base, CONSTANT, Call, Launch, Layout, Value, shown},
    split::stitch::Copied,
};
use parking_lot::Mutex;

use self::state::Initial;
pub(super) use self::state::Kept;
use super::{
    ExecError, Module, Tensor, copying, error::During, launching, memory::Memory, program::Steps,
    tensor_map,
};

/// Inputs, outputs, scratch memory and a stream for one caller at a time.
///
/// ```no_run
/// use kiln::exec::{DType, Module, Tensor};
///
/// # fn main() -> Result<(), kiln::exec::ExecError> {
/// let module = Module::load("out".as_ref(), 0)?;
/// let mut session = module.session()?;
/// let (weight, x) = (vec![0u8; 64 * 64 * 4], vec![0u8; 8 * 64 * 4]);
/// session.set(0, &Tensor::new(DType::F32, &[64, 64], weight)?)?; // once
/// for _ in 0..10 {
///     session.set(1, &Tensor::new(DType::F32, &[8, 64], x.as_slice())?)?;
///     session.replay()?; // records a CUDA graph the first time
///     println!("{:?}", session.output(0)?.bytes);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Session {
    module: Arc<Module>,
    stream: Arc<CudaStream>,
    // Before the memory that it uses: a graph is dropped first.
    graph: Option<Recorded>,
    ready: Option<Ready>,
    inputs: Vec<Option<Input>>,
    /// Inputs that runs change, as they were set.
    initial: Initial,
    outputs: Vec<Memory>,
    workspace: Option<Memory>,
}

/// One input, as far as it was given.
struct Input {
    shape: Vec<usize>,
    data: Data,
}

enum Data {
    /// On the device, laid out like that.
    Own(Memory, Layout),
    /// On the device, the caller's.
    Given(u64),
    /// Its strides follow from the sizes of inputs that are not known yet.
    Waiting(Tensor<'static>),
}

/// What a launch needs, for inputs of certain shapes in certain places.
struct Ready {
    steps: Steps,
    /// For each launch, its arguments' values.
    arguments: Vec<Vec<Argument>>,
}

/// The value of a kernel's parameter.
enum Argument {
    Word(u64),
    Map(Box<sys::CUtensorMap>),
}

/// Held while a graph is recorded, and while a stream is made: that waits for all of the
/// device, which fails while any thread of the process records there, and ends its recording.
static RECORDING: Mutex<()> = Mutex::new(());

struct Recorded(CudaGraph);

// SAFETY: a graph's handles belong to no thread; the session's `&mut self`
// serialises their use, as the driver asks.
unsafe impl Send for Recorded {}

impl Session {
    pub(super) fn new(module: Arc<Module>) -> Result<Self, ExecError> {
        // Not the default stream: that one cannot be recorded.
        let making = RECORDING.lock();
        let stream = module.context.new_stream().during("make a stream")?;
        drop(making);
        let inputs: Vec<_> = module.program.plan.inputs.iter().map(|_| None).collect();
        let initial = Initial::new(inputs.len());
        let (graph, ready, outputs, workspace) = (None, None, Vec::new(), None);
        Ok(Self { module, stream, graph, ready, inputs, initial, outputs, workspace })
    }

    /// What it runs.
    pub fn module(&self) -> &Arc<Module> {
        &self.module
    }

    /// Where it launches.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// What the next launch consists of; makes ready for it.
    pub fn call(&mut self) -> Result<&Call, ExecError> {
        Ok(&self.prepared()?.steps.call)
    }

    /// Sets all inputs, in the plan's order; what is given for a constant is not read.
    pub fn set_all(&mut self, inputs: &[Tensor<'_>]) -> Result<(), ExecError> {
        let (got, wanted) = (inputs.len(), self.inputs.len());
        if got != wanted {
            return Err(ExecError::Inputs(format!("{got} inputs, not {wanted}")));
        }
        for (index, tensor) in inputs.iter().enumerate() {
            if self.module.program.plan.inputs[index].kind != CONSTANT {
                self.set(index, tensor)?;
            }
        }
        Ok(())
    }

    /// Sets one input: copied to the device and laid out as the plan wants it.
    /// An input that keeps its shape keeps its memory, and a recorded graph.
    pub fn set(&mut self, index: usize, tensor: &Tensor<'_>) -> Result<(), ExecError> {
        self.write(index, tensor)?;
        if self.module.program.plan.inputs[index].updated {
            self.initial.keep(index, tensor);
        }
        Ok(())
    }

    fn write(&mut self, index: usize, tensor: &Tensor<'_>) -> Result<(), ExecError> {
        let known = self.admitted(index, &tensor.shape)?;
        let wanted = &self.module.program.plan.inputs[index];
        if tensor.dtype != wanted.dtype {
            let (name, got, wanted) = (&wanted.name, tensor.dtype, wanted.dtype);
            return Err(ExecError::Inputs(format!("{name} is {got}, not {wanted}")));
        }
        if let (Some(_), Some(Input { shape, data: Data::Own(memory, layout) })) =
            (&self.ready, &mut self.inputs[index])
            && *shape == tensor.shape
        {
            return memory.write(&tensor.laid_out(layout), &self.stream);
        }
        self.changed()?;
        let data = match known {
            Some(layout) => self.upload(index, tensor, layout)?,
            None => {
                let Tensor { dtype, shape, bytes } = tensor;
                let bytes = Cow::Owned(bytes.to_vec());
                Data::Waiting(Tensor { dtype: *dtype, shape: shape.clone(), bytes })
            }
        };
        self.inputs[index] = Some(Input { shape: tensor.shape.clone(), data });
        Ok(())
    }

    /// Sets one input to memory that the caller holds on the same device.
    ///
    /// # Safety
    ///
    /// The memory has the plan's element type and strides for `shape`, starts at
    /// a multiple of 16 bytes, and outlives the session or the next setting of
    /// this input; what is launched in other streams on it has been waited for.
    /// Where runs write to it, it is no other input as well: the next launch refuses that
    /// among the inputs of the session.
    pub unsafe fn set_device(
        &mut self,
        index: usize,
        pointer: u64,
        shape: &[usize],
    ) -> Result<(), ExecError> {
        self.admitted(index, shape)?;
        if !pointer.is_multiple_of(16) {
            let name = &self.module.program.plan.inputs[index].name;
            let why = format!("{name} does not start at a multiple of 16 bytes");
            return Err(ExecError::Inputs(why));
        }
        self.changed()?;
        self.initial.forget(index);
        self.inputs[index] = Some(Input { shape: shape.to_vec(), data: Data::Given(pointer) });
        Ok(())
    }

    /// Queues one run on the session's stream.
    pub fn launch(&mut self) -> Result<(), ExecError> {
        let stream = self.stream.clone();
        self.launch_on(&stream)
    }

    /// Queues one run on `stream`. The caller orders it against the session's
    /// own stream, to which inputs are copied and from which outputs are read.
    pub fn launch_on(&mut self, stream: &CudaStream) -> Result<(), ExecError> {
        self.prepared()?;
        self.module.context.bind_to_thread().during("use the device")?;
        let Some(ready) = &self.ready else { return Ok(()) };
        for index in 0..ready.steps.call.launches.len() {
            self.launch_one(index, stream, ready.steps.may_overlap(index))?;
        }
        ready.steps.copies.iter().try_for_each(|copy| self.copy(copy, stream))
    }

    /// Queues one run on the session's stream as a CUDA graph: recorded at the
    /// first call, and again after an input changed its shape or its place.
    pub fn replay(&mut self) -> Result<(), ExecError> {
        self.prepared()?;
        if self.graph.is_none() {
            let stream = self.stream.clone();
            let _recording = RECORDING.lock();
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            stream.begin_capture(mode).during("record a graph")?;
            let launched = self.launch();
            // In any case: a stream that goes on recording is of no use.
            let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
            launched?;
            self.graph = graph.during("record a graph")?.map(Recorded);
        }
        match &self.graph {
            Some(Recorded(graph)) => graph.launch().during("replay a graph"),
            None => Ok(()),
        }
    }

    /// One output, after all that is queued; on the host, dense.
    pub fn output(&self, index: usize) -> Result<Tensor<'static>, ExecError> {
        let (pointer, layout) = self.place(index)?;
        debug_assert_eq!(pointer, self.outputs[index].start());
        let bytes = self.outputs[index].read(layout.bytes, &self.stream)?;
        Ok(Tensor::gathered(self.module.program.plan.outputs[index].dtype, layout, bytes))
    }

    /// What the runs so far have left in an input that they change, after all that is
    /// queued; on the host, dense. Of memory that the caller holds nothing is read.
    pub fn left(&self, index: usize) -> Result<Tensor<'static>, ExecError> {
        let wanted = self.module.program.plan.inputs.get(index).filter(|input| input.updated);
        let own = self.inputs.get(index).and_then(Option::as_ref);
        match (wanted, own) {
            (Some(wanted), Some(Input { data: Data::Own(memory, layout), .. })) => {
                let bytes = memory.read(layout.bytes, &self.stream)?;
                Ok(Tensor::gathered(wanted.dtype, layout, bytes))
            }
            _ => Err(ExecError::Inputs(format!("runs leave nothing here of input {index}"))),
        }
    }

    /// All outputs, and behind them what is left in the inputs that the plan calls updated.
    pub(super) fn all_outputs(&self) -> Result<Vec<Tensor<'static>>, ExecError> {
        let mut all = self.outputs()?;
        for (index, input) in self.module.program.plan.inputs.iter().enumerate() {
            if input.updated {
                all.push(self.left(index)?);
            }
        }
        Ok(all)
    }

    /// All outputs.
    pub fn outputs(&self) -> Result<Vec<Tensor<'static>>, ExecError> {
        (0..self.module.program.plan.outputs.len()).map(|index| self.output(index)).collect()
    }

    /// Where one output lies on the device, and how: good until an input
    /// changes its shape.
    pub fn output_device(&self, index: usize) -> Result<(u64, &Layout), ExecError> {
        self.place(index)
    }

    /// Queues one launch of [`Call::launches`]; it may overlap with the one before
    /// it, where that is the last one on `stream`.
    pub(super) fn launch_one(
        &self,
        index: usize,
        stream: &CudaStream,
        overlaps: bool,
    ) -> Result<(), ExecError> {
        let Some(ready) = &self.ready else { return Ok(()) };
        let Launch { kernel, grid, .. } = ready.steps.call.launches[index];
        let (module, overlaps) = (&self.module, overlaps && self.module.overlaps);
        let (function, kernel) = (&module.functions[kernel], &module.program.kernels[kernel]);
        let mut pointers: Vec<*mut c_void> = ready.arguments[index]
            .iter()
            .map(|argument| match argument {
                Argument::Word(word) => std::ptr::from_ref(word).cast_mut().cast(),
                Argument::Map(map) => std::ptr::from_ref(&**map).cast_mut().cast(),
            })
            .collect();
        // SAFETY: the kernel was generated with the plan, whose pointers are of
        // the sizes that it says and which live as long as the session; the
        // driver copies the arguments' values before it returns.
        unsafe { launching::launch(function, kernel, grid, overlaps, stream, &mut pointers) }
            .during("launch a kernel")
    }

    /// What a launch of [`Call::launches`] is called.
    pub(super) fn label(&self, index: usize, kernel: usize) -> String {
        let kernel = &self.module.program.kernels[kernel];
        let ready = self.ready.as_ref();
        ready.map_or_else(|| kernel.name.clone(), |ready| ready.steps.label(index, kernel))
    }

    fn copy(&self, copy: &Copied, stream: &CudaStream) -> Result<(), ExecError> {
        let (from, to) = (self.start(copy.from)?, self.start(Base::Output(copy.output))?);
        let strips = copying::strips(&copy.layout, copy.width).ok_or_else(|| {
            let output = copy.output;
            let why = format!("output {output} is an input that lies in too many strips to copy");
            ExecError::Inputs(format!("{why}: give it dense"))
        })?;
        for strip in &strips {
            // SAFETY: an output has the bytes of its sizes, and what is copied those
            // of its layout; both live as long as the session, or as the caller says.
            unsafe { copying::copy(strip, from, to, stream) }.during("copy an output")?;
        }
        Ok(())
    }

    fn place(&self, index: usize) -> Result<(u64, &Layout), ExecError> {
        let layouts = self.ready.as_ref().map(|ready| &ready.steps.call.outputs);
        let place = layouts.and_then(|l| Some((self.outputs.get(index)?.start(), l.get(index)?)));
        place.ok_or_else(|| ExecError::Inputs(format!("there is no output {index} yet")))
    }

    /// Checks an input's position and shape; its layout, where that needs no
    /// other input.
    fn admitted(&self, index: usize, shape: &[usize]) -> Result<Option<Layout>, ExecError> {
        let Some(wanted) =
            self.module.program.plan.inputs.get(index).filter(|t| t.kind != CONSTANT)
        else {
            return Err(ExecError::Inputs(format!("there is no input {index} to set")));
        };
        let layout = wanted.layout(&[]);
        let fits = match &layout {
            Some(layout) => layout.shape == shape,
            None => wanted.shape.len() == shape.len(),
        };
        if !fits {
            let (name, wanted) = (&wanted.name, shown(&wanted.shape));
            return Err(ExecError::Inputs(format!("{name} has shape {shape:?}, not {wanted}")));
        }
        Ok(layout)
    }

    /// Forgets what held for the inputs as they were.
    fn changed(&mut self) -> Result<(), ExecError> {
        if self.ready.is_some() {
            // Memory may go: what is queued must be done with it.
            self.stream.synchronize().during("run the kernels")?;
        }
        (self.graph, self.ready) = (None, None);
        Ok(())
    }

    fn upload(
        &mut self,
        index: usize,
        tensor: &Tensor<'_>,
        layout: Layout,
    ) -> Result<Data, ExecError> {
        let name = &self.module.program.plan.inputs[index].name;
        let mut memory = match self.inputs[index].take() {
            Some(Input { data: Data::Own(memory, _), .. }) if memory.bytes() == layout.bytes => {
                memory
            }
            // What was there goes before the new is asked for.
            _ => Memory::new(&self.module.context, layout.bytes, || format!("input {name}"))?,
        };
        memory.write(&tensor.laid_out(&layout), &self.stream)?;
        Ok(Data::Own(memory, layout))
    }

    fn prepared(&mut self) -> Result<&Ready, ExecError> {
        if self.ready.is_none() {
            let ready = self.prepare()?;
            self.ready = Some(ready);
        }
        self.ready.as_ref().ok_or_else(|| ExecError::Inputs("nothing is set".to_owned()))
    }

    fn prepare(&mut self) -> Result<Ready, ExecError> {
        let module = self.module.clone();
        let mut shapes: Vec<&[usize]> = Vec::with_capacity(self.inputs.len());
        for (tensor, input) in module.program.plan.inputs.iter().zip(&self.inputs) {
            shapes.push(match input {
                Some(input) => &input.shape,
                None if tensor.kind == CONSTANT => &[],
                None => return Err(ExecError::Inputs(format!("{} is not set", tensor.name))),
            });
        }
        let steps = module.program.steps(&shapes)?;
        let call = &steps.call;
        for (index, layout) in call.inputs.iter().enumerate() {
            match self.inputs[index].take() {
                Some(Input { shape, data: Data::Waiting(tensor) }) => {
                    let data = self.upload(index, &tensor, layout.clone())?;
                    self.inputs[index] = Some(Input { shape, data });
                }
                Some(Input { data: Data::Own(_, had), .. }) if had != *layout => {
                    let name = &module.program.plan.inputs[index].name;
                    let why = format!("{name} is to be set again: its strides follow other inputs");
                    return Err(ExecError::Inputs(why));
                }
                kept => self.inputs[index] = kept,
            }
        }
        self.refuse_shared(&call.inputs)?;
        self.make_room(call)?;
        let arguments = call.launches.iter().map(|launch| {
            let name = &module.program.kernels[launch.kernel].name;
            launch.values.iter().map(|value| self.argument(name, value)).collect()
        });
        let arguments = arguments.collect::<Result<_, ExecError>>()?;
        Ok(Ready { steps, arguments })
    }

    /// Memory for outputs and scratch: what was there, where it is enough.
    fn make_room(&mut self, call: &Call) -> Result<(), ExecError> {
        let context = &self.module.context;
        self.outputs.truncate(call.outputs.len());
        for (index, layout) in call.outputs.iter().enumerate() {
            if self.outputs.get(index).is_some_and(|memory| memory.bytes() >= layout.bytes) {
                continue;
            }
            let memory = Memory::new(context, layout.bytes, || format!("output {index}"))?;
            match self.outputs.get_mut(index) {
                Some(small) => *small = memory,
                None => self.outputs.push(memory),
            }
        }
        let bytes = call.workspace_bytes;
        if self.workspace.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
            self.workspace = None;
            self.workspace = Some(Memory::new(context, bytes, || "the workspace".to_owned())?);
        }
        Ok(())
    }

    fn argument(&self, kernel: &str, value: &Value) -> Result<Argument, ExecError> {
        match value {
            Value::Size(size) => Ok(Argument::Word(*size as u64)),
            Value::Pointer(base, offset) => Ok(Argument::Word(self.start(*base)? + offset)),
            Value::Map(tile) => {
                let (base, offset) = tile.start;
                let map = tensor_map::encode(kernel, tile, self.start(base)? + offset)?;
                Ok(Argument::Map(Box::new(map)))
            }
        }
    }

    fn start(&self, base: Base) -> Result<u64, ExecError> {
        let start = match base {
            Base::Input(index) => {
                self.inputs.get(index).and_then(Option::as_ref).and_then(|input| {
                    match &input.data {
                        Data::Own(memory, _) => Some(memory.start()),
                        Data::Given(pointer) => Some(*pointer),
                        Data::Waiting(_) => None,
                    }
                })
            }
            Base::Output(index) => self.outputs.get(index).map(Memory::start),
            Base::Workspace => self.workspace.as_ref().map(Memory::start),
        };
        start.ok_or_else(|| ExecError::Inputs(format!("{base:?} has no memory")))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What is queued uses the memory that goes now.
        let _ = self.stream.synchronize();
    }
}
