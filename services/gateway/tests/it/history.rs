//! The list of finished deliveries over lookup and lake.

use chrono::{DateTime, Duration, SecondsFormat, Utc};
use contracts::{
    DeliveryId,
    api::{DeliveryView, HistoryItem, HistoryPage},
    events::DeliveryRecord,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    bodies::{DELIVERY, record},
    stage::{Stage, json_of, problem_of},
};

fn item(stage: &Stage, days_ago: i64, source: &str) -> HistoryItem {
    let mut record: DeliveryRecord = serde_json::from_value(record(DELIVERY, "Completed", 9)).unwrap();
    record.delivery_id = DeliveryId(stage.world.clock.new_id());
    record.finished_at = Some(stage.world.clock.now() - Duration::days(days_ago));
    let delivery = DeliveryView::from(&record);
    HistoryItem { delivery, customer_id: record.customer_id, stages: record.stages, source: source.to_owned() }
}

fn page(items: &[HistoryItem], more: bool) -> Value {
    let last = items.last().filter(|_| more);
    let next = last.map(|item| (item.delivery.finished_at.unwrap(), item.delivery.id));
    serde_json::to_value(HistoryPage { items: items.to_vec(), next }).unwrap()
}

fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[tokio::test]
async fn the_walk_goes_through_lookup_and_on_into_the_lake() {
    let stage = Stage::new().await;
    let now = stage.world.clock.now();
    let (new, old, oldest) = (item(&stage, 1, "lookup"), item(&stage, 40, "lake"), item(&stage, 50, "lake"));
    stage.peer("lookup").on("POST /queries/history", 200, page(std::slice::from_ref(&new), false));
    stage.peer("history").on("POST /queries/history", 200, page(std::slice::from_ref(&old), true));
    let from = rfc3339(now - Duration::days(60));
    let (status, first) = json_of(stage.alice(Method::GET, &format!("/api/history?from={from}&limit=2"))).await;
    assert_eq!(status, 200);
    let sources: Vec<_> = first["items"].as_array().unwrap().iter().map(|item| item["source"].clone()).collect();
    assert_eq!(sources, ["lookup", "lake"]);
    let (of_lookup, of_lake) =
        (stage.peer("lookup").calls()[0].body.clone(), stage.peer("history").calls()[0].body.clone());
    assert_eq!((&of_lookup["customer_id"], &of_lookup["limit"]), (&json!("alice"), &json!(2)));
    assert_eq!((&of_lake["from"], &of_lake["limit"]), (&json!(from), &json!(1)), "lookup gave one of the two");
    assert_eq!(of_lookup["from"], of_lake["to"], "the two ranges meet");

    stage.peer("history").on("POST /queries/history", 200, page(std::slice::from_ref(&oldest), false));
    let cursor = first["next_cursor"].as_str().unwrap();
    let (_, second) = json_of(stage.alice(Method::GET, &format!("/api/history?limit=2&cursor={cursor}"))).await;
    assert_eq!(second["items"][0]["id"], json!(oldest.delivery.id));
    assert_eq!(second["next_cursor"], Value::Null);
    assert_eq!(stage.peer("lookup").calls().len(), 1, "the rest is too old for lookup");
    let after = &stage.peer("history").calls()[1].body["after"];
    assert_eq!(after, &json!([old.delivery.finished_at, old.delivery.id]));
    assert_eq!(stage.peer("history").calls()[1].body["from"], json!(from), "the cursor knows the range");
}

#[tokio::test]
async fn where_the_lake_has_looked_for_long_enough_a_page_ends_though_it_is_empty() {
    let stage = Stage::new().await;
    let now = stage.world.clock.now();
    let old = item(&stage, 300, "lake");
    let place = (now - Duration::days(200), old.delivery.id);
    let empty = HistoryPage { items: Vec::new(), next: Some(place) };
    stage.peer("lookup").on("POST /queries/history", 200, page(&[], false));
    stage.peer("history").on("POST /queries/history", 200, serde_json::to_value(empty).unwrap());
    let from = rfc3339(now - Duration::days(900));
    let (status, first) = json_of(stage.alice(Method::GET, &format!("/api/history?from={from}"))).await;
    assert_eq!((status, &first["items"]), (200, &json!([])));
    stage.peer("history").on("POST /queries/history", 200, page(std::slice::from_ref(&old), false));
    let cursor = first["next_cursor"].as_str().unwrap();
    let (_, second) = json_of(stage.alice(Method::GET, &format!("/api/history?cursor={cursor}"))).await;
    assert_eq!((&second["items"][0]["id"], &second["next_cursor"]), (&json!(old.delivery.id), &Value::Null));
    assert_eq!(stage.peer("history").calls()[1].body["after"], json!(place));
}

