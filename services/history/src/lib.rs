//! history: the data lake of finished deliveries and sampled positions, and answers from it.
//!
//! Events in: `delivery.events` (the terminal ones) and `tracking.positions`. Events out: dead letters only.
//!
//! Invariants:
//! - a terminal delivery and a sampled position are in the lake exactly once, whatever was published twice, read
//!   twice or killed in between: rows and the offsets they came from are one commit, and keys are checked before it;
//! - the table's offsets decide where reading goes on, never the consumer group's;
//! - what a commit has answered is on disk, or in the object store;
//! - an answer that is lost changes nothing: the table is asked what became of the commit;
//! - no reader, of any version, sees a row twice or misses it because of a compaction.

mod domain;
mod events;
pub mod http;
mod lake;

#[cfg(test)]
mod fixtures;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use chassis::{Node, Readiness, auth::Authenticator, supervise::Tasks};
use contracts::{Clock, events::Topic};
use messaging::{EventLog, dead_letters, outbox::chain};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{DeliveryRow, PositionRow, at_most_after},
    events::{DEAD_LETTER_GROUP, FlushLimits, Subscriber},
    http::AppState,
    lake::{CompactionLimits, KeyCache, Lake, LakeError, Location, Reader, Table, Writer, compact, vacuum},
};

/// The lake as the audit reads it: raw, when nothing is running.
pub mod audit {
    pub use crate::lake::{AuditRow, PositionKeys, scan_deliveries, scan_positions_keys};
}

/// The consumer group of `delivery.events`.
const DELIVERY_GROUP: &str = "history";
/// The consumer group of `tracking.positions`: another table, with offsets of its own.
const POSITION_GROUP: &str = "history.positions";
/// How often unused files are looked for: they are deleted an hour after their last use, some minutes matter little.
const VACUUM_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// How long a file that is not in the table any more, or not yet, is kept: as long as the tables' tombstones.
const VACUUM_RETENTION: Duration = Duration::from_secs(60 * 60);

/// How the service is configured.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Where the lake is: file:///ABSOLUTE/PATH or a path; s3://BUCKET/PREFIX, with AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY, AWS_REGION and, for a store that is not Amazon's, AWS_ENDPOINT (and AWS_ALLOW_HTTP=true);
    /// az://CONTAINER/PREFIX, with AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY. Bucket and container must
    /// be there, and the credentials must allow reading, writing, deleting and listing.
    #[arg(long = "lake", env = "LAKE", value_parser = parse_lake)]
    pub lake_url: String,
    /// Seconds after which what was read is committed.
    #[arg(
        long = "history-flush-seconds",
        env = "HISTORY_FLUSH_SECONDS",
        default_value = "2",
        value_parser = parse_seconds
    )]
    pub flush_interval: Duration,
    /// Rows with which what was read is committed before that.
    #[arg(long = "history-flush-rows", env = "HISTORY_FLUSH_ROWS", default_value_t = 20_000)]
    pub flush_rows: usize,
    /// Seconds between two looks for dates with many small files.
    #[arg(
        long = "history-compact-seconds",
        env = "HISTORY_COMPACT_SECONDS",
        default_value = "60",
        value_parser = parse_seconds
    )]
    pub compact_interval: Duration,
}

impl Config {
    /// The defaults, for the lake at `lake_url`.
    pub fn new(lake_url: impl Into<String>) -> Self {
        Self {
            lake_url: lake_url.into(),
            flush_interval: Duration::from_secs(2),
            flush_rows: 20_000,
            compact_interval: Duration::from_secs(60),
        }
    }
}

impl chassis::Settings for Config {
    fn check(&self) -> anyhow::Result<()> {
        Location::open(&self.lake_url).map(drop).context("LAKE")
    }
}

