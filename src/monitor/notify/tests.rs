//! Receivers against a real HTTP server.

#![allow(clippy::unwrap_used)]

use axum::{Router, extract::State, http::StatusCode, routing::post};
use tokio::{net::TcpListener, sync::mpsc};

use super::*;

const SOON: Duration = Duration::from_secs(30);

/// What came, and how the next calls are answered: all well where nothing is said.
#[derive(Clone)]
struct Server {
    calls: mpsc::UnboundedSender<Value>,
    refusals: Arc<Mutex<usize>>,
}

async fn take(State(server): State<Server>, body: String) -> StatusCode {
    let mut refusals = server.refusals.lock();
    if *refusals > 0 {
        *refusals -= 1;
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    server.calls.send(serde_json::from_str(&body).unwrap()).unwrap();
    StatusCode::OK
}

async fn server(refusals: usize) -> (String, mpsc::UnboundedReceiver<Value>) {
    let (calls, received) = mpsc::unbounded_channel();
    let state = Server { calls, refusals: Arc::new(Mutex::new(refusals)) };
    let routes = Router::new()
        .route("/hook", post(take))
        .route("/base/api/v2/alerts", post(take))
        .with_state(state);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (format!("http://{address}"), received)
}

fn alert(name: &str, ends: Option<u64>) -> Alert {
    Alert {
        fingerprint: name.into(),
        name: name.into(),
        severity: "warning".into(),
        of: "cuda".into(),
        node: 3,
        summary: "slow".into(),
        starts_unix_ms: 1_000,
        ends_unix_ms: ends,
    }
}

async fn next(received: &mut mpsc::UnboundedReceiver<Value>) -> Value {
    timeout(SOON, received.recv()).await.expect("a call in time").unwrap()
}

fn start(form: Form, url: &str) -> (Receiver, CancellationToken) {
    let (receiver, stop) = (Receiver::new(form, url).unwrap(), CancellationToken::new());
    tokio::spawn(receiver.clone().run(stop.clone()));
    (receiver, stop)
}

#[tokio::test]
async fn a_webhook_gets_an_alert_and_its_end_once_each() {
    let (url, mut received) = server(0).await;
    let (receiver, stop) = start(Form::Webhook, &format!("{url}/hook"));
    receiver.post(&[alert("A", None)]);
    let told = next(&mut received).await;
    assert_eq!(told["status"], "firing");
    assert_eq!(told["alerts"][0]["labels"]["alertname"], "A");
    assert_eq!(told["alerts"][0]["labels"]["of"], "cuda");
    assert_eq!(told["alerts"][0]["startsAt"], "1970-01-01T00:00:01.000Z");
    assert!(told["alerts"][0].get("endsAt").is_none());
    receiver.post(&[alert("A", Some(2_000))]);
    let told = next(&mut received).await;
    assert_eq!(told["status"], "resolved");
    assert_eq!(told["alerts"][0]["endsAt"], "1970-01-01T00:00:02.000Z");
    // A call of its own for what comes now shows that nothing was told twice before.
    receiver.post(&[alert("B", None)]);
    let told = next(&mut received).await;
    assert_eq!(told["alerts"].as_array().unwrap().len(), 1);
    assert_eq!(told["alerts"][0]["fingerprint"], "B");
    stop.cancel();
}

#[tokio::test]
async fn a_receiver_that_is_away_hears_the_latest_when_it_is_back() {
    let (url, mut received) = server(2).await;
    let (receiver, stop) = start(Form::Webhook, &format!("{url}/hook"));
    receiver.post(&[alert("A", None), alert("B", None)]);
    receiver.post(&[alert("A", Some(2_000))]);
    let told = next(&mut received).await;
    let status = |of: &Value| (of["fingerprint"].clone(), of["status"].clone());
    let told: Vec<_> = told["alerts"].as_array().unwrap().iter().map(status).collect();
    assert_eq!(told, [("A".into(), "resolved".into()), ("B".into(), "firing".into())]);
    stop.cancel();
}

#[tokio::test]
async fn a_dead_receiver_takes_bounded_memory_and_blocks_nobody() {
    // A port that nobody listens on.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (receiver, stop) = start(Form::Webhook, &url);
    for n in 0..10_000u64 {
        receiver.post(&[alert("A", (n % 2 == 1).then_some(n))]);
    }
    tokio::task::yield_now().await;
    assert!(receiver.0.outbox.lock().waiting.len() <= 1);
    stop.cancel();
}

#[tokio::test]
async fn alertmanager_is_told_by_its_own_api_and_reminded_of_what_lasts() {
    let (url, mut received) = server(0).await;
    let (receiver, stop) = start(Form::Alertmanager, &format!("{url}/base/"));
    receiver.post(&[alert("A", None)]);
    let told = next(&mut received).await;
    assert_eq!(told[0]["labels"]["alertname"], "A");
    let lasting = async |n: usize| {
        while receiver.0.outbox.lock().lasting.len() != n {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, lasting(1)).await.unwrap();
    receiver.remind();
    receiver.0.posted.notify_one();
    assert_eq!(next(&mut received).await[0]["labels"]["alertname"], "A");
    receiver.post(&[alert("A", Some(2_000))]);
    assert_eq!(next(&mut received).await[0]["endsAt"], "1970-01-01T00:00:02.000Z");
    timeout(SOON, lasting(0)).await.unwrap();
    receiver.remind();
    assert!(receiver.0.outbox.lock().waiting.is_empty(), "what ended is not repeated");
    stop.cancel();
}
