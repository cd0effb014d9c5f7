//! How long a module takes, measured on the device.
//!
//! Invariant: medians of single runs between two CUDA events, after runs that
//! warm up; a run writes the outputs anew, so they are read before. Where runs change
//! inputs each begins with what these were set to: one that counts its own positions
//! never runs out of them.

use cudarc::driver::{CudaEvent, sys};

use super::{ExecError, Session, error::During, session::Beginning};

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
        let eager_us = self.median(repeat, &beginning, Self::launch)?;
        let graph_us = self.median(repeat, &beginning, Self::replay)?;
        let mut kernels = Vec::with_capacity(launches.len());
        for (index, launch) in launches.iter().enumerate() {
            let stream = self.stream().clone();
            let run = |session: &mut Self| session.launch_one(index, &stream, false);
            let micros = self.median(repeat, &beginning, run)?;
            kernels.push((self.label(index, launch.kernel), micros));
        }
        self.rewind(&beginning)?;
        Ok(Times { repeat, eager_us, graph_us, kernels })
    }

    /// What one run as a CUDA graph takes: the median of `repeat`, in microseconds. With inputs
    /// that runs change it does as [`times`](Self::times).
    pub fn graph_micros(&mut self, repeat: usize) -> Result<f64, ExecError> {
        let beginning = self.beginning()?;
        let micros = self.median(repeat, &beginning, Self::replay)?;
        self.rewind(&beginning)?;
        Ok(micros)
    }

    fn median(
        &mut self,
        repeat: usize,
        beginning: &Beginning,
        mut run: impl FnMut(&mut Self) -> Result<(), ExecError>,
    ) -> Result<f64, ExecError> {
        for _ in 0..WARM_UP {
            self.rewind(beginning)?;
            run(self)?;
        }
        let stream = self.stream().clone();
        let event = || -> Result<CudaEvent, ExecError> {
            let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            stream.record_event(flags).during("record an event")
        };
        let mut events = Vec::with_capacity(repeat);
        for _ in 0..repeat {
            self.rewind(beginning)?;
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

fn median(mut all: Vec<f64>) -> f64 {
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
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(vec![7.0]), 7.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
