//! What drones and base stations send: registration and telemetry.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{FieldError, check_coordinate};
use crate::{BaseId, Coordinate, DeliveryId, DroneId, Stage, Timestamp};

/// One line of `POST /api/telemetry`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TelemetryLine {
    /// Who reports.
    pub drone_id: DroneId,
    /// The mission that it flies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery_id: Option<DeliveryId>,
    /// That mission's attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Grows per drone for ever; a millisecond clock will do.
    pub sequence: u64,
    /// The drone's time; more than 10 minutes off is refused.
    pub at: DateTime<Utc>,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
    /// 0 (empty) to 1 (full).
    pub battery: f64,
    /// HeadedToPickup, HeadedToDropoff, Completed, or Failed for a drone that is broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
}

/// How far a report's `at` may be off, in minutes.
pub const MAX_CLOCK_OFF_MINUTES: i64 = 10;

impl TelemetryLine {
    /// The place that it reports.
    pub fn position(&self) -> Coordinate {
        Coordinate { latitude: self.latitude, longitude: self.longitude }
    }

    /// The first thing that is wrong with it, at `now`.
    pub fn fault(&self, now: Timestamp) -> Option<FieldError> {
        if let Some((field, message)) = self.position().fault() {
            return Some(FieldError::new(field, message));
        }
        if !(0.0..=1.0).contains(&self.battery) {
            return Some(FieldError::new("battery", "must be between 0 and 1"));
        }
        if self.sequence == 0 || i64::try_from(self.sequence).is_err() {
            return Some(FieldError::new("sequence", "must be between 1 and 2^63 - 1"));
        }
        if (self.at - now).abs() > chrono::Duration::minutes(MAX_CLOCK_OFF_MINUTES) {
            return Some(FieldError::new("at", "must be within 10 minutes of now"));
        }
        if self.delivery_id.is_some() != self.attempt.is_some() {
            return Some(FieldError::new("attempt", "must be given exactly where delivery_id is"));
        }
        match self.stage {
            Some(Stage::Failed) => None,
            Some(stage) if !stage.is_flight() => Some(FieldError::new("stage", "is not a stage of a flight")),
            Some(_) if self.delivery_id.is_none() => Some(FieldError::new("delivery_id", "must be given with a stage")),
            _ => None,
        }
    }
}

/// The answer to telemetry: what was accepted is stored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TelemetryAnswer {
    /// Lines that were stored.
    pub accepted: usize,
    /// Lines that changed nothing.
    pub stale: usize,
    /// Lines that are at fault, or (retryable) that could not be stored now.
    pub rejected: Vec<RejectedLine>,
}

/// One line that was not stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RejectedLine {
    /// The line's number, from 1.
    pub line: usize,
    /// Why.
    pub reason: String,
    /// Whether the same line may be accepted later.
    pub retryable: bool,
}

/// The reason of a line whose drone the caller does not run: nobody registered it, or it is somebody else's. Which of
/// the two is not said. A base station that should have that drone registers it again.
pub const UNKNOWN_DRONE_REASON: &str = "drone_id: no such drone of yours";

/// `PUT /api/fleet/{drone_id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterDrone {
    /// Its home.
    pub base_id: BaseId,
    /// Where its home is.
    pub base_position: Coordinate,
    /// Where it is now.
    pub position: Coordinate,
    /// 0 (empty) to 1 (full).
    pub battery: f64,
    /// The heaviest package, in kilograms.
    pub payload_kg: f64,
    /// How far a full battery carries it empty, in metres.
    pub range_m: f64,
    /// Cruising speed in metres a second.
    pub speed_mps: f64,
}

impl RegisterDrone {
    /// Everything that is wrong with it.
    pub fn faults(&self) -> Vec<FieldError> {
        let mut faults = Vec::new();
        check_coordinate("base_position", &self.base_position, &mut faults);
        check_coordinate("position", &self.position, &mut faults);
        if !(0.0..=1.0).contains(&self.battery) {
            faults.push(FieldError::new("battery", "must be between 0 and 1"));
        }
        let limits = [
            ("payload_kg", self.payload_kg, 1_000.0),
            ("range_m", self.range_m, 1_000_000.0),
            ("speed_mps", self.speed_mps, 10_000.0),
        ];
        for (field, value, most) in limits {
            if !(value > 0.0 && value <= most) {
                faults.push(FieldError::new(field, format!("must be more than 0 and at most {most}")));
            }
        }
        faults
    }
}
