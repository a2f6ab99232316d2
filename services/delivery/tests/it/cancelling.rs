//! Cancelling: 200 before the pickup, 409 after it, 503 while it is undecided, and decided in the end.

use contracts::{Stage, events::DeliveryRecord};
use reqwest::StatusCode;

use crate::running::Running;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_is_cancelled_before_the_pickup() {
    let running = Running::start(1).await;
    let id = running.accepted().await;
    running.reaches(id, Stage::Scheduled).await;
    running.fly(id, Stage::HeadedToPickup).await;
    running.reaches(id, Stage::HeadedToPickup).await;
    for _ in 0..2 {
        let answer = running.cancel(id).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let record: DeliveryRecord = answer.json().await.unwrap();
        assert_eq!((record.delivery_id, record.stage), (id, Stage::Cancelled));
    }
    assert!(!running.peers.lock().flights[&id].open);
    assert_eq!(running.peers.count("close-flight"), 1, "the second time it is known");
    let kinds: Vec<String> = running.told(id, 3).await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds[2], "DeliveryCancelled");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_is_cancelled_in_the_waiting_line() {
    let running = Running::start(0).await;
    let id = running.accepted().await;
    testkit::until("the place in the line", || async { (running.peers.count("reserve") == 1).then_some(()) }).await;
    assert_eq!(running.cancel(id).await.status(), StatusCode::OK);
    let flight = running.peers.lock().flights[&id].clone();
    assert!(flight.opened_with.is_none() && !flight.open, "a tombstone where no flight was");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_is_not_cancelled_after_the_pickup() {
    let running = Running::start(1).await;
    let id = running.accepted().await;
    running.reaches(id, Stage::Scheduled).await;
    running.fly(id, Stage::HeadedToDropoff).await;
    running.reaches(id, Stage::HeadedToDropoff).await;
    assert_eq!(running.cancel(id).await.status(), StatusCode::CONFLICT);
    running.fly(id, Stage::Completed).await;
    running.reaches(id, Stage::Completed).await;
    assert_eq!(running.cancel(id).await.status(), StatusCode::CONFLICT);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pickup_that_nobody_had_told_of_outruns_the_cancel() {
    let running = Running::start(1).await;
    let id = running.accepted().await;
    running.reaches(id, Stage::Scheduled).await;
    running.peers.fly(id, Stage::HeadedToDropoff, running.world.clock.now());
    assert_eq!(running.cancel(id).await.status(), StatusCode::CONFLICT);
    let record = running.record(id).await;
    assert_eq!((record.stage, record.stages.len()), (Stage::HeadedToDropoff, 4));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_is_decided_once_tracking_is_back() {
    let running = Running::start(1).await;
    let id = running.accepted().await;
    running.reaches(id, Stage::Scheduled).await;
    running.peers.lock().away.insert("close-flight");
    let answer = running.cancel(id).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(running.record(id).await.stage, Stage::Scheduled, "undecided");
    running.peers.lock().away.clear();
    running.reaches(id, Stage::Cancelled).await;
    running.stop().await;
}
