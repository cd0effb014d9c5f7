//! The figures that `get_compilation_metrics` of the original document has, of a node or of
//! all of them.
//!
//! Invariant: every figure is taken from the metrics themselves, so that it agrees with
//! what `/metrics` shows; of several nodes, numbers add up and times are those of all runs.

use super::exposition::{Family, Histogram, Value};

/// What compiling cost and saved. Seconds are seconds, bytes are bytes.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Compilation {
    /// How often what happened.
    pub compilation_stats: Stats,
    /// Rates and times.
    pub performance: Performance,
    /// What is in use now.
    pub resources: Resources,
}

/// How often what happened.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Stats {
    /// Compiler runs that made something.
    pub total_compilations: u64,
    /// Of these, Inductor's.
    pub inductor_compilations: u64,
    /// Requests answered from what was stored.
    pub cache_hits: u64,
    /// Requests that waited for another's compile.
    pub coalesced: u64,
    /// Requests that had to be compiled, or failed.
    pub cache_misses: u64,
    /// Artifacts committed to the index.
    pub artifacts_saved: u64,
    /// Artifacts that clients' engines loaded.
    pub artifacts_loaded: u64,
}

/// Rates and times in seconds.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Performance {
    /// Hits and coalesced requests, of all; 0 where nothing was asked.
    pub cache_hit_rate: f64,
    /// Mean of the compiler runs.
    pub avg_compilation_time: f64,
    /// Half of them took at most this.
    pub p50_compilation_time: f64,
    /// 99 of 100 took at most this.
    pub p99_compilation_time: f64,
    /// Mean time to bring stored bytes here.
    pub avg_cache_load_time: f64,
    /// Half of the loads took at most this.
    pub p50_cache_load_time: f64,
    /// 99 of 100 took at most this.
    pub p99_cache_load_time: f64,
    /// All compiler runs together.
    pub total_compilation_time: f64,
    /// What hits and coalesced requests did not have to compile again.
    pub compilation_time_saved: f64,
}

/// What is in use now.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Resources {
    /// Bytes in the disk tier.
    pub cache_disk_usage: u64,
    /// MiB in the memory tier.
    pub memory_usage_mb: f64,
    /// Compiler processes alive.
    pub active_compiler_processes: u64,
}

impl Compilation {
    /// The figures of one page of metrics, or of several nodes' together.
    pub fn of<'a>(families: impl IntoIterator<Item = &'a Family>) -> Self {
        let all: Vec<&Family> = families.into_iter().collect();
        let count = |name, label, value| number(&all, name, label, value) as u64;
        let compiles = histogram(&all, "kiln_compile_seconds", None);
        let inductor = histogram(&all, "kiln_compile_seconds", Some(("compiler", "inductor")));
        let loads = histogram(&all, "kiln_load_seconds", None);
        let requests = |outcome| count("kiln_requests_total", "outcome", outcome);
        let (hits, coalesced) = (requests("hit"), requests("coalesced"));
        let misses = requests("compiled") + requests("failed");
        let asked = hits + coalesced + misses;
        Self {
            compilation_stats: Stats {
                total_compilations: compiles.count,
                inductor_compilations: inductor.count,
                cache_hits: hits,
                coalesced,
                cache_misses: misses,
                artifacts_saved: count("kiln_saved_total", "", ""),
                artifacts_loaded: count("kiln_loaded_total", "", ""),
            },
            performance: Performance {
                cache_hit_rate: match asked {
                    0 => 0.0,
                    asked => (hits + coalesced) as f64 / asked as f64,
                },
                avg_compilation_time: compiles.mean(),
                p50_compilation_time: compiles.quantile(0.5),
                p99_compilation_time: compiles.quantile(0.99),
                avg_cache_load_time: loads.mean(),
                p50_cache_load_time: loads.quantile(0.5),
                p99_cache_load_time: loads.quantile(0.99),
                total_compilation_time: compiles.sum,
                compilation_time_saved: histogram(&all, "kiln_saved_compile_seconds", None).sum,
            },
            resources: Resources {
                cache_disk_usage: count("kiln_tier_bytes", "tier", "disk"),
                memory_usage_mb: number(&all, "kiln_tier_bytes", "tier", "memory")
                    / f64::from(1 << 20),
                active_compiler_processes: count("kiln_compiler_processes", "", ""),
            },
        }
    }
}

