//! The whole service over HTTP: who may do what, the streams, and comparing notes with `delivery`.

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::State, routing::post};
use contracts::{
    Clock,
    api::Role,
    commands::{DeliveryStatus, MissionUpdate},
    events::DeliveryRecord,
};
use futures::{StreamExt, stream::BoxStream};
use reqwest::{Method, Response};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use testkit::{ManualClock, World, serving, until};
use tokio::{sync::Mutex, task::JoinSet};

use super::*;
use crate::fixtures::{BASE, CUSTOMER, close, drone, id, open, record, report, start};

/// What the stand-in of `delivery` answers.
type Records = Arc<Mutex<Vec<DeliveryRecord>>>;

struct Service {
    world: World,
    clock: Arc<ManualClock>,
    http: reqwest::Client,
    url: String,
    store: String,
    records: Records,
    tasks: JoinSet<anyhow::Result<()>>,
}

async fn statuses(State(records): State<Records>, Json(asked): Json<Ids>) -> Json<Vec<DeliveryStatus>> {
    let records = records.lock().await;
    let status = |delivery_id| DeliveryStatus {
        delivery_id,
        record: records.iter().find(|record| record.delivery_id == delivery_id).cloned(),
    };
    Json(asked.ids.into_iter().map(status).collect())
}

impl Service {
    async fn start() -> Self {
        let clock = Arc::new(ManualClock::at(start()));
        let world = World::with_clock(clock.clone()).await;
        let records = Records::default();
        let mut tasks = JoinSet::new();
        let (node, delivery) = world.node("delivery", &[]).await;
        let router = Router::new().route("/queries/statuses", post(statuses)).with_state(records.clone());
        let opened = node.door.opened();
        let delivery_runs = chassis::serve(node.door, router, chassis::Readiness::new(), node.shutdown);
        serving(&mut tasks, opened, delivery_runs).await;
        let (node, url) = world.node("tracking", &[("delivery", &delivery)]).await;
        let store = format!("sqlite:{}", world.path("tracking.db").display());
        let config = crate::Config { store: store.clone() };
        serving(&mut tasks, node.door.opened(), crate::run(config, node)).await;
        Self { world, clock, http: chassis::client::http_client().unwrap(), url, store, records, tasks }
    }

    async fn send(&self, token: &str, method: Method, path: &str, body: Option<Value>) -> Response {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await.unwrap()
    }

