//! Descriptors for the tensor memory accelerator.
//!
//! Invariant: what the driver would refuse without saying why is refused here
//! with a reason.

use cudarc::driver::sys::{self, CUtensorMap};
use kiln_native::plan::Tile;
use kiln_proto::graph::DType;

use super::{ExecError, error::During};

/// Elements of a tile in one dimension, at most.
const MOST_ELEMENTS: u32 = 256;

/// The descriptor of `tile`, whose first element lies at `start`.
pub(super) fn encode(kernel: &str, tile: &Tile, start: u64) -> Result<CUtensorMap, ExecError> {
    let refuse = |why: &str| ExecError::Inputs(format!("kernel {kernel}: a tensor map {why}"));
    let dtype = data_type(tile.dtype).ok_or_else(|| refuse("of a type that has none"))?;
    let swizzle = swizzle(tile.swizzle).ok_or_else(|| refuse("with an unknown swizzle"))?;
    if !start.is_multiple_of(16) || tile.strides.iter().any(|stride| !stride.is_multiple_of(16)) {
        return Err(refuse("whose rows start at no multiple of 16 bytes"));
    }
    if tile.sizes.iter().any(|size| *size == 0 || *size > 1 << 32) {
        return Err(refuse("of an empty or too large tensor"));
    }
    if tile.tile.iter().any(|size| *size == 0 || *size > MOST_ELEMENTS) {
        return Err(refuse("whose tile is empty or too large"));
    }
    // SAFETY: the driver's library is there: a context was made.
    let known = unsafe { sys::culib().get::<unsafe extern "C" fn()>(b"cuTensorMapEncodeTiled\0") };
    if known.is_err() {
        return Err(refuse("needs a driver of CUDA 12 or newer"));
    }
    let steps = vec![1u32; tile.sizes.len()];
    let mut map = CUtensorMap { opaque: [0; 16] };
    // SAFETY: all arrays have the rank's length (strides one less), as the plan
    // was checked to have them.
    let status = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            dtype,
            tile.sizes.len() as u32,
            start as *mut std::ffi::c_void,
            tile.sizes.as_ptr(),
            tile.strides.as_ptr(),
            tile.tile.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    status.result().during("encode a tensor map")?;
    Ok(map)
}

fn data_type(dtype: DType) -> Option<sys::CUtensorMapDataType> {
    use sys::CUtensorMapDataType as Type;
    Some(match dtype {
        DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::BF16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::F64 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
        DType::I32 => Type::CU_TENSOR_MAP_DATA_TYPE_INT32,
        DType::I64 => Type::CU_TENSOR_MAP_DATA_TYPE_INT64,
        DType::U8 | DType::Bool | DType::F8E4M3 | DType::F8E5M2 => {
            Type::CU_TENSOR_MAP_DATA_TYPE_UINT8
        }
        _ => return None,
    })
}

fn swizzle(bytes: u32) -> Option<sys::CUtensorMapSwizzle> {
    use sys::CUtensorMapSwizzle as Swizzle;
    Some(match bytes {
        0 => Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        32 => Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        64 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        128 => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        _ => return None,
    })
}
