//! How long a module takes, measured on the device.
//!
//! Invariant: medians of single runs between two CUDA events, after runs that
//! warm up; a run writes the outputs anew, so they are read before. Where runs change
//! inputs each begins with what these were set to: one that counts its own positions
//! never runs out of them. A kernel on its own begins with that in the inputs that it has
//! to do with; the others are as they were set, too.

use cudarc::driver::{CudaEvent, sys};
use kiln_native::plan::{Base, Launch, Value};

use super::{ExecError, Session, error::During, session::Kept};

/// Runs before the first one that counts.
const WARM_UP: usize = 5;

/// Microseconds, of runs on inputs that stay where they are.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Times {
    /// Runs behind each median.
    pub repeat: usize,
    /// One run, kernel by kernel.
    pub eager_us: f64,
    /// One run as a CUDA graph.
    pub graph_us: f64,
    /// Each kernel on its own, in order: its name and its median.
    pub kernels: Vec<(String, f64)>,
}

impl Session {
    /// Measures `repeat` runs of each kind, which write the outputs anew: read them first.
    ///
    /// Inputs that runs change are [`reset`](Self::reset) before each and in the end; those
    /// that the caller holds are run on.
    pub fn times(&mut self, repeat: usize) -> Result<Times, ExecError> {
        let launches = self.call()?.launches.clone();
        if launches.is_empty() || repeat == 0 {
            return Ok(Times::default());
        }
        let beginning = self.beginning()?;
        let all = beginning.all();
        let eager_us = self.median(repeat, &all, Self::launch)?;
        let graph_us = self.median(repeat, &all, Self::replay)?;
        self.rewind(&all)?;
        let mut kernels = Vec::with_capacity(launches.len());
        for (index, launch) in launches.iter().enumerate() {
            let stream = self.stream().clone();
            let run = |session: &mut Self| session.launch_one(index, &stream, false);
            // No plan says which of them a kernel only reads.
            let own = beginning.among(&inputs_of(launch));
            let micros = self.median(repeat, &own, run)?;
            self.rewind(&own)?;
            kernels.push((self.label(index, launch.kernel), micros));
        }
        Ok(Times { repeat, eager_us, graph_us, kernels })
    }

    /// What one run as a CUDA graph takes: the median of `repeat`, in microseconds. With inputs
    /// that runs change it does as [`times`](Self::times).
    pub fn graph_micros(&mut self, repeat: usize) -> Result<f64, ExecError> {
        let beginning = self.beginning()?;
        let all = beginning.all();
        let micros = self.median(repeat, &all, Self::replay)?;
        self.rewind(&all)?;
        Ok(micros)
    }

    fn median(
        &mut self,
        repeat: usize,
        changed: &[&Kept],
        mut run: impl FnMut(&mut Self) -> Result<(), ExecError>,
    ) -> Result<f64, ExecError> {
        for _ in 0..WARM_UP {
            self.rewind(changed)?;
            run(self)?;
        }
        let stream = self.stream().clone();
        let event = || -> Result<CudaEvent, ExecError> {
            let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            stream.record_event(flags).during("record an event")
        };
        let mut events = Vec::with_capacity(repeat);
        for _ in 0..repeat {
            self.rewind(changed)?;
            let start = event()?;
            run(self)?;
            events.push((start, event()?));
        }
        stream.synchronize().during("run the kernels")?;
        let mut micros = Vec::with_capacity(repeat);
        for (start, end) in &events {
            micros.push(f64::from(start.elapsed_ms(end).during("read an event")?) * 1000.0);
        }
        Ok(median(micros))
    }
}

/// The inputs whose memory a launch is given.
fn inputs_of(launch: &Launch) -> Vec<usize> {
    let base = |value: &Value| match value {
        Value::Pointer(Base::Input(at), _) => Some(*at),
        Value::Map(tile) => match tile.start.0 {
            Base::Input(at) => Some(at),
            _ => None,
        },
        _ => None,
    };
    launch.values.iter().filter_map(base).collect()
}

pub(super) fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    match all.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => all[middle],
        _ => f64::midpoint(all[middle - 1], all[middle]),
    }
}

#[cfg(test)]
mod tests {
    use kiln_native::plan::Tile;
    use kiln_proto::graph::DType;

    use super::*;

    #[test]
    fn a_launch_has_to_do_with_the_inputs_that_it_is_given_in_any_form() {
        let tile = |base| {
            let (start, swizzle, sizes) = ((base, 16), 0, vec![8]);
            Value::Map(Box::new(Tile {
                start,
                dtype: DType::F32,
                sizes,
                strides: Vec::new(),
                tile: vec![8],
                swizzle,
            }))
        };
        let launch = |values| Launch { kernel: 0, grid: [1; 3], values };
        let pointers = [Base::Input(2), Base::Output(1), Base::Workspace, Base::Input(0)];
        let values = pointers.map(|base| Value::Pointer(base, 0)).into_iter();
        let maps = [Base::Workspace, Base::Input(5)].map(tile);
        let values = values.chain(maps).chain([Value::Size(3)]).collect();
        assert_eq!(inputs_of(&launch(values)), [2, 0, 5]);
        let others = vec![Value::Pointer(Base::Workspace, 0), tile(Base::Output(3))];
        assert!(inputs_of(&launch(others)).is_empty());
    }

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(vec![7.0]), 7.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
