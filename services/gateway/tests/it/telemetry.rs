//! Telemetry on its way to fleet and tracking.

use contracts::api::Role;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    bodies::{DELIVERY, DRONE, based_at},
    stage::{Call, Stage, json_of, problem_of},
};

const BASES: &str = "POST /queries/bases";

/// Everybody is there, and fleet knows the drone as north's.
async fn with_drone(away: &[&str]) -> Stage {
    let stage = Stage::without(away).await;
    stage.peer("fleet").on(BASES, 200, based_at("north"));
    stage
}

/// The reports that a stand-in was told.
fn reports(stage: &Stage, peer: &str) -> Vec<Call> {
    let calls = stage.peer(peer).calls().into_iter();
    calls.filter(|call| call.what == "POST /commands/reports").collect()
}

fn line(stage: &Stage, change: &Value) -> Value {
    let mut line = json!({"drone_id": DRONE, "sequence": 7, "at": stage.world.clock.now(),
        "latitude": 48.85, "longitude": 2.35, "battery": 0.5});
    for (key, value) in change.as_object().unwrap() {
        line[key] = value.clone();
    }
    line
}

fn send(stage: &Stage, lines: &[Value]) -> RequestBuilder {
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let request = stage.north(Method::POST, "/api/telemetry");
    request.header("content-type", "application/x-ndjson").body(body)
}

fn outcomes(outcomes: &[&str]) -> Value {
    json!({"outcomes": outcomes.iter().map(|outcome| json!({"outcome": outcome})).collect::<Vec<_>>()})
}

#[tokio::test]
async fn lines_are_split_between_fleet_and_tracking_with_the_callers_token() {
    let stage = with_drone(&[]).await;
    stage.peer("fleet").on("POST /commands/reports", 200, outcomes(&["Accepted", "Accepted", "Stale"]));
    stage.peer("tracking").on("POST /commands/reports", 200, outcomes(&["Stale"]));
    let flying = json!({"delivery_id": DELIVERY, "attempt": 2, "stage": "HeadedToDropoff"});
    let broken = json!({"delivery_id": DELIVERY, "attempt": 2, "stage": "Failed"});
    let lines = [line(&stage, &flying), line(&stage, &broken), line(&stage, &json!({})), json!({"drone_id": 1})];
    let (status, answer) = json_of(send(&stage, &lines)).await;
    assert_eq!(status, 200);
    assert_eq!((&answer["accepted"], &answer["stale"]), (&json!(1), &json!(2)));
    assert_eq!(answer["rejected"][0]["line"], 4);
    assert!(answer["rejected"][0]["reason"].as_str().unwrap().starts_with("drone_id: "), "{answer}");

    let of_fleet = &reports(&stage, "fleet")[0];
    let failed: Vec<_> = of_fleet.body["commands"].as_array().unwrap().iter().map(|c| c["failed"].clone()).collect();
    assert_eq!(failed, [false, true, false]);
    let of_tracking = &reports(&stage, "tracking")[0];
    assert_eq!(of_tracking.body["commands"].as_array().unwrap().len(), 1);
    let report = &of_tracking.body["commands"][0];
    assert_eq!((&report["stage"], &report["attempt"]), (&json!("HeadedToDropoff"), &json!(2)));
    assert_eq!(report["position"], json!({"latitude": 48.85, "longitude": 2.35}));
    for call in [of_fleet, of_tracking] {
        let caller = stage.world.issuer.verifier().verify(&call.token, stage.world.clock.now()).unwrap().identity;
        assert_eq!(caller.role(), Role::BaseStation);
    }
}

#[tokio::test]
async fn what_an_owner_did_not_store_may_be_sent_again() {
    let stage = with_drone(&["tracking"]).await;
    stage.peer("fleet").on("POST /commands/reports", 200, outcomes(&["Accepted", "Unavailable", "Accepted"]));
    let flying = json!({"delivery_id": DELIVERY, "attempt": 1});
    let lines = [line(&stage, &flying), line(&stage, &json!({})), line(&stage, &json!({}))];
    let (status, answer) = json_of(send(&stage, &lines)).await;
    assert_eq!((status, &answer["accepted"]), (200, &json!(1)));
    let rejected = answer["rejected"].as_array().unwrap();
    assert_eq!(rejected.iter().map(|bad| bad["line"].clone()).collect::<Vec<_>>(), [1, 2]);
    assert!(rejected.iter().all(|bad| bad["retryable"] == true));
    // An answer that does not fit the question counts as none.
    stage.peer("fleet").on("POST /commands/reports", 200, outcomes(&["Accepted"]));
    let (_, answer) = json_of(send(&stage, &lines)).await;
    assert_eq!((&answer["accepted"], answer["rejected"].as_array().unwrap().len()), (&json!(0), 3));
}

#[tokio::test]
async fn faults_that_the_owners_find_name_a_field_and_tell_nothing_of_foreign_drones() {
    let stage = with_drone(&[]).await;
    let fault = |reason: &str| json!({"outcome": "Rejected", "reason": reason});
    stage.peer("fleet").on(
        "POST /commands/reports",
        200,
        json!({"outcomes": [
        fault("unknown_drone"), fault("not_your_drone"), fault("clock_off"), {"outcome": "Accepted"}]}),
    );
    stage.peer("tracking").on("POST /commands/reports", 200, json!({"outcomes": [fault("not_your_flight")]}));
    let idle = line(&stage, &json!({}));
    let flying = line(&stage, &json!({"delivery_id": DELIVERY, "attempt": 1}));
    let (_, answer) = json_of(send(&stage, &[idle.clone(), idle.clone(), idle, flying])).await;
    assert_eq!(answer["stale"], 1, "somebody else's flight is answered like none: {answer}");
    let reasons: Vec<_> =
        answer["rejected"].as_array().unwrap().iter().map(|bad| bad["reason"].as_str().unwrap().to_owned()).collect();
    let unknown = contracts::api::UNKNOWN_DRONE_REASON;
    assert_eq!(reasons, [unknown, unknown, "at: must be within 10 minutes of now"]);
    assert!(answer["rejected"].as_array().unwrap().iter().all(|bad| bad["retryable"] == false));
}

