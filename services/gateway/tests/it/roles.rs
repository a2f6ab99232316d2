//! Who may call what: every route in every role.

use contracts::api::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    bodies::{DELIVERY, DRONE, drone, fleet_drone, mission, record, spoilt, timeline, wish},
    stage::{Stage, json_of},
};

/// Method, path, body, and the status for: nobody, a customer (the owner), an operator, a drone, a base station (the
/// drone's own), one of our services.
type Row = (Method, String, Option<Value>, [u16; 6]);

fn table() -> Vec<Row> {
    let delivery = format!("/api/deliveries/{DELIVERY}");
    let of = |method: Method, path: &str, allowed| (method, path.to_owned(), None, allowed);
    vec![
        (Method::POST, "/api/deliveries".to_owned(), Some(wish()), [401, 202, 403, 403, 403, 403]),
        of(Method::GET, "/api/deliveries", [401, 200, 403, 403, 403, 403]),
        of(Method::GET, &delivery, [401, 200, 200, 404, 404, 403]),
        of(Method::DELETE, &delivery, [401, 200, 404, 404, 404, 403]),
        of(Method::GET, &format!("{delivery}/timeline"), [401, 200, 200, 404, 404, 403]),
        of(Method::GET, &format!("{delivery}/events"), [401, 200, 200, 404, 404, 403]),
        of(Method::GET, "/api/events", [401, 200, 403, 403, 403, 403]),
        of(Method::GET, "/api/history", [401, 200, 403, 403, 403, 403]),
        of(Method::GET, "/api/missions", [401, 403, 403, 200, 200, 403]),
        (Method::POST, "/api/telemetry".to_owned(), Some(json!({})), [401, 403, 403, 200, 200, 403]),
        of(Method::GET, "/api/fleet", [401, 403, 200, 403, 200, 403]),
        of(Method::GET, "/api/fleet?base_id=south", [401, 403, 200, 403, 403, 403]),
        of(Method::GET, "/api/fleet/events", [401, 403, 200, 403, 200, 403]),
        of(Method::GET, "/api/fleet/events?base_id=south", [401, 403, 200, 403, 403, 403]),
        (Method::PUT, format!("/api/fleet/{DRONE}"), Some(drone()), [401, 403, 200, 403, 200, 403]),
        of(Method::DELETE, &format!("/api/fleet/{DRONE}"), [401, 403, 204, 403, 204, 403]),
        of(Method::GET, "/api/operations/sagas", [401, 403, 200, 403, 403, 403]),
        of(Method::GET, "/api/operations/lag", [401, 403, 200, 403, 403, 403]),
        of(Method::GET, "/api/operations/dead-letters", [401, 403, 200, 403, 403, 403]),
        (
            Method::POST,
            "/api/operations/dead-letters/redrive".to_owned(),
            Some(json!({"consumer": "fleet"})),
            [401, 403, 200, 403, 403, 403],
        ),
        of(Method::POST, &format!("/api/operations/drones/{DRONE}/fail"), [401, 403, 200, 403, 403, 403]),
    ]
}

/// The services behind answer everything, so that every refusal is the gateway's own.
fn willing(stage: &Stage) {
    let list = json!({"items": [], "next_cursor": null});
    let over = record(DELIVERY, "Cancelled", 1);
    let delivery = stage.peer("delivery");
    delivery.on("POST /deliveries", 202, over.clone());
    delivery.on("GET /deliveries", 200, list.clone());
    delivery.on(&format!("GET /deliveries/{DELIVERY}"), 200, over.clone());
    delivery.on(&format!("DELETE /deliveries/{DELIVERY}"), 200, over.clone());
    delivery.on(&format!("GET /deliveries/{DELIVERY}/timeline"), 200, timeline());
    delivery.stream(&format!("GET /deliveries/{DELIVERY}/events"), &[over]);
    delivery.stream("GET /deliveries/events", &[]);
    delivery.on("GET /operations/sagas", 200, json!({"open": 0}));
    for name in ["lookup", "history"] {
        stage.peer(name).on("POST /queries/history", 200, list.clone());
    }
    stage.peer("tracking").on("GET /missions", 200, json!({"items": []}));
    let fleet = stage.peer("fleet");
    fleet.on("GET /drones", 200, list);
    fleet.stream("GET /drones/events", &[]);
    fleet.on(&format!("GET /drones/{DRONE}"), 200, fleet_drone());
    fleet.on(&format!("PUT /drones/{DRONE}"), 200, fleet_drone());
    fleet.on(&format!("DELETE /drones/{DRONE}"), 204, Value::Null);
    fleet.on(&format!("POST /drones/{DRONE}/fail"), 200, fleet_drone());
}

