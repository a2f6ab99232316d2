//! Ends reservations: by command, by event, by a later attempt.

use messaging::sql::{self, Bind, Tx};
use std::collections::{BTreeMap, HashMap};

use contracts::{
    DeliveryId, DroneId,
    commands::{Refusal, ReleaseDrone, ReleaseOutcome},
    events::{CloudEvent, FleetEventKind},
};

use super::{
    Cause, SqlStore, next_change,
    rows::{self, drone_columns, signed},
};
use crate::{
    domain::{Drone, Ending, Hold, Parties, is_stale},
    store::{StoreError, Written},
};

/// What ended with a reservation.
struct Over {
    hold: Hold,
    drone_id: Option<DroneId>,
    parties: Option<Parties>,
    reason: Option<String>,
}

impl SqlStore {
    pub(super) async fn release_batch(&self, batch: &[ReleaseDrone]) -> Result<Written<ReleaseOutcome>, StoreError> {
        let mut tx = self.begin().await?;
        let deliveries: Vec<_> = batch.iter().map(|command| command.delivery_id).collect();
        let known = rows::known(&mut tx, &deliveries).await?;
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut endings = Vec::with_capacity(batch.len());
        for command in batch {
            if known.get(&command.delivery_id).is_some_and(|rows| is_stale(command.fence, rows)) {
                outcomes.push(ReleaseOutcome::Refused { reason: Refusal::StaleFence });
                continue;
            }
            outcomes.push(ReleaseOutcome::Done);
            endings.push(Ending {
                delivery_id: command.delivery_id,
                up_to: command.attempt,
                tombstone: true,
                fence: command.fence,
                reason: command.reason.clone(),
            });
        }
        let (drones, events) = self.end_in(&mut tx, &endings).await?;
        self.commit(tx, &events).await?;
        Ok(Written { outcomes, drones })
    }

    pub(super) async fn end_batch(&self, batch: &[Ending]) -> Result<Written<()>, StoreError> {
        let mut tx = self.begin().await?;
        let (drones, events) = self.end_in(&mut tx, batch).await?;
        self.commit(tx, &events).await?;
        Ok(Written { outcomes: vec![(); batch.len()], drones })
    }

    /// Ends reservations in the caller's transaction: the drones that are free now, and the events that say so.
    pub(super) async fn end_in(
        &self,
        tx: &mut Tx,
        endings: &[Ending],
    ) -> Result<(Vec<Drone>, Vec<CloudEvent>), StoreError> {
        if endings.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let over = self.close_rows(tx, endings).await?;
        self.bury(tx, endings).await?;
        let freed = free_drones(tx, &over).await?;
        let mut by_drone: HashMap<DroneId, Over> = HashMap::new();
        for entry in over {
            if let Some(drone_id) = entry.drone_id {
                by_drone.insert(drone_id, entry);
            }
        }
        let mut events = Vec::with_capacity(freed.len());
        for drone in &freed {
            let Some(Over { hold, parties, reason, .. }) = by_drone.remove(&drone.id) else { continue };
            events.push(self.event(FleetEventKind::DroneReleased, drone, Cause { hold: Some(hold), parties, reason }));
        }
        Ok((freed, events))
    }

    async fn close_rows(&self, tx: &mut Tx, endings: &[Ending]) -> Result<Vec<Over>, StoreError> {
        let batch: Vec<_> = endings.iter().map(|e| (e.delivery_id, e.up_to, &e.reason)).collect();
        let closed = tx
            .rows(
                "update reservations set state = 'released', ended_ms = $2, reason = p_reason
             from (select value ->> 0 as p_delivery_id, cast(value ->> 1 as bigint) as p_up_to, value ->> 2 as p_reason
                   from json_each($1)) as p
             where reservations.delivery_id = p_delivery_id and reservations.attempt <= p_up_to
               and reservations.state in ('waiting', 'reserved')
             returning delivery_id, attempt, drone_id, customer_id, home_region, reason",
                &[Bind::Text(&sql::json(&batch)?), Bind::Int(self.clock.now().timestamp_millis())],
            )
            .await?;
        let mut over = Vec::with_capacity(closed.len());
        for row in &closed {
            let drone_id: Option<&str> = row.optional_text(2)?;
            over.push(Over {
                hold: rows::hold(row, 0)?,
                drone_id: drone_id.map(rows::parse).transpose()?,
                parties: rows::parties(row, 3)?,
                reason: row.optional_text(5)?.map(str::to_owned),
            });
        }
        Ok(over)
    }

    /// Keeps a tombstone for each attempt that was never heard of, and the fence of each that was.
    async fn bury(&self, tx: &mut Tx, endings: &[Ending]) -> Result<(), StoreError> {
        // Each attempt once, by its highest fence: a statement may not write a row twice.
        let mut graves: BTreeMap<(DeliveryId, u32), &Ending> = BTreeMap::new();
        for ending in endings.iter().filter(|ending| ending.tombstone) {
            let grave = graves.entry((ending.delivery_id, ending.up_to)).or_insert(ending);
            if ending.fence > grave.fence {
                *grave = ending;
            }
        }
        let mut batch = Vec::with_capacity(graves.len());
        for ending in graves.values() {
            batch.push((ending.delivery_id, ending.up_to, signed(ending.fence), &ending.reason));
        }
        if batch.is_empty() {
            return Ok(());
        }
        tx.done(
            "insert into reservations (delivery_id, attempt, state, fence, ended_ms, reason)
             select value ->> 0, cast(value ->> 1 as bigint), 'released', cast(value ->> 2 as bigint), $2, value ->> 3
             from json_each($1) where true
             on conflict (delivery_id, attempt) do update set fence = excluded.fence
             where excluded.fence > reservations.fence",
            &[Bind::Text(&sql::json(&batch)?), Bind::Int(self.clock.now().timestamp_millis())],
        )
        .await?;
        Ok(())
    }
}

/// Makes drones idle, where they are. One that has failed or retired meanwhile stays so.
async fn free_drones(tx: &mut Tx, over: &[Over]) -> Result<Vec<Drone>, StoreError> {
    let mut batch = Vec::with_capacity(over.len());
    for Over { hold, drone_id, .. } in over {
        if let Some(drone_id) = drone_id {
            batch.push((drone_id, hold.delivery_id, hold.attempt));
        }
    }
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    const QUERY: &str = concat!(
        "update drones set status = 'idle', delivery_id = null, attempt = null, reserved_ms = null,
                changed = $2, touched = $2
         from (select value ->> 0 as p_id, value ->> 1 as p_delivery_id, cast(value ->> 2 as bigint) as p_attempt from json_each($1)) as p
         where drones.id = p_id and drones.status = 'reserved'
           and drones.delivery_id = p_delivery_id and drones.attempt = p_attempt
         returning ",
        drone_columns!()
    );
    let change = next_change(tx).await?;
    let freed = tx.rows(QUERY, &[Bind::Text(&sql::json(&batch)?), Bind::Int(change)]).await?;
    rows::all_drones(&freed)
}
