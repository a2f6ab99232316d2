//! How long an event takes from its commit to its consumer's handler, at a steady rate.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::ensure;
use async_trait::async_trait;
use contracts::{Clock, SystemClock, events::Topic};
use messaging::{Consumer, Delivered, HandleError, Handler, outbox::PostgresOutbox};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::place::{Place, event};

/// The time between two commits: what comes within it shares one, as in a service under such a load.
const BETWEEN_COMMITS: Duration = Duration::from_millis(10);

/// Seconds before those that count: until the consumer has joined and connections are warm.
const WARM_UP_SECONDS: usize = 5;

/// When each event under way was about to be committed, and how long those that arrived took.
#[derive(Default)]
struct Book {
    committed: HashMap<Uuid, Instant>,
    took: Vec<Duration>,
    arrived: usize,
}

struct Arrivals {
    book: Arc<Mutex<Book>>,
    expected: usize,
    uncounted: usize,
    all: CancellationToken,
}

#[async_trait]
impl Handler for Arrivals {
    async fn handle(&mut self, batch: &[Delivered]) -> Vec<Result<(), HandleError>> {
        let now = Instant::now();
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        for record in batch {
            // What comes twice counts once.
            let Some(committed) = book.committed.remove(&record.event.id) else { continue };
            book.arrived += 1;
            if book.arrived > self.uncounted {
                book.took.push(now - committed);
            }
        }
        if book.arrived == self.expected {
            self.all.cancel();
        }
        batch.iter().map(|_| Ok(())).collect()
    }
}

pub(crate) async fn row(per_second: usize, seconds: usize) -> anyhow::Result<Value> {
    let place = Place::open().await?;
    let book = Arc::new(Mutex::new(Book::default()));
    let (stop, all) = (CancellationToken::new(), CancellationToken::new());
    let uncounted = per_second * WARM_UP_SECONDS;
    let expected = uncounted + per_second * seconds;
    let mut tasks = JoinSet::new();
    tasks.spawn(place.relay(Arc::new(PostgresOutbox::new(place.store.clone()))).run(stop.clone()));
    let consumer =
        Consumer { log: place.log.clone(), clock: Arc::new(SystemClock), group: "bench", topics: &[Topic::Delivery] };
    tasks.spawn(consumer.run(Arrivals { book: book.clone(), expected, uncounted, all: all.clone() }, stop.clone()));
    let late = commit(&place, &book, per_second, expected).await?;
    tokio::time::timeout(Duration::from_secs(30), all.cancelled()).await?;
    stop.cancel();
    tasks.join_all().await;
    let mut took = std::mem::take(&mut book.lock().unwrap_or_else(PoisonError::into_inner).took);
    took.sort_unstable();
    ensure!(took.len() == expected - uncounted, "{} events of {expected} count", took.len());
    let percentile = |hundredths: usize| took[(took.len() - 1) * hundredths / 10_000].as_secs_f64() * 1_000.0;
    place.clear().await?;
    Ok(json!({
        "row": "latency",
        "p50_ms": percentile(5_000),
        "p99_ms": percentile(9_900),
        "max_ms": percentile(10_000),
        "per_second": per_second,
        "seconds": seconds,
        "late_commits": late,
    }))
}

/// Commits at the rate: how many batches began more than one period late.
async fn commit(place: &Place, book: &Mutex<Book>, per_second: usize, expected: usize) -> anyhow::Result<usize> {
    let batch = (per_second as f64 * BETWEEN_COMMITS.as_secs_f64()).ceil() as usize;
    let started = Instant::now();
    let mut pace = tokio::time::interval(BETWEEN_COMMITS);
    let mut late = 0;
    for number in 0..expected.div_ceil(batch) {
        pace.tick().await;
        let due = started + BETWEEN_COMMITS * u32::try_from(number)?;
        late += usize::from(Instant::now() - due > BETWEEN_COMMITS);
        let events: Vec<_> = (0..batch.min(expected - number * batch))
            .map(|_| event(SystemClock.new_delivery_id()))
            .collect::<Result<_, _>>()?;
        let ids: Vec<_> = events.iter().map(|event| event.id).collect();
        let now = Instant::now();
        book.lock().unwrap_or_else(PoisonError::into_inner).committed.extend(ids.into_iter().map(|id| (id, now)));
        place.commit(&events).await?;
    }
    Ok(late)
}
