//! Telling other systems of alerts: a webhook, and Alertmanager.
//!
//! Each receiver has a task and an outbox of its own. The outbox keeps the latest word on
//! each alert, so that it is bounded by the number of alerts whatever the receiver does, and
//! a receiver that comes back hears what is true now.
//!
//! Invariant: telling never waits: whoever has an alert leaves it and goes on. What a
//! receiver accepted it is not told again, except that Alertmanager, which forgets, is
//! reminded of what lasts.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::alert::{Alert, rfc3339};

/// What one call may take.
const CALL: Duration = Duration::from_secs(5);
/// After a receiver did not answer; twice as long after each other time.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(60);
/// Alertmanager takes an alert that is not repeated for five minutes as resolved.
const REMIND: Duration = Duration::from_secs(60);
/// What a node that stops gives to what is still to be told.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How a receiver wants to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One object with a list of alerts, as Alertmanager's own webhooks have it.
    Webhook,
    /// Alertmanager's API, version 2.
    Alertmanager,
}

/// Somebody who is told.
#[derive(Clone)]
pub struct Receiver(Arc<Inner>);

struct Inner {
    form: Form,
    url: reqwest::Url,
    client: reqwest::Client,
    outbox: Mutex<Outbox>,
    posted: Notify,
}

#[derive(Default)]
struct Outbox {
    /// The latest word on each alert, not told yet.
    waiting: BTreeMap<String, Alert>,
    /// What lasts, as far as was told.
    lasting: BTreeMap<String, Alert>,
}

impl Form {
    /// The name in metrics and the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Alertmanager => "alertmanager",
        }
    }

    fn body(self, alerts: &[Alert]) -> Value {
        let all: Vec<Value> = alerts.iter().map(|alert| self.alert(alert)).collect();
        match self {
            Self::Alertmanager => Value::Array(all),
            Self::Webhook => {
                let firing = alerts.iter().any(|alert| !alert.is_resolved());
                json!({
                    "version": "4", "receiver": "kiln",
                    "status": if firing { "firing" } else { "resolved" }, "alerts": all,
                })
            }
        }
    }

    fn alert(self, alert: &Alert) -> Value {
        let mut labels = json!({
            "alertname": alert.name, "severity": alert.severity,
            "job": "kiln", "node": alert.node.to_string(),
        });
        if !alert.of.is_empty() {
            labels["of"] = json!(alert.of);
        }
        let mut value = json!({
            "labels": labels,
            "annotations": { "summary": alert.summary },
            "startsAt": rfc3339(alert.starts_unix_ms),
        });
        if let Some(ends) = alert.ends_unix_ms {
            value["endsAt"] = json!(rfc3339(ends));
        }
        if self == Self::Webhook {
            let status = if alert.is_resolved() { "resolved" } else { "firing" };
            value["status"] = json!(status);
            value["fingerprint"] = json!(alert.fingerprint);
        }
        value
    }
}

impl Receiver {
    /// Tells whoever answers at `url`.
    pub fn new(form: Form, url: &str) -> Result<Self, String> {
        // The first to install one wins, and it is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut url = reqwest::Url::parse(url).map_err(|e| e.to_string())?;
        if form == Form::Alertmanager {
            let path = format!("{}/api/v2/alerts", url.path().trim_end_matches('/'));
            url.set_path(&path);
        }
        let client = reqwest::Client::builder()
            .timeout(CALL)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| e.to_string())?;
        let (outbox, posted) = (Mutex::default(), Notify::new());
        Ok(Self(Arc::new(Inner { form, url, client, outbox, posted })))
    }

    /// Leaves alerts to be told.
    pub fn post(&self, alerts: &[Alert]) {
        let mut outbox = self.0.outbox.lock();
        for alert in alerts {
            outbox.waiting.insert(alert.fingerprint.clone(), alert.clone());
        }
        drop(outbox);
        self.0.posted.notify_one();
    }

    /// Tells what is left to be told, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut pause = AGAIN;
        let mut remind = Instant::now() + REMIND;
        loop {
            tokio::select! {
                () = self.0.posted.notified() => {}
                () = sleep_until(remind), if self.0.form == Form::Alertmanager => {
                    self.remind();
                    remind = Instant::now() + REMIND;
                }
                () = stop.cancelled() => {
                    let _ = timeout(LAST_WORDS, self.tell()).await;
                    return;
                }
            }
            while !self.tell().await {
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(AGAIN_AT_MOST),
                    () = stop.cancelled() => return,
                }
            }
            pause = AGAIN;
        }
    }

    /// What lasts is to be told again, unless there is later news of it.
    fn remind(&self) {
        let mut outbox = self.0.outbox.lock();
        let Outbox { waiting, lasting } = &mut *outbox;
        for (fingerprint, alert) in lasting.iter() {
            waiting.entry(fingerprint.clone()).or_insert_with(|| alert.clone());
        }
    }

    /// Whether nothing is left that could not be told.
    async fn tell(&self) -> bool {
        let waiting = std::mem::take(&mut self.0.outbox.lock().waiting);
        if waiting.is_empty() {
            return true;
        }
        let alerts: Vec<Alert> = waiting.values().cloned().collect();
        let told = self.call(&alerts).await;
        let (form, result) = (self.0.form.name(), if told.is_ok() { "ok" } else { "failed" });
        metrics::counter!("kiln_alerts_sent_total", "receiver" => form, "result" => result)
            .increment(alerts.len() as u64);
        let mut outbox = self.0.outbox.lock();
        match told {
            Ok(()) => {
                for alert in alerts {
                    match alert.is_resolved() {
                        true => outbox.lasting.remove(&alert.fingerprint),
                        false => outbox.lasting.insert(alert.fingerprint.clone(), alert),
                    };
                }
                true
            }
            Err(why) => {
                tracing::warn!(receiver = form, %why, "alerts are not told yet");
                for (fingerprint, alert) in waiting {
                    outbox.waiting.entry(fingerprint).or_insert(alert);
                }
                false
            }
        }
    }

    async fn call(&self, alerts: &[Alert]) -> Result<(), String> {
        let body = self.0.form.body(alerts).to_string();
        let request = self.0.client.post(self.0.url.clone());
        let request = request.header(reqwest::header::CONTENT_TYPE, "application/json").body(body);
        // Without the URL, which may have a password in it.
        let answered = request.send().await.map_err(|e| e.without_url().to_string())?;
        match answered.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("it answered {status}")),
        }
    }
}

#[cfg(test)]
mod tests;
