//! Live streams: the current state first, then every change, to the end.

use std::time::Duration;

use contracts::{Stage, api::Role, events::DeliveryRecord};
use reqwest::{Method, Response, StatusCode};

use crate::running::{Running, wish};

/// How long a stream may be silent before a test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Reads server-sent events.
struct Reader {
    response: Response,
    text: String,
}

impl Reader {
    async fn open(running: &Running, customer: &str, path: &str) -> Self {
        let response = running.get(customer, path).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new() }
    }

    /// The next record; none at the stream's end.
    async fn next(&mut self) -> Option<DeliveryRecord> {
        loop {
            if let Some((message, rest)) = self.text.split_once("\n\n") {
                let (message, rest) = (message.to_owned(), rest.to_owned());
                self.text = rest;
                match message.strip_prefix("data:") {
                    Some(data) => return Some(serde_json::from_str(data).unwrap()),
                    None => continue,
                }
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.unwrap().unwrap()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_of_a_delivery_begins_with_its_state_and_ends_with_it() {
    let running = Running::start(1).await;
    let id = running.accepted().await;
    let scheduled = running.reaches(id, Stage::Scheduled).await;
    let mut reader = Reader::open(&running, "alice", &format!("/deliveries/{id}/events")).await;
    let first = reader.next().await.unwrap();
    assert_eq!(first.stage, Stage::Scheduled);
    assert!(first.version >= scheduled.version);
    let mut seen = vec![first];
    for stage in [Stage::HeadedToPickup, Stage::HeadedToDropoff, Stage::Completed] {
        running.fly(id, stage).await;
        loop {
            seen.push(reader.next().await.unwrap());
            if seen.last().unwrap().stage == stage {
                break;
            }
        }
    }
    assert!(seen.windows(2).all(|pair| pair[0].version < pair[1].version), "never back, never twice");
    assert_eq!(reader.next().await, None, "it ends after the end");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_of_what_is_over_is_its_last_state() {
    let running = Running::start(1).await;
    let id = running.accepted().await;
    assert_eq!(running.cancel(id).await.status(), StatusCode::OK);
    let mut reader = Reader::open(&running, "alice", &format!("/deliveries/{id}/events")).await;
    assert_eq!(reader.next().await.unwrap().stage, Stage::Cancelled);
    assert_eq!(reader.next().await, None);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_of_all_mine_has_what_is_open_and_what_comes_and_nobody_elses() {
    let running = Running::start(9).await;
    let open = running.accepted().await;
    running.reaches(open, Stage::Scheduled).await;
    let over = running.accepted().await;
    running.cancel(over).await;
    let mut reader = Reader::open(&running, "alice", "/deliveries/events").await;
    assert_eq!(reader.next().await.unwrap().delivery_id, open, "what is over is no news");
    running.post("bob", None, &wish()).await;
    let fresh = running.accepted().await;
    running.reaches(fresh, Stage::Scheduled).await;
    running.fly(open, Stage::Completed).await;
    let mut stages = Vec::new();
    loop {
        let record = reader.next().await.unwrap();
        assert_eq!(record.customer_id.as_str(), "alice");
        assert_ne!(record.delivery_id, over);
        stages.push((record.delivery_id, record.stage));
        if record.delivery_id == open && record.stage == Stage::Completed {
            break;
        }
    }
    assert!(stages.contains(&(fresh, Stage::Requested)) && stages.contains(&(fresh, Stage::Scheduled)), "{stages:?}");
    let operator = running.request(("olga", Role::Operator), Method::GET, "/deliveries/events").send().await.unwrap();
    assert_eq!(operator.status(), StatusCode::FORBIDDEN);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_ends_open_streams_and_undecided_work() {
    let running = Running::start(1).await;
    let id = running.accepted().await;
    running.reaches(id, Stage::Scheduled).await;
    running.peers.lock().away.insert("register");
    for _ in 0..20 {
        running.accepted().await;
    }
    let mut one = Reader::open(&running, "alice", &format!("/deliveries/{id}/events")).await;
    let mut all = Reader::open(&running, "alice", "/deliveries/events").await;
    assert!(one.next().await.is_some() && all.next().await.is_some());
    let began = std::time::Instant::now();
    running.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    while all.next().await.is_some() {}
    assert_eq!(one.next().await, None);
}
