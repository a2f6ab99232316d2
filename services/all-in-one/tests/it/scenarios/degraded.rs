//! Tracking or the event log is away: deliveries are accepted and read all the same, and every answer says what it lacks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use contracts::{Stage, api::Role, events::CloudEvent};
use messaging::{EventLog, GroupLag, LogError, Offset, Subscription};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::until;
use tokio::task::JoinSet;

use crate::{
    api::{Answer, wish},
    second::Second,
    world::{World, within},
};

/// The names of the dependencies that are down.
fn down(health: &Answer) -> Vec<&str> {
    let dependencies = health.body["dependencies"].as_array().unwrap_or_else(|| panic!("{}", health.text));
    let down = dependencies.iter().filter(|one| one["status"] == "down");
    down.map(|one| one["name"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tracking_deliveries_are_accepted_and_read() {
    let world = World::new().await;
    let (alice, base) = (world.customer("alice").await, world.base("north").await);
    let mut gateway = Second::without(&world, "gateway", &["tracking"]).await;
    let mut delivery = Second::without(&world, "delivery", &["tracking"]).await;

    for second in [&mut gateway, &mut delivery] {
        let live = format!("{}/health/live", second.url);
        until("it listens", async || world.http.get(&live).send().await.ok().map(|_| ())).await;
        // A peer that a busy machine keeps from answering in time counts as down for a moment, too.
        within(Duration::from_secs(30), "it to lack tracking alone", async || {
            let health = second.ask(&alice, Method::GET, "/health/ready", None).await;
            assert_eq!((health.status, &health.body["status"]), (200, &json!("degraded")), "{}", health.text);
            (down(&health) == ["tracking"]).then_some(())
        })
        .await;
    }

    let accepted = gateway.ask(&alice, Method::POST, "/api/deliveries", Some(&wish())).await;
    assert_eq!(accepted.status, 202, "{}", accepted.text);
    let id = accepted.body["id"].as_str().unwrap().to_owned();
    world.note_accepted(id.parse().unwrap());
    let path = format!("/api/deliveries/{id}");
    let read = gateway.ask(&alice, Method::GET, &path, None).await;
    assert_eq!((read.status, &read.body["degraded"]), (200, &json!(["tracking"])), "{}", read.text);
    assert_eq!((&read.body["position"], &read.body["eta"]), (&Value::Null, &Value::Null));
    let whole = alice.get(&path).await;
    assert_eq!((whole.status, &whole.body["degraded"]), (200, &json!([])), "the other gateway reaches it");

    base.new_drone().await;
    alice.sees(id.parse().unwrap(), Stage::Scheduled).await;
    let scheduled = gateway.ask(&alice, Method::GET, &path, None).await;
    assert_eq!((&scheduled.body["stage"], &scheduled.body["degraded"]), (&json!("Scheduled"), &json!(["tracking"])));
    assert_eq!(alice.cancel(id.parse().unwrap()).await.status, 200);
    drop((gateway, delivery));
    world.audit().await;
}

/// An event log that can be away.
struct Leaving {
    log: Arc<dyn EventLog>,
    is_away: AtomicBool,
}

impl Leaving {
    fn here(&self) -> Result<&dyn EventLog, LogError> {
        if self.is_away.load(SeqCst) { Err(LogError::unavailable("away")) } else { Ok(&*self.log) }
    }
}

#[async_trait]
impl EventLog for Leaving {
    async fn publish(&self, events: Vec<CloudEvent>) -> Result<(), LogError> {
        self.here()?.publish(events).await
    }

    async fn subscribe(&self, group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, LogError> {
        self.here()?.subscribe(group, topics).await
    }

    async fn record_at(&self, place: &Offset) -> Result<Option<CloudEvent>, LogError> {
        self.here()?.record_at(place).await
    }

    async fn lag(&self) -> Result<Vec<GroupLag>, LogError> {
        self.here()?.lag().await
    }

    async fn topic_id(&self, topic: &str) -> Result<String, LogError> {
        self.here()?.topic_id(topic).await
    }

    async fn ping(&self) -> Result<(), LogError> {
        self.here()?.ping().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_event_log_deliveries_are_accepted_and_told_later() {
    let mut world = testkit::World::new().await;
    let leaving = Arc::new(Leaving { log: world.log.clone(), is_away: AtomicBool::new(true) });
    world.log = leaving.clone();
    let peers = ["package", "fleet", "tracking", "history", "lookup"].map(|peer| (peer, "http://[::1]:9"));
    let (node, url) = world.node("delivery", &peers).await;
    let store = format!("sqlite:{}", world.path("delivery.db").display());
    let mut tasks = JoinSet::new();
    tasks.spawn(delivery::run(delivery::Config { store, sole_owner: None }, node));
    let http = chassis::client::http_client().unwrap();
    let ready = || async { http.get(format!("{url}/health/ready")).send().await.ok() };
    let health = until("it listens", || async { ready().await?.json::<Value>().await.ok() }).await;
    assert_eq!(health["status"], "degraded");
    let log = &health["dependencies"][1];
    assert_eq!(log, &json!({"name": "event_log", "status": "down", "error": "the event log is unavailable"}));

    let token = world.token("alice", Role::Customer);
    let order = http.post(format!("{url}/deliveries")).bearer_auth(&token).json(&wish());
    let accepted = Answer::of(order).await;
    assert_eq!(accepted.status, 202, "{}", accepted.text);
    leaving.is_away.store(false, SeqCst);
    let mut heard = leaving.subscribe("test", &["delivery.events"]).await.unwrap();
    let told = tokio::time::timeout(std::time::Duration::from_secs(30), heard.next(10)).await.unwrap().unwrap();
    assert_eq!(
        (told[0].event.kind.as_str(), json!(told[0].event.key)),
        ("DeliveryRequested", accepted.body["delivery_id"].clone())
    );
    until("the log to be up", || async {
        let health: Value = ready().await?.json().await.ok()?;
        (health["dependencies"][1]["status"] == "up").then_some(())
    })
    .await;
    world.shutdown.cancel();
    while tasks.join_next().await.is_some() {}
}
