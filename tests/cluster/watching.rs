//! Nodes whose monitor looks often, and what it tells.
//!
//! Invariant: whoever waits here waits for a cycle or for a call, never for a time.

use std::time::Duration;

use axum::{Router, routing::post};
use kiln::config::Config;
use kiln_proto::pb;
use serde_json::Value;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};

use crate::harness::{Configure, SOON, TestCluster, TestNode, eventually};

/// A cycle short enough for a test, and long enough for some requests.
pub(crate) const EVERY: Duration = Duration::from_millis(400);

pub(crate) fn watchful(_: usize, config: &mut Config) {
    config.monitor.every = EVERY;
    config.monitor.enough = 5;
    config.resp.wait = Duration::ZERO;
}

impl TestNode {
    pub(crate) async fn report(&self) -> pb::MonitorResponse {
        let asked = self.client().await.monitor(pb::MonitorRequest {}).await;
        asked.unwrap().into_inner()
    }
}

/// Does `work` again and again until the report of `node` has what is looked for.
pub(crate) async fn working_until<T>(
    what: &str,
    node: &TestNode,
    mut work: impl AsyncFnMut(u64),
    looked_for: impl Fn(&pb::MonitorResponse) -> Option<T>,
) -> T {
    let mut n = 0;
    eventually(what, async || {
        for _ in 0..20 {
            n += 1;
            work(n).await;
        }
        looked_for(&node.report().await)
    })
    .await
}

/// Whether enough was seen of `figure` to know what is usual.
pub(crate) fn knows(report: &pb::MonitorResponse, figure: &str) -> Option<()> {
    let known = report.metrics.iter().any(|of| of.name == figure && of.usual.is_some());
    known.then_some(())
}

pub(crate) fn anomaly(report: &pb::MonitorResponse, kind: &str) -> Option<u64> {
    report.anomalies.iter().any(|of| of.kind == kind).then_some(report.cycle)
}

/// The calls that a webhook got, from a server of this test.
pub(crate) struct Webhook(mpsc::UnboundedReceiver<Value>);

impl Webhook {
    async fn start() -> (String, Self) {
        let (calls, received) = mpsc::unbounded_channel();
        let take = move |body: String| {
            let calls = calls.clone();
            // An error: the test is over.
            async move { drop(calls.send(serde_json::from_str(&body).unwrap())) }
        };
        let routes = Router::new().route("/alerts", post(take));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/alerts", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (url, Self(received))
    }

    /// Status and fingerprint of the alert of that name, each time that it is told, up to its
    /// end. A loaded machine may have more to tell: a slow disk.
    pub(crate) async fn until_resolved(&mut self, name: &str) -> Vec<(String, String)> {
        let mut told: Vec<(String, String)> = Vec::new();
        while told.last().is_none_or(|(status, _)| status != "resolved") {
            let call = timeout(SOON, self.0.recv()).await.expect("a call in time").unwrap();
            for alert in call["alerts"].as_array().unwrap() {
                if alert["labels"]["alertname"] == name {
                    let text = |of: &str| alert[of].as_str().unwrap().to_owned();
                    told.push((text("status"), text("fingerprint")));
                }
            }
        }
        told
    }
}

/// One node that tells a webhook of its alerts.
pub(crate) async fn telling(configure: Configure) -> (TestCluster, Webhook) {
    let (url, webhook) = Webhook::start().await;
    let mut cluster = TestCluster::start_with(1, configure).await;
    let node = &mut cluster.nodes[0];
    node.terminate().await;
    node.config.alerts.webhook = Some(url);
    node.restart().await;
    (cluster, webhook)
}
