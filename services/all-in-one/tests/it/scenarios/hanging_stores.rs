//! A service whose store hangs: it says so at once, whoever asks it for something hears 503 in time, and it goes on by
//! itself when the store does.

use std::time::{Duration, Instant};

use contracts::api::Role;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use testkit::{Wire, World, real, until};
use tokio::task::JoinSet;

use crate::api::wish;

/// In what time a service says that its store is away: its deadline of a second, the second for which an answer is given
/// again, and a loaded machine's delay.
const SAYS_SO: Duration = Duration::from_secs(5);

/// In what time a request ends: the longest of the stores' deadlines.
const ENDS: Duration = Duration::from_secs(20);

/// A package, drone or delivery that nobody knows.
const NOBODYS: &str = "0198c5a0-0000-7000-8000-000000000001";

/// A request in a role, with its body or null.
type Ask = (Role, Method, &'static str, Value);

struct Service {
    world: World,
    http: reqwest::Client,
    url: String,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Service {
    async fn start(name: &'static str, store: String) -> Self {
        let world = World::new().await;
        // Nobody answers there: a service that cannot reach another one is still of use.
        let peers =
            ["delivery", "package", "fleet", "tracking", "history", "lookup"].map(|peer| (peer, "http://[::1]:9"));
        let (node, url) = world.node(name, &peers).await;
        let mut tasks = JoinSet::new();
        match name {
            "delivery" => tasks.spawn(delivery::run(delivery::Config { store, sole_owner: None }, node)),
            "fleet" => tasks.spawn(fleet::run(fleet::Config { store }, node)),
            "package" => {
                tasks.spawn(package::run(package::Config { store, relaying: package::Relaying::default() }, node))
            }
            "lookup" => tasks.spawn(lookup::run(lookup::Config { store }, node)),
            "tracking" => tasks.spawn(tracking::run(tracking::Config { store }, node)),
            other => panic!("{other} has no store of that kind"),
        };
        Self { world, http: chassis::client::http_client().unwrap(), url, tasks }
    }

    /// Whether it takes requests, and what it says of its store.
    async fn health(&self) -> Option<(u16, Value)> {
        let answer = self.http.get(format!("{}/health/ready", self.url)).timeout(SAYS_SO).send().await.ok()?;
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap();
        let store = body["dependencies"].as_array().unwrap().iter().find(|one| one["name"] == "store").cloned();
        Some((status, store.unwrap()["status"].clone()))
    }

    async fn is(&self, status: u16, store: &str) {
        let expected = Some((status, json!(store)));
        until(&format!("{status} and a store that is {store}"), async || {
            (self.health().await == expected).then_some(())
        })
        .await;
    }

    async fn send(&self, (role, method, path, body): &Ask) -> Response {
        let request = self.http.request(method.clone(), format!("{}{path}", self.url));
        let request = request.bearer_auth(self.world.token("somebody", *role)).timeout(2 * ENDS);
        let request = if body.is_null() { request } else { request.json(body) };
        request.send().await.unwrap()
    }
}

async fn hangs(name: &'static str, store: Option<String>, asked: &[Ask]) {
    let Some(store) = store else { return };
    let (wire, store) = Wire::of(&store).await;
    let mut service = Service::start(name, store).await;
    service.is(200, "up").await;
    for ask in asked {
        let status = service.send(ask).await.status().as_u16();
        assert!(status < 500, "{}: {status}", ask.2);
    }
    wire.hang();
    let hung = Instant::now();
    service.is(503, "down").await;
    assert!(hung.elapsed() < SAYS_SO, "it says so only after {:?}", hung.elapsed());
    let started = Instant::now();
    let answers = futures::future::join_all(asked.iter().map(|ask| service.send(ask))).await;
    assert!(started.elapsed() < ENDS, "the answers took {:?}", started.elapsed());
    for (ask, answer) in asked.iter().zip(answers) {
        assert_eq!(answer.status().as_u16(), 503, "{}", ask.2);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
    }
    let live = service.http.get(format!("{}/health/live", service.url)).send().await.unwrap();
    assert_eq!(live.status().as_u16(), 200, "it is not the one to be restarted");
    wire.go_on();
    service.is(200, "up").await;
    for ask in asked {
        let status = service.send(ask).await.status().as_u16();
        assert!(status < 500, "{}: {status}", ask.2);
    }
    service.world.shutdown.cancel();
    while service.tasks.join_next().await.is_some() {}
}

mod on_postgres {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn delivery_says_so_and_answers_503() {
        let asked = [
            (Role::Customer, Method::GET, "/deliveries/0198c5a0-0000-7000-8000-000000000001", Value::Null),
            (Role::Customer, Method::POST, "/deliveries", wish()),
        ];
        hangs("delivery", real::postgres().await, &asked).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn fleet_says_so_and_answers_503() {
        let asked = [(Role::Operator, Method::GET, "/drones?limit=10", Value::Null)];
        hangs("fleet", real::postgres().await, &asked).await;
    }
}

mod on_mongodb {
    use super::*;

    /// By way of a wire, and not to where the replica set says that it is.
    fn direct(name: &str) -> Option<String> {
        Some(testkit::mongodb::database(name)?.replace("replicaSet=rs0", "directConnection=true"))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn package_says_so_and_answers_503() {
        let asked = [(Role::Customer, Method::GET, "/packages/0198c5a0-0000-7000-8000-000000000001", Value::Null)];
        hangs("package", direct("package"), &asked).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn lookup_says_so_and_answers_503() {
        let asked = [(Role::Service, Method::POST, "/queries/contains", json!({"ids": [NOBODYS]}))];
        hangs("lookup", direct("lookup"), &asked).await;
    }
}

mod on_redis {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn tracking_says_so_and_answers_503() {
        let store = real::url("TEST_REDIS_URL").map(|url| format!("{url}?prefix={}", real::unique("hanging")));
        let asked = [(Role::Customer, Method::GET, "/flights/0198c5a0-0000-7000-8000-000000000001", Value::Null)];
        hangs("tracking", store, &asked).await;
    }
}
