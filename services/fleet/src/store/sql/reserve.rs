//! Reserves drones: the conditional update of the drone's row decides, whatever an index believed.

use messaging::sql::{self, Bind, Tx};
use std::collections::{HashMap, HashSet};

use contracts::{
    DeliveryId,
    commands::{AssignedDrone, ReserveDrone, ReserveOutcome},
    events::{CloudEvent, FleetEventKind},
};
use serde::Serialize;

use super::{
    Cause, SqlStore, next_change,
    rows::{self, drone_columns, signed},
};
use crate::{
    domain::{Drone, Ending, Hold, Known, Parties, Verdict, is_stale, judge_reserve},
    store::{Grant, Pick, Proposal, Reserved, StoreError, Written},
};

/// What rounding may do to the battery that a trip needs, against the same sum in memory.
const BATTERY_ROUNDING: f64 = 1e-9;

/// A reservation to be written, with the names of its columns.
#[derive(Serialize)]
struct NewRow<'a> {
    delivery_id: DeliveryId,
    attempt: u32,
    state: &'static str,
    fence: i64,
    drone: Option<AssignedDrone>,
    customer_id: &'a str,
    home_region: &'a str,
    pickup: [f64; 2],
    dropoff: [f64; 2],
    weight_kg: f64,
    priority: i64,
    requested_ms: i64,
    deadline_ms: i64,
}

impl<'a> NewRow<'a> {
    fn new(command: &'a ReserveDrone, drone: Option<&Drone>) -> Self {
        Self {
            delivery_id: command.delivery_id,
            attempt: command.attempt,
            state: if drone.is_some() { "reserved" } else { "waiting" },
            fence: signed(command.fence),
            drone: drone.map(Drone::assigned),
            customer_id: command.customer_id.as_str(),
            home_region: command.home_region.as_str(),
            pickup: [command.pickup.latitude, command.pickup.longitude],
            dropoff: [command.dropoff.latitude, command.dropoff.longitude],
            weight_kg: command.weight_kg,
            priority: i64::from(!command.expedited),
            requested_ms: command.requested_at.timestamp_millis(),
            deadline_ms: command.deadline.timestamp_millis(),
        }
    }
}

/// A batch of reserve commands, judged.
#[derive(Default)]
struct Judged<'a> {
    outcomes: Vec<Option<Reserved>>,
    fresh: Vec<(usize, Proposal<'a>)>,
    replaced: Vec<Ending>,
    fences: Vec<(DeliveryId, i64)>,
}

