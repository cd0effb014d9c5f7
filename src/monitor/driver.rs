//! The task that runs the monitor: takes samples, judges them, does what follows.
//!
//! Invariant: cycles do not overlap, and one that takes long delays the next, never
//! piles up; who asks for the report gets the last one at once.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    alert::Alert,
    controls::Controls,
    core::{Core, CoreSettings, Outcome},
    crisis::Crisis,
    notify::Receiver,
    optimizer::Change,
    report::Report,
    sampler::Sampler,
};
use crate::{
    clock,
    emergency::{By, Cause, Emergency, System},
};

/// Questions that wait while a cycle is under way.
const QUESTIONS: usize = 16;

/// What a [`Monitor`] is told.
#[derive(Debug, Clone)]
pub struct MonitorSettings {
    /// Between two cycles; zero: there are none.
    pub every: Duration,
    /// Whether systems that do not work are turned off, and on again.
    pub emergency: bool,
    /// Of the core.
    pub core: CoreSettings,
}

/// What came of a question.
pub type Told = Result<String, String>;

enum Question {
    Undo(u64, oneshot::Sender<Told>),
    Renew(oneshot::Sender<Told>),
}

/// The monitor, as others see it; clones share it.
#[derive(Clone)]
pub struct Monitor {
    report: watch::Receiver<Arc<Report>>,
    questions: mpsc::Sender<Question>,
    emergency: Emergency,
}

/// What the task has.
struct Driver {
    settings: MonitorSettings,
    core: Core,
    sampler: Sampler,
    controls: Controls,
    receivers: Vec<Receiver>,
    emergency: Emergency,
    report: watch::Sender<Arc<Report>>,
}

impl Monitor {
    /// The last cycle.
    pub fn report(&self) -> Arc<Report> {
        self.report.borrow().clone()
    }

    /// Each report from now on.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Report>> {
        self.report.clone()
    }

    /// What this node does without at present.
    pub fn emergency(&self) -> &Emergency {
        &self.emergency
    }

    /// Takes a decision of the optimizer back.
    pub async fn undo(&self, decision: u64) -> Told {
        self.ask(|answer| Question::Undo(decision, answer)).await
    }

    /// A person turns a system off.
    pub fn turn_off(&self, system: System, why: String) {
        let cause = Cause { by: By::Person, why, since_unix_ms: clock::unix_ms() };
        tracing::warn!(system = system.name(), why = cause.why, "turned off by hand");
        self.emergency.begin(system, cause);
    }

    /// A person turns a system on again: the cache only if it works.
    pub async fn turn_on(&self, system: System) -> Told {
        let off = self.emergency.mode().of(system).is_some();
        if off && system == System::Cache {
            self.ask(Question::Renew).await?;
        }
        self.emergency.end(system, By::Person);
        tracing::info!(system = system.name(), "turned on by hand");
        Ok(format!("{} on", system.name()))
    }

    async fn ask(&self, question: impl FnOnce(oneshot::Sender<Told>) -> Question) -> Told {
        let (answer, answered) = oneshot::channel();
        let stops = || "this node stops".to_owned();
        self.questions.send(question(answer)).await.map_err(|_| stops())?;
        answered.await.map_err(|_| stops())?
    }
}

/// Makes a monitor, and the task that runs it until `stop`.
pub fn run(
    settings: MonitorSettings,
    sampler: Sampler,
    controls: Controls,
    receivers: Vec<Receiver>,
    emergency: Emergency,
    stop: CancellationToken,
) -> (Monitor, impl Future<Output = ()> + Send + 'static) {
    let empty = Report { node: settings.core.node, fresh: true, ..Report::default() };
    let (report, reported) = watch::channel(Arc::new(empty));
    let (questions, asked) = mpsc::channel(QUESTIONS);
    let monitor = Monitor { report: reported, questions, emergency: emergency.clone() };
    let core = Core::new(settings.core.clone());
    let driver = Driver { settings, core, sampler, controls, receivers, emergency, report };
    (monitor, driver.run(asked, stop))
}

