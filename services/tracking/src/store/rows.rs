//! Flights as rows of SQL tables and back: instants are integers, stages are JSON, ids are text.

use std::{str::FromStr, sync::Arc};

use contracts::{
    Coordinate, DeliveryId, Stage, Timestamp,
    api::Confirmation,
    events::{PositionFix, StageTime},
};
use serde::Serialize;
use sqlx::{Row, sqlite::SqliteRow};

use super::{Change, QuietFlight};
use crate::domain::{Flight, MissionNote, Plan, Version};

/// The hot half of a flight, as an array: its statement reads it by position.
#[derive(Serialize)]
pub(super) struct FixJson(
    DeliveryId,
    Version,
    Option<f64>,
    Option<f64>,
    Option<f64>,
    Option<i64>,
    Option<u64>,
    Option<i64>,
    Version,
);

impl FixJson {
    pub(super) fn of(change: &Change) -> Self {
        let flight = &change.flight;
        let last = flight.last.as_ref();
        Self(
            flight.delivery_id,
            flight.version,
            last.map(|fix| fix.position.latitude),
            last.map(|fix| fix.position.longitude),
            last.map(|fix| fix.battery),
            last.map(|fix| fix.at.timestamp_micros()),
            last.map(|fix| fix.sequence),
            flight.last_sampled_at.map(|at| at.timestamp_micros()),
            change.replaces,
        )
    }
}

/// The cold half of a flight.
#[derive(Serialize)]
pub(super) struct FlightJson<'a> {
    delivery_id: DeliveryId,
    attempt: u32,
    fence: u64,
    stage: Stage,
    stages: &'a [StageTime],
    changed_us: i64,
    closed_us: Option<i64>,
    #[serde(flatten)]
    plan: Option<PlanJson<'a>>,
}

#[derive(Serialize)]
struct PlanJson<'a> {
    drone_id: String,
    base_id: &'a str,
    customer_id: &'a str,
    home_region: &'a str,
    start_latitude: f64,
    start_longitude: f64,
    pickup_latitude: f64,
    pickup_longitude: f64,
    dropoff_latitude: f64,
    dropoff_longitude: f64,
    weight_kg: f64,
    confirmation: Confirmation,
    deadline_us: i64,
    speed_mps: f64,
    opened_us: i64,
}

impl<'a> FlightJson<'a> {
    pub(super) fn of(flight: &'a Flight) -> Self {
        Self {
            delivery_id: flight.delivery_id,
            attempt: flight.attempt,
            fence: flight.fence,
            stage: flight.stage(),
            stages: &flight.stages,
            changed_us: flight.changed_at.timestamp_micros(),
            closed_us: flight.closed_at.map(|at| at.timestamp_micros()),
            plan: flight.plan.as_deref().map(|plan| PlanJson {
                drone_id: plan.drone_id.to_string(),
                base_id: plan.base_id.as_str(),
                customer_id: plan.customer_id.as_str(),
                home_region: plan.home_region.as_str(),
                start_latitude: plan.start.latitude,
                start_longitude: plan.start.longitude,
                pickup_latitude: plan.pickup.latitude,
                pickup_longitude: plan.pickup.longitude,
                dropoff_latitude: plan.dropoff.latitude,
                dropoff_longitude: plan.dropoff.longitude,
                weight_kg: plan.weight_kg,
                confirmation: plan.confirmation,
                deadline_us: plan.deadline.timestamp_micros(),
                speed_mps: plan.speed_mps,
                opened_us: plan.opened_at.timestamp_micros(),
            }),
        }
    }
}

/// One line of the mission log to be written.
#[derive(Serialize)]
pub(super) struct MissionJson<'a> {
    delivery_id: DeliveryId,
    attempt: u32,
    drone_id: String,
    base_id: &'a str,
    assigned: bool,
    logged_us: i64,
}

impl<'a> MissionJson<'a> {
    pub(super) fn of(note: &'a MissionNote, now: Timestamp) -> Self {
        Self {
            delivery_id: note.delivery_id,
            attempt: note.attempt,
            drone_id: note.drone_id.to_string(),
            base_id: note.base_id.as_str(),
            assigned: note.assigned,
            logged_us: now.timestamp_micros(),
        }
    }
}

/// One flight as the audit reads it.
#[derive(Debug)]
pub(crate) struct AuditRow {
    pub(crate) delivery_id: DeliveryId,
    pub(crate) attempt: u32,
    pub(crate) open: bool,
    pub(crate) stages: Vec<StageTime>,
}

fn unreadable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(cause.into())
}

