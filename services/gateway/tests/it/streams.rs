//! Live streams: merged, followed over reconnects, passed on, ended.

use std::{sync::Arc, time::Duration};

use contracts::api::Role;
use futures::StreamExt;
use gateway::Config;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use testkit::{ManualClock, World, until};
use tokio::sync::broadcast;

use crate::{
    bodies::{DELIVERY, DRONE, fleet_drone, flight, mission, package, recalled, record, spoilt},
    stage::{Stage, event, problem_of},
};

const OTHER: &str = "0198c5a0-0000-7000-8000-000000000002";

/// The messages of a stream.
struct Watcher {
    chunks: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
}

impl Watcher {
    fn new(response: Response) -> Self {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { chunks: response.bytes_stream().boxed(), text: String::new() }
    }

    /// The next message; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let data = event.strip_prefix("data: ").map(|data| serde_json::from_str(data).unwrap());
                self.text = rest.to_owned();
                if data.is_some() {
                    return data;
                }
                continue;
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.chunks.next());
            let Some(Ok(chunk)) = chunk.await.expect("the stream is silent") else { return None };
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

/// A page of the list of deliveries.
fn page(items: &[Value], next_cursor: Option<&str>) -> Value {
    json!({"items": items, "next_cursor": next_cursor})
}

async fn connected(sender: &broadcast::Sender<String>) {
    until("a reader", async || (sender.receiver_count() > 0).then_some(())).await;
}

