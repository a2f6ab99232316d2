//! Accepting deliveries, once each, and showing them to whom they belong.

use std::time::Duration;

use contracts::{
    DeliveryId, Stage,
    api::{Page, Role},
    commands::{DeliveryStatus, Ids, MAX_COMMANDS},
    events::DeliveryRecord,
};
use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::running::{Running, fields, wish};

const ALICE: (&str, Role) = ("alice", Role::Customer);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_delivery_is_found_right_after() {
    let running = Running::start(1).await;
    let answer = running.post("alice", None, &wish()).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let accepted: DeliveryRecord = answer.json().await.unwrap();
    assert_eq!((accepted.stage, accepted.version, accepted.attempt), (Stage::Requested, 1, 1));
    assert_eq!(accepted.deadline - accepted.requested_at, chrono::Duration::minutes(30));
    let found = running.record(accepted.delivery_id).await;
    assert_eq!((found.requested_at, found.customer_id), (accepted.requested_at, accepted.customer_id));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_faulty_wish_is_refused_by_its_fields_and_a_stranger_by_their_role() {
    let running = Running::start(1).await;
    let mut faulty = wish();
    faulty["package"]["weight_kg"] = json!(99);
    faulty["deadline"] = json!("2001-01-01T00:00:00Z");
    let answer = running.post("alice", None, &faulty).await;
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(fields(answer).await, ["package.weight_kg", "deadline"]);
    for key in ["", &"x".repeat(129)] {
        assert_eq!(fields(running.post("alice", Some(key), &wish()).await).await, ["Idempotency-Key"]);
    }
    for who in [("olga", Role::Operator), ("north", Role::BaseStation), ("fleet", Role::Service)] {
        for method in [Method::POST, Method::GET] {
            let answer = running.request(who, method, "/deliveries").json(&wish()).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{who:?}");
        }
    }
    let unsigned = running.http.post(format!("{}/deliveries", running.url)).json(&wish()).send().await.unwrap();
    assert_eq!(unsigned.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(running.peers.count("register"), 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_duplicates_at_once_are_one_delivery() {
    let running = Running::start(9).await;
    let wish = wish();
    let answers = join_all((0..16).map(|_| running.post("alice", Some("k"), &wish))).await;
    let mut bodies: Vec<DeliveryRecord> = Vec::new();
    for answer in answers {
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        bodies.push(answer.json().await.unwrap());
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]), "all get the first answer");
    let id = bodies[0].delivery_id;
    running.reaches(id, Stage::Scheduled).await;
    assert_eq!((running.peers.count("register"), running.peers.count("reserve")), (1, 1));
    let again = running.post("alice", Some("k"), &wish).await;
    assert_eq!(again.status(), StatusCode::ACCEPTED);
    assert_eq!(again.json::<DeliveryRecord>().await.unwrap(), bodies[0], "also once it has moved on");

    let mut other = wish.clone();
    other["expedited"] = json!(true);
    let answer = running.post("alice", Some("k"), &other).await;
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(fields(answer).await, ["Idempotency-Key"]);
    let bobs: DeliveryRecord = running.post("bob", Some("k"), &other).await.json().await.unwrap();
    assert_ne!(bobs.delivery_id, id, "a key is its customer's");
    let mine: Page<DeliveryRecord> = running.get("alice", "/deliveries").await.json().await.unwrap();
    assert_eq!(mine.items.len(), 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_gets_the_first_answer_though_its_deadline_has_passed() {
    let running = Running::start_timeless(0, None).await;
    let mut wish = wish();
    wish["deadline"] = json!(running.world.clock.now() + chrono::Duration::minutes(1));
    let first: DeliveryRecord = running.post("alice", Some("k"), &wish).await.json().await.unwrap();
    running.pass(Duration::from_secs(120));
    let again = running.post("alice", Some("k"), &wish).await;
    assert_eq!(again.status(), StatusCode::ACCEPTED);
    assert_eq!(again.json::<DeliveryRecord>().await.unwrap(), first);
    wish["expedited"] = json!(true);
    assert_eq!(fields(running.post("alice", Some("k"), &wish).await).await, ["Idempotency-Key"]);
    for key in [Some("other"), None] {
        assert_eq!(fields(running.post("alice", key, &wish).await).await, ["deadline"]);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_paged_newest_first() {
    let running = Running::start(9).await;
    let mut expected = Vec::new();
    for _ in 0..5 {
        expected.insert(0, running.accepted().await);
    }
    running.post("bob", None, &wish()).await;
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    for pages_left in (0..3).rev() {
        let page = running.get("alice", &format!("/deliveries?limit=2{cursor}")).await;
        let page: Page<DeliveryRecord> = page.json().await.unwrap();
        listed.extend(page.items.into_iter().map(|record| record.delivery_id));
        assert_eq!(page.next_cursor.is_some(), pages_left > 0);
        cursor = page.next_cursor.map(|next| format!("&cursor={next}")).unwrap_or_default();
    }
    assert_eq!(listed, expected);
    for (query, field) in [("limit=0", "limit"), ("limit=101", "limit"), ("cursor=x", "cursor")] {
        let answer = running.get("alice", &format!("/deliveries?{query}")).await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(fields(answer).await, [field]);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_delivery_is_answered_like_an_absent_one_on_every_route() {
    let running = Running::start(9).await;
    let mine = running.reaches(running.accepted().await, Stage::Scheduled).await.delivery_id;
    let absent = running.world.clock.new_delivery_id();
    for (method, rest) in
        [(Method::GET, ""), (Method::DELETE, ""), (Method::GET, "/timeline"), (Method::GET, "/events")]
    {
        for who in [("bob", Role::Customer), ("north", Role::BaseStation)] {
            let ask = |id: String| running.request(who, method.clone(), &format!("/deliveries/{id}{rest}")).send();
            let foreign = ask(mine.to_string()).await.unwrap();
            let unknown = ask(absent.to_string()).await.unwrap();
            let nonsense = ask("nonsense".to_owned()).await.unwrap();
            assert_eq!(foreign.status(), StatusCode::NOT_FOUND, "{method} {rest}");
            let body = foreign.text().await.unwrap();
            for other in [unknown, nonsense] {
                assert_eq!(other.status(), StatusCode::NOT_FOUND);
                assert_eq!(other.text().await.unwrap(), body);
            }
        }
    }
    assert_eq!(running.record(mine).await.stage, Stage::Scheduled);
    assert_eq!(running.peers.count("close-flight"), 0);
    let read = running.request(("olga", Role::Operator), Method::GET, &format!("/deliveries/{mine}"));
    assert_eq!(read.send().await.unwrap().status(), StatusCode::OK, "an operator reads");
    let cancel = running.request(("olga", Role::Operator), Method::DELETE, &format!("/deliveries/{mine}"));
    assert_eq!(cancel.send().await.unwrap().status(), StatusCode::NOT_FOUND, "but does not cancel");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_services_ask_for_statuses() {
    let running = Running::start(1).await;
    let (mine, absent) = (running.accepted().await, running.world.clock.new_delivery_id());
    let ask = async |who, ids: Vec<DeliveryId>| {
        running.request(who, Method::POST, "/queries/statuses").json(&Ids { ids }).send().await.unwrap()
    };
    for who in [ALICE, ("olga", Role::Operator)] {
        assert_eq!(ask(who, vec![mine]).await.status(), StatusCode::FORBIDDEN);
    }
    let tracking = ("tracking", Role::Service);
    let statuses: Vec<DeliveryStatus> = ask(tracking, vec![absent, mine, mine]).await.json().await.unwrap();
    let found: Vec<_> = statuses.iter().map(|status| (status.delivery_id, status.record.is_some())).collect();
    assert_eq!(found, [(absent, false), (mine, true), (mine, true)]);
    let many = ask(tracking, vec![mine; MAX_COMMANDS + 1]).await;
    assert_eq!(many.status(), StatusCode::UNPROCESSABLE_ENTITY);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sees_the_sagas_and_nobody_else_does() {
    let running = Running::start(1).await;
    running.reaches(running.accepted().await, Stage::Scheduled).await;
    let ask = async |who| running.request(who, Method::GET, "/operations/sagas").send().await.unwrap();
    let sagas: Value = ask(("olga", Role::Operator)).await.json().await.unwrap();
    assert_eq!((&sagas["open"], &sagas["since_start"]["DeliveryScheduled"]), (&json!(1), &json!(1)), "{sagas}");
    assert_eq!(ask(ALICE).await.status(), StatusCode::FORBIDDEN);
    let ready = running.http.get(format!("{}/health/ready", running.url)).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::OK);
    running.stop().await;
}