#[tokio::test]
async fn lookups_pages_come_before_the_lake_is_asked() {
    let stage = Stage::without(&["history"]).await;
    let new = item(&stage, 1, "lookup");
    stage.peer("lookup").on("POST /queries/history", 200, page(std::slice::from_ref(&new), true));
    let (status, first) = json_of(stage.alice(Method::GET, "/api/history?limit=1")).await;
    assert_eq!((status, &first["items"][0]["source"]), (200, &json!("lookup")));
    let cursor = first["next_cursor"].as_str().unwrap();
    json_of(stage.alice(Method::GET, &format!("/api/history?limit=1&cursor={cursor}"))).await;
    let after = stage.peer("lookup").calls()[1].body["after"].clone();
    assert_eq!(after, json!([new.delivery.finished_at, new.delivery.id]));
}

#[tokio::test]
async fn without_the_lake_what_lookup_has_is_given_and_then_503() {
    let stage = Stage::without(&["history"]).await;
    let new = item(&stage, 1, "lookup");
    stage.peer("lookup").on("POST /queries/history", 200, page(&[new], false));
    let (status, first) = json_of(stage.alice(Method::GET, "/api/history")).await;
    assert_eq!(status, 200);
    let cursor = first["next_cursor"].as_str().unwrap();
    stage.peer("lookup").on("POST /queries/history", 200, page(&[], false));
    assert_eq!(problem_of(stage.alice(Method::GET, &format!("/api/history?cursor={cursor}"))).await.0, 503);
}

#[tokio::test]
async fn without_lookup_its_days_cannot_be_told_but_older_ones_can() {
    let stage = Stage::without(&["lookup"]).await;
    let old = item(&stage, 40, "lake");
    stage.peer("history").on("POST /queries/history", 200, page(&[old], false));
    assert_eq!(problem_of(stage.alice(Method::GET, "/api/history")).await.0, 503);
    let now = stage.world.clock.now();
    let (from, to) = (rfc3339(now - Duration::days(50)), rfc3339(now - Duration::days(31)));
    let (status, body) = json_of(stage.alice(Method::GET, &format!("/api/history?from={from}&to={to}"))).await;
    assert_eq!((status, body["items"].as_array().unwrap().len()), (200, 1));
}

#[tokio::test]
async fn a_page_with_somebody_elses_delivery_is_not_shown() {
    let stage = Stage::new().await;
    let (own, mut foreign) = (item(&stage, 1, "lookup"), item(&stage, 2, "lookup"));
    foreign.customer_id = "bob".parse().unwrap();
    stage.peer("lookup").on("POST /queries/history", 200, page(&[own.clone(), foreign.clone()], false));
    let (status, problem) = problem_of(stage.alice(Method::GET, "/api/history")).await;
    assert_eq!(status, 503);
    assert!(!format!("{problem:?}").contains(&foreign.delivery.id.to_string()), "{problem:?}");

    // Of the lake's alike: what lookup has is a page of its own.
    stage.peer("lookup").on("POST /queries/history", 200, page(std::slice::from_ref(&own), false));
    stage.peer("history").on("POST /queries/history", 200, page(&[foreign], false));
    let (status, body) = json_of(stage.alice(Method::GET, "/api/history")).await;
    let items = body["items"].as_array().unwrap();
    assert_eq!((status, items.len(), &items[0]["customer_id"]), (200, 1, &json!("alice")));
    assert!(body["next_cursor"].is_string(), "the list goes on, when the lake answers with what is hers");
}
