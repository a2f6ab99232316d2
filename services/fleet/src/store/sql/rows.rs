//! Rows as they are read and the JSON arrays that carry a batch into one statement.

use messaging::sql::{self, Bind, Tx, Values};
use std::collections::HashMap;

use contracts::{
    Coordinate, DeliveryId, DroneId,
    commands::{AssignedDrone, DroneStatus},
    flight::Airframe,
};

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

/// A limit as SQL takes it.
pub(super) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// A number as SQL keeps it: fences and sequences past 2^63 do not occur.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Reads [`drone_columns`].
pub(super) fn drone(row: &Values) -> Result<Drone, sqlx::Error> {
    let status = row.text(10)?;
    let status = DroneStatus::parse(status)
        .ok_or_else(|| sqlx::Error::Decode(format!("'{status}' is not a status of a drone").into()))?;
    let delivery_id = row.optional_text(11)?;
    let attempt = row.optional_int(12)?;
    let hold = match (delivery_id, attempt) {
        (Some(delivery_id), Some(attempt)) => Some(Hold { delivery_id: parse(delivery_id)?, attempt: count(attempt)? }),
        _ => None,
    };
    Ok(Drone {
        id: parse(row.text(0)?)?,
        base_id: parse(row.text(1)?)?,
        base_position: Coordinate { latitude: row.real(2)?, longitude: row.real(3)? },
        position: Coordinate { latitude: row.real(4)?, longitude: row.real(5)? },
        battery: row.real(6)?,
        airframe: Airframe { payload_kg: row.real(7)?, range_m: row.real(8)?, speed_mps: row.real(9)? },
        status,
        hold,
        last_seen_ms: row.optional_int(13)?,
        last_sequence: count(row.int(14)?)?,
        changed: row.int(15)?,
    })
}

/// Reads `delivery_id, attempt` from two columns.
pub(super) fn hold(row: &Values, first: usize) -> Result<Hold, sqlx::Error> {
    Ok(Hold { delivery_id: parse(row.text(first)?)?, attempt: count(row.int(first + 1)?)? })
}

/// Reads `customer_id, home_region` from two columns; a tombstone has neither.
pub(super) fn parties(row: &Values, first: usize) -> Result<Option<Parties>, sqlx::Error> {
    let customer_id = row.optional_text(first)?;
    let home_region = row.optional_text(first + 1)?;
    match (customer_id, home_region) {
        (Some(customer), Some(region)) => {
            Ok(Some(Parties { customer_id: parse(customer)?, home_region: parse(region)? }))
        }
        _ => Ok(None),
    }
}

/// Every row of `rows` as drones.
pub(super) fn all_drones(rows: &[Values]) -> Result<Vec<Drone>, StoreError> {
    let mut drones = Vec::with_capacity(rows.len());
    for row in rows {
        drones.push(drone(row)?);
    }
    Ok(drones)
}

/// Those of the drones that exist, of a list of ids.
pub(super) const DRONES_BY_ID: &str =
    concat!("select ", drone_columns!(), " from drones where id in (select value from json_each($1))");

/// Those of the drones that exist.
pub(super) async fn drones_by_id(tx: &mut Tx, ids: &[DroneId]) -> Result<Vec<Drone>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = tx.rows(DRONES_BY_ID, &[Bind::Text(&sql::json(&ids)?)]).await?;
    all_drones(&rows)
}

/// Everything that is known of the deliveries.
pub(super) async fn known(
    tx: &mut Tx,
    deliveries: &[DeliveryId],
) -> Result<HashMap<DeliveryId, Vec<Known>>, StoreError> {
    let rows = tx
        .rows(
            "select delivery_id, attempt, state, fence, drone from reservations
         where delivery_id in (select value from json_each($1))",
            &[Bind::Text(&sql::json(&deliveries)?)],
        )
        .await?;
    let mut known: HashMap<DeliveryId, Vec<Known>> = HashMap::new();
    for row in &rows {
        let hold = hold(row, 0)?;
        let state = row.text(2)?;
        let state = ReservationState::parse(state)
            .ok_or_else(|| sqlx::Error::Decode(format!("'{state}' is not a state of a reservation").into()))?;
        let drone = row.optional_text(4)?;
        let drone: Option<AssignedDrone> = match drone {
            Some(text) => Some(serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(error.into()))?),
            None => None,
        };
        known.entry(hold.delivery_id).or_default().push(Known {
            attempt: hold.attempt,
            state,
            fence: count(row.int(3)?)?,
            drone,
        });
    }
    Ok(known)
}
