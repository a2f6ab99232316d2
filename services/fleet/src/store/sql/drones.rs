//! Writes drones: their reports, their registration, their removal.

use messaging::sql::{self, Bind, Tx};
use std::collections::{HashMap, HashSet};

use contracts::{
    DroneId,
    commands::{DroneStatus, ReportFault, ReportOutcome},
    events::{CloudEvent, FleetEventKind},
};

use super::{
    Cause, SqlStore, next_change,
    rows::{self, drone_columns, signed},
};
use crate::{
    domain::{Drone, Hold, Parties, Registration, RegistrationRefusal, judge_registration},
    store::{Guard, LatestReport, Removal, StoreError, Written},
};

impl SqlStore {
    pub(super) async fn report_batch(&self, batch: &[LatestReport]) -> Result<Written<ReportOutcome>, StoreError> {
        let mut tx = self.begin().await?;
        let change = next_change(&mut tx).await?;
        let (mut drones, events) = self.remove_in(&mut tx, change, &broken(batch)).await?;
        let outcomes = self.write_reports(&mut tx, change, batch).await?;
        let announced = batch.iter().filter(|report| report.announce).map(|report| report.drone_id).collect();
        announce(&mut tx, change, announced).await?;
        let recovering = batch.iter().filter(|report| report.recovers).map(|report| report.drone_id).collect();
        drones.extend(recover(&mut tx, change, recovering).await?);
        self.commit(tx, &events).await?;
        Ok(Written { outcomes, drones })
    }

    async fn write_reports(
        &self,
        tx: &mut Tx,
        change: i64,
        batch: &[LatestReport],
    ) -> Result<Vec<ReportOutcome>, StoreError> {
        let mut reports = Vec::with_capacity(batch.len());
        for LatestReport { drone_id, base, position, battery, sequence, .. } in batch {
            reports.push((drone_id, signed(*sequence), position.latitude, position.longitude, battery, base));
        }
        let reports = sql::json(&reports)?;
        let written = tx
            .done(
                "update drones set latitude = p_latitude, longitude = p_longitude, battery = p_battery,
                    last_sequence = p_sequence, last_seen_ms = $2, touched = $3
             from (select value ->> 0 as p_id, cast(value ->> 1 as bigint) as p_sequence,
                          cast(value ->> 2 as double precision) as p_latitude,
                          cast(value ->> 3 as double precision) as p_longitude,
                          cast(value ->> 4 as double precision) as p_battery, value ->> 5 as p_base_id
                   from json_each($1)) as p
             where drones.id = p_id and drones.last_sequence < p_sequence and drones.status <> 'retired'
               and (p_base_id is null or drones.base_id = p_base_id)",
                &[Bind::Text(&reports), Bind::Int(self.clock.now().timestamp_millis()), Bind::Int(change)],
            )
            .await?;
        if usize::try_from(written).is_ok_and(|count| count == batch.len()) {
            return Ok(vec![ReportOutcome::Accepted; batch.len()]);
        }
        let others = unwritten(tx, change, &reports).await?;
        Ok(batch
            .iter()
            .map(|report| others.get(&report.drone_id).copied().unwrap_or(ReportOutcome::Accepted))
            .collect())
    }

    pub(super) async fn register_batch(
        &self,
        batch: &[Registration],
    ) -> Result<Written<Result<Drone, RegistrationRefusal>>, StoreError> {
        let mut tx = self.begin().await?;
        let ids: Vec<_> = batch.iter().map(|registration| registration.drone_id).collect();
        let mut known = HashMap::new();
        for drone in rows::drones_by_id(&mut tx, &ids).await? {
            known.insert(drone.id, drone);
        }
        let mut judged = Vec::with_capacity(batch.len());
        let mut allowed = Vec::with_capacity(batch.len());
        for registration in batch {
            let verdict = match known.get(&registration.drone_id) {
                Some(drone) => judge_registration(registration, &drone.base_id, drone.status),
                None => Ok(()),
            };
            if verdict.is_ok() {
                allowed.push(registration);
            }
            judged.push(verdict);
        }
        let drones = write_registrations(&mut tx, &allowed).await?;
        self.commit(tx, &[]).await?;
        let mut written: HashMap<_, _> = drones.iter().map(|drone| (drone.id, drone.clone())).collect();
        let mut outcomes = Vec::with_capacity(batch.len());
        for (registration, verdict) in batch.iter().zip(judged) {
            outcomes.push(match (verdict, written.remove(&registration.drone_id)) {
                (Ok(()), Some(drone)) => Ok(drone),
                (Err(refusal), _) => Err(refusal),
                // Each drone is at most once in a batch, and each that was allowed is returned.
                (Ok(()), None) => return Err(StoreError::Unavailable("a registered drone is missing".into())),
            });
        }
        Ok(Written { outcomes, drones })
    }