#[tokio::test]
async fn every_route_in_every_role() {
    let stage = Stage::new().await;
    willing(&stage);
    let callers = [
        None,
        Some(("alice", Role::Customer)),
        Some(("olga", Role::Operator)),
        Some((DRONE, Role::Drone)),
        Some(("north", Role::BaseStation)),
        Some(("delivery", Role::Service)),
    ];
    for (method, path, body, expected) in table() {
        for (caller, expected) in callers.iter().zip(expected) {
            let token = caller.map(|(subject, role)| stage.token(subject, role)).unwrap_or_default();
            let before = stage.calls_with(&token);
            let mut request = stage.anonymous(method.clone(), &path);
            if caller.is_some() {
                request = request.bearer_auth(&token);
            }
            if let Some(body) = &body {
                request = request.json(body);
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status().as_u16(), expected, "{method} {path} as {caller:?}");
            if expected >= 400 {
                assert_eq!(response.headers()["content-type"], "application/problem+json", "{method} {path}");
                assert_eq!(stage.calls_with(&token), before, "nobody behind is asked: {method} {path} as {caller:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_role_is_checked_before_the_body() {
    let stage = Stage::new().await;
    for (method, path) in [
        (Method::POST, "/api/deliveries".to_owned()),
        (Method::PUT, format!("/api/fleet/{DRONE}")),
        (Method::POST, "/api/operations/dead-letters/redrive".to_owned()),
    ] {
        let request = stage.as_role(DRONE, Role::Drone, method, &path).body("neither JSON nor said to be");
        assert_eq!(request.send().await.unwrap().status(), 403, "{path}");
    }
}

#[tokio::test]
async fn a_base_station_registers_only_its_own_drones() {
    let stage = Stage::new().await;
    let request = stage.as_role("south", Role::BaseStation, Method::PUT, &format!("/api/fleet/{DRONE}")).json(&drone());
    assert_eq!(request.send().await.unwrap().status(), 403);
    assert_eq!(stage.peer("fleet").calls(), []);
}

#[tokio::test]
async fn a_drone_of_another_base_is_neither_retired_nor_taken_over_and_answered_like_none() {
    let absent = Stage::new().await;
    let foreign = Stage::new().await;
    willing(&foreign);
    let path = format!("/api/fleet/{DRONE}");
    let as_south = |stage: &Stage, method: Method| stage.as_role("south", Role::BaseStation, method, &path);
    let mut answers = Vec::new();
    for stage in [&absent, &foreign] {
        let response = as_south(stage, Method::DELETE).send().await.unwrap();
        let mut headers = response.headers().clone();
        headers.remove("date");
        answers.push((response.status().as_u16(), headers, response.bytes().await.unwrap()));
    }
    assert_eq!(answers[0].0, 404);
    assert_eq!(answers[0], answers[1]);
    let here = spoilt(&drone(), "base_id", json!("south"));
    let taken = as_south(&foreign, Method::PUT).json(&here).send().await.unwrap();
    assert_eq!(taken.status(), 404);
    let asked = [absent.calls(), foreign.calls()].concat();
    assert!(asked.iter().all(|call| call.starts_with("fleet GET ")), "nothing is changed first: {asked:?}");
    assert_eq!(foreign.operator(Method::DELETE, &path).send().await.unwrap().status(), 204);
}

#[tokio::test]
async fn what_fleet_and_tracking_let_through_is_not_shown() {
    let stage = Stage::new().await;
    let foreign = spoilt(&fleet_drone(), "base_id", json!("south"));
    let drones = json!({"items": [foreign, fleet_drone()], "next_cursor": null});
    stage.peer("fleet").on("GET /drones", 200, drones.clone());
    let (_, body) = json_of(stage.north(Method::GET, "/api/fleet")).await;
    assert_eq!(body["items"], json!([fleet_drone()]));
    assert_eq!(json_of(stage.operator(Method::GET, "/api/fleet")).await.1, drones, "an operator sees all");
    stage.peer("fleet").on(&format!("PUT /drones/{DRONE}"), 200, foreign);
    let registered = stage.north(Method::PUT, &format!("/api/fleet/{DRONE}")).json(&drone()).send().await.unwrap();
    assert_eq!(registered.status(), 404);

    stage.peer("tracking").on("GET /missions", 200, json!({"items": [mission("south"), mission("north")]}));
    let (_, body) = json_of(stage.north(Method::GET, "/api/missions")).await;
    assert_eq!(body["items"], json!([mission("north")]));
    let other = "0198c5a0-0000-7000-8000-00000000000e";
    let (_, body) = json_of(stage.as_role(other, Role::Drone, Method::GET, "/api/missions")).await;
    assert_eq!(body["items"], json!([]));
}

#[tokio::test]
async fn a_bad_token_is_refused_everywhere() {
    let stage = Stage::new().await;
    for (method, path, body, _) in table() {
        for authorization in ["Bearer x.y.z", "Basic YWxpY2U6", "Bearer", ""] {
            let mut request = stage.anonymous(method.clone(), &path).header("authorization", authorization);
            if let Some(body) = &body {
                request = request.json(body);
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 401, "{method} {path} with '{authorization}'");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
        }
    }
}
