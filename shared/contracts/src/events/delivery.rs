//! `delivery.events`: what became of a delivery.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Event, EventData, Topic, event_kinds,
    lenient::{EventCoordinate, EventPackageSpec},
};
use crate::{
    Coordinate, CustomerId, DeliveryId, Region, Stage,
    api::{Confirmation, PackageSpec},
    commands::AssignedDrone,
};

event_kinds!(
    /// What can happen to a delivery.
    DeliveryEventKind {
        /// Accepted.
        DeliveryRequested,
        /// Drone reserved, flight open.
        DeliveryScheduled,
        /// Never scheduled: terminal.
        DeliveryRejected,
        /// Drop-off or deadline changed.
        DeliveryRescheduled,
        /// Called off before the pickup: terminal.
        DeliveryCancelled,
        /// Dropped off: terminal.
        DeliveryCompleted,
        /// Broken off: terminal.
        DeliveryFailed,
    }
);

/// One line of a delivery's stage log.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StageEntry {
    /// The stage that was reached.
    pub stage: Stage,
    /// In which attempt.
    pub attempt: u32,
    /// When: the drone's time for the stages of a flight, the owner's for the others.
    pub at: DateTime<Utc>,
}

/// A delivery, whole: what every delivery event carries, so that nobody needs a join.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeliveryRecord {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// Whose it is.
    pub customer_id: CustomerId,
    /// The region that owns it.
    pub home_region: Region,
    /// Grows with every change of the row; a consumer keeps the highest.
    pub version: u64,
    /// Where it stands.
    pub stage: Stage,
    /// The current reservation's number, from 1.
    pub attempt: u32,
    /// Where the package waits.
    #[serde(deserialize_with = "EventCoordinate::deserialize")]
    pub pickup: Coordinate,
    /// Where it goes.
    #[serde(deserialize_with = "EventCoordinate::deserialize")]
    pub dropoff: Coordinate,
    /// What is carried.
    #[serde(deserialize_with = "EventPackageSpec::deserialize")]
    pub package: PackageSpec,
    /// First in the waiting line.
    pub expedited: bool,
    /// The proof of delivery that was asked for.
    pub confirmation: Confirmation,
    /// When it was accepted.
    pub requested_at: DateTime<Utc>,
    /// The latest drop-off.
    pub deadline: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When it ended: the owner's commit time. Set exactly in the terminal stages; the lake's date comes from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<DateTime<Utc>>,
    /// The drone of the current attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drone: Option<AssignedDrone>,
    /// Every stage so far, oldest first.
    pub stages: Vec<StageEntry>,
    /// Why it ended, where that was not a drop-off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_reason: Option<String>,
    /// Completed without the proof that was asked for.
    #[serde(default)]
    pub confirmation_missing: bool,
}

impl EventData for DeliveryRecord {
    type Kind = DeliveryEventKind;
    const TOPIC: Topic = Topic::Delivery;
    const SOURCE: &'static str = "delivery";
    fn key(&self) -> String {
        self.delivery_id.key()
    }
}

/// An event about a delivery.
pub type DeliveryEvent = Event<DeliveryRecord>;
