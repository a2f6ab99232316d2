//! What the service does by itself, in time: expiring, comparing with tracking, forgetting.

use std::time::Duration;

use contracts::{DeliveryId, Stage};
use reqwest::StatusCode;
use testkit::until;

use crate::running::Running;

async fn scheduled(running: &Running) -> DeliveryId {
    let id = running.accepted().await;
    running.reaches(id, Stage::Scheduled).await;
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_whose_events_were_lost_is_taken_up() {
    let running = Running::start_timeless(1, None).await;
    let id = scheduled(&running).await;
    running.peers.fly(id, Stage::Completed, running.world.clock.now());
    let began = running.world.clock.now();
    running.reaches_in_time(id, Stage::Completed).await;
    let took = running.world.clock.now() - began;
    assert!(took < chrono::Duration::minutes(5), "by comparison, long before the expiry: {took}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flight_that_tracking_has_forgotten_is_opened_again() {
    let running = Running::start_timeless(1, None).await;
    let id = scheduled(&running).await;
    running.peers.lock().flights.clear();
    until("the flight again", || async {
        running.pass(Duration::from_secs(1));
        running.peers.lock().flights.contains_key(&id).then_some(())
    })
    .await;
    let record = running.record(id).await;
    assert_eq!((record.stage, record.attempt), (Stage::Scheduled, 1));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flight_that_never_arrives_expires() {
    let running = Running::start_timeless(1, None).await;
    let id = scheduled(&running).await;
    running.fly(id, Stage::HeadedToPickup).await;
    running.reaches(id, Stage::HeadedToPickup).await;
    running.pass(Duration::from_secs(30 * 60 + 9 * 60));
    assert_eq!(running.record(id).await.stage, Stage::HeadedToPickup);
    let record = running.reaches_in_time(id, Stage::Failed).await;
    assert!(record.finished_at.unwrap() >= record.deadline + chrono::Duration::minutes(10));
    assert!(!running.peers.lock().flights[&id].open);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finished_delivery_is_forgotten_once_it_is_old_and_safe_elsewhere() {
    let running = Running::start_timeless(2, None).await;
    let (safe, unsafe_yet) = (scheduled(&running).await, scheduled(&running).await);
    for id in [safe, unsafe_yet] {
        running.fly(id, Stage::Completed).await;
        running.reaches(id, Stage::Completed).await;
    }
    running.peers.lock().kept.insert(safe);
    running.pass(Duration::from_secs(6 * 24 * 3_600));
    assert_eq!(running.record(safe).await.stage, Stage::Completed, "kept for a week");
    running.pass(Duration::from_secs(24 * 3_600));
    let path = format!("/deliveries/{safe}");
    until("the old one to be forgotten", || async {
        running.pass(Duration::from_secs(60));
        (running.get("alice", &path).await.status() == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
    assert_eq!(running.record(unsafe_yet).await.stage, Stage::Completed);
    running.stop().await;
}
