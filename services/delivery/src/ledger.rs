//! The way every change takes to the store: stamped, with its events, in a batch with whatever else is written.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
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
    // A request waits at most this long for company.
    pace: Duration::from_millis(10),
};

/// Writes deliveries.
#[derive(Clone)]
pub(crate) struct Ledger {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) live: Live,
    pub(crate) clock: Arc<dyn Clock>,
    committed: Committed,
    saves: Batcher<Change, Result<(), StoreError>>,
}

impl Ledger {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        live: Live,
        tasks: &mut chassis::supervise::Tasks,
    ) -> Self {
        let committed = Committed { live: live.clone(), counts: Arc::default() };
        let (saving, telling) = (store.clone(), committed.clone());
        let (saves, worker) = Batcher::new(SAVE_LIMITS, move |changes: Vec<Change>| {
            let (store, committed) = (saving.clone(), telling.clone());
            async move {
                let results = store.save(&changes).await;
                // Here, and not where the caller waits: it may have given up.
                committed.tell(&changes, &results);
                results
            }
        });
        tasks.spawn(async move {
            worker.await;
            Ok(())
        });
        Self { store, live, clock, committed, saves }
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
        self.committed.tell(changes, &results);
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
        self.saves.call(change).await.map_err(|closed| StoreError::Unavailable(Arc::new(closed)))?
    }

    /// Events that this process has committed, by kind.
    pub(crate) fn committed(&self) -> BTreeMap<&'static str, u64> {
        self.committed.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One delivery.
    pub(crate) async fn load(&self, id: DeliveryId) -> Result<Option<Delivery>, StoreError> {
        Ok(self.store.load(&[id]).await?.into_iter().next().transpose()?)
    }
}

/// Everybody who is told of what was committed: watchers, and the counts.
#[derive(Clone)]
struct Committed {
    live: Live,
    counts: Arc<Mutex<BTreeMap<&'static str, u64>>>,
}

impl Committed {
    fn tell(&self, changes: &[Change], results: &[Result<(), StoreError>]) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (change, result) in changes.iter().zip(results) {
            if result.is_err() {
                continue;
            }
            for event in &change.events {
                if let Some(kind) = DeliveryEventKind::parse(&event.kind) {
                    *counts.entry(kind.as_str()).or_insert(0) += 1;
                }
            }
            self.live.tell(&change.delivery.record);
        }
    }
}
