//! Packages and events that tests are made of.

use chrono::Duration;
use contracts::{
    Coordinate, CustomerId, DeliveryId, Stage, Timestamp,
    api::{Confirmation, PackageSize, PackageSpec, default_region},
    commands::{RegisterPackage, WithdrawPackage},
    events::{DeliveryEvent, DeliveryEventKind, DeliveryRecord, StageEntry},
};
use uuid::Uuid;

use crate::domain::Command;

/// Seconds after the day on which these tests play.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::days(20_000) + Duration::seconds(seconds)
}

pub(crate) fn id(number: u128) -> DeliveryId {
    DeliveryId(Uuid::from_u128(number))
}

fn owner() -> CustomerId {
    "alice".parse().unwrap()
}

fn spec() -> PackageSpec {
    PackageSpec { size: PackageSize::Medium, weight_kg: 1.25, tag: None, description: None }
}

pub(crate) fn register(number: u128, fence: u64) -> Command {
    Command::Register(RegisterPackage {
        delivery_id: id(number),
        attempt: 1,
        fence,
        step_deadline: at(60),
        customer_id: owner(),
        home_region: default_region(),
        package: spec(),
    })
}

/// A register with a description.
pub(crate) fn described(number: u128, description: &str) -> Command {
    let Command::Register(mut command) = register(number, 1) else { unreachable!() };
    command.package.description = Some(description.to_owned());
    Command::Register(command)
}

pub(crate) fn withdraw(number: u128, fence: u64) -> Command {
    Command::Withdraw(WithdrawPackage {
        delivery_id: id(number),
        attempt: 1,
        fence,
        customer_id: owner(),
        home_region: default_region(),
        package: spec(),
    })
}

/// An event of a delivery that has passed through `stages`.
pub(crate) fn delivery_event(number: u128, kind: DeliveryEventKind, stages: &[Stage]) -> DeliveryEvent {
    let stage = match kind {
        DeliveryEventKind::DeliveryCompleted => Stage::Completed,
        DeliveryEventKind::DeliveryCancelled => Stage::Cancelled,
        DeliveryEventKind::DeliveryRejected => Stage::Rejected,
        DeliveryEventKind::DeliveryFailed => Stage::Failed,
        DeliveryEventKind::DeliveryRequested
        | DeliveryEventKind::DeliveryScheduled
        | DeliveryEventKind::DeliveryRescheduled => stages.last().copied().unwrap_or(Stage::Requested),
    };
    let data = DeliveryRecord {
        delivery_id: id(number),
        customer_id: owner(),
        home_region: default_region(),
        version: 1 + stages.len() as u64,
        stage,
        attempt: 1,
        pickup: Coordinate { latitude: 1.0, longitude: 2.0 },
        dropoff: Coordinate { latitude: 1.1, longitude: 2.0 },
        package: spec(),
        expedited: false,
        confirmation: Confirmation::None,
        requested_at: at(0),
        deadline: at(1_800),
        updated_at: at(5),
        finished_at: stage.is_terminal().then(|| at(5)),
        drone: None,
        stages: stages.iter().map(|stage| StageEntry { stage: *stage, attempt: 1, at: at(1) }).collect(),
        end_reason: None,
        confirmation_missing: false,
    };
    DeliveryEvent { id: Uuid::from_u128(number << 8 | kind as u128), time: at(5), kind, data }
}
