//! A delivery service that runs, or several on one store, and what a test says to it.

use std::{sync::Arc, time::Duration};

use contracts::{
    DeliveryId, Stage,
    api::{Problem, Role, Timeline},
    commands::AssignedDrone,
    events::{
        CloudEvent, DeliveryRecord, DroneRecord, FleetEvent, FleetEventKind, FlightProgress, TrackingEvent,
        TrackingEventKind,
    },
};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use testkit::{ManualClock, World, serving, until};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::peers::Peers;

/// One instance of the service.
pub(crate) struct Instance {
    pub(crate) url: String,
    pub(crate) shutdown: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Instance {
    /// Ends it as a service ends: what is under way is finished.
    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
    }

    /// Ends it as a kill does.
    pub(crate) async fn kill(mut self) {
        self.tasks.shutdown().await;
    }
}

pub(crate) struct Running {
    pub(crate) world: World,
    /// Where the test drives the time.
    pub(crate) clock: Option<Arc<ManualClock>>,
    pub(crate) peers: Peers,
    pub(crate) url: String,
    pub(crate) http: Client,
    pub(crate) first: Option<Instance>,
}

pub(crate) fn wish() -> Value {
    json!({
        "pickup": {"latitude": 1.0, "longitude": 2.0},
        "dropoff": {"latitude": 1.1, "longitude": 2.0},
        "package": {"size": "small", "weight_kg": 0.5},
    })
}

impl Running {
    /// One instance, in real time, and that many idle drones.
    pub(crate) async fn start(idle: u32) -> Self {
        Self::start_in(World::new().await, None, idle, None).await
    }

    /// One instance, in a time that stands still until the test moves it.
    pub(crate) async fn start_timeless(idle: u32, sole_owner: Option<&str>) -> Self {
        let clock = Arc::new(ManualClock::starting_now());
        Self::start_in(World::with_clock(clock.clone()).await, Some(clock), idle, sole_owner).await
    }

    async fn start_in(world: World, clock: Option<Arc<ManualClock>>, idle: u32, sole_owner: Option<&str>) -> Self {
        let peers = Peers::start(idle).await;
        let http = chassis::client::http_client().unwrap();
        let mut running = Self { world, clock, peers, url: String::new(), http, first: None };
        let first = running.instance(sole_owner).await;
        running.url.clone_from(&first.url);
        running.first = Some(first);
        running
    }

    /// Another instance on the same store and log.
    pub(crate) async fn instance(&self, sole_owner: Option<&str>) -> Instance {
        let peers = ["package", "fleet", "tracking", "history", "lookup"].map(|name| (name, self.peers.url.as_str()));
        let (mut node, url) = self.world.node("delivery", &peers).await;
        let shutdown = self.world.shutdown.child_token();
        node.shutdown = shutdown.clone();
        let store = format!("sqlite:{}", self.world.path("delivery.db").display());
        let config = delivery::Config { store, sole_owner: sole_owner.map(str::to_owned) };
        let mut tasks = JoinSet::new();
        serving(&mut tasks, node.door.opened(), delivery::run(config, node)).await;
        Instance { url, shutdown, tasks }
    }

    pub(crate) fn request(&self, who: (&str, Role), method: Method, path: &str) -> RequestBuilder {
        let token = self.world.token(who.0, who.1);
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(token)
    }

    pub(crate) async fn get(&self, customer: &str, path: &str) -> Response {
        self.request((customer, Role::Customer), Method::GET, path).send().await.unwrap()
    }

    pub(crate) async fn post(&self, customer: &str, key: Option<&str>, wish: &Value) -> Response {
        let request = self.request((customer, Role::Customer), Method::POST, "/deliveries").json(wish);
        let request = if let Some(key) = key { request.header("Idempotency-Key", key) } else { request };
        request.send().await.unwrap()
    }

    /// A delivery of alice that was accepted.
    pub(crate) async fn accepted(&self) -> DeliveryId {
        self.accepted_as(&wish()).await
    }

    pub(crate) async fn accepted_as(&self, wish: &Value) -> DeliveryId {
        let answer = self.post("alice", None, wish).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        answer.json::<DeliveryRecord>().await.unwrap().delivery_id
    }

