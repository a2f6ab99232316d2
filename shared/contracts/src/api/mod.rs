//! The public HTTP API's bodies. Unknown fields are refused; every number is checked where it comes in.

mod drones;
mod health;
mod identity;
mod problem;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    BaseId, Coordinate, CustomerId, DeliveryId, DroneId, Region, Stage, Timestamp,
    events::{DeliveryRecord, FlightProgress, PackageState, StageEntry},
};

pub use drones::*;
pub use health::*;
pub use identity::*;
pub use problem::*;

/// The longest tag, in characters.
pub const MAX_TAG_CHARS: usize = 64;
/// The longest description, in characters.
pub const MAX_DESCRIPTION_CHARS: usize = 500;
/// The longest Idempotency-Key, in characters.
pub const MAX_IDEMPOTENCY_KEY_CHARS: usize = 128;
/// The most lines in one telemetry request.
pub const MAX_TELEMETRY_LINES: usize = 10_000;
/// The most items on a page.
pub const MAX_PAGE: usize = 100;
/// Items on a page where the caller does not say.
pub const DEFAULT_PAGE: usize = 20;

/// A package's size class; each has a weight limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PackageSize {
    /// Up to 1 kg.
    Small,
    /// Up to 3 kg.
    Medium,
    /// Up to 8 kg.
    Large,
}

impl PackageSize {
    /// The heaviest package of this size, in kilograms.
    pub const fn max_weight_kg(self) -> f64 {
        match self {
            Self::Small => 1.0,
            Self::Medium => 3.0,
            Self::Large => 8.0,
        }
    }

    /// The size's name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
        }
    }
}

/// The proof of delivery that a customer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Confirmation {
    /// None.
    #[default]
    None,
    /// A picture of the drop-off.
    Picture,
    /// The recipient's fingerprint.
    Fingerprint,
    /// The recipient's voice.
    Voice,
}

impl Confirmation {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Picture => "picture",
            Self::Fingerprint => "fingerprint",
            Self::Voice => "voice",
        }
    }
}

/// What is to be carried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PackageSpec {
    /// The size class.
    pub size: PackageSize,
    /// Kilograms, more than 0 and at most the size's limit.
    #[schema(exclusive_minimum = 0)]
    pub weight_kg: f64,
    /// The customer's own reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 64)]
    pub tag: Option<String>,
    /// What is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 500)]
    pub description: Option<String>,
}

impl PackageSpec {
    /// Everything that is wrong with it.
    pub fn faults(&self, path: &str, faults: &mut Vec<FieldError>) {
        let limit_kg = self.size.max_weight_kg();
        if !(self.weight_kg > 0.0 && self.weight_kg <= limit_kg) {
            let message = format!("must be more than 0 and at most {limit_kg} kg for a {} package", self.size.as_str());
            faults.push(FieldError::new(format!("{path}.weight_kg"), message));
        }
        check_text(&format!("{path}.tag"), self.tag.as_deref(), MAX_TAG_CHARS, faults);
        check_text(&format!("{path}.description"), self.description.as_deref(), MAX_DESCRIPTION_CHARS, faults);
    }
}

fn check_text(field: &str, text: Option<&str>, max_chars: usize, faults: &mut Vec<FieldError>) {
    let Some(text) = text else { return };
    if text.chars().count() > max_chars {
        faults.push(FieldError::new(field, format!("must have at most {max_chars} characters")));
    }
    if text.contains('\0') {
        faults.push(FieldError::new(field, "must not contain the NUL character"));
    }
}

/// Adds what is wrong with the place at `path`.
pub fn check_coordinate(path: &str, coordinate: &Coordinate, faults: &mut Vec<FieldError>) {
    if let Some((field, message)) = coordinate.fault() {
        faults.push(FieldError::new(format!("{path}.{field}"), message));
    }
}

