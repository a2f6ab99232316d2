//! The lookup service as its callers meet it: over HTTP and the event log.

#![allow(clippy::unwrap_used, reason = "a test says what it needs by failing")]

use chrono::Duration;
use contracts::{
    Coordinate, DeliveryId, Stage, Timestamp,
    api::{Confirmation, HistoryPage, HistoryQuery, MAX_PAGE, PackageSize, PackageSpec, Role, default_region},
    commands::{Ids, MAX_COMMANDS},
    events::{DeliveryEvent, DeliveryEventKind, DeliveryRecord, StageEntry},
};
use reqwest::{Client, StatusCode};
use serde::Serialize;
use serde_json::json;
use testkit::{World, serving, until};
use tokio::task::JoinSet;

struct Running {
    world: World,
    url: String,
    http: Client,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Running {
    async fn start() -> Self {
        let world = World::new().await;
        let (node, url) = world.node("lookup", &[]).await;
        let mut tasks = JoinSet::new();
        let store = format!("sqlite:{}", world.path("lookup.db").display());
        serving(&mut tasks, node.door.opened(), lookup::run(lookup::Config { store }, node)).await;
        Self { world, url, http: chassis::client::http_client().unwrap(), tasks }
    }

    async fn ask(&self, (subject, role): (&str, Role), path: &str, body: &impl Serialize) -> reqwest::Response {
        let token = self.world.token(subject, role);
        self.http.post(format!("{}{path}", self.url)).bearer_auth(token).json(body).send().await.unwrap()
    }

    /// Publishes the ends of that many deliveries of `alice`, a second apart; waits until all are stored.
    async fn finish(&self, count: i64) -> Vec<DeliveryRecord> {
        let now = self.world.clock.now();
        let mut records = Vec::new();
        for age in (0..count).rev() {
            records.push(finished(self.world.clock.new_delivery_id(), now - Duration::seconds(age)));
        }
        let event = |record: &DeliveryRecord| DeliveryEvent {
            id: self.world.clock.new_id(),
            time: now,
            kind: DeliveryEventKind::DeliveryCompleted,
            data: record.clone(),
        };
        let events: Vec<_> = records.iter().map(|record| event(record).encode()).collect();
        self.world.log.publish(events).await.unwrap();
        let ids = Ids { ids: records.iter().map(|record| record.delivery_id).collect() };
        until("the deliveries in the store", || async {
            let answer = self.ask(("delivery", Role::Service), "/queries/contains", &ids).await;
            (answer.json::<Ids>().await.unwrap() == ids).then_some(())
        })
        .await;
        records
    }

    async fn stop(mut self) {
        self.world.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
    }
}

fn finished(delivery_id: DeliveryId, finished_at: Timestamp) -> DeliveryRecord {
    DeliveryRecord {
        delivery_id,
        customer_id: "alice".parse().unwrap(),
        home_region: default_region(),
        version: 5,
        stage: Stage::Completed,
        attempt: 1,
        pickup: Coordinate { latitude: 1.0, longitude: 2.0 },
        dropoff: Coordinate { latitude: 1.1, longitude: 2.0 },
        package: PackageSpec { size: PackageSize::Small, weight_kg: 0.5, tag: None, description: None },
        expedited: false,
        confirmation: Confirmation::None,
        requested_at: finished_at,
        deadline: finished_at,
        updated_at: finished_at,
        finished_at: Some(finished_at),
        drone: None,
        stages: vec![StageEntry { stage: Stage::Completed, attempt: 1, at: finished_at }],
        end_reason: None,
        confirmation_missing: false,
    }
}

fn query(customer: &str, limit: usize, now: Timestamp) -> HistoryQuery {
    HistoryQuery {
        customer_id: customer.parse().unwrap(),
        from: now - Duration::days(1),
        to: now + Duration::days(1),
        after: None,
        limit,
    }
}

const ALICE: (&str, Role) = ("alice", Role::Customer);
const BOB: (&str, Role) = ("bob", Role::Customer);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_customer_pages_through_their_history() {
    let running = Running::start().await;
    let mut records = running.finish(5).await;
    records.reverse();
    let mut asked = query("alice", 2, running.world.clock.now());
    let (mut listed, mut pages) = (Vec::new(), 0);
    loop {
        let answer = running.ask(ALICE, "/queries/history", &asked).await;
        let page: HistoryPage = answer.json().await.unwrap();
        pages += 1;
        listed.extend(page.items);
        asked.after = page.next;
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!(pages, 3);
    for (item, record) in listed.iter().zip(&records) {
        assert_eq!((item.delivery.id, item.source.as_str()), (record.delivery_id, "lookup"));
        assert_eq!((&item.customer_id, &item.stages), (&record.customer_id, &record.stages));
    }
    assert_eq!(listed.len(), records.len());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_foreign_is_answered_like_what_is_absent() {
    let running = Running::start().await;
    let record = running.finish(1).await.remove(0);
    let mine = json!({"delivery_id": record.delivery_id, "customer_id": "alice"});
    let answer = running.ask(ALICE, "/queries/delivery", &mine).await;
    assert_eq!(answer.json::<DeliveryRecord>().await.unwrap(), record);
    let absent = json!({"delivery_id": running.world.clock.new_delivery_id(), "customer_id": "bob"});
    let expected = running.ask(BOB, "/queries/delivery", &absent).await;
    assert_eq!(expected.status(), StatusCode::NOT_FOUND);
    let expected = expected.text().await.unwrap();
    let as_if_mine = json!({"delivery_id": record.delivery_id, "customer_id": "bob"});
    for foreign in [&mine, &as_if_mine] {
        let answer = running.ask(BOB, "/queries/delivery", foreign).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        assert_eq!(answer.text().await.unwrap(), expected);
    }
    let now = running.world.clock.now();
    let list = running.ask(BOB, "/queries/history", &query("alice", 10, now)).await;
    assert_eq!(list.status(), StatusCode::NOT_FOUND);
    let empty = running.ask(BOB, "/queries/history", &query("bob", 10, now)).await;
    assert_eq!(empty.json::<HistoryPage>().await.unwrap().items, []);
    let by_id = json!({"delivery_id": record.delivery_id, "customer_id": null});
    for asked in [&mine, &by_id] {
        let operator = running.ask(("olga", Role::Operator), "/queries/delivery", asked).await;
        assert_eq!(operator.json::<DeliveryRecord>().await.unwrap(), record);
    }
    for caller in [ALICE, BOB, ("north", Role::BaseStation)] {
        let answer = running.ask(caller, "/queries/delivery", &by_id).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "only operators leave the customer out");
    }
    for limit in [0, MAX_PAGE + 1] {
        let answer = running.ask(ALICE, "/queries/history", &query("alice", limit, now)).await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_services_ask_what_is_contained_and_not_for_too_many_at_once() {
    let running = Running::start().await;
    let one = Ids { ids: vec![running.world.clock.new_delivery_id()] };
    for caller in [ALICE, ("olga", Role::Operator), ("north", Role::BaseStation)] {
        assert_eq!(running.ask(caller, "/queries/contains", &one).await.status(), StatusCode::FORBIDDEN);
    }
    let many = Ids { ids: vec![one.ids[0]; MAX_COMMANDS + 1] };
    let answer = running.ask(("history", Role::Service), "/queries/contains", &many).await;
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let unsigned = running.http.post(format!("{}/queries/contains", running.url)).json(&one).send().await.unwrap();
    assert_eq!(unsigned.status(), StatusCode::UNAUTHORIZED);
    let ready = running.http.get(format!("{}/health/ready", running.url)).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::OK);
    running.stop().await;
}
