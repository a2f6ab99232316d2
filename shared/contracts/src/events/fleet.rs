//! `fleet.events`: what became of a drone and its reservation.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Event, EventData, Topic, event_kinds};
use crate::{CustomerId, DeliveryId, DroneId, Region, commands::AssignedDrone};

event_kinds!(
    /// What can happen to a drone.
    FleetEventKind {
        /// Reserved for an attempt of a delivery.
        DroneReserved,
        /// No longer reserved.
        DroneReleased,
        /// Out of service; an attempt it was reserved for is lost.
        DroneFailed,
    }
);

/// A drone and the reservation that the event is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DroneRecord {
    /// The drone.
    pub drone_id: DroneId,
    /// The drone as a delivery sees it.
    pub drone: AssignedDrone,
    /// The delivery that it is, or was, reserved for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery_id: Option<DeliveryId>,
    /// That delivery's attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// That delivery's customer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<CustomerId>,
    /// That delivery's region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home_region: Option<Region>,
    /// Why, for DroneFailed and DroneReleased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When.
    pub at: DateTime<Utc>,
}

impl EventData for DroneRecord {
    type Kind = FleetEventKind;
    const TOPIC: Topic = Topic::Fleet;
    const SOURCE: &'static str = "fleet";
    fn key(&self) -> String {
        self.drone_id.to_string()
    }
}

/// An event about a drone.
pub type FleetEvent = Event<DroneRecord>;