/// `POST /api/deliveries`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDelivery {
    /// Where the package waits.
    pub pickup: Coordinate,
    /// Where it goes.
    pub dropoff: Coordinate,
    /// What is carried.
    pub package: PackageSpec,
    /// The latest drop-off; 30 minutes from now unless given.
    #[serde(default)]
    pub deadline: Option<DateTime<Utc>>,
    /// First in the waiting line.
    #[serde(default)]
    pub expedited: bool,
    /// The proof of delivery.
    #[serde(default)]
    pub confirmation: Confirmation,
}

/// The latest deadline that a customer may ask for, from now, in hours.
pub const MAX_DEADLINE_HOURS: i64 = 24;

impl CreateDelivery {
    /// Everything that is wrong with it, at `now`.
    pub fn faults(&self, now: Timestamp) -> Vec<FieldError> {
        let mut faults = Vec::new();
        check_coordinate("pickup", &self.pickup, &mut faults);
        check_coordinate("dropoff", &self.dropoff, &mut faults);
        if faults.is_empty() && self.pickup == self.dropoff {
            faults.push(FieldError::new("dropoff", "must differ from pickup"));
        }
        self.package.faults("package", &mut faults);
        if let Some(deadline) = self.deadline {
            let latest = now + chrono::Duration::hours(MAX_DEADLINE_HOURS);
            if deadline <= now || deadline > latest {
                let message = format!("must be in the future and at most {MAX_DEADLINE_HOURS} hours from now");
                faults.push(FieldError::new("deadline", message));
            }
        }
        if self.confirmation != Confirmation::None {
            faults.push(FieldError::new("confirmation", "only \"none\" is supported yet"));
        }
        faults
    }
}

/// The drone in a delivery's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DroneView {
    /// Which.
    pub drone_id: DroneId,
    /// Its home.
    pub base_id: BaseId,
    /// 0 (empty) to 1 (full); null where it is not known now.
    pub battery: Option<f64>,
}

/// The package in a delivery's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PackageView {
    /// What it is.
    #[serde(flatten)]
    pub spec: PackageSpec,
    /// Where it stands; null where that is not known now.
    pub state: Option<PackageState>,
}

/// A delivery, as answered to its owner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeliveryView {
    /// The delivery.
    pub id: DeliveryId,
    /// Where it stands.
    pub stage: Stage,
    /// The current reservation's number, from 1.
    pub attempt: u32,
    /// Where the package waits.
    pub pickup: Coordinate,
    /// Where it goes.
    pub dropoff: Coordinate,
    /// What is carried; null where package did not answer and delivery does not know.
    pub package: Option<PackageView>,
    /// The drone, once there is one.
    pub drone: Option<DroneView>,
    /// Where the drone is, once it has reported.
    pub position: Option<Coordinate>,
    /// When it will reach the drop-off.
    pub eta: Option<DateTime<Utc>>,
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
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Why it ended, where that was not a drop-off.
    pub end_reason: Option<String>,
    /// The parts that could not be had: `tracking`, `package`, `fleet`.
    pub degraded: Vec<String>,
}

impl From<&DeliveryRecord> for DeliveryView {
    /// What delivery alone knows: no position, no state of the package.
    fn from(record: &DeliveryRecord) -> Self {
        Self {
            id: record.delivery_id,
            stage: record.stage,
            attempt: record.attempt,
            pickup: record.pickup,
            dropoff: record.dropoff,
            package: Some(PackageView { spec: record.package.clone(), state: None }),
            drone: record.drone.as_ref().map(|drone| DroneView {
                drone_id: drone.drone_id,
                base_id: drone.base_id.clone(),
                battery: None,
            }),
            position: None,
            eta: None,
            expedited: record.expedited,
            confirmation: record.confirmation,
            requested_at: record.requested_at,
            deadline: record.deadline,
            updated_at: record.updated_at,
            finished_at: record.finished_at,
            end_reason: record.end_reason.clone(),
            degraded: Vec::new(),
        }
    }
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// At most the asked number; of what is searched for they may be fewer, even none, though there are more.
    pub items: Vec<T>,
    /// Give it back as `cursor` for the next page; null on the last one.
    pub next_cursor: Option<String>,
}

