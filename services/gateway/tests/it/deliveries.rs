//! One delivery's answer: who is asked for it, and what happens when somebody does not answer.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    bodies::{DELIVERY, DRONE, fleet_drone, flight, package, record, spoilt, timeline, wish},
    stage::{Stage, json_of, problem_of},
};
use contracts::api::Role;

fn path() -> String {
    format!("/api/deliveries/{DELIVERY}")
}

/// All four services know the delivery.
fn in_flight(stage: &Stage) {
    stage.peer("delivery").on(&format!("GET /deliveries/{DELIVERY}"), 200, record(DELIVERY, "HeadedToPickup", 3));
    stage.peer("tracking").on(&format!("GET /flights/{DELIVERY}"), 200, flight(48.855));
    stage.peer("package").on(&format!("GET /packages/{DELIVERY}"), 200, package());
    stage.peer("fleet").on(&format!("GET /drones/{DRONE}"), 200, fleet_drone());
}

#[tokio::test]
async fn a_wish_is_passed_on_with_token_and_key_and_answered_with_202_and_location() {
    let stage = Stage::new().await;
    stage.peer("delivery").on("POST /deliveries", 202, record(DELIVERY, "Requested", 1));
    let request = stage.alice(Method::POST, "/api/deliveries").header("Idempotency-Key", "order-1").json(&wish());
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 202);
    assert_eq!(response.headers()["location"], path().as_str());
    let body: Value = response.json().await.unwrap();
    assert_eq!((&body["id"], &body["stage"]), (&json!(DELIVERY), &json!("Requested")));
    assert_eq!(body["degraded"], json!([]));
    let call = &stage.peer("delivery").calls()[0];
    assert_eq!(call.key.as_deref(), Some("order-1"));
    assert_eq!(call.body["package"], wish()["package"]);
    let caller = stage.world.issuer.verifier().verify(&call.token, stage.world.clock.now()).unwrap().identity;
    assert_eq!(caller, auth::Identity::Customer("alice".parse().unwrap()));
}

#[tokio::test]
async fn a_keyed_wish_whose_deadline_has_passed_is_deliverys_to_judge() {
    let stage = Stage::new().await;
    stage.peer("delivery").on("POST /deliveries", 202, record(DELIVERY, "Requested", 1));
    let mut late = wish();
    late["deadline"] = json!(stage.world.clock.now() - chrono::Duration::minutes(1));
    let (status, problem) = problem_of(stage.alice(Method::POST, "/api/deliveries").json(&late)).await;
    assert_eq!((status, problem.errors[0].field.as_str()), (422, "deadline"));
    let keyed = |wish: &Value| stage.alice(Method::POST, "/api/deliveries").header("Idempotency-Key", "k").json(wish);
    let (status, body) = json_of(keyed(&late)).await;
    assert_eq!((status, &body["id"]), (202, &json!(DELIVERY)));
    late["package"]["weight_kg"] = json!(100);
    let (status, problem) = problem_of(keyed(&late)).await;
    assert_eq!((status, problem.errors[0].field.as_str()), (422, "package.weight_kg"), "all else is judged here");
}

#[tokio::test]
async fn what_delivery_refuses_is_passed_on_and_its_silence_is_503() {
    let stage = Stage::new().await;
    let refusal = json!({"type": "about:blank", "title": "Unprocessable", "status": 422,
        "errors": [{"field": "Idempotency-Key", "message": "was used with another body"}]});
    stage.peer("delivery").on("POST /deliveries", 422, refusal);
    let (status, problem) = problem_of(stage.alice(Method::POST, "/api/deliveries").json(&wish())).await;
    assert_eq!((status, problem.errors[0].field.as_str()), (422, "Idempotency-Key"));
    for broken in [500, 502, 503] {
        stage.peer("delivery").on("POST /deliveries", broken, Value::Null);
        let (status, _) = problem_of(stage.alice(Method::POST, "/api/deliveries").json(&wish())).await;
        assert_eq!(status, 503, "{broken}");
    }
}

