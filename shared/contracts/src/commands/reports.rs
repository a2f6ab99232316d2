//! What drones report, and what becomes of it.
//!
//! A report is written flat, with the fields of its fix beside the others. It is read as a plain structure of that
//! form, since serde reads a flattened one through a buffer, which costs more than all the rest of a report.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Coordinate, DeliveryId, DroneId, Stage,
    events::{PositionFix, lenient::EventCoordinate},
};

/// One drone's state as it reports it: `POST /commands/reports` of fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "DroneReportLine")]
pub struct DroneReport {
    /// The drone.
    pub drone_id: DroneId,
    /// The mission that it flies, if any.
    pub delivery_id: Option<DeliveryId>,
    /// That mission's attempt.
    pub attempt: Option<u32>,
    /// Where, how full, when, and the report's number.
    #[serde(flatten)]
    pub fix: PositionFix,
    /// The drone says that it is broken.
    pub failed: bool,
}

/// A [`DroneReport`] as it is read.
#[derive(Deserialize)]
struct DroneReportLine {
    drone_id: DroneId,
    #[serde(default)]
    delivery_id: Option<DeliveryId>,
    #[serde(default)]
    attempt: Option<u32>,
    #[serde(deserialize_with = "EventCoordinate::deserialize")]
    position: Coordinate,
    battery: f64,
    at: DateTime<Utc>,
    sequence: u64,
    #[serde(default)]
    failed: bool,
}

impl From<DroneReportLine> for DroneReport {
    fn from(line: DroneReportLine) -> Self {
        let DroneReportLine { drone_id, delivery_id, attempt, position, battery, at, sequence, failed } = line;
        Self { drone_id, delivery_id, attempt, fix: PositionFix { position, battery, at, sequence }, failed }
    }
}

/// A drone's report about its flight: `POST /commands/reports` of tracking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "FlightReportLine")]
pub struct FlightReport {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// Its attempt: another one's reports are stale.
    pub attempt: u32,
    /// Who reports.
    pub drone_id: DroneId,
    /// The drone's current stage.
    pub stage: Option<Stage>,
    /// Where, how full, when, and the report's number.
    #[serde(flatten)]
    pub fix: PositionFix,
}

/// A [`FlightReport`] as it is read.
#[derive(Deserialize)]
struct FlightReportLine {
    delivery_id: DeliveryId,
    attempt: u32,
    drone_id: DroneId,
    #[serde(default)]
    stage: Option<Stage>,
    #[serde(deserialize_with = "EventCoordinate::deserialize")]
    position: Coordinate,
    battery: f64,
    at: DateTime<Utc>,
    sequence: u64,
}

impl From<FlightReportLine> for FlightReport {
    fn from(line: FlightReportLine) -> Self {
        let FlightReportLine { delivery_id, attempt, drone_id, stage, position, battery, at, sequence } = line;
        Self { delivery_id, attempt, drone_id, stage, fix: PositionFix { position, battery, at, sequence } }
    }
}

/// What became of one report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome")]
pub enum ReportOutcome {
    /// Stored.
    Accepted,
    /// Older than what is known, repeated, or of another attempt: changed nothing.
    Stale,
    /// Wrong, and changed nothing.
    Rejected {
        /// Why.
        reason: ReportFault,
    },
    /// Not stored; send it again.
    Unavailable,
}

/// What can be wrong with a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReportFault {
    /// Nobody registered that drone.
    UnknownDrone,
    /// The drone does not fly that delivery.
    NotYourFlight,
    /// The caller does not run that drone.
    NotYourDrone,
    /// `at` is more than 10 minutes off.
    ClockOff,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn line() -> Value {
        json!({
            "drone_id": "0198c5a0-0000-7000-8000-00000000000d", "delivery_id": "0198c5a0-0000-7000-8000-000000000001",
            "attempt": 2, "position": {"latitude": 1.0, "longitude": 2.0}, "battery": 0.5,
            "at": "2026-01-01T00:00:00Z", "sequence": 7,
        })
    }

    #[test]
    fn reports_are_written_flat_and_read_as_they_are_written() {
        let mut written = line();
        written["failed"] = json!(true);
        let report: DroneReport = serde_json::from_value(written.clone()).unwrap();
        assert_eq!((report.fix.sequence, report.attempt, report.failed), (7, Some(2), true));
        assert_eq!(serde_json::to_value(&report).unwrap(), written);
        let mut written = line();
        written["stage"] = json!("HeadedToPickup");
        let report: FlightReport = serde_json::from_value(written.clone()).unwrap();
        assert_eq!((report.fix.battery, report.stage), (0.5, Some(Stage::HeadedToPickup)));
        assert_eq!(serde_json::to_value(&report).unwrap(), written);
    }

    #[test]
    fn a_newer_writers_fields_are_ignored_and_an_older_ones_are_not_missed() {
        let mut written = line();
        written["color"] = json!("red");
        written["position"]["altitude"] = json!(1);
        assert!(!serde_json::from_value::<DroneReport>(written.clone()).unwrap().failed);
        assert_eq!(serde_json::from_value::<FlightReport>(written.clone()).unwrap().stage, None);
        for optional in ["delivery_id", "attempt"] {
            written.as_object_mut().unwrap().remove(optional);
        }
        assert_eq!(serde_json::from_value::<DroneReport>(written).unwrap().delivery_id, None);
    }
}
