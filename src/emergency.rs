//! Emergency mode: what this node does without while it does not work.
//!
//! Without *compilers* a request that would have to compile is refused at once, or goes down
//! the ladder; without *cache* each request is compiled alone and nothing is kept. Either is
//! begun and ended by the monitor or by a person, and what a person began the monitor does
//! not end.
//!
//! Invariant: all that asks sees one mode; a look costs an atomic load.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use kiln_proto::{Failure, FailureKind};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// What can be down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum System {
    /// Compiler processes.
    Compilers,
    /// The disk tier, and with it the cache.
    Cache,
}

/// Who began it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The monitor, which also ends it.
    Monitor,
    /// A person, who ends it.
    Person,
}

/// Why a system is off, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Who began it.
    pub by: By,
    /// For people.
    pub why: String,
    /// Milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
}

/// What this node does without, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mode {
    /// Compilers are off.
    pub compilers: Option<Cause>,
    /// The cache is off.
    pub cache: Option<Cause>,
}

impl System {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Compilers, Self::Cache];

    /// The name in reports and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Compilers => "compilers",
            Self::Cache => "cache",
        }
    }
}

impl By {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::Person => "person",
        }
    }
}

impl Mode {
    /// Why a system is off; `None`: it is on.
    pub const fn of(&self, system: System) -> Option<&Cause> {
        match system {
            System::Compilers => self.compilers.as_ref(),
            System::Cache => self.cache.as_ref(),
        }
    }

    /// Whether everything is on.
    pub const fn is_normal(&self) -> bool {
        self.compilers.is_none() && self.cache.is_none()
    }

    fn slot(&mut self, system: System) -> &mut Option<Cause> {
        match system {
            System::Compilers => &mut self.compilers,
            System::Cache => &mut self.cache,
        }
    }
}

/// The mode of one node; clones share it.
#[derive(Debug, Clone)]
pub struct Emergency(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    mode: watch::Sender<Mode>,
    compilers_off: AtomicBool,
    cache_off: AtomicBool,
    /// Compiles that may be tried although compilers are off.
    trials: AtomicU32,
}

impl Default for Emergency {
    fn default() -> Self {
        Self(Arc::new(Shared {
            mode: watch::Sender::default(),
            compilers_off: AtomicBool::new(false),
            cache_off: AtomicBool::new(false),
            trials: AtomicU32::new(0),
        }))
    }
}

impl Emergency {
    /// The mode now.
    pub fn mode(&self) -> Mode {
        self.0.mode.borrow().clone()
    }

    /// The mode and its changes.
    pub fn subscribe(&self) -> watch::Receiver<Mode> {
        self.0.mode.subscribe()
    }

    /// Whether nothing is to be read from the cache, or kept in it.
    pub fn is_cache_off(&self) -> bool {
        self.0.cache_off.load(Ordering::Relaxed)
    }

    /// Whether compilers are off.
    pub fn is_compilers_off(&self) -> bool {
        self.0.compilers_off.load(Ordering::Relaxed)
    }

    /// Whether a compile may be begun: always, but for the one in a while that shows
    /// whether compilers are back.
    pub fn may_compile(&self) -> Result<(), Failure> {
        if !self.is_compilers_off() || self.take_trial() {
            return Ok(());
        }
        let why = self.mode().compilers.map(|cause| cause.why).unwrap_or_default();
        let why = format!("the compilers of this node are off ({why}): ask another node");
        Err(Failure::new(FailureKind::Busy, why))
    }

    /// Whether [`may_compile`](Self::may_compile) would refuse; takes no trial.
    pub fn refuses(&self) -> bool {
        self.is_compilers_off() && self.0.trials.load(Ordering::Relaxed) == 0
    }

    fn take_trial(&self) -> bool {
        let one_less = |left: u32| left.checked_sub(1);
        self.0.trials.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }

    /// Lets one compile be tried.
    pub fn allow_trial(&self) {
        self.0.trials.store(1, Ordering::Relaxed);
    }

    /// Turns a system off; whether it was on. A person's word stands before the monitor's.
    pub fn begin(&self, system: System, cause: Cause) -> bool {
        let mut began = false;
        self.change(|mode| {
            let slot = mode.slot(system);
            began = slot.is_none();
            let takes_over = slot.as_ref().is_some_and(|known| known.by == By::Monitor);
            if began || (takes_over && cause.by == By::Person) {
                *slot = Some(cause);
            }
        });
        began
    }

    /// Turns a system on again, if `by` may; whether it was off.
    pub fn end(&self, system: System, by: By) -> bool {
        let mut ended = false;
        self.change(|mode| {
            let slot = mode.slot(system);
            if slot.as_ref().is_some_and(|cause| by == By::Person || cause.by == by) {
                *slot = None;
                ended = true;
            }
        });
        ended
    }

    fn change(&self, change: impl FnOnce(&mut Mode)) {
        self.0.mode.send_modify(|mode| {
            change(mode);
            for system in System::ALL {
                let off = mode.of(system).is_some();
                let flag = match system {
                    System::Compilers => &self.0.compilers_off,
                    System::Cache => &self.0.cache_off,
                };
                flag.store(off, Ordering::Relaxed);
                metrics::gauge!("kiln_emergency", "system" => system.name()).set(f64::from(off));
            }
            self.0.trials.store(0, Ordering::Relaxed);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(by: By) -> Cause {
        Cause { by, why: "all fail".into(), since_unix_ms: 1 }
    }

    #[test]
    fn what_a_person_began_the_monitor_does_not_end() {
        let emergency = Emergency::default();
        assert!(emergency.begin(System::Compilers, cause(By::Monitor)));
        assert!(!emergency.begin(System::Compilers, cause(By::Person)), "it was off");
        assert!(!emergency.end(System::Compilers, By::Monitor));
        assert!(emergency.is_compilers_off());
        assert!(emergency.end(System::Compilers, By::Person));
        assert!(emergency.mode().is_normal() && emergency.may_compile().is_ok());
    }

    #[test]
    fn one_compile_in_a_while_is_tried() {
        let emergency = Emergency::default();
        emergency.begin(System::Compilers, cause(By::Monitor));
        let refused = emergency.may_compile().unwrap_err();
        assert_eq!(refused.kind, FailureKind::Busy);
        assert!(refused.message.contains("all fail"), "{refused}");
        emergency.allow_trial();
        assert!(!emergency.refuses());
        assert!(emergency.may_compile().is_ok());
        assert!(emergency.may_compile().is_err(), "one alone");
    }

    #[test]
    fn who_follows_hears_of_it() {
        let emergency = Emergency::default();
        let mut follower = emergency.subscribe();
        emergency.begin(System::Cache, cause(By::Monitor));
        assert!(follower.has_changed().unwrap());
        assert!(follower.borrow_and_update().cache.is_some() && emergency.is_cache_off());
    }
}