    pub(super) async fn remove_batch(&self, batch: &[Removal]) -> Result<Written<Option<Drone>>, StoreError> {
        let mut tx = self.begin().await?;
        let change = next_change(&mut tx).await?;
        let (drones, events) = self.remove_in(&mut tx, change, batch).await?;
        let ids: Vec<_> = batch.iter().map(|removal| removal.drone_id).collect();
        let mut now = HashMap::new();
        for drone in rows::drones_by_id(&mut tx, &ids).await? {
            now.insert(drone.id, drone);
        }
        self.commit(tx, &events).await?;
        let outcomes = batch.iter().map(|removal| now.get(&removal.drone_id).cloned()).collect();
        Ok(Written { outcomes, drones })
    }

    /// Takes drones out of service in the caller's transaction, and fails the reservations that they had.
    async fn remove_in(
        &self,
        tx: &mut Tx,
        change: i64,
        batch: &[Removal],
    ) -> Result<(Vec<Drone>, Vec<CloudEvent>), StoreError> {
        if batch.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let mut due: HashMap<DroneId, (&Removal, Option<Hold>)> = HashMap::new();
        for (removal, drone) in self.due(tx, batch).await? {
            due.insert(drone.id, (removal, drone.hold));
        }
        if due.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let removed = take_out(tx, change, due.values().map(|(removal, _)| *removal)).await?;
        let mut lost = Vec::with_capacity(due.len());
        for (removal, hold) in due.values() {
            if let Some(hold) = hold {
                lost.push((*hold, removal.reason.as_str()));
            }
        }
        let parties = self.fail_reservations(tx, &lost).await?;
        let mut events = Vec::with_capacity(removed.len());
        for drone in &removed {
            let Some((removal, hold)) = due.get(&drone.id) else { continue };
            // Retiring a drone that does nothing concerns nobody.
            if removal.to == DroneStatus::Retired && hold.is_none() {
                continue;
            }
            let parties = hold.and_then(|hold| parties.get(&hold).cloned());
            let cause = Cause { hold: *hold, parties, reason: Some(removal.reason.clone()) };
            events.push(self.event(FleetEventKind::DroneFailed, drone, cause));
        }
        Ok((removed, events))
    }