    async fn post(&self, token: &str, path: &str, body: Value) -> (u16, Value) {
        let response = self.send(token, Method::POST, path, Some(body)).await;
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn get(&self, token: &str, path: &str) -> (u16, Value) {
        let response = self.send(token, Method::GET, path, None).await;
        (response.status().as_u16(), response.json().await.unwrap())
    }

    fn service(&self) -> String {
        self.world.token("delivery", Role::Service)
    }

    fn base(&self) -> String {
        self.world.token(BASE, Role::BaseStation)
    }

    async fn open(&self, number: u128) {
        let body = json!({"commands": [open(number, 1, 1)]});
        let (status, body) = self.post(&self.service(), "/commands/open-flight", body).await;
        assert_eq!((status, body), (200, json!({"outcomes": [{"outcome": "Opened"}]})));
    }

    async fn report(&self, token: &str, report: &FlightReport) -> (u16, Value) {
        let (status, body) = self.post(token, "/commands/reports", json!({"commands": [report]})).await;
        (status, body["outcomes"][0].clone())
    }

    async fn stream<T: DeserializeOwned + Send + 'static>(&self, token: &str, path: &str) -> BoxStream<'static, T> {
        let request = self.http.get(format!("{}{path}", self.url)).bearer_auth(token);
        let response = request.header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!(response.status(), 200);
        messages(response)
    }

    async fn is_open(&self, number: u128) -> bool {
        let (status, body) = self.post(&self.service(), "/queries/flights", json!({"ids": [id(number)]})).await;
        assert_eq!(status, 200);
        body[0]["open"].as_bool().unwrap()
    }
}

/// The messages of a stream of server-sent events.
fn messages<T: DeserializeOwned + Send + 'static>(response: Response) -> BoxStream<'static, T> {
    let bytes = Box::pin(response.bytes_stream());
    Box::pin(futures::stream::unfold((bytes, String::new()), |(mut bytes, mut text)| async move {
        loop {
            if let Some((message, rest)) = text.split_once("\n\n") {
                let (message, rest) = (message.to_owned(), rest.to_owned());
                text = rest;
                if let Some(data) = message.strip_prefix("data: ") {
                    return Some((serde_json::from_str(data).unwrap(), (bytes, text)));
                }
                continue;
            }
            text.push_str(std::str::from_utf8(&bytes.next().await?.ok()?).unwrap());
        }
    }))
}

#[tokio::test]
async fn only_services_command_and_only_flyers_report() {
    let service = Service::start().await;
    let customer = service.world.token(CUSTOMER, Role::Customer);
    for (path, body) in [
        ("/commands/open-flight", json!({"commands": [open(1, 1, 1)]})),
        ("/commands/close-flight", json!({"commands": [close(1, 1, 1, Stage::Completed)]})),
        ("/queries/flights", json!({"ids": [id(1)]})),
    ] {
        for token in [&customer, &service.base(), &service.world.token("o", Role::Operator)] {
            assert_eq!(service.post(token, path, body.clone()).await.0, 403, "{path}");
        }
        assert_eq!(service.post("nonsense", path, body).await.0, 401, "{path}");
    }
    assert_eq!(service.report(&customer, &report(1, 1, None)).await.0, 403);
    assert_eq!(service.get(&customer, "/missions").await.0, 403);
    assert_eq!(service.get(&service.service(), "/missions").await.0, 403);
    let ready = service.send("", Method::GET, "/health/ready", None).await;
    assert_eq!(ready.status(), 200);
}

#[tokio::test]
async fn a_report_counts_only_from_the_drone_or_its_base() {
    let service = Service::start().await;
    service.open(1).await;
    let accepted = json!({"outcome": "Accepted"});
    // As for a flight that is not there.
    let stale = json!({"outcome": "Stale"});
    let south = service.world.token("south", Role::BaseStation);
    let other = service.world.token(&drone(2, 1).to_string(), Role::Drone);
    let own = service.world.token(&drone(1, 1).to_string(), Role::Drone);
    for (token, sequence, expected) in
        [(&south, 1, &stale), (&other, 1, &stale), (&own, 1, &accepted), (&service.base(), 2, &accepted)]
    {
        let (status, outcome) = service.report(token, &report(1, sequence, None)).await;
        assert_eq!((status, &outcome), (200, expected));
    }
    let mut stranger = report(1, 9, None);
    stranger.drone_id = drone(2, 1);
    let (_, outcome) = service.report(&other, &stranger).await;
    assert_eq!(outcome, stale);
}

#[tokio::test]
async fn a_flight_is_seen_by_its_customer_and_operators_and_is_absent_for_others() {
    let service = Service::start().await;
    service.open(1).await;
    let path = format!("/flights/{}", id(1));
    for (subject, role, expected) in [
        (CUSTOMER, Role::Customer, 200),
        ("bob", Role::Customer, 404),
        ("o", Role::Operator, 200),
        (BASE, Role::BaseStation, 404),
    ] {
        let token = service.world.token(subject, role);
        let (status, body) = service.get(&token, &path).await;
        assert_eq!(status, expected, "{subject}");
        assert_eq!(service.get(&token, &format!("/flights/{}", id(2))).await.0, 404, "{subject}");
        if status == 404 {
            assert_eq!(service.get(&token, &format!("{path}/events")).await.0, 404, "{subject}");
            assert_eq!(body, service.get(&token, &format!("/flights/{}", id(2))).await.1, "no difference is seen");
        } else {
            assert_eq!(body["stage"], "Scheduled");
        }
    }
}

#[tokio::test]
async fn too_many_or_impossible_reports_are_refused_as_a_whole() {
    let service = Service::start().await;
    service.open(1).await;
    let many = json!({"commands": vec![report(1, 1, None); MAX_TELEMETRY_LINES + 1]});
    assert_eq!(service.post(&service.base(), "/commands/reports", many).await.0, 422);
    let full = json!({"commands": vec![report(1, 1, None); MAX_TELEMETRY_LINES]});
    let (status, body) = service.post(&service.base(), "/commands/reports", full).await;
    let accepted = body["outcomes"].as_array().unwrap().iter().filter(|outcome| outcome["outcome"] == "Accepted");
    assert_eq!((status, accepted.count()), (200, 1));
    let mut bad = report(1, 2, None);
    bad.fix.battery = 1.5;
    let body = json!({"commands": [report(1, 2, None), bad]});
    let (status, problem) = service.post(&service.base(), "/commands/reports", body).await;
    assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!("commands[1].battery")));
    let many = json!({"commands": vec![open(1, 1, 1); MAX_COMMANDS + 1]});
    assert_eq!(service.post(&service.service(), "/commands/open-flight", many).await.0, 422);
}

