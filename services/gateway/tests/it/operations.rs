//! What operators, base stations and developers ask.

use contracts::{Clock, events::CloudEvent};
use gateway::Config;
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{World, until};

use crate::{
    bodies::{DRONE, drone, fleet_drone},
    stage::{Stage, json_of, problem_of},
};

/// A dead letter of lookup.
fn letter(clock: &dyn Clock) -> CloudEvent {
    let original = contracts::events::CloudEvent {
        id: clock.new_id(),
        topic: "delivery.events".to_owned(),
        key: "k".to_owned(),
        kind: "DeliveryCompleted".to_owned(),
        source: "delivery".to_owned(),
        time: clock.now(),
        traceparent: None,
        data: b"not json".to_vec(),
    };
    let record = messaging::Delivered {
        topic: "delivery.events".into(),
        partition: 0,
        offset: 7,
        event: std::sync::Arc::new(original),
    };
    messaging::dead_letters::dead_letter("lookup", &record, "bad data".to_owned(), clock)
}

#[tokio::test]
async fn dead_letters_are_shown_and_redriven() {
    let stage = Stage::new().await;
    stage.world.log.publish(vec![letter(&*stage.world.clock)]).await.unwrap();
    for path in ["/api/operations/dead-letters", "/api/operations/dead-letters?consumer=lookup&limit=5"] {
        let (status, body) = json_of(stage.operator(Method::GET, path)).await;
        assert_eq!((status, body["items"].as_array().unwrap().len()), (200, 1), "{path}");
        assert_eq!((&body["items"][0]["cause"], &body["items"][0]["offset"]), (&json!("bad data"), &json!(7)));
    }
    let redrive = || stage.operator(Method::POST, "/api/operations/dead-letters/redrive");
    assert_eq!(json_of(redrive().json(&json!({"consumer": "lookup"}))).await, (200, json!({"redriven": 1})));
    assert_eq!(json_of(redrive().json(&json!({"consumer": "lookup"}))).await, (200, json!({"redriven": 0})));
    let (_, body) = json_of(stage.operator(Method::GET, "/api/operations/dead-letters")).await;
    assert_eq!(body, json!({"items": []}));
}

#[tokio::test]
async fn lag_is_summed_by_group_and_topic() {
    let stage = Stage::new().await;
    let _subscription = stage.world.log.subscribe("history", &["delivery.events"]).await.unwrap();
    let mut events = Vec::new();
    for number in 0..20 {
        let mut event = letter(&*stage.world.clock);
        event.topic = "delivery.events".to_owned();
        event.key = number.to_string();
        events.push(event);
    }
    stage.world.log.publish(events).await.unwrap();
    let (status, body) = json_of(stage.operator(Method::GET, "/api/operations/lag")).await;
    let expected =
        json!({"items": [{"group": "history", "topic": "delivery.events", "committed": 0, "end": 20, "lag": 20}]});
    assert_eq!((status, body), (200, expected));
}

#[tokio::test]
async fn sagas_and_failing_a_drone_are_passed_on() {
    let stage = Stage::new().await;
    let sagas = json!({"open": 2, "by_step": {"reserve_drone": 2}, "undecided": []});
    stage.peer("delivery").on("GET /operations/sagas", 200, sagas.clone());
    assert_eq!(json_of(stage.operator(Method::GET, "/api/operations/sagas")).await, (200, sagas));
    stage.peer("fleet").on(&format!("POST /drones/{DRONE}/fail"), 200, fleet_drone());
    let (status, body) = json_of(stage.operator(Method::POST, &format!("/api/operations/drones/{DRONE}/fail"))).await;
    assert_eq!((status, &body["drone_id"]), (200, &json!(DRONE)));
}

