//! Nobody reads or changes what is not theirs, and cannot even tell that it is there: at the gateway and behind it.

use contracts::{
    Clock, DeliveryId, Stage,
    api::Role,
    commands::{DroneStatus, Mission},
};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    api::{Answer, User, wish},
    drones::drone_of,
    world::World,
};

/// Status, headers without the date, and body.
fn said(answer: &Answer) -> (u16, Vec<(String, String)>, &str) {
    let mut headers: Vec<_> = answer
        .headers
        .iter()
        .filter(|(name, _)| *name != "date")
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    headers.sort();
    (answer.status, headers, &answer.text)
}

/// The answer for a thing that is somebody else's, and that for one that does not exist, are the same 404.
async fn cannot_be_told_apart(foreign: RequestBuilder, absent: RequestBuilder, what: &str) {
    let (foreign, absent) = (Answer::of(foreign).await, Answer::of(absent).await);
    assert_eq!(said(&foreign), said(&absent), "{what}");
    assert_eq!(foreign.status, 404, "{what}: {}", foreign.text);
}

/// The public routes with a delivery's id.
fn routes(id: DeliveryId) -> Vec<(Method, String)> {
    let delivery = format!("/api/deliveries/{id}");
    vec![
        (Method::GET, delivery.clone()),
        (Method::DELETE, delivery.clone()),
        (Method::GET, format!("{delivery}/timeline")),
        (Method::GET, format!("{delivery}/events")),
    ]
}

/// The routes with a delivery's id that the services behind the gateway have for users.
fn routes_behind(id: DeliveryId, owner: &str) -> Vec<(&'static str, Method, String, Value)> {
    let query = json!({"delivery_id": id, "customer_id": owner});
    vec![
        ("delivery", Method::GET, format!("/deliveries/{id}"), Value::Null),
        ("delivery", Method::DELETE, format!("/deliveries/{id}"), Value::Null),
        ("delivery", Method::GET, format!("/deliveries/{id}/timeline"), Value::Null),
        ("delivery", Method::GET, format!("/deliveries/{id}/events"), Value::Null),
        ("package", Method::GET, format!("/packages/{id}"), Value::Null),
        ("tracking", Method::GET, format!("/flights/{id}"), Value::Null),
        ("tracking", Method::GET, format!("/flights/{id}/events"), Value::Null),
        ("lookup", Method::POST, "/queries/delivery".to_owned(), query.clone()),
        ("history", Method::POST, "/queries/delivery".to_owned(), query),
    ]
}

fn asked(user: &User<'_>, (service, method, path, body): (&str, Method, String, Value)) -> RequestBuilder {
    let request = user.request_at(service, method, &path);
    if body.is_null() { request } else { request.json(&body) }
}

