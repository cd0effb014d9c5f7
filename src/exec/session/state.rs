//! What runs leave in inputs, and what these were before.
//!
//! Invariant: an input is set again to what was last set with success: setting that fails, or
//! setting it again, leaves this as it was. Nothing runs where an input that is written to
//! shares memory with another one.

use std::borrow::Cow;

use kiln_native::plan::{Base, CONSTANT, Layout};

use super::{
    super::{ExecError, Tensor, memory::Memory},
    Data, Input, Session,
    apart::{Form, Span, shared},
};

/// A copy of an input that runs change, with its position.
pub(in crate::exec) type Kept = (usize, Memory);

/// Copies of inputs that runs change: of those in the session's memory.
pub(in crate::exec) struct Beginning(Vec<Kept>);

impl Beginning {
    /// Of each input.
    pub(in crate::exec) fn all(&self) -> Vec<&Kept> {
        self.0.iter().collect()
    }

    /// Of those at `inputs`.
    pub(in crate::exec) fn among(&self, inputs: &[usize]) -> Vec<&Kept> {
        self.0.iter().filter(|(index, _)| inputs.contains(index)).collect()
    }
}

impl Session {
    /// Sets what runs have changed to what it was set to last: buffers that the program
    /// writes to, a cache of keys and values say. Memory that the caller holds stays as it is.
    pub fn reset(&mut self) -> Result<(), ExecError> {
        let initial = std::mem::take(&mut self.initial);
        let restored = initial.restore(|index, tensor| self.write(index, tensor));
        self.initial = initial;
        restored
    }

    /// Resets what runs change, and keeps it beside on the device: see [`Self::rewind`].
    pub(in crate::exec) fn beginning(&mut self) -> Result<Beginning, ExecError> {
        self.reset()?;
        self.prepared()?;
        let (context, plan) = (&self.module.context, &self.module.program.plan);
        let mut kept = Vec::new();
        for (index, (input, own)) in plan.inputs.iter().zip(&self.inputs).enumerate() {
            if let (true, Some(Input { data: Data::Own(memory, _), .. })) = (input.updated, own) {
                let what = || format!("another {}, to begin each timed run with", input.name);
                let mut copy = Memory::new(context, memory.bytes(), what)?;
                copy.queue_copy(memory, &self.stream)?;
                kept.push((index, copy));
            }
        }
        Ok(Beginning(kept))
    }

    /// Queues that these inputs become what they were then.
    pub(in crate::exec) fn rewind(&mut self, inputs: &[&Kept]) -> Result<(), ExecError> {
        for (index, copy) in inputs {
            if let Some(Input { data: Data::Own(memory, _), .. }) = &mut self.inputs[*index] {
                memory.queue_copy(copy, &self.stream)?;
            }
        }
        Ok(())
    }

    /// Whether runs change inputs.
    fn has_state(&self) -> bool {
        self.module.program.plan.inputs.iter().any(|input| input.updated)
    }

    /// Refuses inputs that share memory which runs write to.
    pub(super) fn refuse_shared(&self, layouts: &[Layout]) -> Result<(), ExecError> {
        let wanted = &self.module.program.plan.inputs;
        if !self.has_state() {
            return Ok(());
        }
        let mut spans = Vec::with_capacity(wanted.len());
        for (input, (tensor, layout)) in wanted.iter().zip(layouts).enumerate() {
            if tensor.kind != CONSTANT {
                let start = self.start(Base::Input(input))?;
                let form = Form::of(layout, tensor.dtype.bytes());
                spans.push(Span { start, form, written: tensor.updated, input });
            }
        }
        match shared(spans) {
            None => Ok(()),
            Some(pair) => {
                let (written, other) = (&wanted[pair.written].name, &wanted[pair.other].name);
                let why = match pair.known {
                    true => format!("{other} lies in the same memory"),
                    false => format!("whether {other} shares bytes with it takes too long to tell"),
                };
                let why = format!("{written} is written to, and {why}");
                Err(ExecError::Inputs(format!("{why}: give each memory of its own")))
            }
        }
    }
}

/// What inputs that runs change were set to, by input; of one that runs do not change, or
/// that the caller holds: nothing.
#[derive(Debug, Default)]
pub(super) struct Initial(Vec<Option<Tensor<'static>>>);

impl Initial {
    /// Of so many inputs, none of which was set.
    pub(super) fn new(inputs: usize) -> Self {
        Self(vec![None; inputs])
    }

    /// `index` was set to `tensor`.
    pub(super) fn keep(&mut self, index: usize, tensor: &Tensor<'_>) {
        let Tensor { dtype, shape, bytes } = tensor;
        let bytes = Cow::Owned(bytes.to_vec());
        self.0[index] = Some(Tensor { dtype: *dtype, shape: shape.clone(), bytes });
    }

    /// What `index` holds is the caller's from now on.
    pub(super) fn forget(&mut self, index: usize) {
        self.0[index] = None;
    }

    /// Sets each to what it was, up to the first that cannot be: `set` does it.
    pub(super) fn restore(
        &self,
        mut set: impl FnMut(usize, &Tensor<'_>) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let mut kept = self.0.iter().enumerate();
        kept.try_for_each(|(index, tensor)| tensor.iter().try_for_each(|tensor| set(index, tensor)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kiln_proto::graph::DType;

    use super::*;

    fn tensor(number: f32) -> Tensor<'static> {
        Tensor::new(DType::F32, &[1], number.to_le_bytes().to_vec()).unwrap()
    }

    #[test]
    fn what_was_set_can_be_restored_again_and_again_and_after_a_failure() {
        let mut initial = Initial::new(3);
        initial.keep(0, &tensor(1.0));
        initial.keep(2, &tensor(2.0));
        let failed = |_: usize, _: &Tensor<'_>| Err(ExecError::Inputs("no room".to_owned()));
        initial.restore(failed).unwrap_err();
        for _ in 0..2 {
            let mut seen = Vec::new();
            let set = |index: usize, tensor: &Tensor<'_>| {
                seen.push((index, tensor.bytes.to_vec()));
                Ok(())
            };
            initial.restore(set).unwrap();
            let bytes = |number: f32| number.to_le_bytes().to_vec();
            assert_eq!(seen, [(0, bytes(1.0)), (2, bytes(2.0))]);
        }
        initial.forget(0);
        let mut seen = Vec::new();
        initial
            .restore(|index, _| {
                seen.push(index);
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, [2]);
    }
}
