//! What is read outside of a write, and the upkeep of old rows.

use contracts::{BaseId, Coordinate, DroneId, Timestamp, flight::Trip};
use messaging::sql::{self, Bind, Values};

use super::{
    SqlStore,
    rows::{self, drone_columns},
};
use crate::{
    domain::Drone,
    store::{Place, StoreError, Waiting},
};

impl SqlStore {
    pub(super) async fn read_line(&self, after: Option<Place>, limit: usize) -> Result<Vec<Waiting>, StoreError> {
        // Smaller than every place: priorities begin at 0, and every id is greater than the empty text.
        let (priority, requested_ms, id) = match after {
            Some(place) => (place.priority, place.requested_ms, place.delivery_id.to_string()),
            None => (-1, 0, String::new()),
        };
        let found = self
            .engine
            .read(
                "select delivery_id, attempt, priority, requested_ms, pickup_latitude, pickup_longitude,
                    dropoff_latitude, dropoff_longitude, weight_kg
             from reservations
             where state = 'waiting' and deadline_ms > $4 and (priority, requested_ms, delivery_id) > ($1, $2, $3)
             order by priority, requested_ms, delivery_id limit $5",
                &[
                    Bind::Int(priority),
                    Bind::Int(requested_ms),
                    Bind::Text(&id),
                    Bind::Int(self.clock.now().timestamp_millis()),
                    Bind::Int(rows::limit(limit)),
                ],
            )
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
        let due = self
            .engine
            .read(
                "select delivery_id from reservations where state = 'waiting' and deadline_ms <= $1 limit 1",
                &[Bind::Int(now_ms)],
            )
            .await?;
        if due.is_empty() {
            return Ok(0);
        }
        let mut tx = self.begin().await?;
        let expired = tx
            .done(
                "update reservations set state = 'released', ended_ms = $1, reason = 'no drone before the deadline'
                 where state = 'waiting' and deadline_ms <= $1",
                &[Bind::Int(now_ms)],
            )
            .await?;
        self.engine.commit(tx, &[]).await?;
        Ok(expired)
    }

    pub(super) async fn read_last_heard(&self) -> Result<Option<Timestamp>, StoreError> {
        let found = self.engine.read("select max(last_seen_ms) from drones", &[]).await?;
        let last_ms = found.first().map(|row| row.optional_int(0)).transpose()?.flatten();
        Ok(last_ms.and_then(Timestamp::from_timestamp_millis))
    }

    pub(super) async fn read_drones(&self, ids: &[DroneId]) -> Result<Vec<Drone>, StoreError> {
        let found = self.engine.read(rows::DRONES_BY_ID, &[Bind::Text(&sql::json(&ids)?)]).await?;
        rows::all_drones(&found)
    }

    pub(super) async fn read_silent(&self, since: Timestamp, limit: usize) -> Result<Vec<DroneId>, StoreError> {
        let found = self
            .engine
            .read(
                "select id from drones
             where status = 'reserved' and reserved_ms < $1 and coalesce(last_seen_ms, 0) < $1 limit $2",
                &[Bind::Int(since.timestamp_millis()), Bind::Int(rows::limit(limit))],
            )
            .await?;
        let mut ids = Vec::with_capacity(found.len());
        for row in &found {
            ids.push(rows::parse(row.text(0)?)?);
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
            " from drones where base_id = $1 and id > $2 and status <> 'retired' order by id limit $3"
        );
        const OF_ALL: &str = concat!(
            "select ",
            drone_columns!(),
            " from drones where $1 is null and id > $2 and status <> 'retired' order by id limit $3"
        );
        let found = self
            .engine
            .read(
                if base.is_some() { OF_BASE } else { OF_ALL },
                &[
                    Bind::OptionalText(base.map(BaseId::as_str)),
                    Bind::Text(&after.map(|id| id.to_string()).unwrap_or_default()),
                    Bind::Int(rows::limit(limit)),
                ],
            )
            .await?;
        rows::all_drones(&found)
    }

    pub(super) async fn read_changed(&self, change: i64) -> Result<Vec<Drone>, StoreError> {
        const QUERY: &str = concat!("select ", drone_columns!(), " from drones where changed > $1");
        let found = self.engine.read(QUERY, &[Bind::Int(change)]).await?;
        rows::all_drones(&found)
    }

    pub(super) async fn read_touched(&self, change: i64) -> Result<(Vec<Drone>, i64), StoreError> {
        const QUERY: &str = concat!("select ", drone_columns!(), " from drones where touched > $1");
        // The number first: a row written in between comes twice rather than never.
        let last = self.read_last_change().await?;
        if last == change {
            return Ok((Vec::new(), last));
        }
        let found = self.engine.read(QUERY, &[Bind::Int(change)]).await?;
        Ok((rows::all_drones(&found)?, last))
    }

    pub(super) async fn read_last_change(&self) -> Result<i64, StoreError> {
        let found = self.engine.read("select value from change_counter where id = 0", &[]).await?;
        Ok(found.first().map(|row| row.int(0)).transpose()?.unwrap_or(0))
    }

    pub(super) async fn delete_ended(&self, ended_before: Timestamp, limit: usize) -> Result<u64, StoreError> {
        let mut tx = self.begin().await?;
        let deleted = tx
            .done(
                "delete from reservations where (delivery_id, attempt) in
                     (select delivery_id, attempt from reservations where ended_ms < $1 order by ended_ms limit $2)",
                &[Bind::Int(ended_before.timestamp_millis()), Bind::Int(rows::limit(limit))],
            )
            .await?;
        self.engine.commit(tx, &[]).await?;
        Ok(deleted)
    }
}

fn waiting(row: &Values) -> Result<Waiting, StoreError> {
    let hold = rows::hold(row, 0)?;
    Ok(Waiting {
        place: Place { priority: row.int(2)?, requested_ms: row.int(3)?, delivery_id: hold.delivery_id },
        hold,
        trip: Trip {
            pickup: Coordinate { latitude: row.real(4)?, longitude: row.real(5)? },
            dropoff: Coordinate { latitude: row.real(6)?, longitude: row.real(7)? },
            load_kg: row.real(8)?,
        },
    })
}
