//! A decoder's step, on what it runs on.
//!
//! Invariant: what a run leaves in its inputs is what the next one finds there.

use kiln_native::{interp::Settings, plan::Plan};

use super::super::{
    Exec, ExecError, Module, Session, Tensor, cpu, program,
    tensors::{read_with, shown_names},
};

/// The step, on what it runs on.
pub(super) struct Step {
    /// With the program's own names.
    pub(super) plan: Plan,
    /// What messages call each input.
    pub(super) names: Vec<String>,
    pub(super) device: String,
    /// As the file has them: of the token the whole prompt.
    pub(super) inputs: Vec<Tensor<'static>>,
    on: On,
}

enum On {
    /// With the outputs of the last run.
    Cpu(Box<cpu::Program>, Vec<Tensor<'static>>),
    /// And whether the inputs lie there already.
    Gpu(Box<Session>, bool),
}

impl Step {
    pub(super) fn on_cpu(exec: &Exec, file: &[u8], kept: Option<&[u8]>) -> Result<Self, ExecError> {
        let program = cpu::Program::load(&exec.dir)?;
        let mut plan = program.plan();
        let signature = program::read_signature(&exec.dir, &plan)?;
        let inputs = own(read_with(file, kept, &plan, signature.as_ref())?);
        let names = shown_names(&plan, signature.as_ref());
        program::rename(&mut plan, signature.as_ref());
        let (device, on) = ("cpu".to_owned(), On::Cpu(Box::new(program), vec![]));
        Ok(Self { plan, names, device, inputs, on })
    }

    pub(super) fn on_gpu(exec: &Exec, file: &[u8], kept: Option<&[u8]>) -> Result<Self, ExecError> {
        let module = Module::load(&exec.dir, exec.device)?;
        let inputs = own(read_with(file, kept, module.plan(), module.signature())?);
        let (plan, device) = (module.plan().clone(), module.device().to_owned());
        let names = shown_names(&plan, module.signature());
        let on = On::Gpu(Box::new(module.session()?), false);
        Ok(Self { plan, names, device, inputs, on })
    }

    pub(super) fn set(&mut self, input: usize, tensor: Tensor<'static>) -> Result<(), ExecError> {
        if let On::Gpu(session, true) = &mut self.on {
            session.set(input, &tensor)?;
        }
        self.inputs[input] = tensor;
        Ok(())
    }

    /// Whether reads and writes out of range go where they go: the interpreter refuses them.
    pub(super) fn is_on_gpu(&self) -> bool {
        matches!(self.on, On::Gpu(..))
    }

    /// Runs once, from where the run before it ended; that output.
    pub(super) fn run(&mut self, output: usize) -> Result<Tensor<'static>, ExecError> {
        match &mut self.on {
            On::Cpu(program, outputs) => {
                let (all, _) = program.run(&self.plan, &self.inputs, &Settings::default())?;
                *outputs = all.into_iter().map(Tensor::from).collect();
                let updated = self.plan.inputs.iter().zip(&mut self.inputs);
                let updated = updated.filter(|(input, _)| input.updated);
                for ((_, input), left) in updated.zip(&outputs[self.plan.outputs.len()..]) {
                    input.clone_from(left);
                }
                Ok(outputs[output].clone())
            }
            On::Gpu(session, ready) => {
                if !*ready {
                    session.set_all(&self.inputs)?;
                    *ready = true;
                }
                session.replay()?;
                session.output(output)
            }
        }
    }

    /// What the last run gave, and behind it what is left in inputs.
    pub(super) fn outputs(&self) -> Result<Vec<Tensor<'static>>, ExecError> {
        match &self.on {
            On::Cpu(_, outputs) => Ok(outputs.clone()),
            On::Gpu(session, _) => session.all_outputs(),
        }
    }
}

fn own(tensors: Vec<Tensor<'_>>) -> Vec<Tensor<'static>> {
    let own = |Tensor { dtype, shape, bytes }| Tensor {
        dtype,
        shape,
        bytes: std::borrow::Cow::Owned(Vec::from(bytes)),
    };
    tensors.into_iter().map(own).collect()
}
