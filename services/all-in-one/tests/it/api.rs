//! The public API as its users call it.

use std::{collections::HashSet, time::Duration};

use contracts::{
    DeliveryId, DroneId, Stage,
    api::{DeliveryView, HistoryItem, LiveUpdate, Page, Timeline},
    commands::{DroneStatus, FleetDrone},
};
use futures::StreamExt;
use reqwest::{Method, RequestBuilder, header::HeaderMap};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use testkit::until;

use crate::world::{DROPOFF, PICKUP, World};

/// Somebody with a token.
pub(crate) struct User<'a> {
    pub(crate) world: &'a World,
    pub(crate) token: String,
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    /// The body as JSON; null where it is none.
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) async fn of(request: RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or_default();
        Self { status, headers, text, body }
    }

    /// The body of a success.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> T {
        assert!((200..300).contains(&self.status), "status {}: {}", self.status, self.text);
        serde_json::from_str(&self.text).unwrap()
    }

    /// The fields that a problem names.
    pub(crate) fn fields(&self) -> Vec<String> {
        let errors = self.body["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|error| error["field"].as_str().unwrap().to_owned()).collect()
    }
}

/// A small package from [`PICKUP`] to [`DROPOFF`].
pub(crate) fn wish() -> Value {
    json!({"pickup": PICKUP, "dropoff": DROPOFF, "package": {"size": "small", "weight_kg": 0.5}})
}

/// `body` with other values for some fields.
pub(crate) fn with(mut body: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

impl<'a> User<'a> {
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.world.http.request(method, format!("{}{path}", self.world.url())).bearer_auth(&self.token)
    }

    /// The same user at one of the services behind the gateway.
    pub(crate) fn request_at(&self, service: &str, method: Method, path: &str) -> RequestBuilder {
        self.world.http.request(method, format!("{}{path}", self.world.service_url(service))).bearer_auth(&self.token)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(Method::POST, path).json(body)).await
    }

    /// Asks for a delivery; it is accepted.
    pub(crate) async fn order(&self, wish: &Value) -> DeliveryId {
        let answer = self.post("/api/deliveries", wish).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
        let id = answer.read::<DeliveryView>().id;
        self.world.note_accepted(id);
        id
    }

    pub(crate) async fn delivery(&self, id: DeliveryId) -> DeliveryView {
        self.get(&format!("/api/deliveries/{id}")).await.read()
    }

    pub(crate) async fn cancel(&self, id: DeliveryId) -> Answer {
        Answer::of(self.request(Method::DELETE, &format!("/api/deliveries/{id}"))).await
    }

    pub(crate) async fn timeline(&self, id: DeliveryId) -> Timeline {
        self.get(&format!("/api/deliveries/{id}/timeline")).await.read()
    }

    /// The saga's steps so far, as `step outcome`.
    pub(crate) async fn steps(&self, id: DeliveryId) -> Vec<String> {
        let steps = self.timeline(id).await.steps;
        steps.iter().map(|step| format!("{} {}", step.step, step.outcome)).collect()
    }

    /// Waits until the delivery is in that stage.
    pub(crate) async fn sees(&self, id: DeliveryId, stage: Stage) -> DeliveryView {
        until(&format!("{id} is {stage}"), async || {
            let delivery = self.delivery(id).await;
            let gone_by = delivery.stage.is_terminal() && delivery.stage != stage;
            assert!(!gone_by, "{id} is {} ({:?}) and never {stage}", delivery.stage, delivery.end_reason);
            (delivery.stage == stage).then_some(delivery)
        })
        .await
    }

    /// Waits until the saga has logged that step.
    pub(crate) async fn sees_step(&self, id: DeliveryId, step: &str) {
        until(&format!("{id} has done: {step}"), async || {
            self.steps(id).await.iter().any(|done| done == step).then_some(())
        })
        .await;
    }

    pub(crate) async fn history(&self) -> Vec<HistoryItem> {
        self.get("/api/history").await.read::<Page<HistoryItem>>().items
    }

    /// Every update of one delivery's live stream, to its end.
    pub(crate) async fn watch(&self, id: DeliveryId) -> Vec<LiveUpdate> {
        let response = self.request(Method::GET, &format!("/api/deliveries/{id}/events")).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let mut chunks = response.bytes_stream();
        let mut text = Vec::new();
        while let Some(chunk) = chunks.next().await {
            text.extend(chunk.unwrap());
        }
        let text = String::from_utf8(text).unwrap();
        text.lines()
            .filter_map(|line| line.strip_prefix("data:"))
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }

    /// As an operator: one drone of the fleet.
    pub(crate) async fn drone(&self, drone: DroneId) -> FleetDrone {
        let fleet: Page<FleetDrone> = self.get("/api/fleet?limit=100").await.read();
        fleet.items.into_iter().find(|known| known.drone_id == drone).unwrap()
    }

    /// As an operator: waits until a drone is that.
    pub(crate) async fn sees_drone(&self, drone: DroneId, status: DroneStatus) {
        until(&format!("the drone is {status:?}"), async || (self.drone(drone).await.status == status).then_some(()))
            .await;
    }
}

/// The stages that a live stream told, in order, each once.
pub(crate) fn stages_told(updates: &[LiveUpdate]) -> Vec<Stage> {
    let mut seen = HashSet::new();
    let mut told = Vec::new();
    for update in updates {
        if let LiveUpdate::Delivery { delivery } = update
            && seen.insert(delivery.stage)
        {
            told.push(delivery.stage);
        }
    }
    told
}

/// A deadline that many seconds from now, by the world's clock.
pub(crate) fn deadline(world: &World, seconds: u64) -> Value {
    use contracts::Clock;
    json!(world.clock.now() + Duration::from_secs(seconds))
}
