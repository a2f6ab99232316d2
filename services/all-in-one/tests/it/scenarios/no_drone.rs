//! No drone is free: the line, its order, and its end at the deadline.

use std::time::Duration;

use contracts::{DeliveryId, Stage};
use serde_json::json;

use crate::{
    api::{deadline, wish, with},
    world::World,
};

/// Deliveries in fleet's line, or with a drone.
async fn held(world: &World) -> Vec<DeliveryId> {
    let rows = fleet::audit_scan(&world.stores.fleet).await.unwrap();
    rows.into_iter().map(|row| row.delivery_id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_deadline_it_is_rejected_and_leaves_the_line() {
    let world = World::new().await;
    let alice = world.customer("alice").await;
    let id = alice.order(&with(wish(), &json!({"deadline": deadline(&world, 3)}))).await;
    alice.sees_step(id, "reserve_drone waiting").await;
    assert_eq!(held(&world).await, [id]);
    world.pass(Duration::from_secs(3)).await;
    let rejected = alice.sees(id, Stage::Rejected).await;
    assert_eq!(rejected.end_reason.as_deref(), Some("no drone before the deadline"));
    let steps = alice.steps(id).await;
    let undone = ["schedule given_up", "close_flight done", "release_drone done", "withdraw_package done"];
    assert!(steps.ends_with(&undone.map(str::to_owned)), "{steps:?}");
    assert_eq!(held(&world).await, []);
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_drone_serves_the_expedited_first() {
    let world = World::new().await;
    let alice = world.customer("alice").await;
    let base = world.base("north").await;
    let patient = alice.order(&wish()).await;
    alice.sees_step(patient, "reserve_drone waiting").await;
    let hurried = alice.order(&with(wish(), &json!({"expedited": true}))).await;
    alice.sees_step(hurried, "reserve_drone waiting").await;

    base.new_drone().await;
    alice.sees(hurried, Stage::Scheduled).await;
    assert_eq!(alice.delivery(patient).await.stage, Stage::Requested);
    base.flies(&base.mission(hurried).await).await;
    alice.sees(hurried, Stage::Completed).await;

    // The drone is free again, at the drop-off, and goes on with who is left.
    base.flies(&base.mission(patient).await).await;
    alice.sees(patient, Stage::Completed).await;
    world.audit().await;
}