impl Driver {
    async fn run(mut self, mut asked: mpsc::Receiver<Question>, stop: CancellationToken) {
        let never = self.settings.every.is_zero();
        let every = if never { Duration::from_secs(3600) } else { self.settings.every };
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is now, and nothing has happened yet.
        ticks.tick().await;
        loop {
            tokio::select! {
                _ = ticks.tick(), if !never => {
                    tokio::select! {
                        () = self.cycle() => {}
                        () = stop.cancelled() => return,
                    }
                }
                Some(question) = asked.recv() => self.answer(question).await,
                () = stop.cancelled() => return,
            }
        }
    }

    async fn cycle(&mut self) {
        let sample = self.sampler.sample().await;
        tracing::trace!(sample = %serde_json::to_string(&sample).unwrap_or_default(), "a cycle");
        let mode = self.emergency.mode();
        let Outcome { alerts, crises, change } =
            self.core.step(&sample, &self.controls.levels(), &mode);
        for crisis in crises {
            self.meet(crisis);
        }
        if let Some(change) = change {
            self.change(change).await;
        }
        self.tell(&alerts);
        self.recover().await;
        self.publish();
    }

    fn publish(&self) {
        let report = self.core.report(self.settings.every.as_secs_f64());
        metrics::gauge!("kiln_monitor_anomalies").set(report.anomalies.len() as f64);
        metrics::gauge!("kiln_monitor_cycles").set(report.cycle as f64);
        self.report.send_replace(Arc::new(report));
    }

    fn meet(&self, crisis: Crisis) {
        if !self.settings.emergency {
            tracing::warn!(?crisis, "monitor.emergency is false: nothing is turned off or on");
            return;
        }
        match crisis {
            Crisis::Down(system, why) => {
                tracing::error!(system = system.name(), why, "does not work: turned off");
                let cause = Cause { by: By::Monitor, why, since_unix_ms: clock::unix_ms() };
                self.emergency.begin(system, cause);
            }
            Crisis::Up(system) => {
                if self.emergency.end(system, By::Monitor) {
                    tracing::info!(system = system.name(), "works again: turned on");
                }
            }
        }
    }

    /// What the monitor turned off: one compile is tried, and the disk tier is renewed.
    async fn recover(&self) {
        let mode = self.emergency.mode();
        let is_ours = |system| mode.of(system).is_some_and(|cause| cause.by == By::Monitor);
        if is_ours(System::Compilers) {
            self.emergency.allow_trial();
        }
        if is_ours(System::Cache) {
            match self.controls.renew().await {
                Ok(renewed) => {
                    self.emergency.end(System::Cache, By::Monitor);
                    tracing::info!(?renewed, "the disk tier works again: the cache is on");
                }
                Err(why) => tracing::warn!(why, "the disk tier does not work yet"),
            }
        }
    }

    async fn change(&mut self, change: Change) {
        let Change { decision, knob, to } = change;
        match self.controls.turn(knob, to).await {
            Ok(()) => {
                let level = knob.show(to);
                tracing::info!(decision, knob = knob.name(), level, "turned");
                metrics::counter!("kiln_optimizer_changes_total", "knob" => knob.name())
                    .increment(1);
            }
            Err(why) => {
                tracing::warn!(decision, knob = knob.name(), why, "could not be turned");
                self.core.refused(decision, why);
            }
        }
    }

    fn tell(&self, alerts: &[Alert]) {
        if alerts.is_empty() {
            return;
        }
        for alert in alerts {
            let Alert { name, of, summary, .. } = alert;
            match alert.is_resolved() {
                true => tracing::info!(alert = name, of, "over"),
                false => tracing::warn!(alert = name, of, "{summary}"),
            }
        }
        for receiver in &self.receivers {
            receiver.post(alerts);
        }
    }

    async fn answer(&mut self, question: Question) {
        let (answer, told) = match question {
            Question::Undo(decision, answer) => {
                let told = match self.core.undo(decision, &self.controls.levels()) {
                    Ok(change) => {
                        self.change(change).await;
                        let Change { knob, to, .. } = change;
                        Ok(format!("{} is {} again", knob.name(), knob.show(to)))
                    }
                    Err(why) => Err(why.to_string()),
                };
                (answer, told)
            }
            Question::Renew(answer) => {
                (answer, self.controls.renew().await.map(|renewed| format!("{renewed:?}")))
            }
        };
        self.publish();
        // Who asked may have left.
        let _ = answer.send(told);
    }
}
