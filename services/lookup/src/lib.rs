//! Fast lookup of recent history: the deliveries that finished within the last 30 days, by customer and by id.
//!
//! Events in: `delivery.events`, the terminal ones. Events out: none.
//!
//! Invariants:
//! - a delivery is stored once, as its highest version tells it, whatever the order of its events and however often;
//! - every read names the customer, which is the shard key; but an operator's by id, and the services' own;
//! - nothing here is the only copy: the lake has everything, for ever.

mod domain;
mod events;
mod http;
mod store;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use chassis::{Node, Readiness, janitor};
use clap::Args;
use contracts::{Clock, events::Topic};
use messaging::Consumer;
use tokio_util::sync::CancellationToken;

pub use domain::RETENTION;
pub use store::{AuditLookup, audit_scan};

use crate::{
    events::FinishedDeliveries,
    store::{Store, StoreError},
};

/// How often the retention is looked after: a minute's surplus is small.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Rows deleted in one transaction: some milliseconds, so that the consumer hardly waits.
const SWEEP_BATCH: u32 = 1_000;

/// The schemes of the URLs of its store.
pub const STORE_SCHEMES: [&str; 3] = ["sqlite", "mongodb", "mongodb+srv"];

/// What the service is configured by.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// The store: sqlite:PATH or mongodb://HOSTS/DATABASE.
    #[arg(long = "lookup-store", env = "LOOKUP_STORE", value_parser = chassis::config::store_url(&STORE_SCHEMES))]
    pub store: String,
}

impl chassis::Settings for Config {}

/// Runs the service until the node's shutdown.
pub async fn run(config: Config, node: Node) -> anyhow::Result<()> {
    let store = store::open(&config.store).await.context("LOOKUP_STORE cannot be opened")?;
    let router = http::router(&node, store.clone());
    let readiness = Readiness::new().store(&store, |store| async move { store.ready().await }).event_log(&node.log);
    let handler = FinishedDeliveries { store: store.clone(), clock: node.clock.clone() };
    let consumer = Consumer { log: node.log, clock: node.clock.clone(), group: "lookup", topics: &[Topic::Delivery] };
    let shutdown = node.shutdown;
    let (consuming, sweeping) = (shutdown.clone(), shutdown.clone());
    let mut tasks = chassis::supervise::Tasks::new();
    tasks.spawn(async move {
        consumer.run(handler, consuming).await;
        Ok(())
    });
    tasks.spawn(sweep(store, node.clock, sweeping));
    tasks.spawn(chassis::serve(node.door, router, readiness, shutdown.clone()));
    chassis::supervise("lookup", tasks, shutdown).await
}

/// The janitor: forgets what finished longer ago than the retention.
async fn sweep(store: Arc<dyn Store>, clock: Arc<dyn Clock>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let round = || async {
        let swept = store.sweep(clock.now() - RETENTION, SWEEP_BATCH).await?;
        Ok::<_, StoreError>(swept == u64::from(SWEEP_BATCH))
    };
    janitor("old deliveries could not be swept", SWEEP_EVERY, &*clock, &shutdown, round).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use testkit::{ManualClock, until};

    use super::*;
    use crate::store::{
        contract::Subject,
        samples::{at, finished, row},
    };

    #[tokio::test]
    async fn the_janitor_forgets_what_is_older_than_the_retention() {
        let subject = Subject::open(|folder| format!("sqlite:{}", folder.join("lookup.db").display())).await;
        let clock = Arc::new(ManualClock::at(at(0)));
        let old = finished(1, "alice", at(0));
        let young = finished(2, "alice", at(0) + RETENTION);
        subject.store.upsert(&[row(&old), row(&young)]).await.unwrap();
        let shutdown = CancellationToken::new();
        let mut tasks = chassis::supervise::Tasks::new();
        tasks.spawn(sweep(subject.store.clone(), clock.clone(), shutdown.clone()));
        until("the sweep", || async {
            clock.advance(Duration::from_hours(4));
            let kept = subject.store.contains(&[old.delivery_id, young.delivery_id]).await.unwrap();
            (kept == [young.delivery_id]).then_some(())
        })
        .await;
        assert!(clock.now() - at(0) >= RETENTION);
        shutdown.cancel();
        tasks.join_next().await.unwrap().unwrap().unwrap();
    }
}
