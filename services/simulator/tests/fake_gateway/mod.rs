//! A gateway small enough to read: it hands out missions and remembers what the drones said.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fake that fails fails its test")]

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::{get, post, put},
};
use contracts::{
    Clock as _, DeliveryId, DroneId, Stage, SystemClock,
    api::{Confirmation, CreateDelivery, RegisterDrone, TelemetryAnswer, TelemetryLine, TokenRequest},
    commands::{DroneStatus, FleetDrone, Mission, MissionUpdate},
    flight::Airframe,
};
use futures::StreamExt as _;
use serde_json::json;
use tokio::{net::TcpListener, sync::broadcast, task::JoinSet};

/// A delivery of the fake.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) id: DeliveryId,
    pub(crate) customer: String,
    pub(crate) order: CreateDelivery,
    pub(crate) stage: Stage,
    pub(crate) drone: Option<DroneId>,
    /// The different stages that its drone reported, in order.
    pub(crate) said: Vec<Stage>,
}

/// What the fake knows.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) drones: HashMap<DroneId, FleetDrone>,
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) registrations: usize,
    pub(crate) lines: usize,
    pub(crate) stale: usize,
    /// Those among them that only say again how their delivery has ended.
    pub(crate) repeated_ends: usize,
    pub(crate) posts: usize,
    keys: HashMap<String, usize>,
    waiting: VecDeque<usize>,
    telemetry_requests: usize,
}

/// The fake; `unruly` ones lose answers, refuse batches and end streams.
#[derive(Clone)]
pub(crate) struct FakeGateway {
    known: Arc<Mutex<Known>>,
    sequences: Arc<Mutex<HashMap<DroneId, u64>>>,
    updates: broadcast::Sender<(String, MissionUpdate)>,
    unruly: bool,
}

/// A fake that listens; it ends with this value.
pub(crate) struct Running {
    pub(crate) gateway: FakeGateway,
    pub(crate) url: String,
    _server: JoinSet<()>,
}

