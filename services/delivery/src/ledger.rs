//! The way every change takes to the store: stamped, with its events, in a batch with whatever else is written.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use contracts::{
    Clock, DeliveryId, Timestamp,
    events::{DeliveryEventKind, EventKind},
};
use messaging::{Batcher, batch::Limits};

use crate::{
    domain::{Changes, Delivery, Next},
    live::Live,
    store::{Change, IdempotencyKey, LeaseChange, Store, StoreError},
};

/// How changes are gathered into transactions.
const SAVE_LIMITS: Limits = Limits {
    // Past this a larger batch is no faster, and everybody in it waits for it.
    max_batch: 256,
    // More than all sagas and requests under way at once.
    queue: 8_192,
    // The store has one writer; the next batch gathers while it writes.
    concurrency: 1,
};

/// Writes deliveries.
#[derive(Clone)]
pub(crate) struct Ledger {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) live: Live,
    pub(crate) clock: Arc<dyn Clock>,
    /// Events committed by this process, by kind.
    committed: Arc<Mutex<BTreeMap<&'static str, u64>>>,
    saves: Batcher<Change, Result<(), StoreError>>,
}

impl Ledger {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        live: Live,
        tasks: &mut chassis::supervise::Tasks,
    ) -> Self {
        let saving = store.clone();
        let (saves, worker) = Batcher::new(SAVE_LIMITS, move |changes: Vec<Change>| {
            let store = saving.clone();
            async move { store.save(&changes).await }
        });
        tasks.spawn(async move {
            worker.await;
            Ok(())
        });
        Self { store, live, clock, committed: Arc::default(), saves }
    }

    /// Writes a new delivery.
    pub(crate) async fn insert(
        &self,
        delivery: &Delivery,
        changes: &Changes,
        lease: LeaseChange,
        key: Option<IdempotencyKey>,
    ) -> Result<(), StoreError> {
        let due = Some(self.lease_end(&lease).unwrap_or_else(|| self.clock.now()));
        let change = self.change(delivery, 0, changes, due, lease, key);
        self.write(change).await
    }

    /// Writes `next`, which was made of `read`; `next` gets its version and time here.
    pub(crate) async fn update(
        &self,
        read: &Delivery,
        next: &mut Delivery,
        changes: &Changes,
        lease: LeaseChange,
    ) -> Result<(), StoreError> {
        let change = self.updated(read, next, changes, lease);
        self.write(change).await
    }

    /// Writes many updates as one batch.
    pub(crate) async fn update_all(&self, changes: &[Change]) -> Vec<Result<(), StoreError>> {
        let results = self.store.save(changes).await;
        for (change, result) in changes.iter().zip(&results) {
            if result.is_ok() {
                self.count(&kinds(change));
                self.live.tell(&change.delivery.record);
            }
        }
        results
    }

    /// The change from `read` to `next`, stamped.
    pub(crate) fn updated(
        &self,
        read: &Delivery,
        next: &mut Delivery,
        changes: &Changes,
        lease: LeaseChange,
    ) -> Change {
        let now = self.clock.now();
        next.stamp(now);
        if next.record.finished_at.is_some() {
            // The date in the lake is that of the commit.
            next.record.finished_at = Some(now);
        }
        let due = match next.next(now) {
            Next::Over => None,
            Next::Wait(until) => Some(self.lease_end(&lease).map_or(until, |end| end.min(until))),
            Next::Do(_) => Some(self.lease_end(&lease).unwrap_or(now)),
        };
        self.change(next, read.record.version, changes, due, lease, None)
    }

    fn lease_end(&self, lease: &LeaseChange) -> Option<Timestamp> {
        match lease {
            LeaseChange::Hold { until, .. } => Some(*until),
            LeaseChange::Keep | LeaseChange::Release { .. } => None,
        }
    }

    fn change(
        &self,
        delivery: &Delivery,
        expected_version: u64,
        changes: &Changes,
        due: Option<Timestamp>,
        lease: LeaseChange,
        key: Option<IdempotencyKey>,
    ) -> Change {
        let events = delivery.events(changes, || self.clock.new_id());
        Change {
            delivery: delivery.clone(),
            expected_version,
            stages: changes.stages.clone(),
            steps: changes.steps.clone(),
            events: events.iter().map(contracts::events::Event::encode).collect(),
            due,
            lease,
            key,
        }
    }

    async fn write(&self, change: Change) -> Result<(), StoreError> {
        let (record, kinds) = (change.delivery.record.clone(), kinds(&change));
        self.saves.call(change).await.map_err(|closed| StoreError::Unavailable(Arc::new(closed)))??;
        self.count(&kinds);
        self.live.tell(&record);
        Ok(())
    }

    fn count(&self, kinds: &[&'static str]) {
        let mut committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        for kind in kinds {
            *committed.entry(kind).or_insert(0) += 1;
        }
    }

    /// Events that this process has committed, by kind.
    pub(crate) fn committed(&self) -> BTreeMap<&'static str, u64> {
        self.committed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One delivery.
    pub(crate) async fn load(&self, id: DeliveryId) -> Result<Option<Delivery>, StoreError> {
        Ok(self.store.load(&[id]).await?.into_iter().next())
    }
}

fn kinds(change: &Change) -> Vec<&'static str> {
    let kind = |event: &contracts::events::CloudEvent| DeliveryEventKind::parse(&event.kind);
    change.events.iter().filter_map(kind).map(|kind| kind.as_str()).collect()
}