#[tokio::test]
async fn a_base_sees_its_missions_come_and_go() {
    let service = Service::start().await;
    service.open(1).await;
    let (status, body) = service.get(&service.base(), "/missions").await;
    assert_eq!((status, &body["items"][0]["delivery_id"]), (200, &json!(id(1))));
    assert_eq!(body["items"][0]["base_id"], BASE);
    let mut updates = service.stream::<MissionUpdate>(&service.base(), "/missions").await;
    let MissionUpdate::Snapshot { missions } = updates.next().await.unwrap() else { panic!("no snapshot") };
    assert_eq!(missions.len(), 1);
    service.open(2).await;
    let body = json!({"commands": [close(2, 1, 1, Stage::Completed)]});
    let (_, body) = service.post(&service.service(), "/commands/close-flight", body).await;
    assert_eq!(body["outcomes"][0]["outcome"], "Closed");
    // The feed's start, and a mission that was over before it was told, may each show as less than a line. What the
    // snapshot has may be told once more, in its order.
    let mut told = None;
    loop {
        match updates.next().await.unwrap() {
            MissionUpdate::Recalled { delivery_id, base_id, .. } => {
                break assert_eq!((delivery_id, base_id.as_str()), (id(2), BASE));
            }
            MissionUpdate::Assigned { mission } => {
                assert!([id(1), id(2)].contains(&mission.delivery_id) && told < Some(mission.delivery_id), "{told:?}");
                told = Some(mission.delivery_id);
            }
            MissionUpdate::Snapshot { missions } => {
                if service.get(&service.base(), "/missions").await.1["items"] == json!(missions) {
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_customer_watches_the_flight_and_the_log_hears_of_each_stage() {
    let service = Service::start().await;
    service.open(1).await;
    let alice = service.world.token(CUSTOMER, Role::Customer);
    let mut states = service.stream::<FlightProgress>(&alice, &format!("/flights/{}/events", id(1))).await;
    assert_eq!(states.next().await.unwrap().stage, Stage::Scheduled);
    for (sequence, stage) in [(1, Stage::HeadedToPickup), (2, Stage::HeadedToDropoff), (3, Stage::Completed)] {
        service.report(&service.base(), &report(1, sequence, Some(stage))).await;
        assert_eq!(states.next().await.unwrap().stage, stage);
    }
    let mut events = service.world.log.subscribe("test", &["tracking.events"]).await.unwrap();
    let mut stages = Vec::new();
    while stages.len() < 3 {
        for delivered in events.next(10).await.unwrap() {
            let progress: FlightProgress = serde_json::from_slice(&delivered.event.data).unwrap();
            stages.push(progress.stage);
        }
    }
    assert_eq!(stages, [Stage::HeadedToPickup, Stage::HeadedToDropoff, Stage::Completed]);
}

#[tokio::test]
async fn a_terminal_event_ends_the_flight_and_so_does_comparing_notes_when_it_is_lost() {
    let service = Service::start().await;
    for number in 1..=4 {
        service.open(number).await;
    }
    let event = contracts::events::Event {
        id: service.clock.new_id(),
        time: start(),
        kind: contracts::events::DeliveryEventKind::DeliveryFailed,
        data: record(1, 1, Stage::Failed),
    };
    service.world.log.publish(vec![event.encode()]).await.unwrap();
    until("the event ends the flight", || async { (!service.is_open(1).await).then_some(()) }).await;

    let known = [record(2, 1, Stage::Completed), record(3, 1, Stage::Scheduled)];
    service.records.lock().await.extend(known);
    until("comparing ends the flight", || async {
        service.clock.advance(Duration::from_secs(61));
        (!service.is_open(2).await).then_some(())
    })
    .await;
    assert!(service.is_open(3).await, "under way");
    assert!(service.is_open(4).await, "unknown to its owner, but a drone may be flying");
    let audited = crate::audit_scan(&service.store).await.unwrap();
    let audited: Vec<_> = audited.iter().map(|flight| (flight.delivery_id, flight.open)).collect();
    assert_eq!(audited, [(id(1), false), (id(2), false), (id(3), true), (id(4), true)]);
}

#[tokio::test]
async fn it_ends_at_shutdown_though_somebody_watches() {
    let mut service = Service::start().await;
    service.open(1).await;
    let mut missions = service.stream::<MissionUpdate>(&service.base(), "/missions").await;
    missions.next().await.unwrap();
    service.world.shutdown.cancel();
    while let Some(ended) = service.tasks.join_next().await {
        ended.unwrap().unwrap();
    }
    while missions.next().await.is_some() {}
}

#[test]
fn a_plain_report_line_reads_what_a_flattened_report_writes() {
    let report = report(1, 7, Some(Stage::HeadedToPickup));
    let line: ReportLine = serde_json::from_value(json!(report)).unwrap();
    assert_eq!(FlightReport::from(line), report);
}
