//! Several instances on one store: leases pass on, by their end, by a release, or by a name that stays.

use std::time::Duration;

use contracts::{DeliveryId, Stage};
use futures::future::join_all;
use testkit::until;

use crate::running::Running;

/// A delivery whose driver waits for fleet's answer, with the lease in its hand.
async fn held(running: &Running) -> DeliveryId {
    running.peers.lock().hanging.insert("reserve");
    let id = running.accepted().await;
    until("the driver to ask fleet", || async { (running.peers.count("reserve") == 1).then_some(()) }).await;
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_instance_had_leased_is_resumed_by_another_when_the_lease_ends() {
    let mut running = Running::start_timeless(1, None).await;
    let id = held(&running).await;
    running.first.take().unwrap().kill().await;
    running.peers.lock().hanging.clear();
    let second = running.instance(None).await;
    running.url.clone_from(&second.url);
    assert_eq!(running.record(id).await.stage, Stage::Requested, "a GET needs no lease");
    let began = running.world.clock.now();
    let record = running.reaches_in_time(id, Stage::Scheduled).await;
    assert!(running.world.clock.now() - began >= chrono::Duration::seconds(9), "not before the lease has ended");
    assert_eq!(record.attempt, 1);
    let fences: Vec<u64> = running.peers.lock().said.iter().map(|said| said.fence).collect();
    assert!(fences.is_sorted() && fences.last() > fences.first(), "{fences:?}");
    assert_eq!(running.peers.said_of(id), ["register", "reserve", "reserve", "open-flight"]);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_shut_down_gives_its_leases_back() {
    let mut running = Running::start_timeless(1, None).await;
    let id = held(&running).await;
    running.first.take().unwrap().stop().await;
    running.peers.lock().hanging.clear();
    let second = running.instance(None).await;
    running.url.clone_from(&second.url);
    // The pause of one retry, far less than a lease.
    let began = running.world.clock.now();
    until("Scheduled after a moment", || async {
        running.pass(Duration::from_millis(100));
        (running.record(id).await.stage == Stage::Scheduled).then_some(())
    })
    .await;
    assert!(running.world.clock.now() - began < chrono::Duration::seconds(9), "nobody waited for the lease to end");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_instance_takes_up_at_once_what_its_former_self_had() {
    let mut running = Running::start_timeless(1, Some("the-one")).await;
    let id = held(&running).await;
    running.first.take().unwrap().kill().await;
    running.peers.lock().hanging.clear();
    let second = running.instance(Some("the-one")).await;
    running.url.clone_from(&second.url);
    // The time stands still.
    running.reaches(id, Stage::Scheduled).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intent_outlives_the_instance_that_noted_it() {
    let mut running = Running::start_timeless(1, Some("the-one")).await;
    let id = running.accepted().await;
    running.reaches(id, Stage::Scheduled).await;
    running.peers.lock().hanging.insert("close-flight");
    let asked = running.cancel(id);
    let answered =
        until("the flight to be asked to close", || async { (running.peers.count("close-flight") == 1).then_some(()) });
    tokio::select! {
        answer = asked => panic!("answered before it was decided: {answer:?}"),
        () = answered => {}
    }
    running.first.take().unwrap().kill().await;
    running.peers.lock().hanging.clear();
    let second = running.instance(Some("the-one")).await;
    running.url.clone_from(&second.url);
    running.reaches(id, Stage::Cancelled).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_share_the_work_and_do_none_of_it_twice() {
    const MANY: usize = 40;
    let mut running = Running::start(u32::MAX).await;
    let second = running.instance(None).await;
    let first_url = running.url.clone();
    until("the second instance", || async {
        running.http.get(format!("{}/health/live", second.url)).send().await.ok()
    })
    .await;
    let mut ids = Vec::new();
    for url in [&first_url, &second.url] {
        running.url.clone_from(url);
        ids.extend(join_all((0..MANY / 2).map(|_| running.accepted())).await);
    }
    for id in &ids {
        running.reaches(*id, Stage::Scheduled).await;
        running.fly(*id, Stage::Completed).await;
    }
    running.url = first_url;
    for id in &ids {
        let record = running.reaches(*id, Stage::Completed).await;
        assert_eq!((record.attempt, record.stages.len()), (1, 5));
    }
    assert_eq!(running.peers.totals(), (MANY, MANY, MANY));
    second.stop().await;
    running.stop().await;
}