/// Takes where a lake is: only the form, the rest is for who opens it to say.
pub fn parse_lake(text: &str) -> Result<String, String> {
    if Location::is_named_by(text) {
        Ok(text.to_owned())
    } else {
        // Not the text itself: it may hold a password.
        Err("expected a path, file:///ABSOLUTE/PATH, s3://BUCKET/PREFIX or az://CONTAINER/PREFIX".to_owned())
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if duration.is_zero() { Err("must be more than 0".to_owned()) } else { Ok(duration) }
}

/// Runs the service until its node is shut down.
pub async fn run(config: Config, node: Node) -> anyhow::Result<()> {
    let lake = Lake::open(&config.lake_url, node.clock.clone()).await?;
    let limits = FlushLimits { interval: config.flush_interval, rows: config.flush_rows };
    let (delivery_keys, position_keys) = (Arc::new(KeyCache::default()), Arc::new(KeyCache::default()));
    let mut tasks = Tasks::new();

    let deliveries = Subscriber::<DeliveryRow> {
        log: node.log.clone(),
        clock: node.clock.clone(),
        topic: Topic::Delivery,
        group: DELIVERY_GROUP,
        limits,
        writer: Writer::new(lake.deliveries.clone(), delivery_keys.clone()),
        shutdown: node.shutdown.clone(),
    };
    let positions = Subscriber::<PositionRow> {
        log: node.log.clone(),
        clock: node.clock.clone(),
        topic: Topic::Positions,
        group: POSITION_GROUP,
        limits,
        writer: Writer::new(lake.positions.clone(), position_keys.clone()),
        shutdown: node.shutdown.clone(),
    };
    tasks.spawn(until_shutdown(deliveries.run()));
    tasks.spawn(until_shutdown(positions.run()));
    tasks.spawn(until_shutdown(remember(node.log.clone(), node.clock.clone(), node.shutdown.clone())));

    for (table, keys) in [(&lake.deliveries, &delivery_keys), (&lake.positions, &position_keys)] {
        let (table, keys, clock) = (table.clone(), keys.clone(), node.clock.clone());
        let shutdown = node.shutdown.clone();
        tasks.spawn(until_shutdown(maintain(table, keys, clock, config.compact_interval, shutdown)));
    }

    let table = &lake.deliveries;
    let readiness = Readiness::new().store(table, |table| async move { table.ping().await }).event_log(&node.log);
    let reader = Arc::new(Reader::new(lake.deliveries, delivery_keys));
    let router = http::router(AppState { reader, authenticator: Authenticator::of(&node) });
    tasks.spawn(chassis::serve(node.door, router, readiness, node.shutdown.clone()));
    chassis::supervise(node.service, tasks, node.shutdown).await
}

async fn until_shutdown(task: impl Future<Output = ()>) -> anyhow::Result<()> {
    task.await;
    Ok(())
}

/// Has the log remember which dead letters were redriven: the subscribers are no consumers that do so by themselves.
async fn remember(log: Arc<dyn EventLog>, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    tokio::select! {
        () = dead_letters::remember(&*log, &*clock, DEAD_LETTER_GROUP) => {}
        () = shutdown.cancelled() => {}
    }
}

/// Keeps one table quick to open and to read.
async fn maintain(
    table: Arc<Table>,
    keys: Arc<KeyCache>,
    clock: Arc<dyn Clock>,
    interval: Duration,
    shutdown: CancellationToken,
) {
    let mut vacuum_at = clock.now() + VACUUM_INTERVAL;
    loop {
        tokio::select! {
            () = clock.sleep(interval) => {}
            () = shutdown.cancelled() => return,
        }
        let now = clock.now();
        let vacuum_now = now >= vacuum_at;
        vacuum_at = if vacuum_now { now + VACUUM_INTERVAL } else { at_most_after(vacuum_at, VACUUM_INTERVAL, now) };
        tokio::select! {
            () = maintain_once(&table, &keys, vacuum_now) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Each by itself: a file that cannot be read keeps neither the log from being cleaned up nor orphans from being deleted.
async fn maintain_once(table: &Table, keys: &KeyCache, vacuum_now: bool) {
    let told = |what, outcome: Result<usize, LakeError>| {
        let table = table.kind().name();
        match outcome {
            Ok(files) => tracing::debug!(table, what, files, "upkeep done"),
            Err(error) => tracing::warn!(table, what, error = %chain(&error), "upkeep failed, later again"),
        }
    };
    told("compaction", compact(table, keys, CompactionLimits::default()).await);
    told("checkpoint", table.checkpoint().await.map(|()| 1));
    if vacuum_now {
        told("vacuum", vacuum(table, VACUUM_RETENTION).await);
    }
}
