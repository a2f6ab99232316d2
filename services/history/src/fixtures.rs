//! Deliveries, positions and their events, for the tests.

use contracts::{
    Coordinate, DeliveryId, Stage, Timestamp,
    api::{Confirmation, PackageSize, PackageSpec, default_region},
    events::{
        DeliveryEvent, DeliveryEventKind, DeliveryRecord, PositionEvent, PositionEventKind, PositionFix,
        PositionSample, StageEntry,
    },
};
use uuid::{Builder, Uuid};

/// 2025-03-DAY at HOUR o'clock.
pub(crate) fn at(day: i64, hour: i64) -> Timestamp {
    let start: Timestamp = "2025-03-01T00:00:00Z".parse().unwrap();
    start + chrono::Duration::days(day - 1) + chrono::Duration::hours(hour)
}

/// The id of a delivery that was requested at a time; `number` tells those of one millisecond apart.
pub(crate) fn id(number: u64, requested_at: Timestamp) -> DeliveryId {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    let millis = u64::try_from(requested_at.timestamp_millis()).unwrap();
    DeliveryId(Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
}

/// A delivery that was completed at a time, half an hour after its request.
pub(crate) fn finished(number: u64, customer: &str, finished_at: Timestamp) -> DeliveryRecord {
    let requested_at = finished_at - chrono::Duration::minutes(30);
    let stages = [Stage::Requested, Stage::Scheduled, Stage::HeadedToPickup, Stage::HeadedToDropoff, Stage::Completed];
    let entry =
        |(minutes, stage)| StageEntry { stage, attempt: 1, at: requested_at + chrono::Duration::minutes(minutes) };
    DeliveryRecord {
        delivery_id: id(number, requested_at),
        customer_id: customer.parse().unwrap(),
        home_region: default_region(),
        version: 5,
        stage: Stage::Completed,
        attempt: 1,
        pickup: Coordinate { latitude: 1.0, longitude: 2.0 },
        dropoff: Coordinate { latitude: 1.5, longitude: 2.5 },
        package: PackageSpec { size: PackageSize::Small, weight_kg: 0.5, tag: None, description: Some("tea".into()) },
        expedited: false,
        confirmation: Confirmation::None,
        requested_at,
        deadline: requested_at + chrono::Duration::minutes(60),
        updated_at: finished_at,
        finished_at: Some(finished_at),
        drone: None,
        stages: (0..).zip(stages).map(entry).collect(),
        end_reason: None,
        confirmation_missing: false,
    }
}

/// The event of its completion.
pub(crate) fn delivery_event(record: &DeliveryRecord) -> DeliveryEvent {
    DeliveryEvent {
        id: Uuid::from_u128(record.delivery_id.0.as_u128() ^ 1),
        time: record.updated_at,
        kind: DeliveryEventKind::DeliveryCompleted,
        data: record.clone(),
    }
}

/// A position on the way of delivery `number`.
pub(crate) fn position_event(number: u64, attempt: u32, sequence: u64, recorded_at: Timestamp) -> PositionEvent {
    let sample = PositionSample {
        delivery_id: id(number, at(1, 0)),
        attempt,
        customer_id: "alice".parse().unwrap(),
        home_region: default_region(),
        drone_id: contracts::DroneId(Uuid::from_u128(9)),
        stage: Stage::HeadedToPickup,
        fix: PositionFix {
            position: Coordinate { latitude: 1.0, longitude: 2.0 },
            battery: 0.8,
            at: recorded_at,
            sequence,
        },
        recorded_at,
    };
    let id = Uuid::from_u128(u128::from(number) << 64 | u128::from(attempt) << 32 | u128::from(sequence));
    PositionEvent { id, time: recorded_at, kind: PositionEventKind::PositionSampled, data: sample }
}

/// A clock that stands still until a test moves it.
pub(crate) struct StillClock {
    now: std::sync::Mutex<Timestamp>,
    moved: tokio::sync::Notify,
    ids: std::sync::atomic::AtomicU64,
}

impl StillClock {
    /// A clock that shows `now`.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { now: now.into(), moved: tokio::sync::Notify::new(), ids: 0.into() }
    }

    /// Moves it.
    pub(crate) fn advance(&self, by: chrono::Duration) {
        *self.now.lock().unwrap() += by;
        self.moved.notify_waiters();
    }
}

#[async_trait::async_trait]
impl contracts::Clock for StillClock {
    fn now(&self) -> Timestamp {
        *self.now.lock().unwrap()
    }

    async fn sleep_until(&self, deadline: Timestamp) {
        loop {
            let moved = self.moved.notified();
            if self.now() >= deadline {
                return;
            }
            moved.await;
        }
    }

    fn new_id(&self) -> Uuid {
        let number = self.ids.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        id(number, self.now()).0
    }
}
