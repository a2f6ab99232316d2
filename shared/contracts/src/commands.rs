//! What services ask of each other over HTTP. Commands are arrays: one request, N commands, N outcomes in order.
//!
//! Every command of the saga carries the lease's fence; a participant refuses a lower fence than it has seen for that
//! delivery, a step whose deadline is past, and the do of a step whose undo it has seen.

mod reports;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    BaseId, Coordinate, CustomerId, DeliveryId, DroneId, Region, Stage,
    api::{Confirmation, PackageSpec},
    events::{DeliveryRecord, FlightProgress, lenient::EventCoordinate},
    flight::Airframe,
};

pub use reports::*;

/// The most commands in one request: about a megabyte of JSON, and a batch that a store writes in milliseconds.
pub const MAX_COMMANDS: usize = 512;

/// A request: commands of one kind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Commands<C> {
    /// At most [`MAX_COMMANDS`].
    pub commands: Vec<C>,
}

/// The answer: one outcome for each command, in the same order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcomes<O> {
    /// As many as there were commands.
    pub outcomes: Vec<O>,
}

/// Why a participant refuses a command for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Refusal {
    /// The step was undone, or the attempt is over: a later do is too late.
    Undone,
    /// Another holder of the lease has been heard since.
    StaleFence,
    /// The step's deadline is past.
    StepExpired,
    /// A later attempt of the same delivery is known.
    Superseded,
}

/// The drone of an attempt, as a delivery keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AssignedDrone {
    /// The drone.
    pub drone_id: DroneId,
    /// Its home.
    pub base_id: BaseId,
    /// What it can do.
    pub airframe: Airframe,
    /// Where it was when it was reserved.
    #[serde(deserialize_with = "EventCoordinate::deserialize")]
    pub position: Coordinate,
    /// Its battery then, 0 to 1.
    pub battery: f64,
}

// ---- package ----

/// `POST /commands/register` of package.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegisterPackage {
    /// The package's id.
    pub delivery_id: DeliveryId,
    /// The delivery's attempt.
    pub attempt: u32,
    /// The lease's fence.
    pub fence: u64,
    /// Refused after this.
    pub step_deadline: DateTime<Utc>,
    /// Whose it is.
    pub customer_id: CustomerId,
    /// The region that owns it.
    pub home_region: Region,
    /// What it is.
    pub package: PackageSpec,
}

/// `POST /commands/withdraw` of package: the undo of register; leaves a tombstone where nothing was registered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WithdrawPackage {
    /// The package's id.
    pub delivery_id: DeliveryId,
    /// The delivery's attempt.
    pub attempt: u32,
    /// The lease's fence.
    pub fence: u64,
    /// Whose it is.
    pub customer_id: CustomerId,
    /// The region that owns it.
    pub home_region: Region,
    /// What it is: a tombstone is whole, too.
    pub package: PackageSpec,
}

/// The outcome of a package command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome")]
pub enum PackageOutcome {
    /// It is so, now or since an earlier call.
    Done,
    /// It will never be.
    Refused {
        /// Why.
        reason: Refusal,
    },
    /// Not now; ask again with the same command.
    Unavailable,
}

// ---- fleet ----

/// `POST /commands/reserve` of fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReserveDrone {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// Its attempt.
    pub attempt: u32,
    /// The lease's fence.
    pub fence: u64,
    /// Refused after this.
    pub step_deadline: DateTime<Utc>,
    /// Whose delivery.
    pub customer_id: CustomerId,
    /// The region that owns it.
    pub home_region: Region,
    /// Where the package waits.
    pub pickup: Coordinate,
    /// Where it goes.
    pub dropoff: Coordinate,
    /// Its weight in kilograms.
    pub weight_kg: f64,
    /// First in the waiting line.
    pub expedited: bool,
    /// Its age in the waiting line.
    pub requested_at: DateTime<Utc>,
    /// When it leaves the waiting line.
    pub deadline: DateTime<Utc>,
}

/// The outcome of reserve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome")]
pub enum ReserveOutcome {
    /// A drone is reserved, now or since an earlier call.
    Reserved {
        /// Which.
        drone: AssignedDrone,
    },
    /// In the waiting line; the grant comes as DroneReserved.
    Waiting,
    /// It will never be.
    Refused {
        /// Why.
        reason: Refusal,
    },
    /// Not now; ask again with the same command.
    Unavailable,
}

/// `POST /commands/release` of fleet: the undo of reserve; leaves a tombstone where nothing was reserved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseDrone {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// Its attempt: a release never names only a drone.
    pub attempt: u32,
    /// The lease's fence.
    pub fence: u64,
    /// Why.
    pub reason: String,
}

/// The outcome of release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome")]
pub enum ReleaseOutcome {
    /// Not reserved any more.
    Done,
    /// Another holder of the lease has been heard since.
    Refused {
        /// Why.
        reason: Refusal,
    },
    /// Not now; ask again with the same command.
    Unavailable,
}

// ---- tracking ----

