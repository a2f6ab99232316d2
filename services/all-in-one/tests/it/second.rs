//! A second instance of a service beside the one in the world's system.

use chassis::{Door, Node, Peers};
use contracts::Clock;
use futures::FutureExt;
use reqwest::Method;
use serde_json::Value;
use testkit::serving;
use tokio::{net::TcpSocket, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Answer, User},
    world::World,
};

/// Dropped, it is cut off.
pub(crate) struct Second {
    pub(crate) url: String,
    tasks: JoinSet<anyhow::Result<()>>,
    /// Where peers are not: the addresses stay taken.
    _nobody: Vec<TcpSocket>,
}

impl Second {
    pub(crate) async fn of(world: &World, service: &'static str) -> Self {
        Self::without(world, service, &[]).await
    }

    /// One that cannot reach those peers.
    pub(crate) async fn without(world: &World, service: &'static str, away: &[&'static str]) -> Self {
        let door = Door::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", door.address().unwrap());
        let Peers(mut peers) = world.peers().clone();
        let mut nobody = Vec::new();
        for name in away {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            peers.insert(name, format!("http://{}", socket.local_addr().unwrap()));
            nobody.push(socket);
        }
        let node = Node {
            service,
            instance: format!("{service}-{}", world.clock.new_id()),
            door,
            log: world.log().clone(),
            shutdown: CancellationToken::new(),
            peers: Peers(peers),
            clock: world.clock.clone(),
            verifier: world.issuer().verifier(),
            issuer: world.issuer().clone(),
            region: contracts::api::default_region(),
        };
        let stores = world.stores.clone();
        let opened = node.door.opened();
        let run = match service {
            "gateway" => gateway::run(gateway::Config::default(), node).boxed(),
            "delivery" => delivery::run(delivery::Config { store: stores.delivery, sole_owner: None }, node).boxed(),
            "fleet" => fleet::run(fleet::Config { store: stores.fleet }, node).boxed(),
            other => panic!("no second {other}"),
        };
        let mut tasks = JoinSet::new();
        serving(&mut tasks, opened, run).await;
        Self { url, tasks, _nobody: nobody }
    }

    /// Asks this instance.
    pub(crate) async fn ask(&mut self, user: &User<'_>, method: Method, path: &str, body: Option<&Value>) -> Answer {
        if let Some(ended) = self.tasks.try_join_next() {
            panic!("the second instance has ended: {ended:?}");
        }
        let mut request = user.world.http.request(method, format!("{}{path}", self.url)).bearer_auth(&user.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        Answer::of(request).await
    }
}
