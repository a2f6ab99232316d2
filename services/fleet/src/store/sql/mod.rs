//! Fleet's store in SQL, on SQLite and on PostgreSQL: set-based statements, one transaction a batch. What differs between
//! the two is in `messaging::sql`, and the types of the tables.

mod drones;
mod queries;
mod raw;
mod release;
mod reserve;
mod rows;

use std::sync::Arc;

use async_trait::async_trait;
use contracts::{
    BaseId, Clock, DroneId, Timestamp,
    commands::{ReleaseDrone, ReleaseOutcome, ReportOutcome},
    events::{CloudEvent, DroneRecord, Event, FleetEventKind},
};
use messaging::{
    outbox::OutboxSignal,
    sql::{Engine, Migrations, OpenError, Tx},
};

use super::{Grant, LatestReport, Opened, Place, Proposal, Removal, Reserved, Store, StoreError, Waiting, Written};
use crate::domain::{Drone, Ending, Hold, Parties, Registration, RegistrationRefusal};

pub(crate) use raw::raw_reservations;

/// `changed` is indexed and moves with what other instances must know; `touched` is not and moves with every write, so
/// that a position report touches no index. Both take the number of the transaction, which grows in order of commit.
const SQLITE_SCHEMA: &str = "
create table change_counter (id integer primary key check (id = 0), value integer not null);
insert into change_counter (id, value) values (0, 0);
create table drones (
    id text primary key not null,
    base_id text not null,
    base_latitude real not null,
    base_longitude real not null,
    latitude real not null,
    longitude real not null,
    battery real not null,
    payload_kg real not null,
    range_m real not null,
    speed_mps real not null,
    status text not null,
    delivery_id text,
    attempt integer,
    reserved_ms integer,
    last_seen_ms integer,
    last_sequence integer not null default 0,
    changed integer not null,
    touched integer not null,
    check ((status = 'reserved') = (delivery_id is not null and attempt is not null))
) without rowid;
create index drones_changed on drones (changed);
create index drones_base on drones (base_id, id);
create table reservations (
    delivery_id text not null,
    attempt integer not null,
    state text not null,
    fence integer not null,
    drone_id text,
    drone text,
    customer_id text,
    home_region text,
    pickup_latitude real,
    pickup_longitude real,
    dropoff_latitude real,
    dropoff_longitude real,
    weight_kg real,
    priority integer,
    requested_ms integer,
    deadline_ms integer,
    reserved_ms integer,
    ended_ms integer,
    reason text,
    primary key (delivery_id, attempt)
) without rowid;
create index reservations_waiting on reservations (priority, requested_ms, delivery_id) where state = 'waiting';
create index reservations_deadline on reservations (deadline_ms) where state = 'waiting';
create index reservations_ended on reservations (ended_ms) where ended_ms is not null;
";

/// Room in each page keeps a report, which touches no index, within its page.
const POSTGRES_SCHEMA: &str = "
create table change_counter (id bigint primary key check (id = 0), value bigint not null);
insert into change_counter (id, value) values (0, 0);
create table drones (
    id text collate \"C\" primary key,
    base_id text collate \"C\" not null,
    base_latitude double precision not null,
    base_longitude double precision not null,
    latitude double precision not null,
    longitude double precision not null,
    battery double precision not null,
    payload_kg double precision not null,
    range_m double precision not null,
    speed_mps double precision not null,
    status text collate \"C\" not null,
    delivery_id text collate \"C\",
    attempt bigint,
    reserved_ms bigint,
    last_seen_ms bigint,
    last_sequence bigint not null default 0,
    changed bigint not null,
    touched bigint not null,
    check ((status = 'reserved') = (delivery_id is not null and attempt is not null))
) with (fillfactor = 70);
create index drones_changed on drones (changed);
create index drones_base on drones (base_id, id);
create table reservations (
    delivery_id text collate \"C\" not null,
    attempt bigint not null,
    state text collate \"C\" not null,
    fence bigint not null,
    drone_id text collate \"C\",
    drone text collate \"C\",
    customer_id text collate \"C\",
    home_region text collate \"C\",
    pickup_latitude double precision,
    pickup_longitude double precision,
    dropoff_latitude double precision,
    dropoff_longitude double precision,
    weight_kg double precision,
    priority bigint,
    requested_ms bigint,
    deadline_ms bigint,
    reserved_ms bigint,
    ended_ms bigint,
    reason text collate \"C\",
    primary key (delivery_id, attempt)
);
create index reservations_waiting on reservations (priority, requested_ms, delivery_id) where state = 'waiting';
create index reservations_deadline on reservations (deadline_ms) where state = 'waiting';
create index reservations_ended on reservations (ended_ms) where ended_ms is not null;
";

const MIGRATIONS: Migrations = Migrations { sqlite: &[SQLITE_SCHEMA], postgres: &[POSTGRES_SCHEMA] };