impl SqlStore {
    pub(super) async fn reserve_batch(&self, batch: &[Proposal<'_>]) -> Result<Written<Reserved>, StoreError> {
        let mut tx = self.begin().await?;
        let deliveries: Vec<_> = batch.iter().map(|proposal| proposal.command.delivery_id).collect();
        let known = rows::known(&mut tx, &deliveries).await?;
        let Judged { mut outcomes, fresh, replaced, fences } = self.judge(batch, &known);
        raise_fences(&mut tx, &fences).await?;
        let (mut drones, mut events) = self.end_in(&mut tx, &replaced).await?;

        let mut wanted = Vec::with_capacity(fresh.len());
        for (_, proposal) in &fresh {
            if let Some(pick) = proposal.pick {
                wanted.push((hold_of(proposal.command), pick));
            }
        }
        let won = self.seize(&mut tx, &wanted, Line::NotInIt).await?;
        let mut written = Vec::with_capacity(fresh.len());
        for (place, Proposal { command, pick }) in fresh {
            let drone = won.get(&hold_of(command));
            outcomes[place] = Some(match (drone, pick) {
                (Some(drone), _) => Reserved::Outcome(ReserveOutcome::Reserved { drone: drone.assigned() }),
                (None, Some(_)) => Reserved::Lost,
                (None, None) => Reserved::Outcome(ReserveOutcome::Waiting),
            });
            if drone.is_some() || pick.is_none() {
                written.push(NewRow::new(command, drone));
            }
            if let Some(drone) = drone {
                events.push(self.reserved_event(drone, hold_of(command), Some(parties_of(command))));
            }
        }
        self.insert_rows(&mut tx, &written).await?;
        follow(&mut drones, concerned(&mut tx, wanted.iter().map(|(_, pick)| pick), won).await?);
        self.commit(tx, &events).await?;
        Ok(Written { outcomes: answers(outcomes), drones })
    }

    fn judge<'a>(&self, batch: &[Proposal<'a>], known: &HashMap<DeliveryId, Vec<Known>>) -> Judged<'a> {
        let now = self.clock.now();
        let mut judged = Judged::default();
        for (place, proposal) in batch.iter().enumerate() {
            let command = proposal.command;
            let rows = known.get(&command.delivery_id).map_or(&[][..], Vec::as_slice);
            if !rows.is_empty() && !is_stale(command.fence, rows) {
                judged.fences.push((command.delivery_id, signed(command.fence)));
            }
            let outcome = match judge_reserve(command, rows, now) {
                Verdict::Refuse(reason) => Some(ReserveOutcome::Refused { reason }),
                Verdict::Held(drone) => Some(ReserveOutcome::Reserved { drone }),
                Verdict::Waits => Some(ReserveOutcome::Waiting),
                Verdict::Fresh => {
                    judged.fresh.push((place, *proposal));
                    if rows.iter().any(|row| row.state.is_open()) {
                        judged.replaced.push(replaced_by(command));
                    }
                    None
                }
            };
            judged.outcomes.push(outcome.map(Reserved::Outcome));
        }
        judged
    }

    pub(super) async fn grant_batch(&self, batch: &[Grant]) -> Result<Written<bool>, StoreError> {
        let mut tx = self.begin().await?;
        let wanted: Vec<_> = batch.iter().map(|grant| (grant.hold, grant.pick)).collect();
        let won = self.seize(&mut tx, &wanted, Line::Waits).await?;
        let outcomes = batch.iter().map(|grant| won.contains_key(&grant.hold)).collect();
        let parties = self.leave_line(&mut tx, &won).await?;
        let mut events = Vec::with_capacity(won.len());
        for (hold, drone) in &won {
            events.push(self.reserved_event(drone, *hold, parties.get(hold).cloned()));
        }
        let drones = concerned(&mut tx, wanted.iter().map(|(_, pick)| pick), won).await?;
        self.commit(tx, &events).await?;
        Ok(Written { outcomes, drones })
    }

    /// Makes each drone the reservation's, if it is still idle and has the battery: one statement for all.
    async fn seize(
        &self,
        tx: &mut Tx,
        wanted: &[(Hold, Pick)],
        line: Line,
    ) -> Result<HashMap<Hold, Drone>, StoreError> {
        if wanted.is_empty() {
            return Ok(HashMap::new());
        }
        let mut batch = Vec::with_capacity(wanted.len());
        for (hold, pick) in wanted {
            let needed = pick.needed_battery - BATTERY_ROUNDING;
            batch.push((pick.drone_id, hold.delivery_id, hold.attempt, needed));
        }
        let change = next_change(tx).await?;
        let seized = tx
            .rows(
                line.seize(),
                &[Bind::Text(&sql::json(&batch)?), Bind::Int(self.clock.now().timestamp_millis()), Bind::Int(change)],
            )
            .await?;
        let mut won = HashMap::with_capacity(seized.len());
        for drone in rows::all_drones(&seized)? {
            if let Some(hold) = drone.hold {
                won.insert(hold, drone);
            }
        }
        Ok(won)
    }

    async fn insert_rows(&self, tx: &mut Tx, new: &[NewRow<'_>]) -> Result<(), StoreError> {
        if new.is_empty() {
            return Ok(());
        }
        tx.done("insert into reservations (delivery_id, attempt, state, fence, drone_id, drone, customer_id, home_region,
                 pickup_latitude, pickup_longitude, dropoff_latitude, dropoff_longitude, weight_kg, priority,
                 requested_ms, deadline_ms, reserved_ms)
             select value ->> 'delivery_id', cast(value ->> 'attempt' as bigint), value ->> 'state',
                 cast(value ->> 'fence' as bigint), value -> 'drone' ->> 'drone_id', value ->> 'drone', value ->> 'customer_id', value ->> 'home_region',
                 cast(value -> 'pickup' ->> 0 as double precision), cast(value -> 'pickup' ->> 1 as double precision),
                 cast(value -> 'dropoff' ->> 0 as double precision), cast(value -> 'dropoff' ->> 1 as double precision),
                 cast(value ->> 'weight_kg' as double precision), cast(value ->> 'priority' as bigint),
                 cast(value ->> 'requested_ms' as bigint), cast(value ->> 'deadline_ms' as bigint),
                 case value ->> 'state' when 'reserved' then $2 end
             from json_each($1)", &[Bind::Text(&sql::json(&new)?), Bind::Int(self.clock.now().timestamp_millis())])
        .await?;
        Ok(())
    }

    /// Marks entries of the line as reserved; whose they are.
    async fn leave_line(&self, tx: &mut Tx, won: &HashMap<Hold, Drone>) -> Result<HashMap<Hold, Parties>, StoreError> {
        if won.is_empty() {
            return Ok(HashMap::new());
        }
        let mut batch = Vec::with_capacity(won.len());
        for (hold, drone) in won {
            batch.push((hold.delivery_id, hold.attempt, drone.id, drone.assigned()));
        }
        let left = tx.rows("update reservations set state = 'reserved', drone_id = p_drone_id, drone = p_drone, reserved_ms = $2
             from (select value ->> 0 as p_delivery_id, cast(value ->> 1 as bigint) as p_attempt, value ->> 2 as p_drone_id,
                          value ->> 3 as p_drone from json_each($1)) as p
             where reservations.delivery_id = p_delivery_id and reservations.attempt = p_attempt
             returning delivery_id, attempt, customer_id, home_region", &[Bind::Text(&sql::json(&batch)?), Bind::Int(self.clock.now().timestamp_millis())])
        .await?;
        let mut parties = HashMap::with_capacity(left.len());
        for row in &left {
            if let Some(own) = rows::parties(row, 2)? {
                parties.insert(rows::hold(row, 0)?, own);
            }
        }
        Ok(parties)
    }

    fn reserved_event(&self, drone: &Drone, hold: Hold, parties: Option<Parties>) -> CloudEvent {
        self.event(FleetEventKind::DroneReserved, drone, Cause { hold: Some(hold), parties, reason: None })
    }
}

/// Where the reservation comes from.
#[derive(Clone, Copy)]
enum Line {
    /// A command: its row is written in this transaction.
    NotInIt,
    /// The waiting line: its row must still wait.
    Waits,
}

macro_rules! seize {
    ($also:literal) => {
        concat!(
            "update drones set status = 'reserved', delivery_id = p_delivery_id, attempt = p_attempt,
                    reserved_ms = $2, changed = $3, touched = $3
             from (select value ->> 0 as p_id, value ->> 1 as p_delivery_id, cast(value ->> 2 as bigint) as p_attempt, cast(value ->> 3 as double precision) as p_needed
                   from json_each($1)) as p
             where drones.id = p_id and drones.status = 'idle' and drones.battery >= p_needed ",
            $also,
            " returning ",
            drone_columns!()
        )
    };
}

impl Line {
    fn seize(self) -> &'static str {
        match self {
            Self::NotInIt => seize!(""),
            Self::Waits => seize!(
                "and exists (select 1 from reservations as r where r.delivery_id = p_delivery_id
                   and r.attempt = p_attempt and r.state = 'waiting' and r.deadline_ms > $2)"
            ),
        }
    }
}

