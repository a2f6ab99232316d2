//! Package ingestion at high write rates: every package that a delivery carries, from registration to its end.
//!
//! Commands: register and its undo, withdraw. Events in: `delivery.events`. Events out: `package.events`.
//!
//! Invariants:
//! - a package that has ended never comes back: a late register meets the ended row and is refused;
//! - state and event are written together, and each change of state is told exactly once by one event;
//! - a row is forgotten only after its end, after every copy of a late command, and after its events have left.

#[doc(hidden)]
pub mod bench;
mod domain;
mod events;
mod http;
mod store;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use chassis::{Node, Readiness, janitor};
use clap::Args;
use contracts::{Clock, events::Topic};
use messaging::{Consumer, outbox::Relay};
use tokio_util::sync::CancellationToken;

pub use store::{AuditPackage, Relaying, audit_scan};

use crate::{
    events::DeliveryEnds,
    store::{Store, StoreError},
};

/// How long an ended package is kept, to refuse late commands: a day more than `delivery` keeps what is finished.
const KEEP_ENDED: chrono::Duration = chrono::Duration::days(8);

/// How often ended packages are swept: rows of a minute are a small batch even at thousands a second.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Rows deleted in one transaction: some milliseconds, so that ingestion hardly waits.
const SWEEP_BATCH: u32 = 1_000;

/// The schemes of the URLs of its store.
pub const STORE_SCHEMES: [&str; 3] = ["sqlite", "mongodb", "mongodb+srv"];

/// What the service is configured by.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// The store: sqlite:PATH or mongodb://HOSTS/DATABASE.
    #[arg(long = "package-store", env = "PACKAGE_STORE", value_parser = chassis::config::store_url(&STORE_SCHEMES))]
    pub store: String,
    /// How events leave the store: by polling it, or by its change stream (MongoDB only).
    #[arg(long = "package-relay", env = "PACKAGE_RELAY", value_enum, default_value_t)]
    pub relaying: Relaying,
}

impl chassis::Settings for Config {}

/// Runs the service until the node's shutdown.
pub async fn run(config: Config, node: Node) -> anyhow::Result<()> {
    let opened = store::open(&config.store, config.relaying, node.clock.clone()).await;
    let opened = opened.context("PACKAGE_STORE cannot be opened")?;
    let (ingest, worker) = store::ingest(opened.store.clone(), opened.writers);
    let router = http::router(&node, opened.store.clone(), ingest);
    let readiness =
        Readiness::new().store(&opened.store, |store| async move { store.ready().await }).event_log(&node.log);
    let relay = Relay {
        source: opened.outbox,
        log: node.log.clone(),
        signal: opened.signal,
        clock: node.clock.clone(),
        owner: node.instance,
    };
    let consumer = Consumer { log: node.log, clock: node.clock.clone(), group: "package", topics: &[Topic::Delivery] };
    let ends = DeliveryEnds { store: opened.store.clone() };
    let shutdown = node.shutdown;
    let (relaying, consuming, sweeping) = (shutdown.clone(), shutdown.clone(), shutdown.clone());
    let mut tasks = chassis::supervise::Tasks::new();
    tasks.spawn(async move {
        worker.await;
        Ok(())
    });
    tasks.spawn(async move {
        relay.run(relaying).await;
        Ok(())
    });
    tasks.spawn(async move {
        consumer.run(ends, consuming).await;
        Ok(())
    });
    tasks.spawn(sweep(opened.store, node.clock, sweeping));
    tasks.spawn(chassis::serve(node.door, router, readiness, shutdown.clone()));
    chassis::supervise("package", tasks, shutdown).await
}

/// The janitor: forgets packages that ended long ago.
async fn sweep(store: Arc<dyn Store>, clock: Arc<dyn Clock>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let round = || async {
        let swept = store.sweep(clock.now() - KEEP_ENDED, SWEEP_BATCH).await?;
        Ok::<_, StoreError>(swept == u64::from(SWEEP_BATCH))
    };
    janitor("ended packages could not be swept", SWEEP_EVERY, &*clock, &shutdown, round).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use testkit::until;

    use super::*;
    use crate::store::{
        contract::Subject,
        samples::{id, register, withdraw},
    };

    #[tokio::test]
    async fn the_janitor_forgets_ended_packages_after_eight_days() {
        let subject = Subject::open(|folder| format!("sqlite:{}", folder.join("package.db").display())).await;
        let store = subject.opened.store.clone();
        store.apply(&[register(1, 1), withdraw(2, 1)]).await;
        let shutdown = CancellationToken::new();
        let mut tasks = chassis::supervise::Tasks::new();
        tasks.spawn(sweep(store.clone(), subject.clock.clone(), shutdown.clone()));
        let started = subject.clock.now();
        until("the sweep", || async {
            subject.clock.advance(Duration::from_hours(1));
            store.find(id(2)).await.unwrap().is_none().then_some(())
        })
        .await;
        assert!(subject.clock.now() - started >= KEEP_ENDED);
        assert!(store.find(id(1)).await.unwrap().is_some());
        shutdown.cancel();
        tasks.join_next().await.unwrap().unwrap().unwrap();
    }
}
