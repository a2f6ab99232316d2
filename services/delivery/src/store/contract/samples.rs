//! Deliveries and changes to try a store with.

use std::sync::Arc;

use chrono::Duration;
use contracts::{
    Coordinate, DeliveryId, Stage, Timestamp,
    api::{Confirmation, CreateDelivery, PackageSize, PackageSpec, StepEntry, default_region},
    events::{DeliveryEventKind, StageEntry},
};
use uuid::Uuid;

use crate::{
    domain::{Changes, Delivery},
    store::{Change, IdempotencyKey, LeaseChange},
};

/// That many seconds after a beginning.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::days(20_000) + Duration::seconds(seconds)
}

/// Ids are ordered by their numbers.
pub(crate) fn id(number: u128) -> DeliveryId {
    DeliveryId(Uuid::from_u128(number))
}

/// A delivery that `customer` asked for at that second.
pub(crate) fn delivery(number: u128, customer: &str) -> Delivery {
    let wish = CreateDelivery {
        pickup: Coordinate { latitude: 1.0, longitude: 2.0 },
        dropoff: Coordinate { latitude: 1.1, longitude: 2.000_000_000_000_1 },
        package: PackageSpec {
            size: PackageSize::Small,
            weight_kg: 0.1 + 0.2,
            tag: Some("it's \"quoted\"".to_owned()),
            description: Some("ünïcode \u{1F681} \\ \n".to_owned()),
        },
        deadline: None,
        expedited: true,
        confirmation: Confirmation::None,
    };
    let now = at(i64::try_from(number).unwrap());
    Delivery::request(id(number), customer.parse().unwrap(), default_region(), wish, now).0
}

/// A new delivery of alice: nobody's lease, due at its request.
pub(crate) fn new(number: u128) -> Change {
    new_of(number, "alice")
}

pub(super) fn new_of(number: u128, customer: &str) -> Change {
    let delivery = delivery(number, customer);
    let changes = Changes {
        events: vec![DeliveryEventKind::DeliveryRequested],
        stages: delivery.record.stages.clone(),
        steps: Vec::new(),
    };
    let due = Some(delivery.record.requested_at);
    change(&delivery, 0, &changes, due, LeaseChange::Keep)
}

pub(super) fn with_key(mut change: Change, key: &str, body: &str) -> Change {
    change.key = Some(IdempotencyKey { key: key.to_owned(), body_hash: body.to_owned() });
    change
}

/// `read` one version on, with a line in both logs and an event; due at `due`.
pub(super) fn next(read: &Delivery, due: Option<Timestamp>, lease: LeaseChange) -> Change {
    let mut delivery = read.clone();
    delivery.record.version += 1;
    delivery.record.updated_at = read.record.updated_at + Duration::seconds(1);
    let entry = StageEntry { stage: Stage::Scheduled, attempt: 1, at: at(50) };
    delivery.record.stage = Stage::Scheduled;
    delivery.record.stages.push(entry);
    let step = StepEntry {
        step: "schedule".to_owned(),
        attempt: 1,
        outcome: "done".to_owned(),
        at: at(50) + Duration::microseconds(123_456),
        tries: 1,
    };
    let changes = Changes {
        events: vec![DeliveryEventKind::DeliveryScheduled],
        stages: vec![entry],
        steps: vec![step.clone(), StepEntry { step: "and_so_on".to_owned(), ..step }],
    };
    change(&delivery, read.record.version, &changes, due, lease)
}

/// `read`, over at that second.
pub(crate) fn ended(read: &Delivery, second: i64) -> Change {
    let mut delivery = read.clone();
    delivery.record.version += 1;
    delivery.record.stage = Stage::Cancelled;
    delivery.record.finished_at = Some(at(second));
    let entry = StageEntry { stage: Stage::Cancelled, attempt: 1, at: at(second) };
    delivery.record.stages.push(entry);
    let changes =
        Changes { events: vec![DeliveryEventKind::DeliveryCancelled], stages: vec![entry], steps: Vec::new() };
    change(&delivery, read.record.version, &changes, None, LeaseChange::Keep)
}

fn change(
    delivery: &Delivery,
    expected_version: u64,
    changes: &Changes,
    due: Option<Timestamp>,
    lease: LeaseChange,
) -> Change {
    let number = delivery.record.delivery_id.0.as_u128() << 32 | u128::from(delivery.record.version);
    let events = delivery.events(changes, || Uuid::from_u128(number));
    Change {
        delivery: delivery.clone(),
        expected_version,
        stages: changes.stages.clone(),
        steps: changes.steps.clone(),
        events: events.iter().map(contracts::events::Event::encode).collect(),
        due,
        lease,
        key: None,
    }
}

pub(super) fn hold(fence: u64, owner: &str, until: i64) -> LeaseChange {
    LeaseChange::Hold { fence, owner: Arc::from(owner), until: at(until) }
}
