//! A stitching with all sizes known.
//!
//! Invariant: what is laid out lies within the memory that is named, and values
//! that are alive together share no byte but where a call works in place.

use super::{Broken, Stitching};
use crate::plan::{self, Base, CallError, Expr, Layout, Memory, Plan};

/// Where everything lies in one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laid {
    /// Of the stitching's symbols.
    pub symbols: Vec<i64>,
    /// Of its inputs.
    pub inputs: Vec<Layout>,
    /// Of its outputs.
    pub outputs: Vec<Layout>,
    /// Of its memory.
    pub workspace_bytes: u64,
    /// Of its values.
    pub values: Vec<Place>,
}

/// Where a value lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Sizes.
    pub shape: Vec<usize>,
    /// Whose memory: an output or the workspace.
    pub base: Base,
    /// Bytes from its start.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Stitching {
    /// Where everything lies if the inputs have these shapes, those of constants
    /// ignored.
    pub fn laid_out(&self, shapes: &[&[usize]]) -> Result<Laid, Broken> {
        let call = self.as_plan().call(shapes).map_err(|error| match error {
            CallError::Inputs(why) => Broken::Inputs(why),
            CallError::Plan(why) => Broken::Sizes(why),
        })?;
        let plan::Call { symbols, inputs, outputs, workspace_bytes, .. } = call;
        let mut values = Vec::with_capacity(self.values.len());
        for (index, value) in self.values.iter().enumerate() {
            let place = self.place(index, &symbols);
            let place = place.ok_or(Broken::Memory { value: index })?;
            let held = match &place.base {
                Base::Workspace => workspace_bytes,
                Base::Output(at) => {
                    let output = outputs.get(*at).ok_or(Broken::Memory { value: index })?;
                    if output.shape != place.shape || self.outputs[*at].dtype != value.dtype {
                        return Err(Broken::Output { output: *at });
                    }
                    output.bytes
                }
                Base::Input(_) => return Err(Broken::Memory { value: index }),
            };
            let end = place.offset.checked_add(place.bytes);
            if end.is_none_or(|end| end > held) || place.offset % plan::ALIGNMENT != 0 {
                return Err(Broken::Memory { value: index });
            }
            values.push(place);
        }
        self.check_overlap(&values)?;
        Ok(Laid { symbols, inputs, outputs, workspace_bytes, values })
    }

    /// What it takes and gives, without what it does.
    pub fn as_plan(&self) -> Plan {
        Plan {
            version: plan::PLAIN,
            target: "any".to_owned(),
            symbols: self.symbols.clone(),
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            workspace_bytes: self.workspace_bytes.clone(),
            buffers: Vec::new(),
            kernels: Vec::new(),
        }
    }

    fn place(&self, index: usize, symbols: &[i64]) -> Option<Place> {
        let value = &self.values[index];
        let number = |expr: &Expr| u64::try_from(expr.value(symbols)?).ok();
        let shape: Option<Vec<usize>> =
            value.shape.iter().map(|size| usize::try_from(number(size)?).ok()).collect();
        let shape = shape?;
        let bytes =
            shape.iter().try_fold(value.dtype.bytes(), |n, size| n.checked_mul(*size as u64))?;
        let (base, offset) = match &value.memory {
            Memory::Workspace(offset) => (Base::Workspace, number(offset)?),
            Memory::Output(at) => (Base::Output(*at), 0),
            Memory::Input(at) => (Base::Input(*at), 0),
        };
        Some(Place { shape, base, offset, bytes })
    }

    /// Looks at the values that are alive when a call makes another.
    fn check_overlap(&self, places: &[Place]) -> Result<(), Broken> {
        let mut alive: Vec<usize> = Vec::new();
        for (at, call) in self.calls.iter().enumerate() {
            alive.retain(|value| self.values[*value].to >= at);
            for result in &call.results {
                let new = places.get(*result).ok_or(Broken::NeverMade { value: *result })?;
                let given = call.in_place.and_then(|arg| call.args.get(arg));
                for other in &alive {
                    let old = &places[*other];
                    let apart = old.base != new.base
                        || new.offset + new.bytes <= old.offset
                        || old.offset + old.bytes <= new.offset;
                    let replaced = given == Some(&super::Arg::Value(*other))
                        && (old.offset, old.bytes) == (new.offset, new.bytes);
                    if !apart && !replaced {
                        return Err(Broken::Overlap { a: *other, b: *result });
                    }
                }
                if new.bytes > 0 && new.base == Base::Workspace {
                    alive.push(*result);
                }
            }
        }
        Ok(())
    }
}