#[tokio::test]
async fn a_delivery_in_flight_is_composed_from_four_services() {
    let stage = Stage::new().await;
    in_flight(&stage);
    let (status, body) = json_of(stage.alice(Method::GET, &path())).await;
    assert_eq!(status, 200);
    assert_eq!(body["stage"], "HeadedToPickup");
    assert_eq!(body["position"], json!({"latitude": 48.855, "longitude": 2.35}));
    assert_eq!(body["eta"], "2026-01-01T00:12:00Z");
    assert_eq!(body["package"]["state"], "Registered");
    assert_eq!(body["drone"]["battery"], 0.75);
    assert_eq!(body["degraded"], json!([]));
    for name in ["delivery", "tracking", "package", "fleet"] {
        let calls = stage.peer(name).calls();
        assert_eq!(calls.len(), 1, "{name}");
        let caller = stage.world.issuer.verifier().verify(&calls[0].token, stage.world.clock.now()).unwrap().identity;
        let expected = if name == "fleet" { Role::Service } else { Role::Customer };
        assert_eq!(caller.role(), expected, "{name}");
    }
}

#[tokio::test]
async fn parts_that_are_away_fail_or_stay_silent_are_named() {
    let stage = Stage::without(&["tracking"]).await;
    in_flight(&stage);
    stage.peer("package").on(&format!("GET /packages/{DELIVERY}"), 503, Value::Null);
    stage.peer("fleet").silent(&format!("GET /drones/{DRONE}"));
    let (status, body) = json_of(stage.alice(Method::GET, &path())).await;
    assert_eq!(status, 200);
    assert_eq!(body["degraded"], json!(["tracking", "package", "fleet"]));
    assert_eq!((&body["position"], &body["eta"]), (&Value::Null, &Value::Null));
    assert_eq!(body["package"]["size"], "small");
    assert_eq!(body["drone"]["drone_id"], DRONE);
}

#[tokio::test]
async fn parts_that_are_not_there_yet_are_not_degraded() {
    let stage = Stage::new().await;
    stage.peer("delivery").on(&format!("GET /deliveries/{DELIVERY}"), 200, record(DELIVERY, "Requested", 1));
    let (status, body) = json_of(stage.alice(Method::GET, &path())).await;
    assert_eq!(status, 200);
    assert_eq!((&body["degraded"], &body["drone"]), (&json!([]), &Value::Null));
    assert_eq!(stage.peer("fleet").calls(), []);
}

#[tokio::test]
async fn without_delivery_there_is_no_answer() {
    let stage = Stage::without(&["delivery"]).await;
    in_flight(&stage);
    assert_eq!(problem_of(stage.alice(Method::GET, &path())).await.0, 503);
    assert_eq!(stage.peer("lookup").calls(), []);
    for (method, path) in [
        (Method::DELETE, path()),
        (Method::GET, format!("{}/timeline", path())),
        (Method::GET, format!("{}/events", path())),
        (Method::GET, "/api/deliveries".to_owned()),
        (Method::GET, "/api/events".to_owned()),
        (Method::GET, "/health/ready".to_owned()),
    ] {
        assert_eq!(problem_of(stage.alice(method, &path)).await.0, 503, "{path}");
    }
}

#[tokio::test]
async fn a_delivery_that_is_over_needs_delivery_alone() {
    let stage = Stage::without(&["tracking", "package", "fleet"]).await;
    stage.peer("delivery").on(&format!("GET /deliveries/{DELIVERY}"), 200, record(DELIVERY, "Completed", 9));
    let (status, body) = json_of(stage.alice(Method::GET, &path())).await;
    assert_eq!((status, &body["stage"], &body["degraded"]), (200, &json!("Completed"), &json!([])));
}

#[tokio::test]
async fn what_delivery_forgot_is_found_in_lookup_then_in_the_lake() {
    let stage = Stage::new().await;
    stage.peer("history").on("POST /queries/delivery", 200, record(DELIVERY, "Failed", 9));
    let (status, body) = json_of(stage.alice(Method::GET, &path())).await;
    assert_eq!((status, &body["stage"]), (200, &json!("Failed")));
    let asked = &stage.peer("lookup").calls()[0];
    assert_eq!(asked.body, json!({"delivery_id": DELIVERY, "customer_id": "alice"}));

    stage.peer("lookup").on("POST /queries/delivery", 200, record(DELIVERY, "Completed", 9));
    let (_, body) = json_of(stage.alice(Method::GET, &path())).await;
    assert_eq!(body["stage"], "Completed");
    assert_eq!(stage.peer("history").calls().len(), 1, "lookup had it");
}

