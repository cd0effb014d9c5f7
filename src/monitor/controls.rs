//! The knobs of a real node.
//!
//! Invariant: a level that is read is the one that holds, also where a change was cut to
//! what is possible.

use std::{num::NonZero, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::knob::{Knob, Levels};
use crate::{
    cache::{EvictionSettings, Renewed, Tier, TierError, Tiers},
    compiler::PoolName,
    manager::Manager,
    resp::Resp,
};

/// A disk that hangs holds the monitor up no longer than this.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is turned.
pub struct Controls {
    manager: Arc<Manager>,
    tiers: Arc<Tiers>,
    resp: Arc<Resp>,
    /// Of the disk tier, which keeps no name of it.
    lru: bool,
}

impl Controls {
    /// `lru`: the order in which the disk tier was opened.
    pub fn new(manager: Arc<Manager>, tiers: Arc<Tiers>, resp: Arc<Resp>, lru: bool) -> Self {
        Self { manager, tiers, resp, lru }
    }

    /// Where all knobs are that this node has.
    pub fn levels(&self) -> Levels {
        let mut levels = Levels::from([
            (Knob::MemoryBytes, self.tiers.memory().capacity()),
            (Knob::DiskBytes, self.tiers.disk().usage().capacity_bytes.unwrap_or(u64::MAX)),
            (Knob::Eviction, u64::from(self.lru)),
            (Knob::RespWait, u64::try_from(self.resp.wait().as_millis()).unwrap_or(u64::MAX)),
            (Knob::CompileMemory, self.manager.limits().memory_bytes),
        ]);
        for (name, load) in self.manager.compilers().pools() {
            let knob = match name {
                PoolName::Nvrtc => Knob::CompileWorkers,
                PoolName::Python => Knob::PythonWorkers,
            };
            levels.insert(knob, load.workers as u64);
        }
        levels
    }

    /// Turns a knob; why that is not possible.
    pub async fn turn(&mut self, knob: Knob, to: u64) -> Result<(), String> {
        let slow = || Err(format!("it took more than {PATIENCE:?}"));
        timeout(PATIENCE, self.turn_patiently(knob, to)).await.unwrap_or_else(|_| slow())
    }

    async fn turn_patiently(&mut self, knob: Knob, to: u64) -> Result<(), String> {
        let told = |e: TierError| e.to_string();
        match knob {
            Knob::CompileWorkers => self.resize(PoolName::Nvrtc, to),
            Knob::PythonWorkers => self.resize(PoolName::Python, to),
            Knob::MemoryBytes => {
                self.tiers.resize_memory(to);
                Ok(())
            }
            Knob::DiskBytes => self.tiers.disk().resize(to).await.map_err(told),
            Knob::Eviction => {
                let policy =
                    if to == 0 { EvictionSettings::default() } else { EvictionSettings::Lru };
                self.tiers.disk().set_policy(policy).await.map_err(told)?;
                self.lru = to != 0;
                Ok(())
            }
            Knob::RespWait => {
                self.resp.set_wait(Duration::from_millis(to));
                Ok(())
            }
            Knob::CompileMemory => {
                self.manager.set_compile_memory(to);
                Ok(())
            }
            Knob::CleanUp => self.renew().await.map(|renewed| {
                tracing::info!(?renewed, "cleaned the disk tier up");
            }),
        }
    }

    fn resize(&self, pool: PoolName, to: u64) -> Result<(), String> {
        let workers = usize::try_from(to).ok().and_then(NonZero::new);
        let workers = workers.ok_or("no worker would be left")?;
        match self.manager.compilers().resize(pool, workers) {
            true => Ok(()),
            false => Err(format!("this node has no {} yet", pool.name())),
        }
    }

    /// Sweeps the disk tier, and sees whether it works.
    pub async fn renew(&self) -> Result<Renewed, String> {
        let slow = || Err(format!("it took more than {PATIENCE:?}"));
        match timeout(PATIENCE, self.tiers.disk().renew()).await {
            Ok(renewed) => renewed.map_err(|e| e.to_string()),
            Err(_) => slow(),
        }
    }
}
