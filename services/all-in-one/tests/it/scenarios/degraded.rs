//! Tracking is away: deliveries are accepted and read all the same, and every answer says what it lacks.

use contracts::Stage;
use reqwest::Method;
use serde_json::{Value, json};
use testkit::until;

use crate::{
    api::{Answer, wish},
    second::Second,
    world::World,
};

/// The names of the dependencies that are down.
fn down(health: &Answer) -> Vec<&str> {
    let dependencies = health.body["dependencies"].as_array().unwrap_or_else(|| panic!("{}", health.text));
    let down = dependencies.iter().filter(|one| one["status"] == "down");
    down.map(|one| one["name"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tracking_deliveries_are_accepted_and_read() {
    let world = World::new().await;
    let (alice, base) = (world.customer("alice").await, world.base("north").await);
    let mut gateway = Second::without(&world, "gateway", &["tracking"]).await;
    let mut delivery = Second::without(&world, "delivery", &["tracking"]).await;

    for second in [&mut gateway, &mut delivery] {
        let live = format!("{}/health/live", second.url);
        until("it listens", async || world.http.get(&live).send().await.ok().map(|_| ())).await;
        let health = second.ask(&alice, Method::GET, "/health/ready", None).await;
        assert_eq!((health.status, &health.body["status"]), (200, &json!("degraded")), "{}", health.text);
        assert_eq!(down(&health), ["tracking"]);
    }

    let accepted = gateway.ask(&alice, Method::POST, "/api/deliveries", Some(&wish())).await;
    assert_eq!(accepted.status, 202, "{}", accepted.text);
    let id = accepted.body["id"].as_str().unwrap().to_owned();
    world.note_accepted(id.parse().unwrap());
    let path = format!("/api/deliveries/{id}");
    let read = gateway.ask(&alice, Method::GET, &path, None).await;
    assert_eq!((read.status, &read.body["degraded"]), (200, &json!(["tracking"])), "{}", read.text);
    assert_eq!((&read.body["position"], &read.body["eta"]), (&Value::Null, &Value::Null));
    let whole = alice.get(&path).await;
    assert_eq!((whole.status, &whole.body["degraded"]), (200, &json!([])), "the other gateway reaches it");

    base.new_drone().await;
    alice.sees(id.parse().unwrap(), Stage::Scheduled).await;
    let scheduled = gateway.ask(&alice, Method::GET, &path, None).await;
    assert_eq!((&scheduled.body["stage"], &scheduled.body["degraded"]), (&json!("Scheduled"), &json!(["tracking"])));
    assert_eq!(alice.cancel(id.parse().unwrap()).await.status, 200);
    drop((gateway, delivery));
    world.audit().await;
}