    /// The removals that are due, with their drones as they are.
    async fn due<'a>(&self, tx: &mut Tx, batch: &'a [Removal]) -> Result<Vec<(&'a Removal, Drone)>, StoreError> {
        let ids: Vec<_> = batch.iter().map(|removal| removal.drone_id).collect();
        let mut drones = HashMap::new();
        for drone in rows::drones_by_id(tx, &ids).await? {
            drones.insert(drone.id, drone);
        }
        let silent = silent_among(tx, batch).await?;
        let mut due = Vec::with_capacity(batch.len());
        for removal in batch {
            let Some(drone) = drones.get(&removal.drone_id) else { continue };
            let in_service = matches!(drone.status, DroneStatus::Idle | DroneStatus::Reserved);
            let changes = in_service || (removal.to == DroneStatus::Retired && drone.status == DroneStatus::Failed);
            let holds = match &removal.guard {
                Guard::Always => true,
                Guard::ReportIsNews { sequence, base } => {
                    *sequence > drone.last_sequence && base.as_ref().is_none_or(|base| drone.base_id == *base)
                }
                Guard::SilentSince(_) => silent.contains(&drone.id),
                Guard::BasedAt(base) => drone.base_id == *base,
            };
            if changes && holds {
                due.push((removal, drone.clone()));
            }
        }
        Ok(due)
    }

    async fn fail_reservations(
        &self,
        tx: &mut Tx,
        lost: &[(Hold, &str)],
    ) -> Result<HashMap<Hold, Parties>, StoreError> {
        let mut parties = HashMap::with_capacity(lost.len());
        if lost.is_empty() {
            return Ok(parties);
        }
        let batch: Vec<_> = lost.iter().map(|(hold, reason)| (hold.delivery_id, hold.attempt, reason)).collect();
        let failed = tx.rows("update reservations set state = 'failed', ended_ms = $2, reason = p_reason
             from (select value ->> 0 as p_delivery_id, cast(value ->> 1 as bigint) as p_attempt, value ->> 2 as p_reason
                   from json_each($1)) as p
             where reservations.delivery_id = p_delivery_id and reservations.attempt = p_attempt
               and reservations.state = 'reserved'
             returning delivery_id, attempt, customer_id, home_region", &[Bind::Text(&sql::json(&batch)?), Bind::Int(self.clock.now().timestamp_millis())])
        .await?;
        for row in &failed {
            if let Some(own) = rows::parties(row, 2)? {
                parties.insert(rows::hold(row, 0)?, own);
            }
        }
        Ok(parties)
    }
}

/// The removals that reports ask for.
fn broken(batch: &[LatestReport]) -> Vec<Removal> {
    let mut removals = Vec::new();
    for report in batch {
        let Some(sequence) = report.failed_at else { continue };
        removals.push(Removal {
            drone_id: report.drone_id,
            to: DroneStatus::Failed,
            reason: "the drone reported a failure".to_owned(),
            guard: Guard::ReportIsNews { sequence, base: report.base.clone() },
        });
    }
    removals
}

/// Why reports were not written: for drones that are unknown, retired or another base's, all of which whoever asks must
/// not tell apart, and for reports that are old.
async fn unwritten(tx: &mut Tx, change: i64, reports: &str) -> Result<HashMap<DroneId, ReportOutcome>, StoreError> {
    let found = tx
        .rows(
            "select p_id, case when p_base_id is null or drones.base_id = p_base_id then drones.status end as status
         from (select value ->> 0 as p_id, cast(value ->> 1 as bigint) as p_sequence, value ->> 5 as p_base_id
               from json_each($1)) as p
         left join drones on drones.id = p_id
         where drones.id is null or drones.touched <> $2 or drones.last_sequence <> p_sequence",
            &[Bind::Text(reports), Bind::Int(change)],
        )
        .await?;
    let mut outcomes = HashMap::with_capacity(found.len());
    for row in &found {
        let status: Option<&str> = row.optional_text(1)?;
        let outcome = match status.and_then(DroneStatus::parse) {
            None | Some(DroneStatus::Retired) => ReportOutcome::Rejected { reason: ReportFault::UnknownDrone },
            Some(_) => ReportOutcome::Stale,
        };
        outcomes.insert(rows::parse(row.text(0)?)?, outcome);
    }
    Ok(outcomes)
}

/// Lets other instances hear of drones, if their reports were written.
async fn announce(tx: &mut Tx, change: i64, ids: Vec<DroneId>) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    tx.done(
        "update drones set changed = $2 where touched = $2 and id in (select value from json_each($1))",
        &[Bind::Text(&sql::json(&ids)?), Bind::Int(change)],
    )
    .await?;
    Ok(())
}

/// Offers failed drones again, if their reports were written.
async fn recover(tx: &mut Tx, change: i64, ids: Vec<DroneId>) -> Result<Vec<Drone>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    const QUERY: &str = concat!(
        "update drones set status = 'idle', changed = $2
         where status = 'failed' and touched = $2 and id in (select value from json_each($1)) returning ",
        drone_columns!()
    );
    let recovered = tx.rows(QUERY, &[Bind::Text(&sql::json(&ids)?), Bind::Int(change)]).await?;
    rows::all_drones(&recovered)
}

