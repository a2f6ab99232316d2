//! The saga over the wire: its order, its retries, its undo.

use std::time::{Duration, Instant};

use contracts::{Stage, events::FleetEventKind};
use futures::future::join_all;
use serde_json::json;

use crate::running::{Running, wish};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_is_scheduled_step_by_step_and_flown_to_its_end() {
    let running = Running::start(1).await;
    let id = running.accepted().await;
    let scheduled = running.reaches(id, Stage::Scheduled).await;
    let drone = running.peers.lock().reserved[&(id, 1)].clone();
    assert_eq!((scheduled.drone, scheduled.attempt), (drone, 1));
    assert_eq!(running.peers.said_of(id), ["register", "reserve", "open-flight"]);
    for said in &running.peers.lock().said {
        assert_eq!((said.attempt, said.fence), (1, 1), "{said:?}");
    }
    for stage in [Stage::HeadedToPickup, Stage::HeadedToDropoff, Stage::Completed] {
        running.fly(id, stage).await;
        running.reaches(id, stage).await;
    }
    let steps = running.steps(id).await;
    let names: Vec<&str> = steps.iter().map(|(step, _)| step.as_str()).collect();
    assert_eq!(names, ["register_package", "reserve_drone", "open_flight", "schedule"]);
    assert!(steps.iter().all(|(_, outcome)| outcome == "done"), "{steps:?}");

    let told = running.told(id, 3).await;
    let kinds: Vec<&str> = told.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["DeliveryRequested", "DeliveryScheduled", "DeliveryCompleted"]);
    assert!(told.windows(2).all(|pair| pair[0].1.version < pair[1].1.version));
    let last = &told[2].1;
    assert_eq!(*last, running.record(id).await, "a terminal event carries the whole record");
    assert_eq!(last.stages.len(), 5);
    assert_eq!(last.finished_at, Some(last.updated_at), "the end is the commit's time");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_in_the_line_goes_on_with_the_grant() {
    let running = Running::start(0).await;
    let id = running.accepted().await;
    testkit::until("the place in the line", || async { (running.peers.count("reserve") == 1).then_some(()) }).await;
    let drone = running.peers.grant(id, 1);
    let granted = running.drone_event(FleetEventKind::DroneReserved, id, 1, &drone);
    running.world.log.publish(vec![granted]).await.unwrap();
    let record = running.reaches(id, Stage::Scheduled).await;
    assert_eq!(record.drone, Some(drone));
    assert_eq!(running.peers.said_of(id), ["register", "reserve", "open-flight"], "nothing is asked twice");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_drone_until_the_deadline_everything_is_undone() {
    let running = Running::start(0).await;
    let mut wish = wish();
    wish["deadline"] = json!(running.world.clock.now() + chrono::Duration::seconds(2));
    let id = running.accepted_as(&wish).await;
    let record = running.reaches(id, Stage::Rejected).await;
    assert_eq!(record.end_reason.as_deref(), Some("no drone before the deadline"));
    let said = running.peers.said_of(id);
    assert_eq!(said, ["register", "reserve", "close-flight", "release", "withdraw"]);
    assert!(!running.peers.lock().packages[&id]);
    assert!(running.peers.lock().released.contains(&(id, 1)));
    let kinds: Vec<String> = running.told(id, 2).await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["DeliveryRequested", "DeliveryRejected"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drone_that_fails_before_the_pickup_is_replaced() {
    let running = Running::start(2).await;
    let id = running.accepted().await;
    running.reaches(id, Stage::Scheduled).await;
    running.fly(id, Stage::HeadedToPickup).await;
    running.reaches(id, Stage::HeadedToPickup).await;
    running.fail_drone(id, 1).await;
    let record = running.becomes(id, "a second drone", |record| record.attempt == 2 && record.drone.is_some()).await;
    assert_eq!(record.drone, running.peers.lock().reserved[&(id, 2)]);
    testkit::until("the second flight", || async {
        let flight = running.peers.lock().flights[&id].progress()?;
        (flight.attempt == 2).then_some(())
    })
    .await;
    running.fail_drone(id, 1).await;
    running.fly(id, Stage::Completed).await;
    let record = running.reaches(id, Stage::Completed).await;
    assert_eq!(record.attempt, 2, "the late news of the first drone change nothing");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drone_that_fails_with_the_package_fails_the_delivery() {
    let running = Running::start(2).await;
    let id = running.accepted().await;
    running.reaches(id, Stage::Scheduled).await;
    // Nobody has told delivery of the pickup when it hears of the failure.
    running.peers.fly(id, Stage::HeadedToDropoff, running.world.clock.now());
    running.fail_drone(id, 1).await;
    let record = running.reaches(id, Stage::Failed).await;
    assert_eq!(record.end_reason.as_deref(), Some("the drone failed with the package: silent"));
    assert_eq!(record.stages.len(), 5, "{:?}", record.stages);
    assert!(!running.peers.lock().flights[&id].open);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_participant_that_is_away_is_asked_again_with_pauses_until_it_is_back() {
    let running = Running::start(1).await;
    running.peers.lock().away.insert("reserve");
    let id = running.accepted().await;
    let began = Instant::now();
    testkit::until("some tries", || async { (running.peers.count("reserve") >= 4).then_some(()) }).await;
    assert!(began.elapsed() >= Duration::from_millis(200 + 400 + 800), "{:?}", began.elapsed());
    running.peers.lock().away.clear();
    running.reaches(id, Stage::Scheduled).await;
    let steps = running.steps(id).await;
    let outcomes: Vec<&str> =
        steps.iter().filter(|(step, _)| step == "reserve_drone").map(|(_, outcome)| outcome.as_str()).collect();
    assert_eq!(outcomes, ["unavailable", "done"], "the log has the silence once");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_among_lost_answers_all_arrive_and_none_is_asked_without_end() {
    const MANY: usize = 150;
    let running = Running::start(u32::MAX).await;
    running.peers.lock().lose_every = 4;
    let ids = join_all((0..MANY).map(|_| running.accepted())).await;
    for id in &ids {
        running.reaches(*id, Stage::Scheduled).await;
    }
    for id in &ids {
        running.fly(*id, Stage::Completed).await;
    }
    for id in &ids {
        let record = running.reaches(*id, Stage::Completed).await;
        assert_eq!((record.attempt, record.stages.len()), (1, 5));
    }
    assert_eq!(running.peers.totals(), (MANY, MANY, MANY));
    let said = running.peers.lock().said.len();
    assert!(said < MANY * 3 * 8, "{said} commands");
    running.stop().await;
}