    pub(crate) async fn record(&self, id: DeliveryId) -> DeliveryRecord {
        let answer = self.get("alice", &format!("/deliveries/{id}")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json().await.unwrap()
    }

    /// Waits until the delivery is in that stage.
    pub(crate) async fn reaches(&self, id: DeliveryId, stage: Stage) -> DeliveryRecord {
        self.becomes(id, &format!("{stage}"), |record| record.stage == stage).await
    }

    pub(crate) async fn becomes(
        &self,
        id: DeliveryId,
        what: &str,
        is_so: impl Fn(&DeliveryRecord) -> bool,
    ) -> DeliveryRecord {
        until(what, || async {
            let record = self.record(id).await;
            is_so(&record).then_some(record)
        })
        .await
    }

    /// Waits while the time runs: a second of it at every look.
    pub(crate) async fn reaches_in_time(&self, id: DeliveryId, stage: Stage) -> DeliveryRecord {
        until(&format!("{stage}, in time"), || async {
            self.pass(Duration::from_secs(1));
            let record = self.record(id).await;
            (record.stage == stage).then_some(record)
        })
        .await
    }

    pub(crate) fn pass(&self, time: Duration) {
        self.clock.as_ref().unwrap().advance(time);
    }

    pub(crate) async fn cancel(&self, id: DeliveryId) -> Response {
        let path = format!("/deliveries/{id}");
        self.request(("alice", Role::Customer), Method::DELETE, &path).send().await.unwrap()
    }

    /// The saga's steps with their outcomes.
    pub(crate) async fn steps(&self, id: DeliveryId) -> Vec<(String, String)> {
        let timeline: Timeline = self.get("alice", &format!("/deliveries/{id}/timeline")).await.json().await.unwrap();
        assert_eq!((timeline.delivery_id, timeline.customer_id.as_str()), (id, "alice"));
        timeline.steps.into_iter().map(|step| (step.step, step.outcome)).collect()
    }

    /// The drone comes to that stage, and tracking says so.
    pub(crate) async fn fly(&self, id: DeliveryId, stage: Stage) {
        let progress = self.peers.fly(id, stage, self.world.clock.now());
        self.world.log.publish(vec![self.stage_changed(&progress)]).await.unwrap();
    }

    pub(crate) fn stage_changed(&self, progress: &FlightProgress) -> CloudEvent {
        let (id, time) = (self.world.clock.new_id(), self.world.clock.now());
        TrackingEvent { id, time, kind: TrackingEventKind::StageChanged, data: progress.clone() }.encode()
    }

    pub(crate) fn drone_event(
        &self,
        kind: FleetEventKind,
        id: DeliveryId,
        attempt: u32,
        drone: &AssignedDrone,
    ) -> CloudEvent {
        let now = self.world.clock.now();
        let data = DroneRecord {
            drone_id: drone.drone_id,
            drone: drone.clone(),
            delivery_id: Some(id),
            attempt: Some(attempt),
            customer_id: None,
            home_region: None,
            reason: Some("silent".to_owned()),
            at: now,
        };
        FleetEvent { id: self.world.clock.new_id(), time: now, kind, data }.encode()
    }

    /// The reserved drone of an attempt fails, and fleet says so.
    pub(crate) async fn fail_drone(&self, id: DeliveryId, attempt: u32) {
        let drone = self.peers.lock().reserved[&(id, attempt)].clone().unwrap();
        let failed = self.drone_event(FleetEventKind::DroneFailed, id, attempt, &drone);
        self.world.log.publish(vec![failed]).await.unwrap();
    }

    /// Every event of a delivery that the log has by now has a successor: reads until `count` of them.
    pub(crate) async fn told(&self, id: DeliveryId, count: usize) -> Vec<(String, DeliveryRecord)> {
        let mut subscription = self.world.log.subscribe("test", &["delivery.events"]).await.unwrap();
        let mut told = Vec::new();
        while told.len() < count {
            for record in subscription.next(100).await.unwrap() {
                let data: DeliveryRecord = serde_json::from_slice(&record.event.data).unwrap();
                if data.delivery_id == id {
                    told.push((record.event.kind.clone(), data));
                }
            }
        }
        told
    }

    pub(crate) async fn stop(mut self) {
        if let Some(first) = self.first.take() {
            first.stop().await;
        }
    }
}

/// The fields that a problem says are at fault.
pub(crate) async fn fields(answer: Response) -> Vec<String> {
    let problem: Problem = answer.json().await.unwrap();
    problem.errors.into_iter().map(|error| error.field).collect()
}