fn hold_of(command: &ReserveDrone) -> Hold {
    Hold { delivery_id: command.delivery_id, attempt: command.attempt }
}

fn parties_of(command: &ReserveDrone) -> Parties {
    Parties { customer_id: command.customer_id.clone(), home_region: command.home_region.clone() }
}

fn replaced_by(command: &ReserveDrone) -> Ending {
    Ending {
        delivery_id: command.delivery_id,
        up_to: command.attempt.saturating_sub(1),
        tombstone: false,
        fence: 0,
        reason: "replaced by a later attempt".to_owned(),
    }
}

fn answers(outcomes: Vec<Option<Reserved>>) -> Vec<Reserved> {
    // Every place is filled: judged there and then, or fresh and settled after the seizure.
    outcomes.into_iter().map(|outcome| outcome.unwrap_or(Reserved::Lost)).collect()
}

/// The drones of a batch of picks as they stand now: the winners, and the rows of those that were lost.
async fn concerned(
    tx: &mut Tx,
    picks: impl Iterator<Item = &Pick>,
    won: HashMap<Hold, Drone>,
) -> Result<Vec<Drone>, StoreError> {
    let winners: HashSet<_> = won.values().map(|drone| drone.id).collect();
    let lost: HashSet<_> = picks.map(|pick| pick.drone_id).filter(|id| !winners.contains(id)).collect();
    let lost: Vec<_> = lost.into_iter().collect();
    let mut drones = rows::drones_by_id(tx, &lost).await?;
    drones.extend(won.into_values());
    Ok(drones)
}

/// Adds the later state of drones to the earlier one: each drone stays in once.
fn follow(drones: &mut Vec<Drone>, later: Vec<Drone>) {
    let ids: HashSet<_> = later.iter().map(|drone| drone.id).collect();
    drones.retain(|drone| !ids.contains(&drone.id));
    drones.extend(later);
}

/// Keeps the highest fence heard of each delivery.
async fn raise_fences(tx: &mut Tx, fences: &[(DeliveryId, i64)]) -> Result<(), StoreError> {
    if fences.is_empty() {
        return Ok(());
    }
    tx.done(
        "update reservations set fence = p_fence
         from (select value ->> 0 as p_delivery_id, cast(value ->> 1 as bigint) as p_fence from json_each($1)) as p
         where reservations.delivery_id = p_delivery_id and reservations.fence < p_fence",
        &[Bind::Text(&sql::json(&fences)?)],
    )
    .await?;
    Ok(())
}
