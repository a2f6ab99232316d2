//! `tracking.events` and `tracking.positions`: how a flight goes.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Event, EventData, Topic, event_kinds, lenient::EventCoordinate};
use crate::{BaseId, Coordinate, CustomerId, DeliveryId, DroneId, Region, Stage};

event_kinds!(
    /// What can happen to a flight.
    TrackingEventKind {
        /// The drone reached a further stage.
        StageChanged,
    }
);

event_kinds!(
    /// What can happen to a position.
    PositionEventKind {
        /// Taken every 5 s of flight.
        PositionSampled,
    }
);

/// A stage of a flight and when the drone says it was reached.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StageTime {
    /// HeadedToPickup, HeadedToDropoff or Completed.
    pub stage: Stage,
    /// The drone's time.
    pub at: DateTime<Utc>,
}

/// A position report that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PositionFix {
    /// Where.
    #[serde(deserialize_with = "EventCoordinate::deserialize")]
    pub position: Coordinate,
    /// 0 (empty) to 1 (full).
    pub battery: f64,
    /// The drone's time.
    pub at: DateTime<Utc>,
    /// The report's number; grows per drone for ever.
    pub sequence: u64,
}

/// The progress of one attempt's flight, whole: every stage so far, with its time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FlightProgress {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// Its attempt.
    pub attempt: u32,
    /// Whose it is.
    pub customer_id: CustomerId,
    /// The region that owns it.
    pub home_region: Region,
    /// Who flies it.
    pub drone_id: DroneId,
    /// Where that drone is at home.
    pub base_id: BaseId,
    /// The furthest stage; Scheduled before the first report.
    pub stage: Stage,
    /// Every stage of the flight so far, in order.
    pub stages: Vec<StageTime>,
    /// The last accepted report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<PositionFix>,
    /// When it will reach the drop-off, by speed and distance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<DateTime<Utc>>,
}

impl EventData for FlightProgress {
    type Kind = TrackingEventKind;
    const TOPIC: Topic = Topic::Tracking;
    const SOURCE: &'static str = "tracking";
    fn key(&self) -> String {
        self.delivery_id.key()
    }
}

/// A position on the way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PositionSample {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// Its attempt.
    pub attempt: u32,
    /// Whose it is.
    pub customer_id: CustomerId,
    /// The region that owns it.
    pub home_region: Region,
    /// Who flies it.
    pub drone_id: DroneId,
    /// The stage at that time.
    pub stage: Stage,
    /// Where and when.
    #[serde(flatten)]
    pub fix: PositionFix,
    /// When tracking stored it. The lake's date comes from it.
    pub recorded_at: DateTime<Utc>,
}

impl EventData for PositionSample {
    type Kind = PositionEventKind;
    const TOPIC: Topic = Topic::Positions;
    const SOURCE: &'static str = "tracking";
    fn key(&self) -> String {
        self.delivery_id.key()
    }
}

/// An event about a flight.
pub type TrackingEvent = Event<FlightProgress>;

/// A sampled position.
pub type PositionEvent = Event<PositionSample>;