/// Opens the store that a URL names and brings it up to date.
pub(crate) async fn open(url: &str, clock: Arc<dyn Clock>) -> Result<Opened, OpenError> {
    let (engine, outbox) = Engine::open(url, MIGRATIONS).await?;
    let signal = OutboxSignal::default();
    let store = SqlStore { engine, signal: signal.clone(), clock };
    Ok(Opened { store: Arc::new(store), outbox, signal })
}

/// The tables of either engine.
struct SqlStore {
    engine: Engine,
    signal: OutboxSignal,
    clock: Arc<dyn Clock>,
}

impl SqlStore {
    /// A transaction that no other writer is beside: what it reads cannot change before it commits, and the numbers of
    /// changes are in order of commit. On PostgreSQL the counter's row is the lock, so that the writers of all replicas
    /// take turns; batches make up for it.
    async fn begin(&self) -> Result<Tx, StoreError> {
        let mut tx = self.engine.begin().await?;
        tx.lock("select value from change_counter where id = 0 for update", &[]).await?;
        Ok(tx)
    }

    /// Writes the events, commits, and wakes the relay.
    async fn commit(&self, tx: Tx, events: &[CloudEvent]) -> Result<(), StoreError> {
        self.engine.commit(tx, events).await?;
        if !events.is_empty() {
            self.signal.wake();
        }
        Ok(())
    }

    /// What happened to a drone, in the form in which it crosses the log.
    fn event(&self, kind: FleetEventKind, drone: &Drone, cause: Cause) -> CloudEvent {
        let at = self.clock.now();
        let (customer_id, home_region) =
            cause.parties.map_or((None, None), |parties| (Some(parties.customer_id), Some(parties.home_region)));
        let data = DroneRecord {
            drone_id: drone.id,
            drone: drone.assigned(),
            delivery_id: cause.hold.map(|hold| hold.delivery_id),
            attempt: cause.hold.map(|hold| hold.attempt),
            customer_id,
            home_region,
            reason: cause.reason,
            at,
        };
        Event { id: self.clock.new_id(), time: at, kind, data }.encode()
    }
}

/// What an event is about, beside the drone.
struct Cause {
    hold: Option<Hold>,
    parties: Option<Parties>,
    reason: Option<String>,
}

/// The number of this transaction's changes.
async fn next_change(tx: &mut Tx) -> Result<i64, StoreError> {
    let found = tx.rows("update change_counter set value = value + 1 where id = 0 returning value", &[]).await?;
    match found.first() {
        Some(row) => Ok(row.int(0)?),
        None => Err(StoreError::Unavailable("the counter of changes is missing".into())),
    }
}

#[async_trait]
impl Store for SqlStore {
    async fn reserve(&self, batch: &[Proposal<'_>]) -> Result<Written<Reserved>, StoreError> {
        self.reserve_batch(batch).await
    }

    async fn release(&self, batch: &[ReleaseDrone]) -> Result<Written<ReleaseOutcome>, StoreError> {
        self.release_batch(batch).await
    }

    async fn end(&self, batch: &[Ending]) -> Result<Written<()>, StoreError> {
        self.end_batch(batch).await
    }

    async fn line(&self, after: Option<Place>, limit: usize) -> Result<Vec<Waiting>, StoreError> {
        self.read_line(after, limit).await
    }

    async fn grant(&self, batch: &[Grant]) -> Result<Written<bool>, StoreError> {
        self.grant_batch(batch).await
    }

    async fn expire(&self) -> Result<u64, StoreError> {
        self.expire_waiting().await
    }

    async fn report(&self, batch: &[LatestReport]) -> Result<Written<ReportOutcome>, StoreError> {
        self.report_batch(batch).await
    }

    async fn register(
        &self,
        batch: &[Registration],
    ) -> Result<Written<Result<Drone, RegistrationRefusal>>, StoreError> {
        self.register_batch(batch).await
    }

    async fn remove(&self, batch: &[Removal]) -> Result<Written<Option<Drone>>, StoreError> {
        self.remove_batch(batch).await
    }

    async fn last_heard(&self) -> Result<Option<Timestamp>, StoreError> {
        self.read_last_heard().await
    }

    async fn silent(&self, since: Timestamp, limit: usize) -> Result<Vec<DroneId>, StoreError> {
        self.read_silent(since, limit).await
    }

    async fn drones(&self, ids: &[DroneId]) -> Result<Vec<Drone>, StoreError> {
        self.read_drones(ids).await
    }

    async fn page(
        &self,
        base: Option<&BaseId>,
        after: Option<DroneId>,
        limit: usize,
    ) -> Result<Vec<Drone>, StoreError> {
        self.read_page(base, after, limit).await
    }

    async fn changed_since(&self, change: i64) -> Result<Vec<Drone>, StoreError> {
        self.read_changed(change).await
    }

    async fn touched_since(&self, change: i64) -> Result<(Vec<Drone>, i64), StoreError> {
        self.read_touched(change).await
    }

    async fn last_change(&self) -> Result<i64, StoreError> {
        self.read_last_change().await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.engine.ping().await?)
    }

    async fn forget(&self, ended_before: Timestamp, limit: usize) -> Result<u64, StoreError> {
        self.delete_ended(ended_before, limit).await
    }
}