#[tokio::test]
async fn an_operator_does_not_know_the_owner_and_asks_the_lake_alone() {
    let stage = Stage::without(&["lookup"]).await;
    assert_eq!(problem_of(stage.operator(Method::GET, &path())).await.0, 404);
    stage.peer("history").on("POST /queries/delivery", 200, record(DELIVERY, "Failed", 9));
    let (status, body) = json_of(stage.operator(Method::GET, &path())).await;
    assert_eq!((status, &body["stage"]), (200, &json!("Failed")));
    assert_eq!(stage.peer("history").calls()[1].body, json!({"delivery_id": DELIVERY, "customer_id": null}));
}

#[tokio::test]
async fn absence_is_said_only_when_everybody_has_answered() {
    for away in ["lookup", "history"] {
        let stage = Stage::without(&[away]).await;
        assert_eq!(problem_of(stage.alice(Method::GET, &path())).await.0, 503, "{away}");
    }
    let stage = Stage::without(&["lookup"]).await;
    stage.peer("history").on("POST /queries/delivery", 200, record(DELIVERY, "Completed", 9));
    assert_eq!(json_of(stage.alice(Method::GET, &path())).await.0, 200, "the lake knows it");
}

#[tokio::test]
async fn a_foreign_delivery_is_answered_like_an_absent_one_byte_for_byte() {
    let absent = Stage::new().await;
    // The owners would refuse it themselves; even if they did not, the gateway does.
    let foreign = Stage::new().await;
    in_flight(&foreign);
    foreign.peer("delivery").on(&format!("DELETE /deliveries/{DELIVERY}"), 200, record(DELIVERY, "Cancelled", 4));
    foreign.peer("delivery").on(&format!("GET /deliveries/{DELIVERY}/timeline"), 200, timeline());
    let forgotten = Stage::new().await;
    forgotten.peer("lookup").on("POST /queries/delivery", 200, record(DELIVERY, "Completed", 9));
    for (method, path) in [(Method::GET, path()), (Method::DELETE, path()), (Method::GET, path() + "/timeline")] {
        let mut answers = Vec::new();
        for stage in [&absent, &foreign, &forgotten] {
            let request = stage.as_role("bob", Role::Customer, method.clone(), &path);
            let response = request.send().await.unwrap();
            let mut headers = response.headers().clone();
            headers.remove("date");
            answers.push((response.status(), headers, response.bytes().await.unwrap()));
        }
        assert_eq!(answers[0].0, 404);
        assert_eq!(answers[0], answers[1], "{method} {path}");
        assert_eq!(answers[0], answers[2], "{method} {path}");
    }
    let asked = foreign.calls();
    assert!(
        asked.iter().all(|call| !call.contains(" DELETE ")),
        "what cannot be taken back is not asked for: {asked:?}"
    );
}

#[tokio::test]
async fn a_timeline_that_does_not_say_whose_it_is_is_shown_to_nobody() {
    let stage = Stage::new().await;
    let unsaid = spoilt(&timeline(), "customer_id", Value::Null);
    stage.peer("delivery").on(&format!("GET /deliveries/{DELIVERY}/timeline"), 200, unsaid);
    assert_eq!(problem_of(stage.alice(Method::GET, &(path() + "/timeline"))).await.0, 503);
}