#[tokio::test]
async fn a_full_request_fits_and_one_line_more_does_not() {
    let stage = with_drone(&[]).await;
    let accepted = vec!["Accepted"; 10_000];
    stage.peer("fleet").on("POST /commands/reports", 200, outcomes(&accepted));
    stage.peer("tracking").on("POST /commands/reports", 200, outcomes(&accepted));
    let flying = json!({"delivery_id": DELIVERY, "attempt": 1, "stage": "HeadedToPickup"});
    let mut lines = vec![line(&stage, &flying); 10_000];
    let (status, answer) = json_of(send(&stage, &lines)).await;
    assert_eq!((status, &answer["accepted"]), (200, &json!(10_000)));
    lines.push(line(&stage, &flying));
    let (status, problem) = problem_of(send(&stage, &lines)).await;
    assert_eq!((status, problem.errors[0].field.as_str()), (413, "body"));
    assert_eq!(reports(&stage, "fleet").len(), 1);
}

#[tokio::test]
async fn a_drone_of_another_base_is_not_reported_for_and_answered_like_none() {
    let stage = Stage::new().await;
    stage.peer("fleet").on("POST /commands/reports", 200, outcomes(&["Accepted"]));
    let lines = [line(&stage, &json!({"delivery_id": DELIVERY, "attempt": 1}))];
    let mut answers = Vec::new();
    for said in [based_at("south"), json!([])] {
        stage.peer("fleet").on(BASES, 200, said);
        answers.push(json_of(send(&stage, &lines)).await);
    }
    let reason = contracts::api::UNKNOWN_DRONE_REASON;
    let rejected = json!([{"line": 1, "reason": reason, "retryable": false}]);
    assert_eq!(answers[0], (200, json!({"accepted": 0, "stale": 0, "rejected": rejected})));
    assert_eq!(answers[0], answers[1]);
    let told = |stage: &Stage| ["fleet", "tracking"].map(|peer| reports(stage, peer).len());
    assert_eq!(told(&stage), [0, 0]);

    // Registered meanwhile: nobody's refusal is remembered.
    stage.peer("fleet").on(BASES, 200, based_at("north"));
    json_of(send(&stage, &lines)).await;
    assert_eq!(told(&stage), [1, 1]);
}

#[tokio::test]
async fn whose_drone_it_is_is_asked_once_and_reports_wait_where_nobody_says() {
    let stage = Stage::new().await;
    stage.peer("fleet").on("POST /commands/reports", 200, outcomes(&["Accepted"]));
    stage.peer("fleet").on(BASES, 503, Value::Null);
    let lines = [line(&stage, &json!({}))];
    let (_, answer) = json_of(send(&stage, &lines)).await;
    assert_eq!((&answer["accepted"], &answer["rejected"][0]["retryable"]), (&json!(0), &json!(true)));
    assert_eq!(reports(&stage, "fleet"), []);

    stage.peer("fleet").on(BASES, 200, based_at("north"));
    assert_eq!(json_of(send(&stage, &lines)).await.1["accepted"], 1);
    stage.peer("fleet").on(BASES, 503, Value::Null);
    assert_eq!(json_of(send(&stage, &lines)).await.1["accepted"], 1);
    let asked = stage.peer("fleet").calls().into_iter().filter(|call| call.what == BASES).collect::<Vec<_>>();
    assert_eq!(asked.len(), 2);
    for call in asked {
        assert_eq!(call.body, json!({"ids": [DRONE]}));
        let caller = stage.world.issuer.verifier().verify(&call.token, stage.world.clock.now()).unwrap().identity;
        assert_eq!(caller.role(), Role::Service);
    }
}

#[tokio::test]
async fn nothing_to_say_is_said_to_nobody() {
    let stage = Stage::without(&["fleet", "tracking"]).await;
    let (status, answer) = json_of(send(&stage, &[])).await;
    assert_eq!((status, answer), (200, json!({"accepted": 0, "stale": 0, "rejected": []})));
    let (_, answer) = json_of(send(&stage, &[json!([DRONE]), json!(1)])).await;
    assert_eq!(answer["rejected"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn only_ndjson_is_read() {
    let stage = Stage::new().await;
    for (media_type, status) in [
        ("application/x-ndjson", 200),
        ("application/ndjson; charset=utf-8", 200),
        ("application/json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ] {
        let request = stage.north(Method::POST, "/api/telemetry").header("content-type", media_type).body("");
        assert_eq!(request.send().await.unwrap().status(), status, "{media_type}");
    }
    let packed = send(&stage, &[]).header("content-encoding", "gzip");
    assert_eq!(problem_of(packed).await.0, 415);
    let huge = send(&stage, &[]).body("x".repeat(5 * 1024 * 1024));
    assert_eq!(problem_of(huge).await.0, 413);
    let chunks = futures::stream::iter((0..10).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 1024 * 1024])));
    let of_unknown_length = send(&stage, &[]).body(reqwest::Body::wrap_stream(chunks));
    assert_eq!(problem_of(of_unknown_length).await.0, 413);
}
