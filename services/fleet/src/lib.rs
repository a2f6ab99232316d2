//! Fleet owns drones and their state, reservations, and the waiting line.
//!
//! Events in: `delivery.events` (the end of a delivery, and every later attempt, release its drones). Events out:
//! `fleet.events` (DroneReserved, DroneReleased, DroneFailed), written with the state that they are about.
//!
//! Invariants:
//! - a drone is reserved by a conditional update of its own row and by nothing else: the index is only a hint, so any
//!   number of instances share a store and no drone is ever reserved twice;
//! - a reservation is named by (delivery, attempt); once released or failed it stays so, and an undo that came before
//!   its do leaves a tombstone that refuses the do;
//! - whose a drone is now is judged in the transaction that registers it, retires it or stores its report: the index
//!   may be behind;
//! - nobody but fleet says DroneFailed.

mod audit;
mod desk;
mod domain;
mod events;
mod feed;
mod fleet;
mod http;
mod index;
mod matcher;
mod reports;
mod silence;
mod store;
#[cfg(test)]
mod tests;
mod upkeep;

pub use audit::{AuditReservation, audit_scan};

use anyhow::Context;
use chassis::{Node, Readiness, auth::Authenticator, supervise::Tasks};
use contracts::events::Topic;
use messaging::{Consumer, outbox::Relay};

use crate::{desk::Desk, events::DeliveryEnds, feed::Feed, fleet::Fleet, http::App, matcher::Matcher, store::Opened};

/// The schemes of the URLs of its store.
pub const STORE_SCHEMES: [&str; 3] = ["sqlite", "postgres", "postgresql"];

/// What fleet is configured by.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Fleet's store: sqlite:PATH or postgres://USER:PASSWORD@HOST:PORT/DATABASE.
    #[arg(long = "fleet-store", env = "FLEET_STORE", value_parser = chassis::config::store_url(&STORE_SCHEMES))]
    pub store: String,
}

impl chassis::Settings for Config {}

/// Runs the service until the node's shutdown.
pub async fn run(config: Config, node: Node) -> anyhow::Result<()> {
    let Opened { store, outbox, signal } =
        store::open(&config.store, node.clock.clone()).await.context("FLEET_STORE cannot be opened")?;
    let fleet = Fleet::new(store.clone(), node.clock.clone());
    let feed = Feed::new(store.clone());
    let filled = upkeep::fill(&fleet, 0).await.context("the index cannot be filled")?;

    let mut tasks: Tasks = Tasks::new();
    let desk = Desk::open(&fleet, &mut tasks);
    let authenticator = Authenticator::of(&node);
    let readiness = Readiness::new().store(&store, |store| async move { store.ping().await }).event_log(&node.log);
    let Node { door, log, shutdown, clock, instance, .. } = node;

    let relay = Relay { source: outbox, log: log.clone(), signal, clock: clock.clone(), owner: instance };
    spawn(&mut tasks, relay.run(shutdown.clone()));
    let consumer = Consumer { log, clock: clock.clone(), group: "fleet", topics: &[Topic::Delivery] };
    spawn(&mut tasks, consumer.run(DeliveryEnds { fleet: fleet.clone() }, shutdown.clone()));
    let matcher = Matcher::new(store, fleet.index.clone(), fleet.line.clone());
    spawn(&mut tasks, matcher.run(clock.clone(), shutdown.clone()));
    spawn(&mut tasks, silence::run(fleet.clone(), shutdown.clone()));
    spawn(&mut tasks, upkeep::follow(fleet.clone(), filled, shutdown.clone()));
    spawn(&mut tasks, upkeep::sweep(fleet.clone(), shutdown.clone()));
    spawn(&mut tasks, feed.clone().run(clock, shutdown.clone()));

    let app = App { fleet, desk, feed, authenticator, shutdown: shutdown.clone() };
    tasks.spawn(chassis::serve(door, http::router(app), readiness, shutdown.clone()));
    chassis::supervise("fleet", tasks, shutdown).await
}

fn spawn(tasks: &mut Tasks, task: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async move {
        task.await;
        Ok(())
    });
}
