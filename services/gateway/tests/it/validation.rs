//! Whatever is wrong with a request, the answer is 4xx, problem+json, and names the field.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    bodies::{DELIVERY, DRONE, drone, spoilt, wish},
    stage::{Stage, problem_of},
};

/// Sends each bad body, and checks that the problem names the field. Nobody behind the gateway may hear of it.
async fn refuse(stage: &Stage, request: impl Fn() -> RequestBuilder, cases: Vec<(Value, &str)>) {
    for (body, field) in cases {
        let (status, problem) = problem_of(request().json(&body)).await;
        assert_eq!(status, 422, "{body}");
        let fields: Vec<_> = problem.errors.iter().map(|error| error.field.as_str()).collect();
        assert!(fields.contains(&field), "{body}: {fields:?} lacks {field}");
        assert!(problem.errors.iter().all(|error| !error.message.is_empty()), "{body}");
    }
    assert_eq!(stage.calls(), Vec::<String>::new());
}

/// Bodies that no route can read, with their status.
fn unreadable() -> Vec<(Vec<u8>, u16)> {
    vec![
        (b"".to_vec(), 400),
        (b"{".to_vec(), 400),
        (b"nonsense".to_vec(), 400),
        (b"{}{}".to_vec(), 400),
        (b"\xff\xfe{}".to_vec(), 400),
        (b"{\"a\":\xff}".to_vec(), 400),
        (b"{\"pickup\":{\"latitude\":1e999}}".to_vec(), 400),
        (b"null".to_vec(), 422),
        (b"[]".to_vec(), 422),
        (b"[{},{},{}]".to_vec(), 422),
        (b"1".to_vec(), 422),
        (b"\"text\"".to_vec(), 422),
        (b"{}".to_vec(), 422),
        (b"{\"x\":1}".to_vec(), 422),
        ("[".repeat(100_000).into_bytes(), 400),
        (format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200)).into_bytes(), 422),
        (vec![b' '; 5 * 1024 * 1024], 413),
    ]
}

