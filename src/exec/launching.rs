//! One launch, as the driver is told of it.
//!
//! Invariant: a launch may overlap with the one before it only where the kernel
//! waits by itself and the driver can record such a launch in a graph.

use std::ffi::c_void;

use cudarc::driver::{
    CudaFunction, CudaStream,
    result::{self, DriverError},
    sys,
};
use kiln_native::plan::Kernel;

/// First driver (CUDA 12.3) whose graphs keep launches that overlap as they are.
const RECORDS_OVERLAPS: i32 = 12_030;

/// Whether this machine's driver takes launches that overlap.
pub(super) fn overlaps() -> Result<bool, DriverError> {
    let mut version = 0;
    // SAFETY: the driver writes one number.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(version >= RECORDS_OVERLAPS)
}

/// Queues `kernel` on `stream`; `overlaps`: it may begin before what was queued there
/// last has ended.
///
/// # Safety
///
/// `function` is the plan's `kernel`, and `arguments` point to values of the sizes
/// that it takes. Where it overlaps, the last launch on `stream` is of the same call.
pub(super) unsafe fn launch(
    function: &CudaFunction,
    kernel: &Kernel,
    [x, y, z]: [u32; 3],
    overlaps: bool,
    stream: &CudaStream,
    arguments: &mut [*mut c_void],
) -> Result<(), DriverError> {
    let [bx, by, bz] = kernel.block;
    let (function, stream) = (function.cu_function(), stream.cu_stream());
    if !(overlaps && kernel.overlaps) {
        let (grid, block, shared) = ((x, y, z), (bx, by, bz), kernel.shared_bytes);
        // SAFETY: as the caller says; the driver copies the arguments' values.
        return unsafe { result::launch_kernel(function, grid, block, shared, stream, arguments) };
    }
    let mut attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: bx,
        blockDimY: by,
        blockDimZ: bz,
        sharedMemBytes: kernel.shared_bytes,
        hStream: stream,
        attrs: &mut attribute,
        numAttrs: 1,
    };
    let arguments = arguments.as_mut_ptr();
    // SAFETY: as above; the attribute lives as long as the call.
    unsafe { sys::cuLaunchKernelEx(&config, function, arguments, std::ptr::null_mut()) }.result()
}