#[tokio::test]
async fn foreign_parts_of_an_own_delivery_and_foreign_deliveries_among_the_own_are_left_out() {
    let stage = Stage::new().await;
    in_flight(&stage);
    let flight = spoilt(&flight(48.855), "customer_id", json!("bob"));
    let package = spoilt(&package(), "customer_id", json!("bob"));
    stage.peer("tracking").on(&format!("GET /flights/{DELIVERY}"), 200, flight);
    stage.peer("package").on(&format!("GET /packages/{DELIVERY}"), 200, package);
    let (status, body) = json_of(stage.alice(Method::GET, &path())).await;
    assert_eq!((status, &body["degraded"]), (200, &json!(["tracking", "package"])));
    let shown = (&body["position"], &body["eta"], &body["package"]["state"]);
    assert_eq!(shown, (&Value::Null, &Value::Null, &Value::Null));

    let own = record(DELIVERY, "Scheduled", 2);
    let foreign = spoilt(&own, "customer_id", json!("bob"));
    stage.peer("delivery").on("GET /deliveries", 200, json!({"items": [foreign, own], "next_cursor": null}));
    let (_, body) = json_of(stage.alice(Method::GET, "/api/deliveries")).await;
    assert_eq!(body["items"].as_array().unwrap().len(), 1);
    stage.peer("delivery").on("POST /deliveries", 202, foreign);
    let response = stage.alice(Method::POST, "/api/deliveries").json(&wish()).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers().get("location")), (404, None));
}

#[tokio::test]
async fn a_cancelled_delivery_is_answered_and_a_refusal_passed_on() {
    let stage = Stage::new().await;
    let (found, what) = (format!("GET /deliveries/{DELIVERY}"), format!("DELETE /deliveries/{DELIVERY}"));
    stage.peer("delivery").on(&found, 200, record(DELIVERY, "Scheduled", 4));
    stage.peer("delivery").on(&what, 200, record(DELIVERY, "Cancelled", 5));
    let (status, body) = json_of(stage.alice(Method::DELETE, &path())).await;
    assert_eq!((status, &body["stage"]), (200, &json!("Cancelled")));
    for refusal in [409, 503] {
        stage.peer("delivery").on(&what, refusal, Value::Null);
        let (status, problem) = problem_of(stage.alice(Method::DELETE, &path())).await;
        assert_eq!((status, problem.detail.as_deref()), (refusal, Some("of the peer")), "in delivery's own words");
    }
    stage.peer("delivery").on(&found, 404, Value::Null);
    stage.peer("lookup").on("POST /queries/delivery", 200, record(DELIVERY, "Completed", 9));
    assert_eq!(problem_of(stage.alice(Method::DELETE, &path())).await.0, 409, "over for long");
}

#[tokio::test]
async fn the_timeline_comes_from_delivery_and_later_from_the_record() {
    let stage = Stage::new().await;
    stage.peer("delivery").on(&format!("GET /deliveries/{DELIVERY}/timeline"), 200, timeline());
    for request in
        [stage.alice(Method::GET, &(path() + "/timeline")), stage.operator(Method::GET, &(path() + "/timeline"))]
    {
        assert_eq!(json_of(request).await, (200, timeline()));
    }

    let later = Stage::new().await;
    later.peer("history").on("POST /queries/delivery", 200, record(DELIVERY, "Completed", 9));
    let (status, body) = json_of(later.alice(Method::GET, &(path() + "/timeline"))).await;
    assert_eq!((status, &body["saga_definition"], &body["steps"]), (200, &json!(0), &json!([])));
    assert_eq!(body["customer_id"], "alice");
    assert_eq!(body["stages"][0]["stage"], "Requested");
}

#[tokio::test]
async fn the_list_comes_from_delivery_alone_page_by_page() {
    let stage = Stage::without(&["tracking", "package", "fleet"]).await;
    let page = json!({"items": [record(DELIVERY, "Scheduled", 2)], "next_cursor": "a+b/c="});
    stage.peer("delivery").on("GET /deliveries", 200, page);
    let (status, body) = json_of(stage.alice(Method::GET, "/api/deliveries")).await;
    assert_eq!((status, &body["items"][0]["id"]), (200, &json!(DELIVERY)));
    let cursor = body["next_cursor"].as_str().unwrap().replace('+', "%2B");
    json_of(stage.alice(Method::GET, &format!("/api/deliveries?cursor={cursor}&limit=7"))).await;
    let asked: Vec<_> = stage.peer("delivery").calls().into_iter().map(|call| call.what).collect();
    assert_eq!(asked, ["GET /deliveries?limit=20", "GET /deliveries?cursor=a%2Bb%2Fc%3D&limit=7"]);
}
