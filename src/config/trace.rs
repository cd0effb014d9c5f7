//! Traces of requests, for an OpenTelemetry collector.

use serde::{Deserialize, Serialize};

/// Traces of requests, for an OpenTelemetry collector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceConfig {
    /// Where a collector takes OTLP over gRPC: `http://127.0.0.1:4317`. Default: nothing is
    /// sent; requests have an id in logs and errors all the same.
    pub endpoint: Option<String>,
    /// The share of requests that is traced, where the caller does not decide: 0 to 1.
    /// Default: 0.01.
    pub ratio: f64,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self { endpoint: None, ratio: 0.01 }
    }
}

impl TraceConfig {
    /// What is wrong with it.
    pub(super) fn check(&self, wrong: &mut Vec<String>) {
        if !(0.0..=1.0).contains(&self.ratio) {
            wrong.push(format!("trace.ratio is {}: write a share from 0 to 1", self.ratio));
        }
        if let Some(endpoint) = &self.endpoint {
            let url = url::Url::parse(endpoint).ok();
            if url.is_none_or(|url| url.scheme() != "http" || url.host_str().is_none()) {
                wrong.push(format!(
                    "trace.endpoint is {endpoint:?}: write http://HOST:PORT, where a collector takes \
                     OTLP over gRPC"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_and_a_ratio_a_share() {
        let problems = |endpoint: Option<&str>, ratio| {
            let mut wrong = Vec::new();
            TraceConfig { endpoint: endpoint.map(str::to_owned), ratio }.check(&mut wrong);
            wrong.len()
        };
        assert_eq!(problems(None, 0.01), 0);
        assert_eq!(problems(Some("http://127.0.0.1:4317"), 1.0), 0);
        assert_eq!(problems(Some("collector:4317"), 1.5), 2);
        assert_eq!(problems(Some("https://collector:4317"), f64::NAN), 2);
    }
}