#[tokio::test]
async fn a_deliverys_stream_begins_with_its_state_merges_its_flight_and_ends_with_it() {
    let stage = Stage::new().await;
    let records = stage
        .peer("delivery")
        .stream(&format!("GET /deliveries/{DELIVERY}/events"), &[record(DELIVERY, "HeadedToPickup", 3)]);
    let flights = stage.peer("tracking").stream(&format!("GET /flights/{DELIVERY}/events"), &[flight(48.851)]);
    stage.peer("tracking").on(&format!("GET /flights/{DELIVERY}"), 200, flight(48.85));
    stage.peer("package").on(&format!("GET /packages/{DELIVERY}"), 200, package());
    stage.peer("fleet").on(&format!("GET /drones/{DRONE}"), 200, fleet_drone());
    let response = stage.alice(Method::GET, &format!("/api/deliveries/{DELIVERY}/events")).send().await.unwrap();
    let mut watcher = Watcher::new(response);

    let first = watcher.next().await.unwrap();
    assert_eq!((&first["type"], &first["delivery"]["stage"]), (&json!("delivery"), &json!("HeadedToPickup")));
    assert_eq!(first["delivery"]["position"]["latitude"], 48.85);
    assert_eq!(first["delivery"]["package"]["state"], "Registered");
    let second = watcher.next().await.unwrap();
    assert_eq!(
        (&second["type"], &second["progress"]["last"]["position"]["latitude"]),
        (&json!("flight"), &json!(48.851))
    );

    connected(&flights).await;
    flights.send(event(&flight(48.852))).unwrap();
    assert_eq!(watcher.next().await.unwrap()["progress"]["last"]["position"]["latitude"], 48.852);

    records.send(event(&record(DELIVERY, "HeadedToPickup", 2))).unwrap();
    records.send(event(&record(DELIVERY, "HeadedToDropoff", 4))).unwrap();
    let changed = watcher.next().await.unwrap();
    assert_eq!(changed["delivery"]["stage"], "HeadedToDropoff", "what is older is not told");
    assert_eq!(changed["delivery"]["position"]["latitude"], 48.852, "the last position is remembered");

    records.send(event(&record(DELIVERY, "Completed", 5))).unwrap();
    assert_eq!(watcher.next().await.unwrap()["delivery"]["stage"], "Completed");
    assert_eq!(watcher.next().await, None);
    until("the readers to have gone", async || (flights.receiver_count() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_stream_outlives_a_restart_of_its_sources() {
    let stage = Stage::new().await;
    let what = format!("GET /deliveries/{DELIVERY}/events");
    let records = stage.peer("delivery").stream(&what, &[record(DELIVERY, "Requested", 1)]);
    let response = stage.alice(Method::GET, &format!("/api/deliveries/{DELIVERY}/events")).send().await.unwrap();
    let mut watcher = Watcher::new(response);
    assert_eq!(watcher.next().await.unwrap()["delivery"]["stage"], "Requested");
    connected(&records).await;
    stage.peer("delivery").stream(&what, &[record(DELIVERY, "Cancelled", 2)]);
    records.send("close".to_owned()).unwrap();
    assert_eq!(watcher.next().await.unwrap()["delivery"]["stage"], "Cancelled");
    assert_eq!(watcher.next().await, None);
}

#[tokio::test]
async fn a_stream_goes_on_without_its_sources_and_says_what_it_lacks() {
    let stage = Stage::new().await;
    let (delivery, tracking) = (stage.peer("delivery"), stage.peer("tracking"));
    let (records, flights) = (format!("GET /deliveries/{DELIVERY}/events"), format!("GET /flights/{DELIVERY}/events"));
    let in_flight = record(DELIVERY, "HeadedToPickup", 3);
    let said = delivery.stream(&records, std::slice::from_ref(&in_flight));
    tracking.on(&format!("GET /flights/{DELIVERY}"), 503, Value::Null);
    tracking.on(&flights, 503, Value::Null);
    let response = stage.alice(Method::GET, &format!("/api/deliveries/{DELIVERY}/events")).send().await.unwrap();
    let mut watcher = Watcher::new(response);
    let degraded = |update: &Value| (update["type"].clone(), update["delivery"]["degraded"].clone());
    let lacks = |names: &[&str]| (json!("delivery"), json!(names));
    assert_eq!(degraded(&watcher.next().await.unwrap()), lacks(&["tracking"]));

    let moved = tracking.stream(&flights, &[flight(48.851)]);
    assert_eq!(degraded(&watcher.next().await.unwrap()), lacks(&[]));
    assert_eq!(watcher.next().await.unwrap()["progress"]["last"]["position"]["latitude"], 48.851);
    tracking.on(&flights, 503, Value::Null);
    moved.send("close".to_owned()).unwrap();
    let lost = watcher.next().await.unwrap();
    assert_eq!((degraded(&lost), &lost["delivery"]["position"]), (lacks(&["tracking"]), &Value::Null));

    delivery.on(&records, 503, Value::Null);
    said.send("close".to_owned()).unwrap();
    assert_eq!(degraded(&watcher.next().await.unwrap()), lacks(&["delivery", "tracking"]));
    tracking.on(&flights, 404, Value::Null);
    assert_eq!(degraded(&watcher.next().await.unwrap()), lacks(&["delivery"]), "it answers, though of no flight");
    delivery.stream(&records, &[in_flight]);
    assert_eq!(degraded(&watcher.next().await.unwrap()), lacks(&[]));
}

#[tokio::test]
async fn a_delivery_from_the_history_is_told_once() {
    let stage = Stage::new().await;
    stage.peer("lookup").on("POST /queries/delivery", 200, record(DELIVERY, "Completed", 9));
    let response = stage.alice(Method::GET, &format!("/api/deliveries/{DELIVERY}/events")).send().await.unwrap();
    let mut watcher = Watcher::new(response);
    assert_eq!(watcher.next().await.unwrap()["delivery"]["stage"], "Completed");
    assert_eq!(watcher.next().await, None);
}

#[tokio::test]
async fn the_stream_of_all_begins_with_what_there_is_and_never_goes_back() {
    let stage = Stage::new().await;
    let newest = [record(OTHER, "Completed", 8), record(DELIVERY, "Scheduled", 2)];
    stage.peer("delivery").on("GET /deliveries", 200, page(&newest, None));
    let records = stage.peer("delivery").stream("GET /deliveries/events", &[record(DELIVERY, "Requested", 1)]);
    let mut watcher = Watcher::new(stage.alice(Method::GET, "/api/events").send().await.unwrap());
    for stage in ["Scheduled", "Completed"] {
        assert_eq!(watcher.next().await.unwrap()["delivery"]["stage"], stage);
    }
    connected(&records).await;
    let mut foreign = record(DELIVERY, "Failed", 9);
    foreign["customer_id"] = json!("bob");
    records.send(event(&foreign)).unwrap();
    records.send(event(&record(DELIVERY, "HeadedToPickup", 3))).unwrap();
    assert_eq!(watcher.next().await.unwrap()["delivery"]["stage"], "HeadedToPickup");
}

#[tokio::test]
async fn what_ended_while_the_stream_of_all_was_cut_off_is_told_however_old_it_is() {
    let stage = Stage::new().await;
    let delivery = stage.peer("delivery");
    let first = page(&[record(OTHER, "Requested", 1)], Some("older"));
    delivery.on("GET /deliveries?limit=100", 200, first);
    let older = "GET /deliveries?cursor=older&limit=100";
    delivery.on(older, 200, page(&[record(DELIVERY, "HeadedToDropoff", 4)], None));
    let records = delivery.stream("GET /deliveries/events", &[]);
    let mut watcher = Watcher::new(stage.alice(Method::GET, "/api/events").send().await.unwrap());
    for id in [DELIVERY, OTHER] {
        assert_eq!(watcher.next().await.unwrap()["delivery"]["id"], id);
    }
    connected(&records).await;
    delivery.on(older, 200, page(&[record(DELIVERY, "Completed", 5)], None));
    records.send("close".to_owned()).unwrap();
    let ended = watcher.next().await.unwrap();
    assert_eq!((&ended["delivery"]["id"], &ended["delivery"]["stage"]), (&json!(DELIVERY), &json!("Completed")));
}

#[tokio::test]
async fn the_stream_of_all_asks_again_where_what_there_is_was_not_answered() {
    let stage = Stage::new().await;
    let delivery = stage.peer("delivery");
    delivery.on("GET /deliveries", 503, Value::Null);
    delivery.stream("GET /deliveries/events", &[]);
    let mut watcher = Watcher::new(stage.alice(Method::GET, "/api/events").send().await.unwrap());
    until("the list to be asked for", async || {
        delivery.calls().iter().any(|call| call.what == "GET /deliveries?limit=100").then_some(())
    })
    .await;
    delivery.on("GET /deliveries", 200, page(&[record(DELIVERY, "Scheduled", 2)], None));
    assert_eq!(watcher.next().await.unwrap()["delivery"]["stage"], "Scheduled", "though no stream was broken");
}

#[tokio::test]
async fn the_stream_of_all_ends_rather_than_leave_something_out() {
    for status in [503, 403] {
        let stage = Stage::new().await;
        stage.peer("delivery").on("GET /deliveries", status, Value::Null);
        stage.peer("delivery").stream("GET /deliveries/events", &[record(DELIVERY, "Requested", 1)]);
        let mut watcher = Watcher::new(stage.alice(Method::GET, "/api/events").send().await.unwrap());
        assert_eq!(watcher.next().await, None, "{status}: whoever watches anew begins with all there is");
    }
}

#[tokio::test]
async fn the_fleets_and_the_missions_streams_are_passed_on() {
    let stage = Stage::new().await;
    stage.peer("fleet").stream("GET /drones/events", &[json!([fleet_drone()])]);
    let mut watcher = Watcher::new(stage.north(Method::GET, "/api/fleet/events").send().await.unwrap());
    assert_eq!(watcher.next().await.unwrap()[0]["drone_id"], DRONE);
    assert_eq!(stage.peer("fleet").calls()[0].what, "GET /drones/events?base_id=north");

    let missions = stage.peer("tracking").stream("GET /missions", &[json!({"type": "snapshot", "missions": []})]);
    let request = stage.north(Method::GET, "/api/missions").header("accept", "text/event-stream");
    let mut watcher = Watcher::new(request.send().await.unwrap());
    assert_eq!(watcher.next().await.unwrap()["type"], "snapshot");
    connected(&missions).await;
    missions.send(event(&recalled("north"))).unwrap();
    assert_eq!(watcher.next().await.unwrap(), recalled("north"));
    missions.send("close".to_owned()).unwrap();
    assert_eq!(watcher.next().await, None);
}

#[tokio::test]
async fn what_is_another_bases_or_customers_is_left_out_of_every_stream() {
    let stage = Stage::new().await;
    let foreign = spoilt(&fleet_drone(), "base_id", json!("south"));
    stage.peer("fleet").stream("GET /drones/events", &[json!([foreign, fleet_drone()])]);
    let mut watcher = Watcher::new(stage.north(Method::GET, "/api/fleet/events").send().await.unwrap());
    assert_eq!(watcher.next().await.unwrap(), json!([fleet_drone()]));
    let mut watcher = Watcher::new(stage.operator(Method::GET, "/api/fleet/events").send().await.unwrap());
    assert_eq!(watcher.next().await.unwrap(), json!([foreign, fleet_drone()]));

    let assigned = |base: &str| json!({"type": "assigned", "mission": mission(base)});
    let snapshot = json!({"type": "snapshot", "missions": [mission("south"), mission("north")]});
    let told = [snapshot, assigned("south"), recalled("south"), assigned("north")];
    stage.peer("tracking").stream("GET /missions", &told);
    let request = stage.north(Method::GET, "/api/missions").header("accept", "text/event-stream");
    let mut watcher = Watcher::new(request.send().await.unwrap());
    assert_eq!(watcher.next().await.unwrap()["missions"], json!([mission("north")]));
    assert_eq!(watcher.next().await.unwrap(), assigned("north"));

    stage
        .peer("delivery")
        .stream(&format!("GET /deliveries/{DELIVERY}/events"), &[record(DELIVERY, "HeadedToPickup", 3)]);
    let bobs = spoilt(&flight(1.0), "customer_id", json!("bob"));
    stage.peer("tracking").stream(&format!("GET /flights/{DELIVERY}/events"), &[bobs, flight(48.851)]);
    let response = stage.alice(Method::GET, &format!("/api/deliveries/{DELIVERY}/events")).send().await.unwrap();
    let mut watcher = Watcher::new(response);
    assert_eq!(watcher.next().await.unwrap()["type"], "delivery");
    assert_eq!(watcher.next().await.unwrap()["progress"]["last"]["position"]["latitude"], 48.851);
}

#[tokio::test]
async fn a_shutdown_ends_every_stream() {
    let stage = Stage::new().await;
    stage.peer("fleet").stream("GET /drones/events", &[json!([])]);
    stage.peer("delivery").on("GET /deliveries", 200, page(&[], None));
    stage.peer("delivery").stream("GET /deliveries/events", &[record(DELIVERY, "Requested", 1)]);
    let mut fleet = Watcher::new(stage.operator(Method::GET, "/api/fleet/events").send().await.unwrap());
    let mut mine = Watcher::new(stage.alice(Method::GET, "/api/events").send().await.unwrap());
    assert!(fleet.next().await.is_some() && mine.next().await.is_some());
    stage.world.shutdown.cancel();
    assert_eq!((fleet.next().await, mine.next().await), (None, None));
}

#[tokio::test]
async fn a_stream_ends_with_the_token_that_opened_it() {
    let clock = Arc::new(ManualClock::starting_now());
    let world = World::with_clock(clock.clone()).await;
    let stage = Stage::start(world, &[], Config::default()).await;
    stage.peer("delivery").on("GET /deliveries", 200, page(&[], None));
    stage.peer("delivery").stream("GET /deliveries/events", &[record(DELIVERY, "Requested", 1)]);
    stage.peer("delivery").stream(&format!("GET /deliveries/{DELIVERY}/events"), &[record(DELIVERY, "Requested", 1)]);
    stage.peer("fleet").stream("GET /drones/events", &[json!([])]);
    stage.peer("tracking").stream("GET /missions", &[json!({"type": "snapshot", "missions": []})]);
    let missions = stage.north(Method::GET, "/api/missions").header("accept", "text/event-stream");
    let mut watchers = Vec::new();
    for request in [
        stage.alice(Method::GET, "/api/events"),
        stage.alice(Method::GET, &format!("/api/deliveries/{DELIVERY}/events")),
        stage.operator(Method::GET, "/api/fleet/events"),
        missions,
    ] {
        let mut watcher = Watcher::new(request.send().await.unwrap());
        assert!(watcher.next().await.is_some());
        watchers.push(watcher);
    }
    clock.advance(Duration::from_secs(3_600 + 60));
    for mut watcher in watchers {
        assert_eq!(watcher.next().await, None);
    }
}

#[tokio::test]
async fn a_caller_may_have_16_streams_and_keeps_nobody_else_from_theirs() {
    let stage = Stage::new().await;
    stage.peer("delivery").on("GET /deliveries", 200, page(&[], None));
    stage.peer("delivery").stream("GET /deliveries/events", &[record(DELIVERY, "Requested", 1)]);
    stage.peer("fleet").stream("GET /drones/events", &[json!([])]);
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(Watcher::new(stage.alice(Method::GET, "/api/events").send().await.unwrap()));
    }
    let (status, problem) = problem_of(stage.alice(Method::GET, "/api/events")).await;
    assert_eq!((status, problem.title.as_str()), (429, "Too Many Requests"));
    Watcher::new(stage.as_role("bob", Role::Customer, Method::GET, "/api/events").send().await.unwrap());
    Watcher::new(stage.north(Method::GET, "/api/fleet/events").send().await.unwrap());
    open.pop();
    until("a place", async || {
        let response = stage.alice(Method::GET, "/api/events").send().await.unwrap();
        (response.status() == 200).then_some(())
    })
    .await;
}