/// The drones of a batch that are silent as their guards say.
async fn silent_among(tx: &mut Tx, batch: &[Removal]) -> Result<HashSet<DroneId>, StoreError> {
    let mut guarded = Vec::new();
    for removal in batch {
        if let Guard::SilentSince(since_ms) = removal.guard {
            guarded.push((removal.drone_id, since_ms));
        }
    }
    let mut silent = HashSet::new();
    if guarded.is_empty() {
        return Ok(silent);
    }
    let found = tx.rows("select drones.id from (select value ->> 0 as p_id, cast(value ->> 1 as bigint) as p_since_ms from json_each($1)) as p
         join drones on drones.id = p_id
         where drones.status = 'reserved' and drones.reserved_ms < p_since_ms
           and coalesce(drones.last_seen_ms, 0) < p_since_ms", &[Bind::Text(&sql::json(&guarded)?)])
    .await?;
    for row in &found {
        silent.insert(rows::parse(row.text(0)?)?);
    }
    Ok(silent)
}

async fn take_out(
    tx: &mut Tx,
    change: i64,
    removals: impl Iterator<Item = &Removal>,
) -> Result<Vec<Drone>, StoreError> {
    const QUERY: &str = concat!(
        "update drones set status = p_status, delivery_id = null, attempt = null, reserved_ms = null,
                changed = $2, touched = $2
         from (select value ->> 0 as p_id, value ->> 1 as p_status from json_each($1)) as p
         where drones.id = p_id returning ",
        drone_columns!()
    );
    let batch: Vec<_> = removals.map(|removal| (removal.drone_id, removal.to.as_str())).collect();
    let removed = tx.rows(QUERY, &[Bind::Text(&sql::json(&batch)?), Bind::Int(change)]).await?;
    rows::all_drones(&removed)
}

/// Registers drones: a new or retired one is idle; a reserved one keeps the position and battery that it reports.
async fn write_registrations(tx: &mut Tx, allowed: &[&Registration]) -> Result<Vec<Drone>, StoreError> {
    if allowed.is_empty() {
        return Ok(Vec::new());
    }
    const QUERY: &str = concat!(
        "insert into drones (id, base_id, base_latitude, base_longitude, latitude, longitude, battery, payload_kg,
                             range_m, speed_mps, status, changed, touched)
         select value ->> 0, value -> 1 ->> 'base_id',
                cast(value -> 1 -> 'base_position' ->> 'latitude' as double precision),
                cast(value -> 1 -> 'base_position' ->> 'longitude' as double precision),
                cast(value -> 1 -> 'position' ->> 'latitude' as double precision),
                cast(value -> 1 -> 'position' ->> 'longitude' as double precision),
                cast(value -> 1 ->> 'battery' as double precision),
                cast(value -> 1 ->> 'payload_kg' as double precision),
                cast(value -> 1 ->> 'range_m' as double precision),
                cast(value -> 1 ->> 'speed_mps' as double precision), 'idle', $2, $2
         from json_each($1) where true
         on conflict (id) do update set
             base_id = excluded.base_id, base_latitude = excluded.base_latitude,
             base_longitude = excluded.base_longitude, payload_kg = excluded.payload_kg, range_m = excluded.range_m,
             speed_mps = excluded.speed_mps,
             latitude = case when drones.status = 'reserved' then drones.latitude else excluded.latitude end,
             longitude = case when drones.status = 'reserved' then drones.longitude else excluded.longitude end,
             battery = case when drones.status = 'reserved' then drones.battery else excluded.battery end,
             status = case when drones.status = 'retired' then 'idle' else drones.status end,
             changed = excluded.changed, touched = excluded.touched
         returning ",
        drone_columns!()
    );
    let batch: Vec<_> = allowed.iter().map(|registration| (registration.drone_id, &registration.facts)).collect();
    let change = next_change(tx).await?;
    let written = tx.rows(QUERY, &[Bind::Text(&sql::json(&batch)?), Bind::Int(change)]).await?;
    rows::all_drones(&written)
}