#[tokio::test]
async fn drones_are_listed_registered_and_retired() {
    let stage = Stage::new().await;
    stage.peer("fleet").on("GET /drones", 200, json!({"items": [fleet_drone()], "next_cursor": "next"}));
    let (status, body) = json_of(stage.north(Method::GET, "/api/fleet?limit=3&cursor=abc")).await;
    assert_eq!((status, &body["items"][0]["drone_id"]), (200, &json!(DRONE)));
    assert_eq!(stage.peer("fleet").calls()[0].what, "GET /drones?base_id=north&cursor=abc&limit=3");
    json_of(stage.operator(Method::GET, "/api/fleet")).await;
    assert_eq!(stage.peer("fleet").calls()[1].what, "GET /drones?limit=20");

    let path = format!("/api/fleet/{DRONE}");
    stage.peer("fleet").on(&format!("PUT /drones/{DRONE}"), 200, fleet_drone());
    let (status, _) = json_of(stage.north(Method::PUT, &path).json(&drone())).await;
    let asked = stage.peer("fleet").calls();
    assert_eq!(asked[2].what, format!("GET /drones/{DRONE}"), "whose it is, which is nobody's yet");
    assert_eq!((status, &asked[3].body), (200, &drone()));
    stage.peer("fleet").on(&format!("GET /drones/{DRONE}"), 200, fleet_drone());
    stage.peer("fleet").on(&format!("PUT /drones/{DRONE}"), 409, Value::Null);
    assert_eq!(problem_of(stage.operator(Method::PUT, &path).json(&drone())).await.0, 409);
    stage.peer("fleet").on(&format!("DELETE /drones/{DRONE}"), 204, Value::Null);
    assert_eq!(stage.north(Method::DELETE, &path).send().await.unwrap().status(), 204);
}

#[tokio::test]
async fn missions_are_listed() {
    let stage = Stage::new().await;
    stage.peer("tracking").on("GET /missions", 200, json!({"items": []}));
    assert_eq!(json_of(stage.north(Method::GET, "/api/missions")).await, (200, json!({"items": []})));
}

#[tokio::test]
async fn a_development_token_opens_the_api_and_only_where_it_is_on() {
    let stage = Stage::new().await;
    stage.peer("delivery").on("GET /deliveries", 200, json!({"items": [], "next_cursor": null}));
    let wish = json!({"subject": "alice", "role": "customer"});
    let (status, body) = json_of(stage.anonymous(Method::POST, "/api/dev/token").json(&wish)).await;
    assert_eq!(status, 200);
    assert!(body["expires_at"].is_string());
    let request = stage.anonymous(Method::GET, "/api/deliveries").bearer_auth(body["token"].as_str().unwrap());
    assert_eq!(json_of(request).await.0, 200);

    let closed = Stage::start(World::new().await, &[], Config::default()).await;
    let absent = problem_of(closed.anonymous(Method::POST, "/api/absent").json(&wish)).await;
    assert_eq!(absent.0, 404);
    assert_eq!(problem_of(closed.anonymous(Method::POST, "/api/dev/token").json(&wish)).await, absent);
}

#[tokio::test]
async fn status_readiness_and_pages_need_no_token() {
    let stage = Stage::new().await;
    let (status, body) = json_of(stage.anonymous(Method::GET, "/api/status")).await;
    assert_eq!((status, &body["service"], &body["region"]), (200, &json!("gateway"), &json!("region-a")));
    stage.peer("delivery").on("GET /health/live", 200, json!("live"));
    for path in ["/health/live", "/health/ready"] {
        assert_eq!(stage.anonymous(Method::GET, path).send().await.unwrap().status(), 200, "{path}");
    }
}

/// The gateway's health: its status as a word, and the peers that are down.
async fn health(stage: &Stage) -> (u16, Value, Vec<String>) {
    let (status, body) = json_of(stage.anonymous(Method::GET, "/health/ready")).await;
    let dependencies = body["dependencies"].as_array().unwrap();
    let down = dependencies.iter().filter(|one| one["status"] == "down");
    (status, body["status"].clone(), down.map(|one| one["name"].as_str().unwrap().to_owned()).collect())
}

#[tokio::test]
async fn without_delivery_the_gateway_is_not_ready_and_without_another_it_is_degraded() {
    let stage = Stage::new().await;
    let others = ["package", "fleet", "tracking", "history", "lookup"];
    for name in others.into_iter().chain(["delivery"]) {
        stage.peer(name).on("GET /health/live", 200, json!("live"));
    }
    assert_eq!(health(&stage).await, (200, json!("ready"), vec![]));
    for name in others {
        stage.peer(name).silent("GET /health/live");
    }
    let degraded = (200, json!("degraded"), others.map(str::to_owned).to_vec());
    until("the gateway is degraded", async || (health(&stage).await == degraded).then_some(())).await;
    stage.peer("delivery").silent("GET /health/live");
    until("the gateway is not ready", async || (health(&stage).await.0 == 503).then_some(())).await;
    let (status, problem) = problem_of(stage.anonymous(Method::GET, "/health/ready")).await;
    let said = "not ready: delivery, package, fleet, tracking, history, lookup down";
    assert_eq!((status, problem.detail.as_deref()), (503, Some(said)));
}