async fn foreign_is_absent(world: &World, id: DeliveryId) {
    let nothing = DeliveryId(world.clock.new_id());
    let drone = world.new_drone().to_string();
    for (subject, role) in [("bob", Role::Customer), ("north", Role::BaseStation), (drone.as_str(), Role::Drone)] {
        let user = world.user(subject, role).await;
        for ((method, path), (_, absent)) in routes(id).into_iter().zip(routes(nothing)) {
            let what = format!("{method} {path} as {role:?}");
            let (foreign, absent) = (user.request(method.clone(), &path), user.request(method, &absent));
            cannot_be_told_apart(foreign, absent, &what).await;
        }
    }
    // Bob names the owner rightly: it does not help him.
    let bob = world.customer("bob").await;
    for (foreign, absent) in routes_behind(id, "alice").into_iter().zip(routes_behind(nothing, "alice")) {
        let what = format!("{} {} of {} as bob", foreign.1, foreign.2, foreign.0);
        cannot_be_told_apart(asked(&bob, foreign), asked(&bob, absent), &what).await;
    }
    for (foreign, absent) in routes_behind(id, "bob").into_iter().zip(routes_behind(nothing, "bob")) {
        let what = format!("{} {} of {} as bob, as if it were his", foreign.1, foreign.2, foreign.0);
        cannot_be_told_apart(asked(&bob, foreign), asked(&bob, absent), &what).await;
    }
    assert_eq!(bob.get("/api/deliveries").await.body["items"], json!([]));
    assert_eq!(bob.get("/api/history").await.body["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_delivery_is_absent_in_the_air_and_after() {
    let world = World::new().await;
    let alice = world.customer("alice").await;
    let base = world.base("north").await;
    base.new_drone().await;
    let id = alice.order(&wish()).await;
    let mission = base.mission(id).await;
    base.reaches(&mission, Stage::HeadedToPickup).await;
    let flying = alice.sees(id, Stage::HeadedToPickup).await;
    foreign_is_absent(&world, id).await;
    assert_eq!(alice.delivery(id).await.stage, flying.stage, "nobody has changed it");

    base.flies(&mission).await;
    alice.sees(id, Stage::Completed).await;
    world.settle().await;
    foreign_is_absent(&world, id).await;

    let operator = world.operator().await;
    for (method, path) in routes(id) {
        let status = Answer::of(operator.request(method.clone(), &path)).await.status;
        let expected = if method == Method::DELETE { 404 } else { 200 };
        assert_eq!(status, expected, "{method} {path} as an operator, who reads all and changes nobody's");
    }
    for (method, path) in routes(DeliveryId(world.clock.new_id())) {
        let answer = Answer::of(operator.request(method.clone(), &path)).await;
        assert_eq!(answer.status, 404, "{method} {path} of nothing as an operator: {}", answer.text);
    }
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_station_runs_only_its_own_drones() {
    let world = World::new().await;
    let alice = world.customer("alice").await;
    let (north, south) = (world.base("north").await, world.base("south").await);
    let drone = north.new_drone().await;
    let nothing = world.new_drone();

    let retire = |id| south.user.request(Method::DELETE, &format!("/api/fleet/{id}"));
    cannot_be_told_apart(retire(drone), retire(nothing), "retiring a drone of another base").await;
    let take = south.user.request(Method::PUT, &format!("/api/fleet/{drone}")).json(&drone_of("south"));
    assert_eq!(Answer::of(take).await.status, 404, "nor can it be taken over");
    let as_north = south.user.request(Method::PUT, &format!("/api/fleet/{nothing}")).json(&drone_of("north"));
    assert_eq!(Answer::of(as_north).await.status, 403);
    let untouched = world.operator().await.drone(drone).await;
    assert_eq!((untouched.base_id.as_str(), untouched.status), ("north", DroneStatus::Idle));

    let id = alice.order(&wish()).await;
    let mission = north.mission(id).await;
    assert_eq!(south.missions().await, vec![]);
    assert_eq!(south.user.get("/api/fleet").await.body["items"], json!([]));
    assert_eq!(south.user.get("/api/fleet?base_id=north").await.status, 403);
    let foreign = south.send(&south.report(&mission, Stage::Completed, mission.dropoff)).await;
    assert_eq!((foreign.accepted, foreign.rejected.len()), (0, 1), "{foreign:?}");
    let unknown_drone = Mission { drone_id: nothing, ..mission.clone() };
    let absent = south.send(&south.report(&unknown_drone, Stage::Completed, mission.dropoff)).await;
    assert_eq!(foreign, absent, "a foreign drone and none at all");
    let own_drone = Mission { drone_id: south.new_drone().await, ..mission.clone() };
    let foreign = south.send(&south.report(&own_drone, Stage::Completed, mission.dropoff)).await;
    let unknown_flight = Mission { delivery_id: DeliveryId(world.clock.new_id()), ..own_drone };
    let absent = south.send(&south.report(&unknown_flight, Stage::Completed, mission.dropoff)).await;
    assert_eq!(foreign, absent, "a foreign flight and none at all");
    assert_eq!(foreign.accepted, 0, "{foreign:?}");

    let other = world.user(&world.new_drone().to_string(), Role::Drone).await;
    let line = north.report(&mission, Stage::Completed, mission.dropoff);
    let line = other.request(Method::POST, "/api/telemetry").json(&line);
    assert_eq!(Answer::of(line).await.body["accepted"], 0, "a drone speaks only for itself");
    assert_eq!(other.get("/api/missions").await.body["items"], json!([]));
    assert_eq!(alice.sees(id, Stage::Scheduled).await.stage, Stage::Scheduled);

    let own = world.user(&drone.to_string(), Role::Drone).await;
    assert_eq!(own.get("/api/missions").await.body["items"].as_array().unwrap().len(), 1);
    north.flies(&mission).await;
    alice.sees(id, Stage::Completed).await;
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_services_say_to_each_other_nobody_else_may_say() {
    let world = World::new().await;
    let drone = world.new_drone();
    let inner = [
        ("package", Method::POST, "/commands/register".to_owned()),
        ("package", Method::POST, "/commands/withdraw".to_owned()),
        ("fleet", Method::POST, "/commands/reserve".to_owned()),
        ("fleet", Method::POST, "/commands/release".to_owned()),
        ("fleet", Method::POST, "/queries/bases".to_owned()),
        ("fleet", Method::GET, format!("/drones/{drone}")),
        ("tracking", Method::POST, "/commands/open-flight".to_owned()),
        ("tracking", Method::POST, "/commands/close-flight".to_owned()),
        ("tracking", Method::POST, "/queries/flights".to_owned()),
        ("delivery", Method::POST, "/queries/statuses".to_owned()),
        ("lookup", Method::POST, "/queries/contains".to_owned()),
        ("history", Method::POST, "/queries/contains".to_owned()),
    ];
    let me = drone.to_string();
    let roles =
        [("alice", Role::Customer), ("olga", Role::Operator), ("north", Role::BaseStation), (me.as_str(), Role::Drone)];
    for (service, method, path) in &inner {
        for (subject, role) in roles {
            let user = world.user(subject, role).await;
            let answer =
                Answer::of(user.request_at(service, method.clone(), path).json(&json!({"commands": []}))).await;
            assert_eq!(answer.status, 403, "{method} {path} of {service} as {role:?}: {}", answer.text);
        }
        let url = format!("{}{path}", world.service_url(service));
        let nobody = Answer::of(world.http.request(method.clone(), url)).await;
        assert_eq!(nobody.status, 401, "{method} {path} of {service} without a token");
    }
    let service = json!({"subject": "delivery", "role": "service"});
    let token = world.http.post(format!("{}/api/dev/token", world.url())).json(&service);
    assert_eq!(Answer::of(token).await.status, 422, "nobody is given a service's token");
}