fn parsed<T: FromStr>(row: &SqliteRow, column: &str) -> Result<T, sqlx::Error>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.try_get::<&str, _>(column)?.parse().map_err(unreadable)
}

fn instant(micros: i64) -> Result<Timestamp, sqlx::Error> {
    Timestamp::from_timestamp_micros(micros).ok_or_else(|| unreadable("an instant out of range"))
}

fn unsigned(row: &SqliteRow, column: &str) -> Result<u64, sqlx::Error> {
    u64::try_from(row.try_get::<i64, _>(column)?).map_err(unreadable)
}

fn place(row: &SqliteRow, latitude: &str, longitude: &str) -> Result<Coordinate, sqlx::Error> {
    Ok(Coordinate { latitude: row.try_get(latitude)?, longitude: row.try_get(longitude)? })
}

fn stages(row: &SqliteRow) -> Result<Vec<StageTime>, sqlx::Error> {
    serde_json::from_str(row.try_get("stages")?).map_err(unreadable)
}

fn plan(row: &SqliteRow) -> Result<Option<Arc<Plan>>, sqlx::Error> {
    if row.try_get::<Option<&str>, _>("drone_id")?.is_none() {
        return Ok(None);
    }
    let confirmation: &str = row.try_get("confirmation")?;
    Ok(Some(Arc::new(Plan {
        drone_id: parsed(row, "drone_id")?,
        base_id: parsed(row, "base_id")?,
        customer_id: parsed(row, "customer_id")?,
        home_region: parsed(row, "home_region")?,
        start: place(row, "start_latitude", "start_longitude")?,
        pickup: place(row, "pickup_latitude", "pickup_longitude")?,
        dropoff: place(row, "dropoff_latitude", "dropoff_longitude")?,
        weight_kg: row.try_get("weight_kg")?,
        confirmation: serde_json::from_value(confirmation.into()).map_err(unreadable)?,
        deadline: instant(row.try_get("deadline_us")?)?,
        speed_mps: row.try_get("speed_mps")?,
        opened_at: instant(row.try_get("opened_us")?)?,
    })))
}

fn last_fix(row: &SqliteRow) -> Result<Option<PositionFix>, sqlx::Error> {
    let Some(at_us) = row.try_get::<Option<i64>, _>("at_us")? else { return Ok(None) };
    Ok(Some(PositionFix {
        position: place(row, "latitude", "longitude")?,
        battery: row.try_get("battery")?,
        at: instant(at_us)?,
        sequence: unsigned(row, "sequence")?,
    }))
}

/// A row of `flights` joined with its row of `fixes`.
pub(super) fn flight(row: &SqliteRow) -> Result<Flight, sqlx::Error> {
    Ok(Flight {
        delivery_id: parsed(row, "delivery_id")?,
        attempt: row.try_get("attempt")?,
        fence: unsigned(row, "fence")?,
        plan: plan(row)?,
        stages: stages(row)?,
        last: last_fix(row)?,
        last_sampled_at: row.try_get::<Option<i64>, _>("sampled_us")?.map(instant).transpose()?,
        changed_at: instant(row.try_get("changed_us")?)?,
        closed_at: row.try_get::<Option<i64>, _>("closed_us")?.map(instant).transpose()?,
        version: unsigned(row, "version")?.into(),
    })
}

/// A row of `mission_log`: its number and what it says.
pub(super) fn logged_mission(row: &SqliteRow) -> Result<(u64, MissionNote), sqlx::Error> {
    let note = MissionNote {
        delivery_id: parsed(row, "delivery_id")?,
        attempt: row.try_get("attempt")?,
        drone_id: parsed(row, "drone_id")?,
        base_id: parsed(row, "base_id")?,
        assigned: row.try_get("assigned")?,
    };
    Ok((unsigned(row, "number")?, note))
}

/// What of a row of `flights` tells that it is quiet.
pub(super) fn quiet_flight(row: &SqliteRow) -> Result<QuietFlight, sqlx::Error> {
    Ok(QuietFlight {
        delivery_id: parsed(row, "delivery_id")?,
        attempt: row.try_get("attempt")?,
        changed_at: instant(row.try_get("changed_us")?)?,
    })
}

/// What of a row of `flights` the audit reads.
pub(super) fn audit_row(row: &SqliteRow) -> Result<AuditRow, sqlx::Error> {
    Ok(AuditRow {
        delivery_id: parsed(row, "delivery_id")?,
        attempt: row.try_get("attempt")?,
        open: row.try_get::<Option<i64>, _>("closed_us")?.is_none(),
        stages: stages(row)?,
    })
}
