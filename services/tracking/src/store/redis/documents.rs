//! Flights as the fields of a hash, and back.

use std::{collections::HashMap, sync::Arc};

use contracts::{
    DeliveryId, Timestamp,
    events::{PositionFix, StageTime},
};
use redis::FromRedisValue;
use serde::{Deserialize, Serialize};

use crate::domain::{Flight, Plan};

/// The fields of a flight's hash, in the order in which they are read.
pub(super) const FIELDS: [&str; 3] = ["version", "fix", "flight"];

/// A flight's hash, or nothing.
pub(super) type Fields = (Option<u64>, Option<String>, Option<String>);

/// What is stored cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("what is stored of {what} cannot be read")]
pub(super) struct Unreadable {
    what: String,
    #[source]
    cause: Option<serde_json::Error>,
}

impl Unreadable {
    pub(super) fn new(what: impl Into<String>, cause: impl Into<Option<serde_json::Error>>) -> Self {
        Self { what: what.into(), cause: cause.into() }
    }
}

/// What changes with every report.
#[derive(Debug, Serialize, Deserialize)]
struct FixDocument {
    last: Option<PositionFix>,
    sampled_at: Option<Timestamp>,
}

/// The rest.
#[derive(Debug, Serialize, Deserialize)]
struct FlightDocument {
    attempt: u32,
    fence: u64,
    plan: Option<Arc<Plan>>,
    stages: Vec<StageTime>,
    changed_at: Timestamp,
    closed_at: Option<Timestamp>,
}

/// The field `fix`.
pub(super) fn fix(flight: &Flight) -> Result<String, Unreadable> {
    let document = FixDocument { last: flight.last, sampled_at: flight.last_sampled_at };
    serde_json::to_string(&document).map_err(|error| Unreadable::new("a fix", error))
}

/// The field `flight`.
pub(super) fn whole(flight: &Flight) -> Result<String, Unreadable> {
    let document = FlightDocument {
        attempt: flight.attempt,
        fence: flight.fence,
        plan: flight.plan.clone(),
        stages: flight.stages.clone(),
        changed_at: flight.changed_at,
        closed_at: flight.closed_at,
    };
    serde_json::to_string(&document).map_err(|error| Unreadable::new("a flight", error))
}

/// A flight; none where there is no such hash.
pub(super) fn flight(delivery_id: DeliveryId, fields: Fields) -> Result<Option<Flight>, Unreadable> {
    let (Some(version), Some(fix), Some(whole)) = fields else { return Ok(None) };
    let unreadable = |error| Unreadable::new(format!("flight {delivery_id}"), error);
    let FixDocument { last, sampled_at } = serde_json::from_str(&fix).map_err(unreadable)?;
    let whole: FlightDocument = serde_json::from_str(&whole).map_err(unreadable)?;
    Ok(Some(Flight {
        delivery_id,
        attempt: whole.attempt,
        fence: whole.fence,
        plan: whole.plan,
        stages: whole.stages,
        last,
        last_sampled_at: sampled_at,
        changed_at: whole.changed_at,
        closed_at: whole.closed_at,
        version: version.into(),
    }))
}

/// An entry of a stream: its id and its fields.
pub(super) type Entry = (String, Vec<redis::Value>);

/// The fields of an entry by name.
pub(super) fn fields_of(entry: Vec<redis::Value>) -> Result<HashMap<String, Vec<u8>>, redis::ParsingError> {
    HashMap::from_redis_value(redis::Value::Array(entry))
}
