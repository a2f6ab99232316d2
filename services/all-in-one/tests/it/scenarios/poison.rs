//! Events that no consumer can digest: kept apart with their cause, published again by command, in nobody's way.

use contracts::{
    Clock, DeliveryId, Stage,
    api::Role,
    events::{CloudEvent, DeliveryEventKind, Event, StageEntry},
};
use messaging::dead_letters::dead_letter;
use serde_json::{Value, json};
use testkit::until;

use crate::{
    api::{User, wish},
    world::World,
};

/// Who listens to deliveries' events.
const CONSUMERS: [&str; 5] = ["package", "fleet", "tracking", "history", "lookup"];

fn poison(world: &World, data: &[u8]) -> CloudEvent {
    let id = world.clock.new_id();
    CloudEvent {
        id,
        topic: "delivery.events".to_owned(),
        key: id.to_string(),
        kind: "DeliveryCompleted".to_owned(),
        source: "delivery".to_owned(),
        time: world.clock.now(),
        traceparent: None,
        data: data.to_vec(),
    }
}

/// The data of a consumer's waiting dead letters, sorted.
async fn waiting(operator: &User<'_>, consumer: &str) -> Vec<String> {
    let answer = operator.get(&format!("/api/operations/dead-letters?consumer={consumer}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let items = answer.body["items"].as_array().unwrap();
    let mut data: Vec<_> = items.iter().map(|item| item["data"].as_str().unwrap().to_owned()).collect();
    for item in items {
        assert_eq!((&item["group"], &item["topic"]), (&json!(consumer), &json!("delivery.events")), "{item}");
        assert!(item["cause"].as_str().is_some_and(|cause| !cause.is_empty()), "{item}");
    }
    data.sort();
    data
}

async fn redrive(operator: &User<'_>, consumer: &str) -> Value {
    let answer = operator.post("/api/operations/dead-letters/redrive", &json!({"consumer": consumer})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.body["redriven"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_event_is_put_aside_and_all_else_goes_on() {
    let world = World::new().await;
    let operator = world.operator().await;
    let (alice, base) = (world.customer("alice").await, world.base("north").await);
    base.new_drone().await;
    let bad = ["{\"delivery_id\":\"of the right JSON and the wrong shape\"}", "{not JSON"];
    let events = bad.map(|data| poison(&world, data.as_bytes()));
    world.log().publish(events.to_vec()).await.unwrap();
    for consumer in CONSUMERS {
        until(&format!("the dead letters of {consumer}"), async || {
            let mut waiting = waiting(&operator, consumer).await;
            if world.has_replicas() {
                // At least once: a member that joins meanwhile may put them aside once more.
                waiting.dedup();
            }
            (waiting == bad).then_some(())
        })
        .await;
    }

    let id = alice.order(&wish()).await;
    base.flies(&base.mission(id).await).await;
    alice.sees(id, Stage::Completed).await;

    // Published again it is as bad as before, for each of its consumers: they come back, and none gets lost.
    assert_eq!(redrive(&operator, "lookup").await, json!(2));
    for consumer in CONSUMERS {
        let expected = if consumer == "lookup" { 2 } else { 4 };
        until(&format!("the dead letters of {consumer} after the redrive"), async || {
            let count = waiting(&operator, consumer).await.len();
            (count == expected || world.has_replicas() && count > expected).then_some(())
        })
        .await;
    }
    world.audit().await;
}

/// The end of a delivery of alice's that only the dead letter knows.
fn unknown_end(world: &World) -> Event<contracts::events::DeliveryRecord> {
    let now = world.clock.now();
    let id = DeliveryId(world.clock.new_id());
    let stages = [Stage::Requested, Stage::Cancelled].map(|stage| StageEntry { stage, attempt: 1, at: now });
    let mut record = wish();
    let more = json!({
        "delivery_id": id, "customer_id": "alice", "home_region": "region-a", "version": 2, "stage": "Cancelled",
        "attempt": 1, "expedited": false, "confirmation": "none", "requested_at": now, "deadline": now,
        "updated_at": now, "finished_at": now, "stages": stages,
    });
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Event {
        id: world.clock.new_id(),
        time: now,
        kind: DeliveryEventKind::DeliveryCancelled,
        data: serde_json::from_value(record).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_can_be_digested_by_now_takes_effect() {
    let world = World::new().await;
    let (alice, operator) = (world.customer("alice").await, world.operator().await);
    let end = unknown_end(&world);
    let record = messaging::Delivered {
        topic: "delivery.events".into(),
        partition: 0,
        offset: 0,
        event: std::sync::Arc::new(end.encode()),
    };
    let letter = dead_letter("lookup", &record, "a fault that has been mended since".to_owned(), &*world.clock);
    world.log().publish(vec![letter]).await.unwrap();
    until("the dead letter", async || (waiting(&operator, "lookup").await.len() == 1).then_some(())).await;
    assert_eq!(alice.history().await.len(), 0);

    assert_eq!(redrive(&operator, "lookup").await, json!(1));
    until("its effect", async || (alice.history().await.len() == 1).then_some(())).await;
    assert_eq!(alice.history().await[0].delivery.id, end.data.delivery_id);
    assert_eq!(waiting(&operator, "lookup").await, Vec::<String>::new());
    assert_eq!(redrive(&operator, "lookup").await, json!(0), "nothing waits any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_operator_looks_after_them() {
    let world = World::new().await;
    for (subject, role) in [("alice", Role::Customer), ("north", Role::BaseStation)] {
        let user = world.user(subject, role).await;
        assert_eq!(user.get("/api/operations/dead-letters").await.status, 403);
        let redrive = user.post("/api/operations/dead-letters/redrive", &json!({"consumer": "lookup"})).await;
        assert_eq!(redrive.status, 403);
    }
    let unknown = world.operator().await.post("/api/operations/dead-letters/redrive", &json!({"consumer": "x"})).await;
    assert_eq!((unknown.status, unknown.fields()), (422, vec!["consumer".to_owned()]));
}