/// Sum over the series of `name` whose `label` is `value`; no label: over all.
fn number(all: &[&Family], name: &str, label: &str, value: &str) -> f64 {
    let series = all.iter().filter(|family| family.name == name).flat_map(|f| &f.series);
    let wanted = series.filter(|(labels, _)| {
        label.is_empty() || labels.get(label).is_some_and(|found| found == value)
    });
    let numbers = wanted.filter_map(|(_, found)| match found {
        Value::Number(number) => Some(*number),
        Value::Histogram(_) => None,
    });
    numbers.sum()
}

/// All series of `name` together, or those whose label begins as given.
fn histogram(all: &[&Family], name: &str, only: Option<(&str, &str)>) -> Histogram {
    let mut sum = Histogram::default();
    for (labels, value) in all.iter().filter(|f| f.name == name).flat_map(|f| &f.series) {
        let wanted = only.is_none_or(|(label, prefix)| {
            labels.get(label).is_some_and(|found| found.starts_with(prefix))
        });
        if let (true, Value::Histogram(histogram)) = (wanted, value) {
            sum.add(histogram);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::{super::exposition, *};

    const PAGE: &str = "\
# TYPE kiln_requests_total counter
kiln_requests_total{outcome=\"hit\",tier=\"memory\"} 5
kiln_requests_total{outcome=\"hit\",tier=\"peer\"} 1
kiln_requests_total{outcome=\"coalesced\",tier=\"peer\"} 1
kiln_requests_total{outcome=\"compiled\",tier=\"none\"} 2
kiln_requests_total{outcome=\"failed\",tier=\"none\"} 1
# TYPE kiln_compile_seconds histogram
kiln_compile_seconds_bucket{compiler=\"cuda\",le=\"1\"} 1
kiln_compile_seconds_bucket{compiler=\"cuda\",le=\"+Inf\"} 1
kiln_compile_seconds_sum{compiler=\"cuda\"} 0.5
kiln_compile_seconds_count{compiler=\"cuda\"} 1
kiln_compile_seconds_bucket{compiler=\"inductor-standalone\",le=\"1\"} 0
kiln_compile_seconds_bucket{compiler=\"inductor-standalone\",le=\"+Inf\"} 1
kiln_compile_seconds_sum{compiler=\"inductor-standalone\"} 3.5
kiln_compile_seconds_count{compiler=\"inductor-standalone\"} 1
# TYPE kiln_tier_bytes gauge
kiln_tier_bytes{tier=\"disk\"} 4096
kiln_tier_bytes{tier=\"memory\"} 1048576
";

    #[test]
    fn the_figures_are_those_of_the_page() {
        let page = exposition::read(PAGE);
        let figures = Compilation::of(&page);
        let stats = &figures.compilation_stats;
        assert_eq!((stats.total_compilations, stats.inductor_compilations), (2, 1));
        assert_eq!((stats.cache_hits, stats.coalesced, stats.cache_misses), (6, 1, 3));
        assert!((figures.performance.cache_hit_rate - 0.7).abs() < 1e-9);
        assert_eq!(figures.performance.avg_compilation_time, 2.0);
        assert_eq!(figures.performance.total_compilation_time, 4.0);
        assert_eq!(figures.resources.cache_disk_usage, 4096);
        assert_eq!(figures.resources.memory_usage_mb, 1.0);
        assert_eq!(Compilation::of(&[]), Compilation::default());
    }

    #[test]
    fn two_nodes_are_one_sum_and_their_times_those_of_all_runs() {
        let page = exposition::read(PAGE);
        let both = Compilation::of(page.iter().chain(&page));
        assert_eq!(both.compilation_stats.cache_hits, 12);
        assert_eq!(both.performance.total_compilation_time, 8.0);
        assert_eq!(both.performance.avg_compilation_time, 2.0);
    }
}
