//! Deliveries that tests are made of.

use chrono::Duration;
use contracts::{
    Coordinate, DeliveryId, Stage, Timestamp,
    api::{Confirmation, PackageSize, PackageSpec, default_region},
    events::{DeliveryEvent, DeliveryEventKind, DeliveryRecord, StageEntry},
};
use uuid::Uuid;

use crate::domain::FinishedDelivery;

/// Seconds after the day on which these tests play.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::days(20_000) + Duration::seconds(seconds)
}

pub(crate) fn id(number: u128) -> DeliveryId {
    DeliveryId(Uuid::from_u128(number))
}

/// A customer's delivery that was completed at that time.
pub(crate) fn finished(number: u128, customer: &str, finished_at: Timestamp) -> DeliveryRecord {
    DeliveryRecord {
        delivery_id: id(number),
        customer_id: customer.parse().unwrap(),
        home_region: default_region(),
        version: 5,
        stage: Stage::Completed,
        attempt: 1,
        pickup: Coordinate { latitude: 1.0, longitude: 2.0 },
        dropoff: Coordinate { latitude: 1.1, longitude: 2.0 },
        package: PackageSpec {
            size: PackageSize::Small,
            weight_kg: 0.1,
            tag: None,
            description: Some("it's \"glass\" ⚠".to_owned()),
        },
        expedited: false,
        confirmation: Confirmation::None,
        requested_at: finished_at - Duration::minutes(10),
        deadline: finished_at + Duration::minutes(20),
        updated_at: finished_at,
        finished_at: Some(finished_at),
        drone: None,
        stages: vec![StageEntry { stage: Stage::Completed, attempt: 1, at: finished_at }],
        end_reason: None,
        confirmation_missing: false,
    }
}

pub(crate) fn event(kind: DeliveryEventKind, record: &DeliveryRecord) -> DeliveryEvent {
    DeliveryEvent { id: Uuid::nil(), time: record.updated_at, kind, data: record.clone() }
}

/// The record as it is stored.
pub(crate) fn row(record: &DeliveryRecord) -> FinishedDelivery {
    FinishedDelivery::of(&event(DeliveryEventKind::DeliveryCompleted, record).encode()).unwrap().unwrap()
}
