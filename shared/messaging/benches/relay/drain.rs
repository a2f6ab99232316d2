//! How fast a prepared backlog leaves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::ensure;
use async_trait::async_trait;
use contracts::{Clock, SystemClock, Timestamp};
use messaging::outbox::{Bucket, OutboxError, OutboxRow, OutboxSource, Place as At, PostgresOutbox};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::place::{Place, event};

/// Events of one delivery: a backlog has several of a key.
const EVENTS_OF_A_KEY: usize = 5;

/// Events committed together while the backlog is made.
const COMMIT: usize = 2_000;

/// An outbox that says when so many events have left it, and how long it took for its part.
struct Counted {
    outbox: PostgresOutbox,
    left: AtomicUsize,
    reading: AtomicU64,
    deleting: AtomicU64,
    empty: CancellationToken,
}

#[async_trait]
impl OutboxSource for Counted {
    async fn lease(&self, owner: &str, now: Timestamp, until: Timestamp) -> Result<Vec<Bucket>, OutboxError> {
        self.outbox.lease(owner, now, until).await
    }

    async fn read(&self, buckets: &[Bucket], limit: usize) -> Result<Vec<OutboxRow>, OutboxError> {
        let started = Instant::now();
        let rows = self.outbox.read(buckets, limit).await;
        self.reading.fetch_add(millis(started), Ordering::Relaxed);
        rows
    }

    async fn delete(&self, places: &[At]) -> Result<(), OutboxError> {
        let started = Instant::now();
        self.outbox.delete(places).await?;
        self.deleting.fetch_add(millis(started), Ordering::Relaxed);
        if self.left.fetch_sub(places.len(), Ordering::AcqRel) <= places.len() {
            self.empty.cancel();
        }
        Ok(())
    }

    async fn backlog(&self) -> Result<u64, OutboxError> {
        self.outbox.backlog().await
    }

    async fn woken(&self) -> Result<(), OutboxError> {
        self.outbox.woken().await
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

pub(crate) async fn row(backlog: usize) -> anyhow::Result<Value> {
    let place = Place::open().await?;
    let bytes = fill(&place, backlog).await?;
    let empty = CancellationToken::new();
    let outbox = PostgresOutbox::new(place.store.clone());
    let counted = Arc::new(Counted {
        outbox,
        left: AtomicUsize::new(backlog),
        reading: AtomicU64::new(0),
        deleting: AtomicU64::new(0),
        empty: empty.clone(),
    });
    let started = Instant::now();
    place.relay(counted.clone()).run(empty).await;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(counted.backlog().await? == 0, "some events stayed in the outbox");
    let arrived = arrived(&place).await?;
    ensure!(arrived >= backlog as u64, "{arrived} events of {backlog} are in the log");
    let (reading, deleting) = (counted.reading.load(Ordering::Relaxed), counted.deleting.load(Ordering::Relaxed));
    drop(counted);
    place.clear().await?;
    Ok(json!({
        "row": "relay",
        "ours": backlog as f64 / seconds,
        "reading_share": reading as f64 / 1_000.0 / seconds,
        "deleting_share": deleting as f64 / 1_000.0 / seconds,
        "events": backlog,
        "event_bytes": bytes / backlog,
        "doubled": arrived - backlog as u64,
    }))
}

/// Commits a backlog: how many bytes of data.
async fn fill(place: &Place, backlog: usize) -> anyhow::Result<usize> {
    let mut bytes = 0;
    let mut delivery_id = SystemClock.new_delivery_id();
    for first in (0..backlog).step_by(COMMIT) {
        let mut events = Vec::with_capacity(COMMIT);
        for number in first..backlog.min(first + COMMIT) {
            if number % EVENTS_OF_A_KEY == 0 {
                delivery_id = SystemClock.new_delivery_id();
            }
            events.push(event(delivery_id)?);
        }
        bytes += events.iter().map(|event| event.data.len()).sum::<usize>();
        place.commit(&events).await?;
    }
    Ok(bytes)
}

/// Events in the log, as a group that has read none of them sees it.
async fn arrived(place: &Place) -> anyhow::Result<u64> {
    let mut subscription = place.log.subscribe("count", &[contracts::events::Topic::Delivery.name()]).await?;
    subscription.next(1).await?;
    let lags = place.log.lag().await?;
    Ok(lags.iter().filter(|lag| lag.group == "count").map(messaging::GroupLag::lag).sum())
}
