//! Bad input of every kind, through the real gateway to the real services: refused, never a 5xx, and nothing is made.

use contracts::api::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{Answer, User, wish, with},
    drones::drone_of,
    world::World,
};

/// Texts that are no body of any route.
fn texts() -> Vec<Vec<u8>> {
    let mut texts: Vec<Vec<u8>> = [
        "",
        " ",
        "null",
        "true",
        "0",
        "\"\"",
        "[]",
        "[{}]",
        "{}",
        "{",
        "}",
        "{]",
        "{\"a\":}",
        "{'a':1}",
        "NaN",
        "\u{feff}{}",
        "{\"pickup\":{}}",
        "{\"__proto__\":{}}",
        "{\"a\":1}{\"a\":1}",
        "a=b&c=d",
        "<xml/>",
        "{\"pickup\":null}",
        "\0",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    texts.push(vec![0xff, 0xfe, 0x00]);
    texts.push(b"{\"a\":".repeat(5_000));
    texts.push(b"[".repeat(100_000));
    texts.push(format!("{{\"description\":\"{}\"}}", "x".repeat(5 * 1024 * 1024)).into_bytes());
    texts
}

/// Values that fit nowhere, or hardly anywhere.
fn odd_values() -> Vec<Value> {
    vec![
        json!(null),
        json!([]),
        json!({}),
        json!(""),
        json!("x y"),
        json!("\u{0}"),
        json!("x".repeat(10_000)),
        json!(-1_000),
        json!(1e308),
        json!(i64::MIN),
        json!(u64::MAX),
        json!("1970-01-01T00:00:00Z"),
        json!("+262142-12-31T23:59:59Z"),
        json!("2026-13-01T00:00:00Z"),
    ]
}

/// Every place in a body, as the path to it.
fn places(body: &Value, path: &str, found: &mut Vec<String>) {
    let Some(fields) = body.as_object() else { return };
    for (name, value) in fields {
        let place = format!("{path}/{name}");
        places(value, &place, found);
        found.push(place);
    }
}

/// `good` with each place missing, renamed, and of each odd value.
fn spoilt(good: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    places(good, "", &mut found);
    let mut bodies = Vec::new();
    for place in found {
        let (parent, name) = place.rsplit_once('/').unwrap();
        for odd in odd_values() {
            let mut body = good.clone();
            body.pointer_mut(parent).unwrap()[name] = odd;
            bodies.push(body);
        }
        let mut body = good.clone();
        let fields = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        let value = fields.remove(name).unwrap();
        bodies.push(body.clone());
        body.pointer_mut(parent).unwrap()[format!("{name}_")] = value;
        bodies.push(body);
    }
    bodies
}

/// What is refused as it should be: by a status of the caller's fault, and as a problem.
fn refused(answer: &Answer, what: &str) {
    assert!((400..500).contains(&answer.status), "{what}: status {}: {}", answer.status, answer.text);
    assert_eq!(answer.headers["content-type"], "application/problem+json", "{what}");
    assert_eq!(answer.body["status"], answer.status, "{what}: {}", answer.text);
}

fn short(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned()
}

async fn nothing_was_made(world: &World) {
    let operator = world.operator().await;
    assert_eq!(operator.get("/api/operations/sagas").await.body["open"], 0);
    assert_eq!(operator.get("/api/fleet").await.body["items"], json!([]));
    assert_eq!(world.customer("alice").await.get("/api/deliveries").await.body["items"], json!([]));
}

async fn send(user: &User<'_>, method: &Method, path: &str, body: Vec<u8>) -> Answer {
    Answer::of(user.request(method.clone(), path).header("content-type", "application/json").body(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies() {
    let world = World::new().await;
    let (alice, operator) = (world.customer("alice").await, world.operator().await);
    let drone = format!("/api/fleet/{}", world.new_drone());
    let routes = [
        (&alice, Method::POST, "/api/deliveries", wish()),
        (&operator, Method::PUT, drone.as_str(), drone_of("north")),
        (&operator, Method::POST, "/api/operations/dead-letters/redrive", json!({"consumer": "lookup"})),
        (&alice, Method::POST, "/api/dev/token", json!({"subject": "alice", "role": "customer"})),
    ];
    for (user, method, path, good) in &routes {
        for body in texts() {
            let what = format!("{method} {path} with {}", short(&body));
            refused(&send(user, method, path, body).await, &what);
        }
        for body in spoilt(good) {
            let body = body.to_string().into_bytes();
            let what = format!("{method} {path} with {}", short(&body));
            refused(&send(user, method, path, body).await, &what);
        }
        for media_type in ["text/plain", "application/xml", "multipart/form-data", ""] {
            let request = user.request(method.clone(), path).header("content-type", media_type);
            refused(&Answer::of(request.body(good.to_string())).await, &format!("{method} {path} as {media_type}"));
        }
    }
    nothing_was_made(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes_that_read_well_and_make_no_sense() {
    let world = World::new().await;
    let alice = world.customer("alice").await;
    let nowhere = json!({"latitude": 91.0, "longitude": 0.0});
    let here = wish()["pickup"].clone();
    let table = [
        (json!({"pickup": nowhere}), "pickup.latitude"),
        (json!({"dropoff": nowhere}), "dropoff.latitude"),
        (json!({"dropoff": {"latitude": 0.0, "longitude": -180.1}}), "dropoff.longitude"),
        (json!({"dropoff": here}), "dropoff"),
        (json!({"package": {"size": "small", "weight_kg": 0.0}}), "package.weight_kg"),
        (json!({"package": {"size": "small", "weight_kg": -1.0}}), "package.weight_kg"),
        (json!({"package": {"size": "huge", "weight_kg": 1.0}}), "package.size"),
        (json!({"package": {"size": "small", "weight_kg": 0.5, "tag": "x".repeat(65)}}), "package.tag"),
        (json!({"package": {"size": "small", "weight_kg": 0.5, "description": "\u{0}"}}), "package.description"),
        (json!({"deadline": "2000-01-01T00:00:00Z"}), "deadline"),
        (json!({"deadline": "2999-01-01T00:00:00Z"}), "deadline"),
        (json!({"deadline": "tomorrow"}), "deadline"),
        (json!({"confirmation": "signature"}), "confirmation"),
        (json!({"expedited": "yes"}), "expedited"),
        (json!({"colour": "red"}), "colour"),
    ];
    for (changes, field) in &table {
        let answer = alice.post("/api/deliveries", &with(wish(), changes)).await;
        refused(&answer, &changes.to_string());
        assert_eq!(answer.status, 422, "{changes}: {}", answer.text);
        assert_eq!(answer.fields(), [*field], "{changes}");
    }
    for key in ["", "with space", &"k".repeat(129)] {
        let request = alice.request(Method::POST, "/api/deliveries").header("idempotency-key", key).json(&wish());
        refused(&Answer::of(request).await, &format!("the key '{key}'"));
    }
    nothing_was_made(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_queries_and_methods() {
    let world = World::new().await;
    let (alice, operator) = (world.customer("alice").await, world.operator().await);
    for id in
        ["x", "0", "%00", "..%2f..%2fetc", "0198c5a0-0000-7000-8000", "'; drop table deliveries; --", "%F0%9F%9A%81"]
    {
        for path in [
            format!("/api/deliveries/{id}"),
            format!("/api/deliveries/{id}/timeline"),
            format!("/api/deliveries/{id}/events"),
        ] {
            refused(&alice.get(&path).await, &path);
            refused(&operator.get(&path).await, &path);
        }
        refused(&alice.cancel_path(id).await, id);
        refused(&operator.post(&format!("/api/operations/drones/{id}/fail"), &json!({})).await, id);
        let put = operator.request(Method::PUT, &format!("/api/fleet/{id}")).json(&drone_of("north"));
        refused(&Answer::of(put).await, id);
    }
    let lists = ["/api/deliveries", "/api/history", "/api/fleet", "/api/operations/dead-letters"];
    for list in lists {
        let user = if list.contains("fleet") || list.contains("operations") { &operator } else { &alice };
        for query in [
            "limit=0",
            "limit=101",
            "limit=-1",
            "limit=x",
            "cursor=",
            "cursor=%00",
            "cursor=x",
            "colour=red",
            "limit=1&limit=2",
            "from=x",
            "to=x",
            "base_id=",
            "consumer=x",
            "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
        ] {
            let path = format!("{list}?{query}");
            refused(&user.get(&path).await, &path);
        }
    }
    for method in [Method::PUT, Method::PATCH, Method::TRACE] {
        let answer = Answer::of(alice.request(method.clone(), "/api/deliveries")).await;
        refused(&answer, method.as_str());
    }
    refused(&alice.get("/api/nothing").await, "a path that is none");
    nothing_was_made(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn telemetry() {
    let world = World::new().await;
    let base = world.user("north", Role::BaseStation).await;
    let drone = world.new_drone();
    let good = json!({
        "drone_id": drone, "sequence": 1, "at": contracts::Clock::now(&*world.clock), "latitude": 48.85,
        "longitude": 2.35, "battery": 0.9, "stage": "HeadedToPickup", "attempt": 1, "delivery_id": drone,
    });
    let mut lines: Vec<Vec<u8>> = spoilt(&good).iter().map(|line| line.to_string().into_bytes()).collect();
    lines.extend(texts().into_iter().filter(|text| text.len() < 1_000 && !text.contains(&b'\n')));
    lines.push(good.to_string().into_bytes());
    let count = lines.iter().filter(|line| !line.trim_ascii().is_empty()).count();
    let answer = send(&base, &Method::POST, "/api/telemetry", lines.join(&b'\n')).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!((&answer.body["accepted"], &answer.body["stale"]), (&json!(0), &json!(0)), "{}", answer.text);
    let rejected = answer.body["rejected"].as_array().unwrap();
    assert_eq!(rejected.len(), count, "every bad line is named");
    assert!(rejected.iter().all(|line| line["retryable"] == false), "and none is worth sending again");

    let too_long = send(&base, &Method::POST, "/api/telemetry", "{}\n".repeat(10_001).into_bytes()).await;
    refused(&too_long, "10,001 lines");
    nothing_was_made(&world).await;
}

impl User<'_> {
    /// DELETE with whatever for an id.
    async fn cancel_path(&self, id: &str) -> Answer {
        Answer::of(self.request(Method::DELETE, &format!("/api/deliveries/{id}"))).await
    }
}
