//! One delivery from the order to the drop-off, seen from every side.

use std::time::Duration;

use contracts::{DeliveryId, DroneId, Stage, commands::DroneStatus, events::PackageState};
use testkit::until;

use crate::{
    api::{Answer, stages_told, wish},
    drones::MIDWAY,
    world::World,
};

const HAPPY: [Stage; 5] =
    [Stage::Requested, Stage::Scheduled, Stage::HeadedToPickup, Stage::HeadedToDropoff, Stage::Completed];

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_is_ordered_flown_and_remembered() {
    let world = World::new().await;
    let (alice, operator) = (world.customer("alice").await, world.operator().await);
    let base = world.base("north").await;

    let answer = alice.post("/api/deliveries", &wish()).await;
    assert_eq!(answer.status, 202);
    assert_eq!(answer.body["stage"], "Requested");
    let id = answer.body["id"].as_str().unwrap().parse().unwrap();
    world.note_accepted(id);
    assert_eq!(answer.headers["location"], format!("/api/deliveries/{id}"));
    let location = answer.headers["location"].to_str().unwrap().to_owned();
    assert_eq!(alice.get(&location).await.body["id"], answer.body["id"], "a GET right after the 202 finds it");
    alice.sees_step(id, "reserve_drone waiting").await;

    let (updates, drone) = tokio::join!(alice.watch(id), fly(&world, id));

    let completed = alice.sees(id, Stage::Completed).await;
    assert!(completed.finished_at.is_some() && completed.end_reason.is_none(), "{completed:?}");
    assert_eq!(stages_told(&updates), HAPPY, "the live stream told every stage and ended");
    base.sees_recall(id).await;
    operator.sees_drone(drone, DroneStatus::Idle).await;

    let timeline = alice.timeline(id).await;
    let stages: Vec<_> = timeline.stages.iter().map(|entry| entry.stage).collect();
    assert_eq!(stages, HAPPY);
    let steps = alice.steps(id).await;
    let expected =
        ["register_package done", "reserve_drone waiting", "reserve_drone done", "open_flight done", "schedule done"];
    assert_eq!(steps, expected);

    until("the history lists it", async || {
        let history = alice.history().await;
        let found = history.iter().find(|item| item.delivery.id == id)?;
        let stages: Vec<_> = found.stages.iter().map(|entry| entry.stage).collect();
        assert_eq!(stages, HAPPY);
        assert_eq!(found.source, "lookup");
        Some(())
    })
    .await;
    until("the package is delivered", async || {
        let package = Answer::of(alice.request_at("package", reqwest::Method::GET, &format!("/packages/{id}"))).await;
        (package.body["state"] == "Delivered").then_some(())
    })
    .await;

    world.settle().await;
    let lake = &world.stores.lake;
    let rows = history::audit::scan_deliveries(lake).await.unwrap();
    assert_eq!(rows.iter().map(|row| (row.delivery_id, row.stage)).collect::<Vec<_>>(), [(id, Stage::Completed)]);
    let positions = history::audit::scan_positions_keys(lake).await.unwrap();
    assert_eq!((positions.rows, positions.doubled), (4, 0), "sampled every five seconds of flight");
    world.audit().await;
}

/// A drone comes, takes the delivery, and flies it; what the customer and the operator see meanwhile.
async fn fly(world: &World, id: DeliveryId) -> DroneId {
    let (alice, operator) = (world.customer("alice").await, world.operator().await);
    let base = world.base("north").await;
    let drone = base.new_drone().await;
    let scheduled = alice.sees(id, Stage::Scheduled).await;
    assert_eq!((scheduled.attempt, scheduled.drone.unwrap().drone_id), (1, drone));
    let mission = base.mission(id).await;
    assert_eq!((mission.drone_id, mission.attempt), (drone, 1));
    operator.sees_drone(drone, DroneStatus::Reserved).await;
    base.reaches(&mission, Stage::HeadedToPickup).await;
    alice.sees(id, Stage::HeadedToPickup).await;
    world.pass(Duration::from_secs(6)).await;
    base.reaches(&mission, Stage::HeadedToDropoff).await;
    alice.sees(id, Stage::HeadedToDropoff).await;
    world.pass(Duration::from_secs(6)).await;
    let on_the_way = base.report(&mission, Stage::HeadedToDropoff, MIDWAY);
    assert_eq!(base.send(&on_the_way).await.accepted, 1);
    until("the position and the time of arrival", async || {
        let delivery = alice.delivery(id).await;
        assert_eq!(delivery.degraded, Vec::<String>::new());
        assert_eq!(delivery.package.unwrap().state, Some(PackageState::Registered));
        (delivery.position == Some(MIDWAY) && delivery.eta.is_some()).then_some(())
    })
    .await;
    assert_eq!(base.send(&on_the_way).await.stale, 1, "a repeated report changes nothing");
    world.pass(Duration::from_secs(6)).await;
    base.reaches(&mission, Stage::Completed).await;
    drone
}
