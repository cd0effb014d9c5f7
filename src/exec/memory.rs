//! Memory on the device.
//!
//! Invariant: freed once, in its own context, and not before the work that was
//! queued on it is done.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, result, sys};

use super::{ExecError, error::During};

/// So many bytes of a device.
pub(super) struct Memory {
    context: Arc<CudaContext>,
    start: u64,
    bytes: u64,
}

impl Memory {
    /// Allocates; `what` is for the message where there is no room.
    pub(super) fn new(
        context: &Arc<CudaContext>,
        bytes: u64,
        what: impl FnOnce() -> String,
    ) -> Result<Self, ExecError> {
        context.bind_to_thread().during("use the device")?;
        // SAFETY: the context is current; the driver takes no empty requests.
        let start = unsafe { result::malloc_sync(bytes.max(1) as usize) };
        let start = start.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = context.mem_get_info().unwrap_or_default();
                ExecError::OutOfMemory {
                    what: what(),
                    bytes,
                    free: free as u64,
                    total: total as u64,
                }
            }
            _ => ExecError::Driver { action: "allocate memory", error },
        })?;
        Ok(Self { context: context.clone(), start, bytes })
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Copies `data` to its start, and waits until that is done.
    pub(super) fn write(&mut self, data: &[u8], stream: &CudaStream) -> Result<(), ExecError> {
        if data.is_empty() {
            return Ok(());
        }
        debug_assert!(data.len() as u64 <= self.bytes);
        self.context.bind_to_thread().during("use the device")?;
        // SAFETY: the memory has room for it; the stream is waited for below,
        // so `data` outlives the copy.
        unsafe { result::memcpy_htod_async(self.start, data, stream.cu_stream()) }
            .during("copy an input")?;
        stream.synchronize().during("copy an input")
    }

    /// Queues a copy of all of `from`, which has as many bytes, to its start.
    pub(super) fn queue_copy(&mut self, from: &Self, stream: &CudaStream) -> Result<(), ExecError> {
        debug_assert!(from.bytes <= self.bytes);
        if from.bytes == 0 {
            return Ok(());
        }
        self.context.bind_to_thread().during("use the device")?;
        let bytes = from.bytes as usize;
        // SAFETY: both have as many bytes. Memory is freed only after all that was queued
        // before: `cuMemFree` waits for that.
        unsafe { result::memcpy_dtod_async(self.start, from.start, bytes, stream.cu_stream()) }
            .during("copy an input")
    }

    /// The first `bytes` bytes, after what is queued on `stream`.
    pub(super) fn read(&self, bytes: u64, stream: &CudaStream) -> Result<Vec<u8>, ExecError> {
        debug_assert!(bytes <= self.bytes);
        let mut data = vec![0; bytes as usize];
        if !data.is_empty() {
            self.context.bind_to_thread().during("use the device")?;
            // SAFETY: the memory has as many bytes; the stream is waited for
            // below, so `data` outlives the copy.
            unsafe { result::memcpy_dtoh_async(&mut data, self.start, stream.cu_stream()) }
                .during("copy an output")?;
        }
        stream.synchronize().during("run the kernels")?;
        Ok(data)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated in this context, and nobody has it any more.
            // A context that broke has nothing left to free.
            let _ = unsafe { result::free_sync(self.start) };
        }
    }
}