/// `POST /commands/open-flight` of tracking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenFlight {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// Its attempt.
    pub attempt: u32,
    /// The lease's fence.
    pub fence: u64,
    /// Refused after this.
    pub step_deadline: DateTime<Utc>,
    /// Whose delivery.
    pub customer_id: CustomerId,
    /// The region that owns it.
    pub home_region: Region,
    /// Who flies.
    pub drone: AssignedDrone,
    /// Where the package waits.
    pub pickup: Coordinate,
    /// Where it goes.
    pub dropoff: Coordinate,
    /// The package's weight in kilograms.
    pub weight_kg: f64,
    /// The proof of delivery that the drone must bring.
    pub confirmation: Confirmation,
    /// The latest drop-off.
    pub deadline: DateTime<Utc>,
}

/// The outcome of open-flight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome")]
pub enum OpenOutcome {
    /// It is open, now or since an earlier call.
    Opened,
    /// It will never be.
    Refused {
        /// Why.
        reason: Refusal,
    },
    /// Not now; ask again with the same command.
    Unavailable,
}

/// `POST /commands/close-flight` of tracking: atomic, and the undo of open-flight; leaves a tombstone where no flight
/// was open, so that a later open is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CloseFlight {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// Its attempt: closes this one and all before it.
    pub attempt: u32,
    /// The lease's fence.
    pub fence: u64,
    /// Closes only a flight whose progress is before this stage: HeadedToDropoff to cancel or replace, Completed to
    /// fail or expire.
    pub before: Stage,
}

/// The outcome of close-flight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome")]
pub enum CloseOutcome {
    /// Closed, now or since an earlier call; no report changes it any more.
    Closed {
        /// How far it had come; null where no flight had been opened.
        progress: Option<FlightProgress>,
    },
    /// It is already past `before`, and stays open.
    TooLate {
        /// How far it has come.
        progress: FlightProgress,
    },
    /// Another holder of the lease has been heard since.
    Refused {
        /// Why.
        reason: Refusal,
    },
    /// Not now; ask again with the same command.
    Unavailable,
}

/// An open flight of a base's drone: what a drone is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Mission {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// Who flies it.
    pub drone_id: DroneId,
    /// Where that drone is at home.
    pub base_id: BaseId,
    /// The delivery's attempt, repeated in every report.
    pub attempt: u32,
    /// Where the package waits.
    pub pickup: Coordinate,
    /// Where it goes.
    pub dropoff: Coordinate,
    /// Its weight in kilograms.
    pub weight_kg: f64,
    /// The proof of delivery to bring.
    pub confirmation: Confirmation,
    /// The furthest stage that was reported.
    pub stage: Stage,
    /// The drone's own last report of this flight: where to go on after a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sequence: Option<u64>,
    /// The last reported position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_position: Option<Coordinate>,
}

/// One message of the missions stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MissionUpdate {
    /// Every mission, at the stream's start or after a gap: forget what is not in it.
    Snapshot {
        /// All of them.
        missions: Vec<Mission>,
    },
    /// A new or changed mission.
    Assigned {
        /// The mission.
        mission: Mission,
    },
    /// The mission is over: go home.
    Recalled {
        /// The delivery.
        delivery_id: DeliveryId,
        /// Who flew it.
        drone_id: DroneId,
        /// Where that drone is at home.
        base_id: BaseId,
        /// Its attempt.
        attempt: u32,
    },
}

/// What delivery tells tracking of a delivery when they compare notes: `POST /queries/statuses` of delivery answers
/// with the whole record, or null for an id that it does not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeliveryStatus {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// As it stands.
    pub record: Option<DeliveryRecord>,
}

/// What tracking tells delivery of a flight: `POST /queries/flights` of tracking; null for one that it does not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlightStatus {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// How far it has come.
    pub progress: Option<FlightProgress>,
    /// Whether reports still count.
    pub open: bool,
}

/// A question about many deliveries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ids {
    /// At most [`MAX_COMMANDS`].
    pub ids: Vec<DeliveryId>,
}

/// One drone of the fleet: what fleet answers and the fleet's stream carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FleetDrone {
    /// The drone.
    pub drone_id: DroneId,
    /// Its home.
    pub base_id: BaseId,
    /// Where it is.
    pub position: Coordinate,
    /// 0 (empty) to 1 (full).
    pub battery: f64,
    /// What it can do.
    pub airframe: Airframe,
    /// Where its base is.
    pub base_position: Coordinate,
    /// idle, reserved, failed or retired.
    pub status: DroneStatus,
    /// The delivery that it is reserved for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery_id: Option<DeliveryId>,
    /// Its last report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_at: Option<DateTime<Utc>>,
}

/// A question about many drones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DroneIds {
    /// As many as one request of telemetry may have lines, at most.
    pub ids: Vec<DroneId>,
}

/// Where a drone is based: `POST /queries/bases` of fleet answers with one for each drone that it knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroneBase {
    /// The drone.
    pub drone_id: DroneId,
    /// Its home.
    pub base_id: BaseId,
}

/// What a drone is free to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DroneStatus {
    /// Free.
    Idle,
    /// Flying for a delivery.
    Reserved,
    /// Out of service until it reports without a mission.
    Failed,
    /// Gone for good.
    Retired,
}

impl DroneStatus {
    /// The status's name in stores and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Reserved => "reserved",
            Self::Failed => "failed",
            Self::Retired => "retired",
        }
    }

    /// The status of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Idle, Self::Reserved, Self::Failed, Self::Retired].into_iter().find(|status| status.as_str() == name)
    }
}
