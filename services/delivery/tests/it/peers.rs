//! The other services in memory: they keep what they were told, leave tombstones, and can be away.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use contracts::{
    Coordinate, DeliveryId, DroneId, Stage, Timestamp,
    commands::{
        AssignedDrone, CloseFlight, CloseOutcome, FlightStatus, Ids, OpenFlight, OpenOutcome, PackageOutcome, Refusal,
        ReleaseOutcome, ReserveOutcome,
    },
    events::{FlightProgress, StageTime},
    flight::Airframe,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use uuid::Uuid;

/// A command as it was received.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    /// The last part of the path: `register`, `reserve`, ...
    pub(crate) what: String,
    pub(crate) delivery_id: DeliveryId,
    pub(crate) attempt: u64,
    pub(crate) fence: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Flight {
    pub(crate) opened_with: Option<OpenFlight>,
    pub(crate) stages: Vec<StageTime>,
    pub(crate) open: bool,
    attempt: u32,
}

impl Flight {
    pub(crate) fn progress(&self) -> Option<FlightProgress> {
        let plan = self.opened_with.as_ref()?;
        Some(FlightProgress {
            delivery_id: plan.delivery_id,
            attempt: plan.attempt,
            customer_id: plan.customer_id.clone(),
            home_region: plan.home_region.clone(),
            drone_id: plan.drone.drone_id,
            base_id: plan.drone.base_id.clone(),
            stage: self.stages.last().map_or(Stage::Scheduled, |reached| reached.stage),
            stages: self.stages.clone(),
            last: None,
            eta: None,
        })
    }
}

#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) said: Vec<Said>,
    /// True while registered.
    pub(crate) packages: HashMap<DeliveryId, bool>,
    /// The drone of each attempt; none while it waits in the line.
    pub(crate) reserved: BTreeMap<(DeliveryId, u32), Option<AssignedDrone>>,
    pub(crate) released: BTreeSet<(DeliveryId, u32)>,
    pub(crate) flights: HashMap<DeliveryId, Flight>,
    /// Drones that can still be reserved.
    pub(crate) idle: u32,
    /// The commands and queries that are answered with 503, by their last part.
    pub(crate) away: BTreeSet<&'static str>,
    /// Those that are never answered.
    pub(crate) hanging: BTreeSet<&'static str>,
    /// Every so many-th request is answered with 503 after it was done; 0 for none.
    pub(crate) lose_every: usize,
    requests: usize,
    /// What lake and lookup have.
    pub(crate) kept: BTreeSet<DeliveryId>,
}

/// All peers behind one address.
#[derive(Clone)]
pub(crate) struct Peers {
    known: Arc<Mutex<Known>>,
    pub(crate) url: String,
    _server: Arc<JoinSet<()>>,
}

