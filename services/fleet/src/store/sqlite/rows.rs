//! Rows as they are read and the JSON arrays that carry a batch into one statement.

use std::collections::HashMap;

use contracts::{
    Coordinate, DeliveryId, DroneId,
    commands::{AssignedDrone, DroneStatus},
    flight::Airframe,
};
use serde::Serialize;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use crate::{
    domain::{Drone, Hold, Known, Parties, ReservationState},
    store::StoreError,
};

/// The columns of a drone, in the order in which [`drone`] reads them.
macro_rules! drone_columns {
    () => {
        "id, base_id, base_latitude, base_longitude, latitude, longitude, battery, payload_kg, range_m, speed_mps, \
         status, delivery_id, attempt, last_seen_ms, last_sequence, changed"
    };
}
pub(super) use drone_columns;

/// A batch as the one bind of a statement that reads it with `json_each`.
pub(super) fn json(rows: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(rows).map_err(|error| StoreError::Unavailable(error.into()))
}

/// A text of the store as what it stands for.
pub(super) fn parse<T>(text: &str) -> Result<T, sqlx::Error>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|error: T::Err| sqlx::Error::Decode(error.into()))
}

fn count<T: TryFrom<i64>>(number: i64) -> Result<T, sqlx::Error> {
    T::try_from(number).map_err(|_| sqlx::Error::Decode(format!("{number} is out of range").into()))
}

/// A number as SQLite keeps it: fences and sequences past 2^63 do not occur.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Reads [`drone_columns`].
pub(super) fn drone(row: &SqliteRow) -> Result<Drone, sqlx::Error> {
    let status: &str = row.try_get(10)?;
    let status = DroneStatus::parse(status)
        .ok_or_else(|| sqlx::Error::Decode(format!("'{status}' is not a status of a drone").into()))?;
    let delivery_id: Option<&str> = row.try_get(11)?;
    let attempt: Option<i64> = row.try_get(12)?;
    let hold = match (delivery_id, attempt) {
        (Some(delivery_id), Some(attempt)) => Some(Hold { delivery_id: parse(delivery_id)?, attempt: count(attempt)? }),
        _ => None,
    };
    Ok(Drone {
        id: parse(row.try_get(0)?)?,
        base_id: parse(row.try_get(1)?)?,
        base_position: Coordinate { latitude: row.try_get(2)?, longitude: row.try_get(3)? },
        position: Coordinate { latitude: row.try_get(4)?, longitude: row.try_get(5)? },
        battery: row.try_get(6)?,
        airframe: Airframe { payload_kg: row.try_get(7)?, range_m: row.try_get(8)?, speed_mps: row.try_get(9)? },
        status,
        hold,
        last_seen_ms: row.try_get(13)?,
        last_sequence: count(row.try_get(14)?)?,
        changed: row.try_get(15)?,
    })
}

/// Reads `delivery_id, attempt` from two columns.
pub(super) fn hold(row: &SqliteRow, first: usize) -> Result<Hold, sqlx::Error> {
    Ok(Hold { delivery_id: parse(row.try_get(first)?)?, attempt: count(row.try_get(first + 1)?)? })
}

/// Reads `customer_id, home_region` from two columns; a tombstone has neither.
pub(super) fn parties(row: &SqliteRow, first: usize) -> Result<Option<Parties>, sqlx::Error> {
    let customer_id: Option<&str> = row.try_get(first)?;
    let home_region: Option<&str> = row.try_get(first + 1)?;
    match (customer_id, home_region) {
        (Some(customer), Some(region)) => {
            Ok(Some(Parties { customer_id: parse(customer)?, home_region: parse(region)? }))
        }
        _ => Ok(None),
    }
}

/// Every row of `rows` as drones.
pub(super) fn all_drones(rows: &[SqliteRow]) -> Result<Vec<Drone>, StoreError> {
    let mut drones = Vec::with_capacity(rows.len());
    for row in rows {
        drones.push(drone(row)?);
    }
    Ok(drones)
}

/// Those of the drones that exist.
pub(super) async fn drones_by_id(connection: &mut SqliteConnection, ids: &[DroneId]) -> Result<Vec<Drone>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    const QUERY: &str =
        concat!("select ", drone_columns!(), " from drones where id in (select value from json_each(?))");
    let rows = sqlx::query(QUERY).bind(json(&ids)?).fetch_all(connection).await?;
    all_drones(&rows)
}

/// Everything that is known of the deliveries.
pub(super) async fn known(
    connection: &mut SqliteConnection,
    deliveries: &[DeliveryId],
) -> Result<HashMap<DeliveryId, Vec<Known>>, StoreError> {
    let rows = sqlx::query(
        "select delivery_id, attempt, state, fence, drone from reservations
         where delivery_id in (select value from json_each(?))",
    )
    .bind(json(&deliveries)?)
    .fetch_all(connection)
    .await?;
    let mut known: HashMap<DeliveryId, Vec<Known>> = HashMap::new();
    for row in &rows {
        let hold = hold(row, 0)?;
        let state: &str = row.try_get(2)?;
        let state = ReservationState::parse(state)
            .ok_or_else(|| sqlx::Error::Decode(format!("'{state}' is not a state of a reservation").into()))?;
        let drone: Option<&str> = row.try_get(4)?;
        let drone: Option<AssignedDrone> = match drone {
            Some(text) => Some(serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(error.into()))?),
            None => None,
        };
        known.entry(hold.delivery_id).or_default().push(Known {
            attempt: hold.attempt,
            state,
            fence: count(row.try_get(3)?)?,
            drone,
        });
    }
    Ok(known)
}