impl FakeGateway {
    pub(crate) async fn start(unruly: bool) -> Running {
        let gateway =
            Self { known: Arc::default(), sequences: Arc::default(), updates: broadcast::channel(10_000).0, unruly };
        let routes = Router::new()
            .route("/api/dev/token", post(token))
            .route("/api/fleet", get(fleet))
            .route("/api/fleet/{id}", put(register))
            .route("/api/deliveries", post(order).get(list))
            .route("/api/deliveries/{id}", axum::routing::delete(cancel))
            .route("/api/missions", get(missions))
            .route("/api/telemetry", post(telemetry))
            .with_state(gateway.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Running { gateway, url, _server: server }
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    fn tell(&self, base: &str, update: MissionUpdate) {
        // Nobody may be listening: the next snapshot says it.
        let _ = self.updates.send((base.to_owned(), update));
    }

    /// Gives waiting deliveries to free drones.
    fn assign(&self, known: &mut Known) {
        while let Some(&index) = known.waiting.front() {
            let weight_kg = known.deliveries[index].order.package.weight_kg;
            let can = |drone: &&mut FleetDrone| {
                drone.status == DroneStatus::Idle && drone.airframe.payload_kg >= weight_kg && drone.battery > 0.6
            };
            let Some(drone) = known.drones.values_mut().find(can) else { return };
            known.waiting.pop_front();
            let delivery = &mut known.deliveries[index];
            if delivery.stage.is_terminal() {
                continue;
            }
            drone.status = DroneStatus::Reserved;
            drone.delivery_id = Some(delivery.id);
            delivery.drone = Some(drone.drone_id);
            delivery.stage = Stage::Scheduled;
            self.tell(drone.base_id.as_str(), MissionUpdate::Assigned { mission: mission(delivery, drone) });
        }
    }

    /// Ends a delivery and frees its drone.
    fn end(&self, known: &mut Known, index: usize, stage: Stage) {
        known.deliveries[index].stage = stage;
        let delivery_id = known.deliveries[index].id;
        let Some(drone_id) = known.deliveries[index].drone else { return };
        let Some(drone) = known.drones.get_mut(&drone_id) else { return };
        drone.status = DroneStatus::Failed;
        drone.delivery_id = None;
        let base_id = drone.base_id.clone();
        self.tell(drone.base_id.as_str(), MissionUpdate::Recalled { delivery_id, drone_id, base_id, attempt: 1 });
    }

    fn report(&self, known: &mut Known, line: &TelemetryLine) -> bool {
        assert_eq!(line.fault(SystemClock.now()), None);
        let drone = known.drones.get_mut(&line.drone_id).expect("only registered drones report");
        let mut sequences = self.sequences.lock().unwrap();
        let last = sequences.entry(line.drone_id).or_default();
        if line.sequence <= *last {
            return false;
        }
        *last = line.sequence;
        drone.position = line.position();
        drone.battery = line.battery;
        if line.delivery_id.is_none() && drone.status == DroneStatus::Failed {
            drone.status = DroneStatus::Idle;
        }
        let Some(index) = known.deliveries.iter().position(|delivery| Some(delivery.id) == line.delivery_id) else {
            return true;
        };
        let delivery = &mut known.deliveries[index];
        if delivery.drone != Some(line.drone_id) {
            return false;
        }
        if delivery.stage.is_terminal() {
            known.repeated_ends += usize::from(line.stage == Some(delivery.stage));
            return false;
        }
        let stage = line.stage.expect("a drone on a mission says its stage");
        assert!(stage.rank() >= delivery.stage.rank(), "{stage} after {}", delivery.stage);
        if delivery.said.last() != Some(&stage) {
            delivery.said.push(stage);
        }
        delivery.stage = stage;
        if stage.is_terminal() {
            self.end(known, index, stage);
        }
        true
    }
}

fn mission(delivery: &Delivery, drone: &FleetDrone) -> Mission {
    Mission {
        delivery_id: delivery.id,
        drone_id: drone.drone_id,
        base_id: drone.base_id.clone(),
        attempt: 1,
        pickup: delivery.order.pickup,
        dropoff: delivery.order.dropoff,
        weight_kg: delivery.order.package.weight_kg,
        confirmation: Confirmation::None,
        stage: delivery.stage,
        last_sequence: None,
        last_position: Some(drone.position),
    }
}

/// The fake's tokens say who they are for.
fn subject(headers: &HeaderMap) -> String {
    headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap().to_owned()
}

async fn token(Json(request): Json<TokenRequest>) -> Response {
    let expires_at = SystemClock.now() + chrono::Duration::milliseconds(700);
    Json(json!({"token": request.subject, "expires_at": expires_at})).into_response()
}

async fn fleet(State(gateway): State<FakeGateway>, headers: HeaderMap) -> Response {
    let base = subject(&headers);
    let known = gateway.known();
    let items: Vec<_> = known.drones.values().filter(|drone| drone.base_id.as_str() == base).collect();
    Json(json!({"items": items, "next_cursor": null})).into_response()
}

async fn register(
    State(gateway): State<FakeGateway>,
    Path(drone_id): Path<DroneId>,
    Json(body): Json<RegisterDrone>,
) -> StatusCode {
    assert_eq!(body.faults(), vec![]);
    let mut known = gateway.known();
    known.registrations += 1;
    if gateway.unruly && known.registrations.is_multiple_of(3) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let drone = FleetDrone {
        drone_id,
        base_id: body.base_id,
        position: body.position,
        battery: body.battery,
        airframe: Airframe { payload_kg: body.payload_kg, range_m: body.range_m, speed_mps: body.speed_mps },
        base_position: body.base_position,
        status: DroneStatus::Idle,
        delivery_id: None,
        last_seen_at: None,
    };
    known.drones.insert(drone_id, drone);
    StatusCode::CREATED
}

async fn order(State(gateway): State<FakeGateway>, headers: HeaderMap, Json(order): Json<CreateDelivery>) -> Response {
    assert_eq!(order.faults(SystemClock.now()), vec![]);
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    let mut known = gateway.known();
    known.posts += 1;
    let count = known.deliveries.len();
    let index = *known.keys.entry(key).or_insert(count);
    if index == count {
        let id = SystemClock.new_delivery_id();
        let customer = subject(&headers);
        known.deliveries.push(Delivery { id, customer, order, stage: Stage::Requested, drone: None, said: vec![] });
        known.waiting.push_back(index);
        gateway.assign(&mut known);
    }
    if gateway.unruly && known.posts.is_multiple_of(3) {
        // Accepted, but the client does not hear of it.
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let delivery = &known.deliveries[index];
    (StatusCode::ACCEPTED, Json(json!({"id": delivery.id, "stage": delivery.stage}))).into_response()
}

async fn list(
    State(gateway): State<FakeGateway>,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let customer = subject(&headers);
    let from: usize = query.get("cursor").map_or(0, |cursor| cursor.parse().unwrap());
    let known = gateway.known();
    let mine: Vec<_> = known.deliveries.iter().rev().filter(|delivery| delivery.customer == customer).collect();
    // Small pages, so that cursors are followed.
    let page = mine.iter().skip(from).take(2);
    let items: Vec<_> = page.map(|delivery| json!({"id": delivery.id, "stage": delivery.stage, "more": 1})).collect();
    let next_cursor = (from + 2 < mine.len()).then(|| (from + 2).to_string());
    Json(json!({"items": items, "next_cursor": next_cursor})).into_response()
}

async fn cancel(State(gateway): State<FakeGateway>, Path(id): Path<DeliveryId>) -> StatusCode {
    let mut known = gateway.known();
    let Some(index) = known.deliveries.iter().position(|delivery| delivery.id == id) else {
        return StatusCode::NOT_FOUND;
    };
    if known.deliveries[index].stage.rank() >= Stage::HeadedToDropoff.rank() {
        return StatusCode::CONFLICT;
    }
    gateway.end(&mut known, index, Stage::Cancelled);
    StatusCode::OK
}

async fn missions(State(gateway): State<FakeGateway>, headers: HeaderMap) -> Response {
    assert_eq!(headers["accept"], "text/event-stream");
    let base = subject(&headers);
    let known = gateway.known();
    let updates = gateway.updates.subscribe();
    let own = known.drones.values().filter(|drone| drone.base_id.as_str() == base);
    let open = own.filter_map(|drone| {
        let delivery = known.deliveries.iter().find(|delivery| Some(delivery.id) == drone.delivery_id)?;
        Some(mission(delivery, drone))
    });
    let snapshot = MissionUpdate::Snapshot { missions: open.collect() };
    drop(known);
    // An unruly gateway ends every stream after a few updates.
    let left = if gateway.unruly { 3 } else { usize::MAX };
    let first = [Event::default().comment("hello"), Event::default().json_data(snapshot).unwrap()];
    let rest = futures::stream::unfold((updates, base, left), |(mut updates, base, left)| async move {
        if left == 0 {
            return None;
        }
        loop {
            let (whose, update) = updates.recv().await.ok()?;
            if whose == base {
                let event = Event::default().json_data(update).unwrap();
                return Some((event, (updates, base, left - 1)));
            }
        }
    });
    Sse::new(futures::stream::iter(first).chain(rest).map(Ok::<_, Infallible>)).into_response()
}

async fn telemetry(State(gateway): State<FakeGateway>, body: String) -> Response {
    let mut known = gateway.known();
    known.telemetry_requests += 1;
    if gateway.unruly && known.telemetry_requests.is_multiple_of(4) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let mut answer = TelemetryAnswer::default();
    for line in body.lines() {
        let line: TelemetryLine = serde_json::from_str(line).unwrap();
        known.lines += 1;
        if gateway.report(&mut known, &line) {
            answer.accepted += 1;
        } else {
            answer.stale += 1;
            known.stale += 1;
        }
    }
    gateway.assign(&mut known);
    Json(answer).into_response()
}
