//! All services in one JoinSet: a listener, a Node and the same `run` for each.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use anyhow::Context;
use auth::DevIssuer;
use chassis::{
    Door, Node, Peers,
    config::SERVICES,
    supervise,
    supervise::{Tasks, telling},
};
use contracts::Clock;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use messaging::EventLog;
use tokio_util::sync::CancellationToken;

use crate::{DataDir, Stores};

/// A running system.
pub struct System {
    /// Where the gateway listens.
    pub gateway: SocketAddr,
    /// The event log.
    pub log: Arc<dyn EventLog>,
    /// The development issuer.
    pub issuer: DevIssuer,
    /// The services' URLs.
    pub peers: Peers,
    /// Every service serves.
    opened: BoxFuture<'static, ()>,
    tasks: Tasks,
    shutdown: CancellationToken,
}

impl System {
    /// Starts every service on `stores`, the gateway on `port` (0: any). The signing key is in `data`, whose lock the
    /// caller holds.
    pub async fn start(
        data: &DataDir,
        stores: &Stores,
        port: u16,
        clock: Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let issuer = data.issuer()?;
        let log = messaging::open(&stores.event_log, clock.clone()).await.context("the event log cannot be opened")?;
        let mut doors = HashMap::new();
        let mut urls = HashMap::new();
        for service in SERVICES {
            let port = if service == "gateway" { port } else { 0 };
            let door = Door::bind(("127.0.0.1", port))
                .await
                .with_context(|| format!("{service} cannot listen on port {port} (--port)"))?;
            urls.insert(service, format!("http://{}", door.address()?));
            doors.insert(service, door);
        }
        let gateway = doors.get("gateway").context("the gateway has a door")?.address()?;
        let opened = doors.values().map(Door::opened).collect::<Vec<_>>();
        let peers = Peers(urls);
        let mut tasks = Tasks::new();
        for service in SERVICES {
            let node = Node {
                service,
                instance: format!("{service}-{}", clock.new_id()),
                door: doors.remove(service).context("every service has a door")?,
                log: log.clone(),
                shutdown: shutdown.clone(),
                peers: peers.clone(),
                clock: clock.clone(),
                verifier: issuer.verifier(),
                issuer: issuer.clone(),
                region: contracts::api::default_region(),
            };
            spawn(&mut tasks, stores, node);
        }
        let opened = join_all(opened).map(drop).boxed();
        Ok(Self { gateway, log, issuer, peers, opened, tasks, shutdown })
    }

    /// Where the gateway answers.
    pub fn url(&self) -> String {
        format!("http://{}", self.gateway)
    }

    /// Runs until shutdown, or until a service fails. Calls `serving` once every service has opened its store and
    /// takes requests.
    pub async fn run(self, serving: impl FnOnce()) -> anyhow::Result<()> {
        telling(supervise("all-in-one", self.tasks, self.shutdown), self.opened, serving).await
    }
}

fn spawn(tasks: &mut Tasks, stores: &Stores, node: Node) {
    let stores = stores.clone();
    match node.service {
        "gateway" => tasks.spawn(gateway::run(gateway::Config { dev_issuer: true }, node)),
        "delivery" => {
            // The folder's lock makes this process the only one on a store in it, so that a restart takes up its own
            // leases at once.
            let embedded = stores.delivery.starts_with("sqlite:");
            let sole_owner = embedded.then(|| "all-in-one".to_owned());
            let config = delivery::Config { store: stores.delivery, sole_owner };
            tasks.spawn(delivery::run(config, node))
        }
        "package" => {
            let config = package::Config { store: stores.package, relaying: stores.package_relay };
            tasks.spawn(package::run(config, node))
        }
        "fleet" => tasks.spawn(fleet::run(fleet::Config { store: stores.fleet }, node)),
        "tracking" => tasks.spawn(tracking::run(tracking::Config { store: stores.tracking }, node)),
        "history" => tasks.spawn(history::run(history::Config::new(stores.lake), node)),
        "lookup" => tasks.spawn(lookup::run(lookup::Config { store: stores.lookup }, node)),
        other => unreachable!("SERVICES names no '{other}'"),
    };
}

#[cfg(test)]
mod tests {
    use contracts::SystemClock;
    use testkit::until;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_folders_name_may_hold_characters_that_mean_something_in_a_url() {
        chassis::init().unwrap();
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a#1 50% ?x");
        let data = DataDir::create(&folder).unwrap();
        let shutdown = CancellationToken::new();
        let system =
            System::start(&data, &Stores::embedded(&data), 0, Arc::new(SystemClock), shutdown.clone()).await.unwrap();
        let mut running = tokio::task::JoinSet::new();
        running.spawn(system.run(|| ()));
        let expected = ["events.db", "delivery.db", "tracking.db", "lake/deliveries/_delta_log", "lake/positions"];
        until("the stores", || async { expected.iter().all(|name| folder.join(name).exists()).then_some(()) }).await;
        shutdown.cancel();
        running.join_next().await.unwrap().unwrap().unwrap();
        let beside: Vec<_> = std::fs::read_dir(parent.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(beside, ["a#1 50% ?x"]);
    }
}
