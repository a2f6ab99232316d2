//! Cancelling: before the pickup it is to be had, after it is not.

use contracts::{Stage, commands::DroneStatus};

use crate::{api::wish, world::World};

#[tokio::test(flavor = "multi_thread")]
async fn before_the_pickup_the_drone_goes_home() {
    let world = World::new().await;
    let (alice, operator) = (world.customer("alice").await, world.operator().await);
    let base = world.base("north").await;
    let drone = base.new_drone().await;
    let id = alice.order(&wish()).await;
    alice.sees(id, Stage::Scheduled).await;
    let mission = base.mission(id).await;
    base.reaches(&mission, Stage::HeadedToPickup).await;
    alice.sees(id, Stage::HeadedToPickup).await;

    let cancelled = alice.cancel(id).await;
    assert_eq!((cancelled.status, cancelled.body["stage"].as_str()), (200, Some("Cancelled")), "{}", cancelled.text);
    let again = alice.cancel(id).await;
    assert_eq!((again.status, again.body["stage"].as_str()), (200, Some("Cancelled")));

    base.sees_recall(id).await;
    operator.sees_drone(drone, DroneStatus::Idle).await;
    let late = base.send(&base.report(&mission, Stage::HeadedToDropoff, mission.pickup)).await;
    assert_eq!((late.accepted, late.stale), (0, 1), "a report for what is over changes nothing: {late:?}");
    assert_eq!(alice.delivery(id).await.stage, Stage::Cancelled);
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_pickup_it_is_too_late() {
    let world = World::new().await;
    let alice = world.customer("alice").await;
    let base = world.base("north").await;
    base.new_drone().await;
    let id = alice.order(&wish()).await;
    let mission = base.mission(id).await;
    base.reaches(&mission, Stage::HeadedToDropoff).await;

    // At once: whether or not delivery has heard of the pickup, tracking has.
    let refused = alice.cancel(id).await;
    assert_eq!(refused.status, 409, "{}", refused.text);
    alice.sees(id, Stage::HeadedToDropoff).await;
    assert_eq!(alice.cancel(id).await.status, 409);
    base.reaches(&mission, Stage::Completed).await;
    alice.sees(id, Stage::Completed).await;
    assert_eq!(alice.cancel(id).await.status, 409, "over is too late, too");
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_drone_leaves_the_line() {
    let world = World::new().await;
    let (alice, operator) = (world.customer("alice").await, world.operator().await);
    let id = alice.order(&wish()).await;
    alice.sees_step(id, "reserve_drone waiting").await;
    assert_eq!(alice.cancel(id).await.status, 200);
    let drone = world.base("north").await.new_drone().await;
    world.settle().await;
    assert_eq!(operator.drone(drone).await.status, DroneStatus::Idle, "nobody is left to take it");
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn right_after_the_order_it_is_cancelled_wherever_the_saga_is() {
    let world = World::new().await;
    let alice = world.customer("alice").await;
    let base = world.base("north").await;
    for _ in 0..4 {
        base.new_drone().await;
    }
    for _ in 0..16 {
        let id = alice.order(&wish()).await;
        assert_eq!(alice.cancel(id).await.status, 200);
    }
    world.audit().await;
}
