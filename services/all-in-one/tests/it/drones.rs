//! A base station that a test drives by hand: registers drones, reads missions, reports for them.

use contracts::{
    Clock, Coordinate, DeliveryId, DroneId, Stage,
    api::{Role, TelemetryAnswer},
    commands::Mission,
};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use testkit::until;

use crate::{
    api::{Answer, User, with},
    world::{PICKUP, World},
};

/// Half-way from [`PICKUP`] to the drop-off.
pub(crate) const MIDWAY: Coordinate = Coordinate { latitude: 48.855, longitude: 2.350 };

/// A base station near [`PICKUP`].
pub(crate) struct Base<'a> {
    pub(crate) user: User<'a>,
    id: String,
}

#[derive(Deserialize)]
struct Missions {
    items: Vec<Mission>,
}

/// Drones that carry 4 kg over 20 km, and are at the pickup.
pub(crate) fn drone_of(base: &str) -> Value {
    json!({
        "base_id": base, "base_position": PICKUP, "position": PICKUP, "battery": 1.0,
        "payload_kg": 4.0, "range_m": 20_000.0, "speed_mps": 20.0,
    })
}

impl World {
    pub(crate) async fn base(&self, id: &str) -> Base<'_> {
        Base { user: self.user(id, Role::BaseStation).await, id: id.to_owned() }
    }
}

impl Base<'_> {
    /// A new drone, idle at the pickup.
    pub(crate) async fn new_drone(&self) -> DroneId {
        self.new_drone_with(&json!({})).await
    }

    /// A new drone that differs from the others.
    pub(crate) async fn new_drone_with(&self, changes: &Value) -> DroneId {
        let drone = self.user.world.new_drone();
        let request = self.user.request(Method::PUT, &format!("/api/fleet/{drone}"));
        let answer = Answer::of(request.json(&with(drone_of(&self.id), changes))).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        drone
    }

    pub(crate) async fn missions(&self) -> Vec<Mission> {
        self.user.get("/api/missions").await.read::<Missions>().items
    }

    /// Waits for the mission of a delivery.
    pub(crate) async fn mission(&self, id: DeliveryId) -> Mission {
        until(&format!("a mission for {id}"), async || {
            self.missions().await.into_iter().find(|mission| mission.delivery_id == id)
        })
        .await
    }

    /// Waits for the mission of a later attempt.
    pub(crate) async fn mission_of_attempt(&self, id: DeliveryId, attempt: u32) -> Mission {
        until(&format!("a mission for {id}, attempt {attempt}"), async || {
            let mut missions = self.missions().await.into_iter();
            missions.find(|mission| mission.delivery_id == id && mission.attempt == attempt)
        })
        .await
    }

    /// Waits until the delivery has no mission any more.
    pub(crate) async fn sees_recall(&self, id: DeliveryId) {
        until(&format!("the recall of {id}"), async || {
            self.missions().await.iter().all(|mission| mission.delivery_id != id).then_some(())
        })
        .await;
    }

    /// Sends one line of telemetry.
    pub(crate) async fn send(&self, line: &Value) -> TelemetryAnswer {
        let request = self.user.request(Method::POST, "/api/telemetry");
        let request = request.header("content-type", "application/x-ndjson").body(line.to_string());
        Answer::of(request).await.read()
    }

    fn line(&self, drone: DroneId, at: Coordinate) -> Value {
        let world = self.user.world;
        json!({
            "drone_id": drone, "sequence": world.next_sequence(), "at": world.clock.now(),
            "latitude": at.latitude, "longitude": at.longitude, "battery": 0.9,
        })
    }

    /// A report of a mission, in that stage and at that place.
    pub(crate) fn report(&self, mission: &Mission, stage: Stage, at: Coordinate) -> Value {
        let mission_of = json!({"delivery_id": mission.delivery_id, "attempt": mission.attempt, "stage": stage});
        with(self.line(mission.drone_id, at), &mission_of)
    }

    /// Reports that the mission has come to `stage`, at the place where that is; it is accepted.
    pub(crate) async fn reaches(&self, mission: &Mission, stage: Stage) {
        let at = if stage == Stage::Completed { mission.dropoff } else { mission.pickup };
        let answer = self.send(&self.report(mission, stage, at)).await;
        assert_eq!((answer.accepted, answer.stale), (1, 0), "{answer:?}");
    }

    /// Reports a drone without a mission.
    pub(crate) async fn rests(&self, drone: DroneId) -> TelemetryAnswer {
        self.send(&self.line(drone, PICKUP)).await
    }

    /// Flies a mission to its end.
    pub(crate) async fn flies(&self, mission: &Mission) {
        for stage in [Stage::HeadedToPickup, Stage::HeadedToDropoff, Stage::Completed] {
            self.reaches(mission, stage).await;
        }
    }
}