#[tokio::test]
async fn bodies_that_cannot_be_read_are_refused_by_every_route_that_has_one() {
    let stage = Stage::new().await;
    let routes: [(&str, RequestBuilder); 4] = [
        ("deliveries", stage.alice(Method::POST, "/api/deliveries")),
        ("fleet", stage.north(Method::PUT, &format!("/api/fleet/{DRONE}"))),
        ("redrive", stage.operator(Method::POST, "/api/operations/dead-letters/redrive")),
        ("token", stage.anonymous(Method::POST, "/api/dev/token")),
    ];
    for (route, request) in routes {
        for (body, status) in unreadable() {
            let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
            let again = request.try_clone().unwrap().header("content-type", "application/json").body(body);
            let (got, problem) = problem_of(again).await;
            // What is wrong first may be the place of a bracket or the shape of a number: both are the body's fault.
            let fits = got == status || (status != 413 && (400..=422).contains(&got));
            assert!(fits, "{route} {shown}: {got} {problem:?}");
            assert!(got != 422 || !problem.errors.is_empty(), "{route} {shown}");
        }
        for media_type in ["text/plain", "application/xml", "multipart/form-data", "", "application/json5"] {
            let again = request.try_clone().unwrap().header("content-type", media_type).body("{}");
            assert_eq!(problem_of(again).await.0, 415, "{route} {media_type}");
        }
        assert_eq!(problem_of(request.try_clone().unwrap().body("{}")).await.0, 415, "{route} without a type");
    }
    assert_eq!(stage.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn bad_wishes_for_deliveries() {
    let stage = Stage::new().await;
    let now = stage.world.clock.now();
    let mut cases = Vec::new();
    for field in
        ["pickup", "dropoff", "package", "pickup.latitude", "dropoff.longitude", "package.size", "package.weight_kg"]
    {
        cases.push((spoilt(&wish(), field, Value::Null), field));
    }
    for (path, value) in [
        ("pickup", json!("here")),
        ("pickup", json!([48.85, 2.35])),
        ("pickup.latitude", json!("48")),
        ("pickup.latitude", json!(90.001)),
        ("pickup.latitude", json!(-1e300)),
        ("pickup.longitude", json!(180.5)),
        ("dropoff.latitude", json!(true)),
        ("dropoff.longitude", json!(-181)),
        ("dropoff.altitude", json!(10)),
        ("package.size", json!("huge")),
        ("package.size", json!("Small")),
        ("package.size", json!(1)),
        ("package.weight_kg", json!(0)),
        ("package.weight_kg", json!(-1)),
        ("package.weight_kg", json!(1.01)),
        ("package.weight_kg", json!("1")),
        ("package.tag", json!("x".repeat(65))),
        ("package.tag", json!("a\u{0}b")),
        ("package.tag", json!(5)),
        ("package.description", json!("x".repeat(501))),
        ("package.colour", json!("red")),
        ("deadline", json!("tomorrow")),
        ("deadline", json!(now - chrono::Duration::seconds(1))),
        ("deadline", json!(now + chrono::Duration::hours(25))),
        ("deadline", json!(1_700_000_000)),
        ("expedited", json!("yes")),
        ("confirmation", json!("handshake")),
        ("confirmation", json!("picture")),
        ("customer_id", json!("bob")),
        ("id", json!(DELIVERY)),
    ] {
        cases.push((spoilt(&wish(), path, value), path));
    }
    cases.push((spoilt(&wish(), "dropoff", wish()["pickup"].clone()), "dropoff"));
    for (size, weight_kg) in [("medium", 3.5), ("large", 8.01)] {
        let package = json!({"size": size, "weight_kg": weight_kg});
        cases.push((spoilt(&wish(), "package", package), "package.weight_kg"));
    }
    refuse(&stage, || stage.alice(Method::POST, "/api/deliveries"), cases).await;
    for key in ["", "two words", "\u{e9}", &"k".repeat(129)] {
        let request = stage.alice(Method::POST, "/api/deliveries").header("Idempotency-Key", key).json(&wish());
        let (status, problem) = problem_of(request).await;
        assert_eq!((status, problem.errors[0].field.as_str()), (422, "Idempotency-Key"), "{key}");
    }
}

#[tokio::test]
async fn all_faults_of_a_wish_are_named_at_once() {
    let stage = Stage::new().await;
    let mut body = spoilt(&wish(), "pickup.latitude", json!(91));
    body["package"]["weight_kg"] = json!(7);
    let (_, problem) = problem_of(stage.alice(Method::POST, "/api/deliveries").json(&body)).await;
    let fields: Vec<_> = problem.errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(fields, ["pickup.latitude", "package.weight_kg"]);
}

#[tokio::test]
async fn bad_drones() {
    let stage = Stage::new().await;
    let mut cases = Vec::new();
    for field in ["base_id", "base_position", "position", "battery", "payload_kg", "range_m", "speed_mps"] {
        cases.push((spoilt(&drone(), field, Value::Null), field));
        cases.push((spoilt(&drone(), field, json!([1])), field));
    }
    for (path, value) in [
        ("base_id", json!("")),
        ("base_id", json!("a b")),
        ("base_id", json!("x".repeat(65))),
        ("base_position.latitude", json!(99)),
        ("position", json!([48.85, 2.35])),
        ("position.longitude", json!(-200)),
        ("battery", json!(1.1)),
        ("battery", json!(-0.1)),
        ("payload_kg", json!(0)),
        ("range_m", json!(-5)),
        ("speed_mps", json!(1e9)),
        ("status", json!("idle")),
    ] {
        cases.push((spoilt(&drone(), path, value), path));
    }
    refuse(&stage, || stage.north(Method::PUT, &format!("/api/fleet/{DRONE}")), cases).await;
}

#[tokio::test]
async fn bad_wishes_for_tokens_and_redrives() {
    let stage = Stage::new().await;
    let cases = vec![
        (json!({"role": "customer"}), "subject"),
        (json!({"subject": "alice"}), "role"),
        (json!({"subject": "alice", "role": "king"}), "role"),
        (json!({"subject": "alice", "role": "service"}), "role"),
        (json!({"subject": 5, "role": "customer"}), "subject"),
        (json!({"subject": "", "role": "customer"}), "subject"),
        (json!({"subject": "a b", "role": "operator"}), "subject"),
        (json!({"subject": "x".repeat(65), "role": "base_station"}), "subject"),
        (json!({"subject": "not-a-uuid", "role": "drone"}), "subject"),
        (json!({"subject": "alice", "role": "customer", "admin": true}), "admin"),
    ];
    refuse(&stage, || stage.anonymous(Method::POST, "/api/dev/token"), cases).await;
    let cases = vec![
        (json!({"consumer": "nobody"}), "consumer"),
        (json!({"consumer": "gateway"}), "consumer"),
        (json!({"consumer": 1}), "consumer"),
        (json!({"consumer": "lookup", "all": true}), "all"),
    ];
    refuse(&stage, || stage.operator(Method::POST, "/api/operations/dead-letters/redrive"), cases).await;
}

#[tokio::test]
async fn bad_parameters_name_themselves() {
    let stage = Stage::new().await;
    let long = "a".repeat(1_001);
    for (path, field) in [
        ("/api/deliveries?limit=0", "limit"),
        ("/api/deliveries?limit=101", "limit"),
        ("/api/deliveries?limit=-1", "limit"),
        ("/api/deliveries?limit=ten", "limit"),
        ("/api/deliveries?limit=", "limit"),
        ("/api/deliveries?limit=99999999999999999999999", "limit"),
        ("/api/deliveries?cursor=", "cursor"),
        ("/api/deliveries?cursor=%00", "cursor"),
        (&format!("/api/deliveries?cursor={long}"), "cursor"),
        ("/api/deliveries?stage=Completed", "stage"),
        ("/api/history?limit=0", "limit"),
        ("/api/history?from=yesterday", "from"),
        ("/api/history?to=2026-13-01T00:00:00Z", "to"),
        ("/api/history?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "from"),
        ("/api/history?from=2026-01-01T00:00:00Z&to=2026-01-01T00:00:00Z", "from"),
        ("/api/history?cursor=nonsense", "cursor"),
        ("/api/history?cursor=", "cursor"),
        ("/api/history?cursor=e30", "cursor"),
        ("/api/history?customer_id=bob", "customer_id"),
    ] {
        let (status, problem) = problem_of(stage.alice(Method::GET, path)).await;
        assert_eq!(status, 422, "{path}");
        assert_eq!(problem.errors[0].field, field, "{path}");
    }
    for (path, field) in [
        ("/api/fleet?limit=0", "limit"),
        ("/api/fleet?base_id=a%20b", "base_id"),
        ("/api/fleet?cursor=%20", "cursor"),
        ("/api/fleet/events?base_id=", "base_id"),
        ("/api/operations/dead-letters?consumer=nobody", "consumer"),
        ("/api/operations/dead-letters?limit=1000", "limit"),
    ] {
        let (status, problem) = problem_of(stage.operator(Method::GET, path)).await;
        assert_eq!((status, problem.errors[0].field.as_str()), (422, field), "{path}");
    }
    assert_eq!(stage.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn ids_that_are_none_routes_that_are_none_and_wrong_methods() {
    let stage = Stage::new().await;
    for path in [
        "/api/deliveries/1",
        "/api/deliveries/not-a-uuid",
        "/api/deliveries/%00",
        "/api/deliveries/%ff",
        "/api/deliveries/x/timeline",
        "/api/deliveries/x/events",
        "/api/deliveries/x/confirmation",
        "/api/nothing",
        "/api/",
        "/assets/secret.txt",
        "/assets/..%2fmain.rs",
    ] {
        assert_eq!(problem_of(stage.alice(Method::GET, path)).await.0, 404, "{path}");
    }
    for (method, path) in [(Method::PUT, "/api/fleet/x"), (Method::DELETE, "/api/fleet/x")] {
        assert_eq!(problem_of(stage.operator(method, path).json(&drone())).await.0, 404, "{path}");
    }
    assert_eq!(problem_of(stage.operator(Method::POST, "/api/operations/drones/x/fail")).await.0, 404);
    for (method, path) in [
        (Method::PATCH, format!("/api/deliveries/{DELIVERY}")),
        (Method::PUT, "/api/deliveries".to_owned()),
        (Method::GET, "/api/telemetry".to_owned()),
        (Method::POST, "/api/fleet".to_owned()),
        (Method::GET, "/api/dev/token".to_owned()),
        (Method::POST, "/".to_owned()),
    ] {
        assert_eq!(problem_of(stage.alice(method, &path)).await.0, 405, "{path}");
    }
    assert_eq!(stage.calls(), Vec::<String>::new());
}
