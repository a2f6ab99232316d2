//! What the tests of the domain share: a delivery, a drone, a flight's progress, a moment.

mod close;
mod intents;
mod interleavings;
mod participants;
mod progress;
mod retries;
mod saga;
mod simulator;
mod stages;

use chrono::Duration;
use contracts::{
    Coordinate, DeliveryId, DroneId, Stage, Timestamp,
    api::{Confirmation, CreateDelivery, PackageSize, PackageSpec, default_region},
    commands::{AssignedDrone, CloseOutcome, OpenOutcome, PackageOutcome, ReserveOutcome},
    events::{FlightProgress, StageTime},
    flight::Airframe,
};
use uuid::Uuid;

use super::{Action, Changes, Delivery, Next, Outcome};

/// That many seconds after the request.
fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::days(20_000) + Duration::seconds(seconds)
}

const ID: DeliveryId = DeliveryId(Uuid::from_u128(7));

fn wish() -> CreateDelivery {
    CreateDelivery {
        pickup: Coordinate { latitude: 1.0, longitude: 2.0 },
        dropoff: Coordinate { latitude: 1.1, longitude: 2.0 },
        package: PackageSpec { size: PackageSize::Small, weight_kg: 0.5, tag: None, description: None },
        deadline: None,
        expedited: false,
        confirmation: Confirmation::None,
    }
}

/// As it was requested at second 0; its deadline is half an hour later.
fn requested() -> Delivery {
    Delivery::request(ID, "alice".parse().unwrap(), default_region(), wish(), at(0)).0
}

/// The drone of that attempt.
fn drone(attempt: u32) -> AssignedDrone {
    AssignedDrone {
        drone_id: DroneId(Uuid::from_u128(u128::from(attempt))),
        base_id: "north".parse().unwrap(),
        airframe: Airframe { payload_kg: 4.0, range_m: 20_000.0, speed_mps: 20.0 },
        position: Coordinate { latitude: 1.0, longitude: 2.0 },
        battery: 1.0,
    }
}

/// The stages of a flight, in order.
const FLIGHT: [Stage; 3] = [Stage::HeadedToPickup, Stage::HeadedToDropoff, Stage::Completed];

/// When a drone says that it reached a stage.
fn reached_at(stage: Stage) -> Timestamp {
    at(100 * i64::from(stage.rank()))
}

fn progress(attempt: u32, stages: &[Stage]) -> FlightProgress {
    FlightProgress {
        delivery_id: ID,
        attempt,
        customer_id: "alice".parse().unwrap(),
        home_region: default_region(),
        drone_id: drone(attempt).drone_id,
        base_id: "north".parse().unwrap(),
        stage: stages.last().copied().unwrap_or(Stage::Scheduled),
        stages: stages.iter().map(|stage| StageTime { stage: *stage, at: reached_at(*stage) }).collect(),
        last: None,
        eta: None,
    }
}

/// Applies the answer to whatever the delivery wants to do now.
fn answer(delivery: &mut Delivery, outcome: &Outcome, now: Timestamp) -> Changes {
    let Next::Do(action) = delivery.next(now) else { panic!("nothing to do: {:?}", delivery.next(now)) };
    delivery.apply(action, outcome, now).unwrap()
}

fn registered() -> Outcome {
    Outcome::Package(PackageOutcome::Done)
}

fn reserved(attempt: u32) -> Outcome {
    Outcome::Reserve(ReserveOutcome::Reserved { drone: drone(attempt) })
}

fn opened() -> Outcome {
    Outcome::Open(OpenOutcome::Opened)
}

fn closed(progress: Option<FlightProgress>) -> Outcome {
    Outcome::Close(CloseOutcome::Closed { progress })
}

fn too_late(progress: FlightProgress) -> Outcome {
    Outcome::Close(CloseOutcome::TooLate { progress })
}

/// Its flight is open, its drone has not reported.
fn scheduled() -> Delivery {
    let mut delivery = requested();
    for outcome in [registered(), reserved(1), opened()] {
        answer(&mut delivery, &outcome, at(1));
    }
    assert_eq!(delivery.record.stage, Stage::Scheduled);
    delivery
}

/// Its drone has come to the last of those stages.
fn flown(stages: &[Stage]) -> Delivery {
    let mut delivery = scheduled();
    delivery.apply_progress(&progress(1, stages), at(2));
    delivery
}

fn asked(delivery: &Delivery, now: Timestamp) -> Option<Action> {
    match delivery.next(now) {
        Next::Do(action) => Some(action),
        Next::Wait(_) | Next::Over => None,
    }
}
