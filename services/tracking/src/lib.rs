//! tracking: flights in the air, their positions, progress, ETA and missions.
//!
//! Events in: `delivery.events` (ends flights). Events out: `tracking.events` (StageChanged, the whole progress of an
//! attempt) and `tracking.positions` (PositionSampled, every 5 s of flight).
//!
//! Invariants:
//! - a closed flight is never changed by a report, and an attempt that was closed never opens, in whatever order the
//!   two came;
//! - a flight's stages only grow, in the order of the lifecycle; a stale or repeated report changes nothing;
//! - a flight's state, its mission log and its events are one atomic write, conditional on the flight's version;
//! - what an older record says of a delivery never ends a newer attempt;
//! - nothing here decides a delivery's stage or its deadline: `delivery` does.

#[doc(hidden)]
pub mod bench;
mod domain;
mod events;
#[cfg(test)]
mod fixtures;
mod http;
mod janitor;
mod live;
mod missions;
mod reconcile;
mod store;
mod tracker;

use std::sync::Arc;

use anyhow::Context;
use chassis::{Node, Peer, Readiness, auth::Authenticator, supervise::Tasks};
use contracts::{
    DeliveryId,
    events::{StageTime, Topic},
};
use messaging::{
    Consumer,
    outbox::{OutboxSignal, Relay},
};
use tokio::sync::Notify;

use crate::{
    events::Subscriber,
    http::AppState,
    live::Live,
    missions::{Feed, Missions},
    reconcile::Reconciler,
    store::Store,
    tracker::{Parts, Tracker},
};

/// The schemes of the URLs of its store.
pub const STORE_SCHEMES: [&str; 5] = ["sqlite", "redis", "rediss", "redis+cluster", "rediss+cluster"];

/// How the service is configured.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Where flights are kept: sqlite:PATH, redis://HOST:PORT/DB?prefix=NAME, or redis+cluster://HOST:PORT,HOST:PORT; with
    /// rediss for TLS. The server must have maxmemory-policy noeviction and appendonly yes, and should have
    /// appendfsync always.
    #[arg(long = "tracking-store", env = "TRACKING_STORE", value_parser = chassis::config::store_url(&STORE_SCHEMES))]
    pub store: String,
}

impl chassis::Settings for Config {
    const PEERS: &'static [&'static str] = &["delivery"];
}

/// Runs the service until the node's shutdown.
pub async fn run(config: Config, node: Node) -> anyhow::Result<()> {
    let opened = store::open(&config.store).await.context("TRACKING_STORE")?;
    let store = opened.store;
    let shutdown = node.shutdown.clone();
    let authenticator = Authenticator::of(&node);
    let delivery = node.peer("delivery")?;
    let readiness = readiness(&store, &node, &delivery);
    let clock = node.clock.clone();
    let (outbox, wake, live) = (OutboxSignal::default(), Arc::new(Notify::new()), Live::default());
    let missions = Missions::new(store.clone(), clock.clone());
    let (tracker, worker) = Tracker::new(Parts {
        store: store.clone(),
        clock: clock.clone(),
        outbox: outbox.clone(),
        missions: wake.clone(),
        live: live.clone(),
    });
    let router = http::router(AppState {
        tracker: tracker.clone(),
        missions: missions.clone(),
        live: live.clone(),
        store: store.clone(),
        authenticator,
        shutdown: shutdown.clone(),
    });
    let relay = Relay {
        source: opened.outbox,
        log: node.log.clone(),
        signal: outbox,
        clock: clock.clone(),
        owner: node.instance.clone(),
    };
    let consumer =
        Consumer { log: node.log.clone(), clock: clock.clone(), group: "tracking", topics: &[Topic::Delivery] };
    let subscriber = Subscriber { tracker: tracker.clone() };
    let reconciler = Reconciler { store: store.clone(), tracker, delivery, clock: clock.clone() };
    let feed = Feed::new(missions, live, wake);

    let mut tasks = Tasks::new();
    tasks.spawn(async move {
        worker.await;
        Ok(())
    });
    let token = shutdown.clone();
    tasks.spawn(async move {
        relay.run(token).await;
        Ok(())
    });
    let token = shutdown.clone();
    tasks.spawn(async move {
        consumer.run(subscriber, token).await;
        Ok(())
    });
    let token = shutdown.clone();
    tasks.spawn(async move {
        reconciler.run(token).await;
        Ok(())
    });
    let token = shutdown.clone();
    tasks.spawn(async move {
        feed.run(token).await;
        Ok(())
    });
    let token = shutdown.clone();
    tasks.spawn(async move {
        janitor::run(store, clock, token).await;
        Ok(())
    });
    tasks.spawn(chassis::serve(node.door, router, readiness, shutdown.clone()));
    chassis::supervise("tracking", tasks, shutdown).await
}

fn readiness(store: &Arc<dyn Store>, node: &Node, delivery: &Peer) -> Readiness {
    Readiness::new().store(store, |store| async move { store.ping().await }).event_log(&node.log).peers([delivery])
}

/// A flight as the audit sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditFlight {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// Its latest attempt that is known here.
    pub attempt: u32,
    /// Whether reports still count.
    pub open: bool,
    /// Every stage of the attempt, as written.
    pub stages: Vec<StageTime>,
}

/// Every flight and tombstone of a store, read raw.
pub async fn audit_scan(store_url: &str) -> anyhow::Result<Vec<AuditFlight>> {
    let rows = store::audit(store_url).await?;
    let flight = |row: store::AuditRow| AuditFlight {
        delivery_id: row.delivery_id,
        attempt: row.attempt,
        open: row.open,
        stages: row.stages,
    };
    Ok(rows.into_iter().map(flight).collect())
}
