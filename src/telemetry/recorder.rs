//! The recorder behind the `metrics` facade.
//!
//! Invariant: histograms have the buckets of the table, and what was recorded is folded
//! into them every [`UPKEEP`], whether or not anybody reads: samples do not pile up.

use std::time::Duration;

use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{
    exposition::{self, Family},
    metric::Kind,
    table,
};

/// Between two times at which samples are folded into buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// Reads what was recorded.
#[derive(Clone)]
pub struct Recorder(PrometheusHandle);

impl Recorder {
    /// Installs the recorder of this process; once a process.
    pub fn install() -> Result<Self, BuildError> {
        let recorder = Self(builder()?.install_recorder()?);
        describe();
        Ok(recorder)
    }

    /// One that nothing is recorded in, for a node among others in one process.
    #[cfg(test)]
    pub(crate) fn not_installed() -> Result<Self, BuildError> {
        Ok(Self(builder()?.build_recorder().handle()))
    }

    /// The metrics as Prometheus reads them.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// The metrics as data, by name.
    pub fn families(&self) -> Vec<Family> {
        exposition::read(&self.render())
    }

    /// Folds samples into buckets until `stop`.
    pub async fn keep_up(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(UPKEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.0.run_upkeep();
        }
    }
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    let mut histograms = table::all().filter_map(|metric| match metric.kind {
        Kind::Histogram(buckets) => Some((metric.name, buckets)),
        Kind::Counter | Kind::Gauge => None,
    });
    histograms.try_fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
        builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)
    })
}

/// Says what each metric is. Events of one series are 0 from the start, so that the first
/// of them is a rise.
fn describe() {
    for metric in table::all() {
        let is_one = metric.labels.is_empty();
        match metric.kind {
            Kind::Counter => {
                describe_counter!(metric.name, metric.unit, metric.help);
                is_one.then(|| metrics::counter!(metric.name).increment(0));
            }
            Kind::Gauge => describe_gauge!(metric.name, metric.unit, metric.help),
            Kind::Histogram(_) => {
                describe_histogram!(metric.name, metric.unit, metric.help);
                is_one.then(|| metrics::histogram!(metric.name));
            }
        }
    }
}