/// One step of the saga in a timeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepEntry {
    /// register_package, reserve_drone, open_flight, schedule or one of their compensations.
    pub step: String,
    /// In which attempt of the delivery.
    pub attempt: u32,
    /// done, waiting, refused, unavailable, undone.
    pub outcome: String,
    /// When.
    pub at: DateTime<Utc>,
    /// How often it was asked.
    pub tries: u32,
}

/// `GET /api/deliveries/{id}/timeline`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Timeline {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// Whose it is.
    pub customer_id: CustomerId,
    /// The saga's definition that this delivery runs under.
    pub saga_definition: u32,
    /// The saga's steps, oldest first.
    pub steps: Vec<StepEntry>,
    /// Every stage, oldest first.
    pub stages: Vec<StageEntry>,
}

/// What the live stream of a delivery says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LiveUpdate {
    /// The delivery as it stands: at the stream's start and at every change of stage.
    Delivery {
        /// The delivery.
        delivery: DeliveryView,
    },
    /// The flight moved.
    Flight {
        /// How far it has come.
        progress: FlightProgress,
    },
}

/// A finished delivery, as the history lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HistoryItem {
    /// The delivery, whole.
    #[serde(flatten)]
    pub delivery: DeliveryView,
    /// Whose it is.
    pub customer_id: CustomerId,
    /// Every stage, oldest first.
    pub stages: Vec<StageEntry>,
    /// Where it was found: lookup or lake.
    pub source: String,
}

/// A question for finished deliveries, between gateway and lookup or history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryQuery {
    /// Whose.
    pub customer_id: CustomerId,
    /// Finished at or after.
    pub from: DateTime<Utc>,
    /// Finished before.
    pub to: DateTime<Utc>,
    /// Only those after this one, newest first: the last item's finish and id.
    pub after: Option<(DateTime<Utc>, DeliveryId)>,
    /// At most this many.
    pub limit: usize,
}

/// A page of finished deliveries, between gateway and lookup or history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryPage {
    /// Newest first.
    pub items: Vec<HistoryItem>,
    /// The `after` of the next page; none on the last one. A page may have fewer items than were asked for, even none, and
    /// a next one all the same.
    pub next: Option<(DateTime<Utc>, DeliveryId)>,
}

/// The region where nothing else is configured.
pub const DEFAULT_REGION: &str = "region-a";

/// [`DEFAULT_REGION`] as an id.
pub fn default_region() -> Region {
    // A legal name by the test below.
    DEFAULT_REGION.parse().unwrap_or_else(|_| unreachable!("the default region is a legal name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_region_is_a_legal_name() {
        assert_eq!(default_region().as_str(), DEFAULT_REGION);
    }

    fn good() -> CreateDelivery {
        serde_json::from_value(serde_json::json!({
            "pickup": {"latitude": 1.0, "longitude": 2.0},
            "dropoff": {"latitude": 1.1, "longitude": 2.0},
            "package": {"size": "small", "weight_kg": 0.5},
        }))
        .unwrap()
    }

    #[test]
    fn faults_name_their_field() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(good().faults(now), vec![]);
        let mut bad = good();
        bad.pickup.latitude = 91.0;
        bad.package.weight_kg = 1.5;
        bad.package.tag = Some("x".repeat(65));
        bad.deadline = Some(now);
        bad.confirmation = Confirmation::Picture;
        let fields: Vec<_> = bad.faults(now).into_iter().map(|fault| fault.field).collect();
        assert_eq!(fields, ["pickup.latitude", "package.weight_kg", "package.tag", "deadline", "confirmation"]);
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(serde_json::from_str::<TokenRequest>(r#"{"subject":"a","role":"customer","x":1}"#).is_err());
    }
}
