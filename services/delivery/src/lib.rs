//! Deliveries: accepts them, schedules them by a saga, decides their stage and their end.
//!
//! Events in: `fleet.events` (DroneReserved, DroneFailed), `tracking.events` (StageChanged).
//! Events out: `delivery.events` (DeliveryRequested, -Scheduled, -Cancelled, -Completed, -Rejected, -Failed).
//!
//! Invariants:
//! - this service alone decides a delivery's stage and end;
//! - a row changes only from the version that was read, with its events and logs in the same transaction;
//! - only the holder of a delivery's lease calls participants for it, and an intent is driven to its end;
//! - a terminal event carries the whole record.

mod cancel;
pub mod domain;
mod driver;
mod elsewhere;
mod events;
mod http;
mod ledger;
mod live;
mod participants;
mod reconcile;
mod retention;
pub mod store;

use chassis::{Node, Readiness, auth::Authenticator, supervise, supervise::Tasks};
use messaging::{Consumer, outbox::Relay};

use crate::{driver::Driver, ledger::Ledger, live::Live, participants::Participants};

/// The schemes of the URLs of its store.
pub const STORE_SCHEMES: [&str; 3] = ["sqlite", "postgres", "postgresql"];

/// How this service is configured.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Where deliveries are kept: sqlite:PATH or postgres://USER:PASSWORD@HOST:PORT/DATABASE.
    #[arg(long = "delivery-store", env = "DELIVERY_STORE", value_parser = chassis::config::store_url(&STORE_SCHEMES))]
    pub store: String,
    /// A name that this instance keeps over restarts, where no other instance uses the store: what it had leased is
    /// taken up at once instead of when the leases end.
    #[arg(long = "delivery-sole-owner", env = "DELIVERY_SOLE_OWNER")]
    pub sole_owner: Option<String>,
}

impl chassis::Settings for Config {
    const PEERS: &'static [&'static str] = &["package", "fleet", "tracking", "history", "lookup"];
}

/// Runs the service until its node is shut down.
pub async fn run(config: Config, node: Node) -> anyhow::Result<()> {
    let store = store::open(&config.store).await?;
    let owner = config.sole_owner.clone().unwrap_or_else(|| node.instance.clone());
    if config.sole_owner.is_some() {
        store.release_all(&owner, node.clock.now()).await?;
    }
    let peers = participants::Peers {
        package: node.peer("package")?,
        fleet: node.peer("fleet")?,
        tracking: node.peer("tracking")?,
    };
    let (history, lookup) = (node.peer("history")?, node.peer("lookup")?);
    let authenticator = Authenticator::of(&node);
    let readiness = Readiness::new()
        .store(&store, |store| async move { store.ping().await })
        .event_log(&node.log)
        .peers([&peers.package, &peers.fleet, &peers.tracking, &history, &lookup]);
    let Node { door, log, shutdown, clock, region, instance, .. } = node;

    let mut tasks = Tasks::new();
    let ledger = Ledger::new(store.clone(), clock.clone(), Live::new(), &mut tasks);
    let participants = Participants::new(&peers, &mut tasks);
    let (driver, kicks) = Driver::new(&owner);
    tasks.spawn(driver::run(driver.clone(), kicks, ledger.clone(), participants, shutdown.clone()));

    let relay = Relay {
        source: store.outbox(),
        log: log.clone(),
        signal: store.outbox_signal(),
        clock: clock.clone(),
        owner: instance,
    };
    spawn(&mut tasks, relay.run(shutdown.clone()));
    let subscriber = events::Subscriber { ledger: ledger.clone(), driver: driver.clone() };
    let consumer = Consumer { log, clock, group: "delivery", topics: events::TOPICS };
    spawn(&mut tasks, consumer.run(subscriber, shutdown.clone()));
    spawn(&mut tasks, elsewhere::run(ledger.clone(), shutdown.clone()));
    spawn(&mut tasks, reconcile::run(ledger.clone(), driver.clone(), peers.tracking, shutdown.clone()));
    spawn(&mut tasks, retention::run(ledger.clone(), history, lookup, shutdown.clone()));

    let state = http::AppState { ledger, driver, authenticator, region, shutdown: shutdown.clone() };
    tasks.spawn(chassis::serve(door, http::router(state), readiness, shutdown.clone()));
    supervise("delivery", tasks, shutdown).await
}

fn spawn(tasks: &mut Tasks, work: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async move {
        work.await;
        Ok(())
    });
}
