//! Drones, commands and events for tests: small numbers instead of ids.

use chrono::Duration;
use contracts::{
    Coordinate, DeliveryId, DroneId, Stage, Timestamp,
    api::{PackageSize, PackageSpec, RegisterDrone, default_region},
    commands::{DroneReport, DroneStatus, ReleaseDrone, ReserveDrone},
    events::{DeliveryRecord, PositionFix},
    flight::{Airframe, Trip},
};
use uuid::Uuid;

use crate::{
    domain::{Drone, Registration},
    reports::Report,
};

pub(crate) const HOME: Coordinate = Coordinate { latitude: 0.10, longitude: 0.10 };
pub(crate) const PICKUP: Coordinate = Coordinate { latitude: 0.10, longitude: 0.11 };
pub(crate) const DROPOFF: Coordinate = Coordinate { latitude: 0.11, longitude: 0.11 };
pub(crate) const FRAME: Airframe = Airframe { payload_kg: 5.0, range_m: 40_000.0, speed_mps: 20.0 };

/// The machine's time: tokens and deadlines are judged by it.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Timestamp {
    chrono::DateTime::from_timestamp_millis(chrono::Utc::now().timestamp_millis()).unwrap()
}

pub(crate) fn delivery(number: u128) -> DeliveryId {
    DeliveryId(Uuid::from_u128(0xd000_0000 + number))
}

pub(crate) fn drone_id(number: u128) -> DroneId {
    DroneId(Uuid::from_u128(number))
}

/// An idle drone at home, full.
pub(crate) fn drone(number: u128) -> Drone {
    Drone {
        id: drone_id(number),
        base_id: "north".parse().unwrap(),
        base_position: HOME,
        position: HOME,
        battery: 1.0,
        airframe: FRAME,
        status: DroneStatus::Idle,
        hold: None,
        last_seen_ms: None,
        last_sequence: 0,
        changed: 1,
    }
}

pub(crate) fn facts(base: &str) -> RegisterDrone {
    RegisterDrone {
        base_id: base.parse().unwrap(),
        base_position: HOME,
        position: HOME,
        battery: 1.0,
        payload_kg: FRAME.payload_kg,
        range_m: FRAME.range_m,
        speed_mps: FRAME.speed_mps,
    }
}

pub(crate) fn registration(number: u128, base: &str) -> Registration {
    Registration { drone_id: drone_id(number), facts: facts(base), may_move: false }
}

pub(crate) fn trip() -> Trip {
    Trip { pickup: PICKUP, dropoff: DROPOFF, load_kg: 1.0 }
}

/// A reserve command with fence 1 and all the time in the world.
pub(crate) fn reserve(delivery_id: DeliveryId, attempt: u32) -> ReserveDrone {
    ReserveDrone {
        delivery_id,
        attempt,
        fence: 1,
        step_deadline: now() + Duration::hours(1),
        customer_id: "alice".parse().unwrap(),
        home_region: default_region(),
        pickup: PICKUP,
        dropoff: DROPOFF,
        weight_kg: 1.0,
        expedited: false,
        requested_at: now(),
        deadline: now() + Duration::hours(1),
    }
}

pub(crate) fn release(delivery_id: DeliveryId, attempt: u32) -> ReleaseDrone {
    ReleaseDrone { delivery_id, attempt, fence: 1, reason: "cancelled".to_owned() }
}

pub(crate) fn fix(drone: &Drone, sequence: u64) -> PositionFix {
    PositionFix { position: drone.position, battery: drone.battery, at: now(), sequence }
}

/// A report without a mission.
pub(crate) fn report(number: u128, sequence: u64) -> DroneReport {
    let fix = fix(&drone(number), sequence);
    DroneReport { drone_id: drone_id(number), delivery_id: None, attempt: None, fix, failed: false }
}

/// As the drone itself sends it.
pub(crate) fn spoken(said: DroneReport) -> Report {
    Report { said, base: None }
}

pub(crate) fn record(delivery_id: DeliveryId, stage: Stage, attempt: u32) -> DeliveryRecord {
    DeliveryRecord {
        delivery_id,
        customer_id: "alice".parse().unwrap(),
        home_region: default_region(),
        version: 1,
        stage,
        attempt,
        pickup: PICKUP,
        dropoff: DROPOFF,
        package: PackageSpec { size: PackageSize::Small, weight_kg: 1.0, tag: None, description: None },
        expedited: false,
        confirmation: contracts::api::Confirmation::None,
        requested_at: now(),
        deadline: now(),
        updated_at: now(),
        finished_at: None,
        drone: None,
        stages: Vec::new(),
        end_reason: None,
        confirmation_missing: false,
    }
}
