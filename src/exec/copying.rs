//! Copies on the device, of what lies in strides to what is dense.
//!
//! Invariant: the strips of a tensor cover each of its elements once, and their
//! targets lie one behind the other.

use cudarc::driver::{
    CudaStream,
    result::{self, DriverError},
    sys,
};
use kiln_native::plan::Layout;

/// Most strips of one tensor.
const MOST: usize = 1 << 14;

/// Rows of equal length at equal distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Strip {
    /// Bytes from the start of what is copied.
    from: u64,
    /// Bytes from the start of its target, where rows are back to back.
    to: u64,
    /// Bytes of a row.
    width: u64,
    rows: u64,
    /// Bytes from the start of one row to that of the next.
    pitch: u64,
}

/// The strips of a tensor that lies so, its elements `width` bytes wide; `None`:
/// they are too many.
pub(super) fn strips(layout: &Layout, width: u64) -> Option<Vec<Strip>> {
    if layout.shape.contains(&0) {
        return Some(Vec::new());
    }
    // What lies in a row, from the innermost dimension outwards.
    let (mut row, mut inner) = (1usize, layout.shape.len());
    while inner > 0 {
        let (size, stride) = (layout.shape[inner - 1], layout.strides[inner - 1]);
        if size > 1 && stride != row {
            break;
        }
        row *= size;
        inner -= 1;
    }
    // The next dimension makes rows, if they are at least as far apart as they are long.
    let (mut rows, mut pitch, mut outer) = (1, row, inner);
    if inner > 0 && layout.strides[inner - 1] >= row {
        (rows, pitch, outer) = (layout.shape[inner - 1], layout.strides[inner - 1], inner - 1);
    }
    let count = layout.shape[..outer].iter().try_fold(1usize, |n, size| n.checked_mul(*size));
    let count = count.filter(|count| *count <= MOST)?;
    let mut at = vec![0usize; outer];
    let mut strips = Vec::with_capacity(count);
    for strip in 0..count {
        let from: usize = at.iter().zip(&layout.strides).map(|(i, stride)| i * stride).sum();
        strips.push(Strip {
            from: from as u64 * width,
            to: (strip * row * rows) as u64 * width,
            width: row as u64 * width,
            rows: rows as u64,
            pitch: pitch as u64 * width,
        });
        for (i, size) in at.iter_mut().zip(&layout.shape).rev() {
            *i += 1;
            if *i < *size {
                break;
            }
            *i = 0;
        }
    }
    Some(strips)
}

/// Queues the copy of one strip on `stream`.
///
/// # Safety
///
/// `from` and `to` are memory of the stream's device that has what the strip says,
/// until the copy is done; the device's context is current.
pub(super) unsafe fn copy(
    strip: &Strip,
    from: u64,
    to: u64,
    stream: &CudaStream,
) -> Result<(), DriverError> {
    let (from, to, stream) = (from + strip.from, to + strip.to, stream.cu_stream());
    if strip.rows == 1 || strip.pitch == strip.width {
        let bytes = (strip.width * strip.rows) as usize;
        // SAFETY: as the caller says.
        return unsafe { result::memcpy_dtod_async(to, from, bytes, stream) };
    }
    let rows = sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        srcHost: std::ptr::null(),
        srcDevice: from,
        srcArray: std::ptr::null_mut(),
        srcPitch: strip.pitch as usize,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: std::ptr::null_mut(),
        dstDevice: to,
        dstArray: std::ptr::null_mut(),
        dstPitch: strip.width as usize,
        WidthInBytes: strip.width as usize,
        Height: strip.rows as usize,
    };
    // SAFETY: as the caller says; the driver reads the description before it returns.
    unsafe { sys::cuMemcpy2DAsync_v2(&rows, stream) }.result()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::exec::{DType, Tensor};

    fn copied(layout: &Layout, from: &[u8], width: u64) -> Vec<u8> {
        let elements: usize = layout.shape.iter().product();
        let mut to = vec![0xa5; elements * width as usize];
        for Strip { from: start, to: target, width, rows, pitch } in strips(layout, width).unwrap()
        {
            for row in 0..rows {
                let row_of = &from[(start + row * pitch) as usize..][..width as usize];
                to[(target + row * width) as usize..][..width as usize].copy_from_slice(row_of);
            }
        }
        to
    }

    #[test]
    fn strips_make_any_layout_dense() {
        let layouts: [(&[usize], &[usize]); 8] = [
            (&[], &[]),
            (&[5], &[1]),
            (&[4, 6], &[6, 1]),
            (&[4, 6], &[8, 1]),
            (&[4, 6], &[1, 4]),
            (&[3, 1, 5], &[10, 77, 2]),
            (&[2, 3, 4], &[4, 0, 1]),
            (&[2, 3, 4, 2], &[48, 2, 6, 1]),
        ];
        for (shape, strides) in layouts {
            let last: usize = shape.iter().zip(strides).map(|(n, stride)| (n - 1) * stride).sum();
            let bytes = (last as u64 + 1) * 2;
            let layout = Layout { shape: shape.to_vec(), strides: strides.to_vec(), bytes };
            let from: Vec<u8> = (0..bytes).map(|n| n as u8).collect();
            let wanted = Tensor::gathered(DType::F16, &layout, from.clone());
            assert_eq!(copied(&layout, &from, 2), *wanted.bytes, "{shape:?} {strides:?}");
        }
    }

    #[test]
    fn nothing_is_copied_of_nothing_and_no_endless_list_is_made() {
        let of = |shape: &[usize], strides: &[usize]| {
            let layout = Layout { shape: shape.to_vec(), strides: strides.to_vec(), bytes: 0 };
            strips(&layout, 4)
        };
        assert_eq!(of(&[3, 0], &[0, 1]), Some(Vec::new()));
        assert_eq!(of(&[4, 4], &[4, 1]).unwrap().len(), 1, "what is dense is one row");
        assert_eq!(of(&[1 << 20, 2, 2], &[4, 1, 2]), None);
    }
}
