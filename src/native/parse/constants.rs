//! Tensors that are baked into a program.
//!
//! Invariant: nothing is unpickled, and a constant has exactly the bytes that
//! its shape says.

use std::collections::BTreeMap;

use kiln_proto::{
    Digest, Failure,
    graph::{Constant, Dim, Value, ValueId},
};

use super::{
    super::{archive::invalid, schema},
    Reader, json, unsupported,
};

/// Bytes of all baked constants together.
const LARGEST_CONSTANTS: u64 = 64 << 20;

impl Reader<'_> {
    pub(super) fn constants(&mut self) -> Result<BTreeMap<String, Constant>, Failure> {
        let path = format!("data/constants/{}_constants_config.json", self.model);
        let listed: Option<schema::Constants> = json(&mut self.archive, &path, LARGEST_CONSTANTS)?;
        let Some(listed) = listed else { return Ok(BTreeMap::new()) };
        let mut left = LARGEST_CONSTANTS;
        let mut found = BTreeMap::new();
        for (name, entry) in listed.config {
            if entry.use_pickle || entry.tensor_meta.is_none() {
                // Left out: an error only where the graph uses it. Nothing is unpickled.
                continue;
            }
            let path = format!("data/constants/{}", entry.path_name);
            let Some(data) = self.archive.read(&path, left)? else { continue };
            left -= data.len() as u64;
            found.insert(name, Constant { digest: Digest::of(&data), data });
        }
        Ok(found)
    }

    pub(super) fn check_constant(
        &self,
        value: ValueId,
        constant: &Constant,
    ) -> Result<(), Failure> {
        let Value { name, ty } = self.graph.value(value);
        let sizes: Option<Vec<u64>> = ty.shape.iter().map(Dim::known).collect();
        let strides: Option<Vec<u64>> = ty.strides.iter().map(Dim::known).collect();
        let (Some(sizes), Some(strides)) = (sizes, strides) else {
            return Err(invalid(format!("constant {name:?} has no fixed shape")));
        };
        let mut expected = 1u64;
        for (size, stride) in sizes.iter().zip(&strides).rev() {
            if *size != 1 && *stride != expected {
                return Err(unsupported(format!("constant {name:?} is not in row-major order")));
            }
            expected = expected.saturating_mul(*size);
        }
        let bytes = expected.saturating_mul(ty.dtype.bytes());
        if bytes != constant.data.len() as u64 {
            let got = constant.data.len();
            return Err(invalid(format!("constant {name:?} has {got} bytes, not {bytes}")));
        }
        Ok(())
    }
}