impl Peers {
    pub(crate) async fn start(idle: u32) -> Self {
        let known = Arc::new(Mutex::new(Known { idle, ..Known::default() }));
        let router = Router::new()
            .route("/commands/{what}", post(command))
            .route("/queries/{what}", post(query))
            .with_state(known.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { known, url, _server: Arc::new(server) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    /// The names of the commands that were said of a delivery, in order.
    pub(crate) fn said_of(&self, id: DeliveryId) -> Vec<String> {
        self.lock().said.iter().filter(|said| said.delivery_id == id).map(|said| said.what.clone()).collect()
    }

    pub(crate) fn count(&self, what: &str) -> usize {
        self.lock().said.iter().filter(|said| said.what == what).count()
    }

    /// How many packages, reservations and flights there are, open or over.
    pub(crate) fn totals(&self) -> (usize, usize, usize) {
        let known = self.lock();
        (known.packages.len(), known.reserved.len(), known.flights.len())
    }

    /// The drone of the open flight comes to `stage`, through all before it.
    pub(crate) fn fly(&self, id: DeliveryId, stage: Stage, at: Timestamp) -> FlightProgress {
        let mut known = self.lock();
        let flight = known.flights.get_mut(&id).unwrap();
        assert!(flight.open, "the flight of {id} is closed");
        for passed in [Stage::HeadedToPickup, Stage::HeadedToDropoff, Stage::Completed] {
            let known = flight.stages.iter().any(|reached| reached.stage == passed);
            if passed.rank() <= stage.rank() && !known {
                flight.stages.push(StageTime { stage: passed, at });
            }
        }
        flight.progress().unwrap()
    }

    /// Gives a drone to what waits in the line.
    pub(crate) fn grant(&self, id: DeliveryId, attempt: u32) -> AssignedDrone {
        let granted = drone();
        self.lock().reserved.insert((id, attempt), Some(granted.clone()));
        granted
    }
}

fn drone() -> AssignedDrone {
    AssignedDrone {
        drone_id: DroneId(Uuid::from_u128(rand::random())),
        base_id: "north".parse().unwrap(),
        airframe: Airframe { payload_kg: 4.0, range_m: 20_000.0, speed_mps: 20.0 },
        position: Coordinate { latitude: 1.0, longitude: 2.0 },
        battery: 1.0,
    }
}

fn read<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn write(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

/// Whether a request is to be left without an answer: before, or (lost) after it is done.
async fn disturbed(known: &Mutex<Known>, what: &str) -> Option<Response> {
    let (hangs, away) = {
        let known = known.lock().unwrap();
        (known.hanging.contains(what), known.away.contains(what))
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    away.then(|| StatusCode::SERVICE_UNAVAILABLE.into_response())
}

async fn command(
    State(known): State<Arc<Mutex<Known>>>,
    Path(what): Path<String>,
    Json(body): Json<Value>,
) -> Response {
    let commands = body["commands"].as_array().unwrap().clone();
    for command in &commands {
        let (delivery_id, attempt) = (read(&command["delivery_id"]), command["attempt"].as_u64().unwrap());
        let fence = command["fence"].as_u64().unwrap();
        known.lock().unwrap().said.push(Said { what: what.clone(), delivery_id, attempt, fence });
    }
    if let Some(silence) = disturbed(&known, &what).await {
        return silence;
    }
    let mut known = known.lock().unwrap();
    let outcomes: Vec<Value> = commands.iter().map(|command| known.perform(&what, command)).collect();
    known.requests += 1;
    if known.lose_every > 0 && known.requests.is_multiple_of(known.lose_every) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    Json(json!({ "outcomes": outcomes })).into_response()
}

async fn query(State(known): State<Arc<Mutex<Known>>>, Path(what): Path<String>, Json(asked): Json<Ids>) -> Response {
    if let Some(silence) = disturbed(&known, &what).await {
        return silence;
    }
    let known = known.lock().unwrap();
    if what == "contains" {
        let ids = asked.ids.into_iter().filter(|id| known.kept.contains(id)).collect();
        return Json(Ids { ids }).into_response();
    }
    let status = |delivery_id: &DeliveryId| {
        let flight = known.flights.get(delivery_id);
        FlightStatus {
            delivery_id: *delivery_id,
            progress: flight.and_then(Flight::progress),
            open: flight.is_some_and(|flight| flight.open),
        }
    };
    Json(asked.ids.iter().map(status).collect::<Vec<_>>()).into_response()
}

impl Known {
    fn perform(&mut self, what: &str, command: &Value) -> Value {
        let id: DeliveryId = read(&command["delivery_id"]);
        let attempt: u32 = read(&command["attempt"]);
        match what {
            "register" if *self.packages.entry(id).or_insert(true) => write(&PackageOutcome::Done),
            "register" => write(&PackageOutcome::Refused { reason: Refusal::Undone }),
            "withdraw" => {
                self.packages.insert(id, false);
                write(&PackageOutcome::Done)
            }
            "reserve" => write(&self.reserve((id, attempt))),
            "release" => {
                self.released.insert((id, attempt));
                write(&ReleaseOutcome::Done)
            }
            "open-flight" => write(&self.open(&read(command))),
            "close-flight" => write(&self.close(&read(command))),
            _ => panic!("no command '{what}'"),
        }
    }

    fn reserve(&mut self, key: (DeliveryId, u32)) -> ReserveOutcome {
        if self.released.contains(&key) {
            return ReserveOutcome::Refused { reason: Refusal::Undone };
        }
        if let Some(known) = self.reserved.get(&key) {
            return known.clone().map_or(ReserveOutcome::Waiting, |drone| ReserveOutcome::Reserved { drone });
        }
        let free = self.idle > 0;
        self.idle -= u32::from(free);
        let granted = free.then(drone);
        self.reserved.insert(key, granted.clone());
        granted.map_or(ReserveOutcome::Waiting, |drone| ReserveOutcome::Reserved { drone })
    }

    fn open(&mut self, command: &OpenFlight) -> OpenOutcome {
        if let Some(flight) = self.flights.get(&command.delivery_id)
            && flight.attempt >= command.attempt
        {
            let refused = OpenOutcome::Refused { reason: Refusal::Undone };
            return if flight.attempt == command.attempt && flight.open { OpenOutcome::Opened } else { refused };
        }
        let flight =
            Flight { opened_with: Some(command.clone()), stages: Vec::new(), open: true, attempt: command.attempt };
        self.flights.insert(command.delivery_id, flight);
        OpenOutcome::Opened
    }

    fn close(&mut self, command: &CloseFlight) -> CloseOutcome {
        let tombstone = Flight { opened_with: None, stages: Vec::new(), open: false, attempt: command.attempt };
        let flight = self.flights.entry(command.delivery_id).or_insert_with(|| tombstone.clone());
        if flight.attempt < command.attempt {
            *flight = tombstone;
        }
        match flight.progress() {
            Some(progress) if flight.open && progress.stage.rank() >= command.before.rank() => {
                CloseOutcome::TooLate { progress }
            }
            progress => {
                flight.open = false;
                CloseOutcome::Closed { progress }
            }
        }
    }
}
