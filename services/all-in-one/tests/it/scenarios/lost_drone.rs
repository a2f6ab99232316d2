//! A drone is lost: before the pickup another one takes over, after it the delivery has failed.

use std::time::Duration;

use contracts::{DeliveryId, Stage, commands::DroneStatus};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::until;

use crate::{
    api::{Answer, User, wish},
    world::{World, within},
};

/// What package says of the delivery's package.
async fn package_state(alice: &User<'_>, id: DeliveryId) -> Value {
    Answer::of(alice.request_at("package", Method::GET, &format!("/packages/{id}"))).await.body["state"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_pickup_another_drone_takes_over() {
    let world = World::new().await;
    let (alice, operator) = (world.customer("alice").await, world.operator().await);
    let base = world.base("north").await;
    let first = base.new_drone().await;
    let id = alice.order(&wish()).await;
    let mission = base.mission(id).await;
    base.reaches(&mission, Stage::HeadedToPickup).await;
    alice.sees(id, Stage::HeadedToPickup).await;
    base.send(&base.report(&mission, Stage::Failed, mission.pickup)).await;

    until("the second attempt", async || (alice.delivery(id).await.attempt == 2).then_some(())).await;
    operator.sees_drone(first, DroneStatus::Failed).await;
    let late = base.send(&base.report(&mission, Stage::HeadedToDropoff, mission.pickup)).await;
    assert_eq!(late.accepted, 0, "the first attempt's reports are stale: {late:?}");

    let second = base.new_drone().await;
    let mission = base.mission_of_attempt(id, 2).await;
    assert_eq!(mission.drone_id, second);
    base.flies(&mission).await;
    let completed = alice.sees(id, Stage::Completed).await;
    assert_eq!(completed.attempt, 2);
    let timeline = alice.timeline(id).await;
    let stages: Vec<_> = timeline.stages.iter().map(|entry| (entry.stage, entry.attempt)).collect();
    let expected = [
        (Stage::Requested, 1),
        (Stage::Scheduled, 1),
        (Stage::HeadedToPickup, 1),
        (Stage::Scheduled, 2),
        (Stage::HeadedToPickup, 2),
        (Stage::HeadedToDropoff, 2),
        (Stage::Completed, 2),
    ];
    assert_eq!(stages, expected);

    assert_eq!(base.rests(first).await.accepted, 1);
    operator.sees_drone(first, DroneStatus::Idle).await;
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_pickup_the_delivery_has_failed_and_the_package_comes_back() {
    let world = World::new().await;
    let alice = world.customer("alice").await;
    let base = world.base("north").await;
    base.new_drone().await;
    let id = alice.order(&wish()).await;
    let mission = base.mission(id).await;
    base.reaches(&mission, Stage::HeadedToDropoff).await;
    alice.sees(id, Stage::HeadedToDropoff).await;
    base.send(&base.report(&mission, Stage::Failed, mission.pickup)).await;
    let failed = alice.sees(id, Stage::Failed).await;
    assert!(failed.end_reason.unwrap().starts_with("the drone failed with the package"));
    until("the package is returned", async || (package_state(&alice, id).await == "Returned").then_some(())).await;
    base.sees_recall(id).await;
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_declares_a_drone_failed() {
    let world = World::new().await;
    let (alice, operator) = (world.customer("alice").await, world.operator().await);
    let base = world.base("north").await;
    let first = base.new_drone().await;
    let id = alice.order(&wish()).await;
    base.mission(id).await;
    let answer = operator.post(&format!("/api/operations/drones/{first}/fail"), &json!({})).await;
    assert_eq!((answer.status, answer.body["status"].as_str()), (200, Some("failed")), "{}", answer.text);
    let second = base.new_drone().await;
    let mission = base.mission_of_attempt(id, 2).await;
    assert_eq!(mission.drone_id, second);
    base.flies(&mission).await;
    alice.sees(id, Stage::Completed).await;
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_drone_gives_its_delivery_to_another() {
    let world = World::new().await;
    let alice = world.customer("alice").await;
    let base = world.base("north").await;
    let first = base.new_drone().await;
    let id = alice.order(&wish()).await;
    base.mission(id).await;
    let second = base.new_drone().await;
    let retired = Answer::of(base.user.request(Method::DELETE, &format!("/api/fleet/{first}"))).await;
    assert_eq!(retired.status, 204, "{}", retired.text);
    let mission = base.mission_of_attempt(id, 2).await;
    assert_eq!(mission.drone_id, second);
    base.flies(&mission).await;
    alice.sees(id, Stage::Completed).await;
    world.audit().await;
}

/// After so long without a word a reserved drone counts as lost.
const SILENCE: Duration = Duration::from_secs(30);

/// Silence in which another drone is heard.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_drone_counts_as_lost() {
    let world = World::new().await;
    let alice = world.customer("alice").await;
    let base = world.base("north").await;
    let silent = base.new_drone().await;
    let id = alice.order(&wish()).await;
    let mission = base.mission(id).await;
    assert_eq!(mission.drone_id, silent);
    let heard = base.new_drone().await;
    within(SILENCE * 2, "the second attempt", async || {
        base.rests(heard).await;
        world.pass(Duration::from_millis(500)).await;
        (alice.delivery(id).await.attempt == 2).then_some(())
    })
    .await;
    let mission = base.mission_of_attempt(id, 2).await;
    assert_eq!(mission.drone_id, heard);
    base.flies(&mission).await;
    alice.sees(id, Stage::Completed).await;
    world.audit().await;
}

/// Forty minutes after the order: the half hour to the deadline, and ten minutes past it.
#[tokio::test(flavor = "multi_thread")]
async fn a_flight_that_never_ends_expires() {
    let world = World::new().await;
    let alice = world.customer("alice").await;
    let base = world.base("north").await;
    let drone = base.new_drone().await;
    let id = alice.order(&wish()).await;
    let mission = base.mission(id).await;
    base.reaches(&mission, Stage::HeadedToDropoff).await;
    alice.sees(id, Stage::HeadedToDropoff).await;
    world.pass(Duration::from_secs(31 * 60)).await;
    assert_eq!(base.send(&base.report(&mission, Stage::HeadedToDropoff, mission.pickup)).await.accepted, 1);
    assert_eq!(alice.delivery(id).await.stage, Stage::HeadedToDropoff, "late, but not given up");
    world.pass(Duration::from_secs(9 * 60)).await;
    let failed = alice.sees(id, Stage::Failed).await;
    assert_eq!(failed.end_reason.as_deref(), Some("the deadline has passed"));
    base.sees_recall(id).await;
    assert_eq!(base.rests(drone).await.accepted, 1);
    world.audit().await;
}
