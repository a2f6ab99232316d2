//! The subscriber: whatever the order and however often, the effect is the same.

use contracts::{
    DeliveryId, Stage,
    events::{CloudEvent, FleetEventKind, StageTime},
};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use testkit::until;

use crate::running::Running;

/// Everything that fleet and tracking say of one delivery, by the time that it is dropped off by its second drone.
fn history(running: &Running, id: DeliveryId) -> Vec<CloudEvent> {
    let drone = running.peers.lock().reserved[&(id, 2)].clone().unwrap();
    let whole = running.peers.fly(id, Stage::Completed, running.world.clock.now());
    let mut events = vec![
        running.drone_event(FleetEventKind::DroneReserved, id, 1, &drone),
        running.drone_event(FleetEventKind::DroneFailed, id, 1, &drone),
        running.drone_event(FleetEventKind::DroneReserved, id, 2, &drone),
        running.drone_event(FleetEventKind::DroneReleased, id, 2, &drone),
    ];
    for count in 1..=3 {
        let mut progress = whole.clone();
        progress.stages.truncate(count);
        events.push(running.stage_changed(&progress));
        progress.attempt = 1;
        events.push(running.stage_changed(&progress));
    }
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_in_any_order_and_number_have_one_effect() {
    const MANY: usize = 12;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let running = Running::start(100).await;
    let mut ids = Vec::new();
    for _ in 0..MANY {
        let id = running.accepted().await;
        running.reaches(id, Stage::Scheduled).await;
        running.fail_drone(id, 1).await;
        running.becomes(id, "a second drone", |record| record.attempt == 2 && record.drone.is_some()).await;
        ids.push(id);
    }
    until("the second flights", || async {
        let known = running.peers.lock();
        let attempt = |id| known.flights[id].progress().map(|progress| progress.attempt);
        ids.iter().all(|id| attempt(id) == Some(2)).then_some(())
    })
    .await;
    let mut events: Vec<CloudEvent> = ids.iter().flat_map(|id| history(&running, *id)).collect();
    events.extend(events.clone());
    events.shuffle(&mut StdRng::seed_from_u64(seed));
    for part in events.chunks(7) {
        running.world.log.publish(part.to_vec()).await.unwrap();
    }
    for id in &ids {
        let record = running.reaches(*id, Stage::Completed).await;
        let stages: Vec<(Stage, u32)> = record.stages.iter().map(|entry| (entry.stage, entry.attempt)).collect();
        assert_eq!(
            stages,
            [
                (Stage::Requested, 1),
                (Stage::Scheduled, 1),
                (Stage::Scheduled, 2),
                (Stage::HeadedToPickup, 2),
                (Stage::HeadedToDropoff, 2),
                (Stage::Completed, 2)
            ]
        );
    }
    // Nothing that comes after the end changes anything.
    let over: Vec<u64> = versions(&running, &ids).await;
    running.world.log.publish(events).await.unwrap();
    caught_up(&running).await;
    assert_eq!(versions(&running, &ids).await, over);
    running.stop().await;
}

async fn versions(running: &Running, ids: &[DeliveryId]) -> Vec<u64> {
    let mut versions = Vec::new();
    for id in ids {
        versions.push(running.record(*id).await.version);
    }
    versions
}

/// Waits until the service has handled every event there is.
async fn caught_up(running: &Running) {
    until("the consumer to catch up", || async {
        let lags = running.world.log.lag().await.unwrap();
        lags.iter().filter(|lag| lag.group == "delivery").all(|lag| lag.lag() == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_cannot_be_read_or_that_nobody_asked_for_holds_up_nothing() {
    let running = Running::start(1).await;
    let id = running.accepted().await;
    running.reaches(id, Stage::Scheduled).await;
    let mut progress = running.peers.fly(id, Stage::HeadedToPickup, running.world.clock.now());
    let good = running.stage_changed(&progress);
    let mut broken = good.clone();
    broken.data = b"{\"delivery_id\": 7}".to_vec();
    let mut unknown_kind = good.clone();
    unknown_kind.kind = "SomethingNew".to_owned();
    progress.stages.push(StageTime { stage: Stage::HeadedToDropoff, at: running.world.clock.now() });
    progress.delivery_id = running.world.clock.new_delivery_id();
    let foreign = running.stage_changed(&progress);
    running.world.log.publish(vec![broken, unknown_kind, foreign, good]).await.unwrap();
    running.reaches(id, Stage::HeadedToPickup).await;
    caught_up(&running).await;
    let waiting = messaging::dead_letters::waiting(&*running.world.log, "delivery").await.unwrap();
    assert_eq!(waiting, 1, "the broken one");
    running.stop().await;
}
