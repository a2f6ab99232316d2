//! What is read outside of a write, and the upkeep of old rows.

use contracts::{BaseId, Coordinate, DroneId, Timestamp, flight::Trip};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    SqliteStore,
    rows::{self, drone_columns},
};
use crate::{
    domain::Drone,
    store::{Place, StoreError, Waiting},
};

impl SqliteStore {
    pub(super) async fn read_line(&self, after: Option<Place>, limit: usize) -> Result<Vec<Waiting>, StoreError> {
        // Smaller than every place: priorities begin at 0, and every id is greater than the empty text.
        let (priority, requested_ms, id) = match after {
            Some(place) => (place.priority, place.requested_ms, place.delivery_id.to_string()),
            None => (-1, 0, String::new()),
        };
        let found = sqlx::query(
            "select delivery_id, attempt, priority, requested_ms, pickup_latitude, pickup_longitude,
                    dropoff_latitude, dropoff_longitude, weight_kg
             from reservations
             where state = 'waiting' and deadline_ms > ?4 and (priority, requested_ms, delivery_id) > (?1, ?2, ?3)
             order by priority, requested_ms, delivery_id limit ?5",
        )
        .bind(priority)
        .bind(requested_ms)
        .bind(id)
        .bind(self.clock.now().timestamp_millis())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.file.reader)
        .await?;
        let mut line = Vec::with_capacity(found.len());
        for row in &found {
            line.push(waiting(row)?);
        }
        Ok(line)
    }

    pub(super) async fn expire_waiting(&self) -> Result<u64, StoreError> {
        let now_ms = self.clock.now().timestamp_millis();
        // Looking first keeps an idle fleet from taking the write lock twice a second.
        let (due,): (bool,) =
            sqlx::query_as("select exists (select 1 from reservations where state = 'waiting' and deadline_ms <= ?)")
                .bind(now_ms)
                .fetch_one(&self.file.reader)
                .await?;
        if !due {
            return Ok(0);
        }
        let expired = sqlx::query(
            "update reservations set state = 'released', ended_ms = ?1, reason = 'no drone before the deadline'
             where state = 'waiting' and deadline_ms <= ?1",
        )
        .bind(now_ms)
        .execute(&self.file.writer)
        .await?;
        Ok(expired.rows_affected())
    }

    pub(super) async fn read_last_heard(&self) -> Result<Option<Timestamp>, StoreError> {
        let (last_ms,): (Option<i64>,) =
            sqlx::query_as("select max(last_seen_ms) from drones").fetch_one(&self.file.reader).await?;
        Ok(last_ms.and_then(Timestamp::from_timestamp_millis))
    }

    pub(super) async fn read_silent(&self, since: Timestamp, limit: usize) -> Result<Vec<DroneId>, StoreError> {
        let found = sqlx::query(
            "select id from drones
             where status = 'reserved' and reserved_ms < ?1 and coalesce(last_seen_ms, 0) < ?1 limit ?2",
        )
        .bind(since.timestamp_millis())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.file.reader)
        .await?;
        let mut ids = Vec::with_capacity(found.len());
        for row in &found {
            ids.push(rows::parse(row.try_get(0)?)?);
        }
        Ok(ids)
    }

    pub(super) async fn read_page(
        &self,
        base: Option<&BaseId>,
        after: Option<DroneId>,
        limit: usize,
    ) -> Result<Vec<Drone>, StoreError> {
        const OF_BASE: &str = concat!(
            "select ",
            drone_columns!(),
            " from drones where base_id = ?1 and id > ?2 and status <> 'retired' order by id limit ?3"
        );
        const OF_ALL: &str = concat!(
            "select ",
            drone_columns!(),
            " from drones where ?1 is null and id > ?2 and status <> 'retired' order by id limit ?3"
        );
        let found = sqlx::query(if base.is_some() { OF_BASE } else { OF_ALL })
            .bind(base.map(BaseId::as_str))
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&self.file.reader)
            .await?;
        rows::all_drones(&found)
    }

    pub(super) async fn read_changed(&self, change: i64) -> Result<Vec<Drone>, StoreError> {
        const QUERY: &str = concat!("select ", drone_columns!(), " from drones where changed > ?");
        let found = sqlx::query(QUERY).bind(change).fetch_all(&self.file.reader).await?;
        rows::all_drones(&found)
    }

    pub(super) async fn read_touched(&self, change: i64) -> Result<(Vec<Drone>, i64), StoreError> {
        const QUERY: &str = concat!("select ", drone_columns!(), " from drones where touched > ?");
        let mut connection = self.file.reader.acquire().await?;
        // The number first: a row written in between comes twice rather than never.
        let last = last_change(&mut connection).await?;
        if last == change {
            return Ok((Vec::new(), last));
        }
        let found = sqlx::query(QUERY).bind(change).fetch_all(&mut *connection).await?;
        Ok((rows::all_drones(&found)?, last))
    }

    pub(super) async fn delete_ended(&self, ended_before: Timestamp, limit: usize) -> Result<u64, StoreError> {
        let deleted = sqlx::query(
            "delete from reservations where (delivery_id, attempt) in
                 (select delivery_id, attempt from reservations where ended_ms < ? order by ended_ms limit ?)",
        )
        .bind(ended_before.timestamp_millis())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .execute(&self.file.writer)
        .await?;
        Ok(deleted.rows_affected())
    }
}

pub(super) async fn last_change(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    let (value,): (i64,) =
        sqlx::query_as("select value from change_counter where id = 0").fetch_one(connection).await?;
    Ok(value)
}

fn waiting(row: &SqliteRow) -> Result<Waiting, StoreError> {
    let hold = rows::hold(row, 0)?;
    Ok(Waiting {
        place: Place { priority: row.try_get(2)?, requested_ms: row.try_get(3)?, delivery_id: hold.delivery_id },
        hold,
        trip: Trip {
            pickup: Coordinate { latitude: row.try_get(4)?, longitude: row.try_get(5)? },
            dropoff: Coordinate { latitude: row.try_get(6)?, longitude: row.try_get(7)? },
            load_kg: row.try_get(8)?,
        },
    })
}
