//! Metrics to the wire and back.
//!
//! Invariant: a number or a label that another node sends is taken as it is, and a series
//! without a value is left out.

use kiln_proto::pb::{self, metric_series::Value as Wire};

use super::{
    compilation::{Compilation, Performance, Resources, Stats},
    exposition::{Family, Histogram, Labels, Value},
    table,
};

impl From<&Family> for pb::Metric {
    fn from(family: &Family) -> Self {
        let known = table::find(&family.name);
        Self {
            name: family.name.clone(),
            kind: family.kind.clone(),
            unit: known.map_or("", |metric| metric.unit.as_str()).to_owned(),
            help: known.map_or("", |metric| metric.help).to_owned(),
            series: family.series.iter().map(series).collect(),
        }
    }
}

fn series((labels, value): (&Labels, &Value)) -> pb::MetricSeries {
    let labels =
        labels.iter().map(|(name, value)| pb::Field { name: name.clone(), value: value.clone() });
    let value = match value {
        Value::Number(number) => Wire::Number(*number),
        Value::Histogram(histogram) => Wire::Histogram(pb::HistogramValue {
            count: histogram.count,
            sum: histogram.sum,
            ends: histogram.buckets.iter().map(|(end, _)| *end).collect(),
            counts: histogram.buckets.iter().map(|(_, count)| *count).collect(),
        }),
    };
    pb::MetricSeries { labels: labels.collect(), value: Some(value) }
}

impl From<&pb::Metric> for Family {
    fn from(wire: &pb::Metric) -> Self {
        let series = wire.series.iter().filter_map(|series| {
            let labels = series.labels.iter().map(|l| (l.name.clone(), l.value.clone()));
            let value = match series.value.as_ref()? {
                Wire::Number(number) => Value::Number(*number),
                Wire::Histogram(histogram) => Value::Histogram(Histogram {
                    sum: histogram.sum,
                    count: histogram.count,
                    buckets: histogram
                        .ends
                        .iter()
                        .copied()
                        .zip(histogram.counts.iter().copied())
                        .collect(),
                }),
            };
            Some((labels.collect(), value))
        });
        Self { name: wire.name.clone(), kind: wire.kind.clone(), series: series.collect() }
    }
}

impl From<&Compilation> for pb::CompilationMetrics {
    fn from(figures: &Compilation) -> Self {
        let Compilation { compilation_stats: stats, performance, resources } = figures;
        Self {
            total_compilations: stats.total_compilations,
            inductor_compilations: stats.inductor_compilations,
            cache_hits: stats.cache_hits,
            coalesced: stats.coalesced,
            cache_misses: stats.cache_misses,
            artifacts_saved: stats.artifacts_saved,
            artifacts_loaded: stats.artifacts_loaded,
            cache_hit_rate: performance.cache_hit_rate,
            avg_compilation_time: performance.avg_compilation_time,
            p50_compilation_time: performance.p50_compilation_time,
            p99_compilation_time: performance.p99_compilation_time,
            avg_cache_load_time: performance.avg_cache_load_time,
            p50_cache_load_time: performance.p50_cache_load_time,
            p99_cache_load_time: performance.p99_cache_load_time,
            total_compilation_time: performance.total_compilation_time,
            compilation_time_saved: performance.compilation_time_saved,
            cache_disk_usage: resources.cache_disk_usage,
            memory_usage_mb: resources.memory_usage_mb,
            active_compiler_processes: resources.active_compiler_processes,
        }
    }
}

impl From<&pb::CompilationMetrics> for Compilation {
    fn from(wire: &pb::CompilationMetrics) -> Self {
        Self {
            compilation_stats: Stats {
                total_compilations: wire.total_compilations,
                inductor_compilations: wire.inductor_compilations,
                cache_hits: wire.cache_hits,
                coalesced: wire.coalesced,
                cache_misses: wire.cache_misses,
                artifacts_saved: wire.artifacts_saved,
                artifacts_loaded: wire.artifacts_loaded,
            },
            performance: Performance {
                cache_hit_rate: wire.cache_hit_rate,
                avg_compilation_time: wire.avg_compilation_time,
                p50_compilation_time: wire.p50_compilation_time,
                p99_compilation_time: wire.p99_compilation_time,
                avg_cache_load_time: wire.avg_cache_load_time,
                p50_cache_load_time: wire.p50_cache_load_time,
                p99_cache_load_time: wire.p99_cache_load_time,
                total_compilation_time: wire.total_compilation_time,
                compilation_time_saved: wire.compilation_time_saved,
            },
            resources: Resources {
                cache_disk_usage: wire.cache_disk_usage,
                memory_usage_mb: wire.memory_usage_mb,
                active_compiler_processes: wire.active_compiler_processes,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::exposition, *};

    #[test]
    fn what_a_node_sends_is_what_another_one_reads() {
        let page = "# TYPE kiln_tier_bytes gauge\nkiln_tier_bytes{tier=\"disk\"} 7\n\
                    # TYPE kiln_compile_seconds histogram\n\
                    kiln_compile_seconds_bucket{compiler=\"cuda\",le=\"1\"} 1\n\
                    kiln_compile_seconds_bucket{compiler=\"cuda\",le=\"+Inf\"} 2\n\
                    kiln_compile_seconds_sum{compiler=\"cuda\"} 2.5\n\
                    kiln_compile_seconds_count{compiler=\"cuda\"} 2\n";
        let families = exposition::read(page);
        let wire: Vec<pb::Metric> = families.iter().map(Into::into).collect();
        assert_eq!(wire[1].unit, "bytes");
        let back: Vec<Family> = wire.iter().map(Into::into).collect();
        assert_eq!(back, families);
        let figures = Compilation::of(&families);
        assert_eq!(Compilation::from(&pb::CompilationMetrics::from(&figures)), figures);
    }
}
