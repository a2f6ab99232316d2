//! The waiting line at work: who is granted a drone that becomes free.

use std::sync::Arc;

use contracts::{Clock, SystemClock, commands::ReserveOutcome};

use super::make;
use crate::{fleet::Fleet, matcher::Matcher, store};

struct Bench {
    fleet: Arc<Fleet>,
    matcher: Matcher,
    _folder: tempfile::TempDir,
}

async fn bench(drones: u128) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("fleet.db").display());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let opened = store::open(&url, clock.clone()).await.unwrap();
    let fleet = Fleet::new(opened.store, clock);
    let registrations: Vec<_> = (1..=drones).map(|number| make::registration(number, "north")).collect();
    fleet.register(&registrations).await;
    let matcher = Matcher::new(fleet.store.clone(), fleet.index.clone(), fleet.line.clone());
    Bench { fleet, matcher, _folder: folder }
}

impl Bench {
    async fn reserve(&self, number: u128, minutes_ago: i64, expedited: bool, weight_kg: f64) -> ReserveOutcome {
        let mut command = make::reserve(make::delivery(number), 1);
        command.requested_at -= chrono::Duration::minutes(minutes_ago);
        command.expedited = expedited;
        command.weight_kg = weight_kg;
        self.fleet.reserve(&[command]).await.remove(0)
    }

    async fn holder(&self, drone: u128) -> Option<u128> {
        let drones = self.fleet.store.drones(&[make::drone_id(drone)]).await.unwrap();
        let hold = drones[0].hold?;
        Some(hold.delivery_id.0.as_u128() - make::delivery(0).0.as_u128())
    }
}

#[tokio::test]
async fn expedited_goes_first_then_the_oldest() {
    let mut bench = bench(1).await;
    assert!(matches!(bench.reserve(1, 0, false, 1.0).await, ReserveOutcome::Reserved { .. }));
    for (number, minutes_ago, expedited) in [(2, 1, false), (3, 9, false), (4, 0, true)] {
        assert_eq!(bench.reserve(number, minutes_ago, expedited, 1.0).await, ReserveOutcome::Waiting);
    }
    let mut holder = 1;
    for expected in [4, 3, 2] {
        assert_eq!(bench.matcher.turn().await.unwrap(), 0, "no drone is free");
        bench.fleet.release(&[make::release(make::delivery(holder), 1)]).await;
        assert_eq!(bench.matcher.turn().await.unwrap(), 1);
        holder = bench.holder(1).await.unwrap();
        assert_eq!(holder, expected);
    }
}

#[tokio::test]
async fn who_waits_comes_before_who_asks_next_unless_the_drone_is_of_no_use_to_them() {
    let mut bench = bench(1).await;
    assert_eq!(bench.reserve(1, 0, false, 50.0).await, ReserveOutcome::Waiting, "too heavy for any drone");
    assert_eq!(bench.matcher.turn().await.unwrap(), 0);
    assert!(matches!(bench.reserve(2, 0, false, 1.0).await, ReserveOutcome::Reserved { .. }));
    assert_eq!(bench.reserve(3, 5, false, 1.0).await, ReserveOutcome::Waiting);
    bench.fleet.release(&[make::release(make::delivery(2), 1)]).await;
    assert_eq!(bench.reserve(4, 0, false, 1.0).await, ReserveOutcome::Waiting, "the line has not been asked yet");
    assert_eq!(bench.matcher.turn().await.unwrap(), 1);
    assert_eq!(bench.holder(1).await, Some(3));
}

#[tokio::test]
async fn a_drone_that_charges_recovers_or_is_registered_serves_the_line() {
    let mut bench = bench(1).await;
    let mut report = make::report(1, 1);
    report.fix.battery = 0.12;
    bench.fleet.report(&[make::spoken(report.clone())]).await;
    assert_eq!(bench.reserve(1, 0, false, 1.0).await, ReserveOutcome::Waiting);
    assert_eq!(bench.matcher.turn().await.unwrap(), 0);
    report.fix.sequence = 2;
    report.fix.battery = 0.9;
    bench.fleet.report(&[make::spoken(report.clone())]).await;
    assert_eq!(bench.matcher.turn().await.unwrap(), 1);

    assert_eq!(bench.reserve(2, 0, false, 1.0).await, ReserveOutcome::Waiting);
    report.fix.sequence = 3;
    report.failed = true;
    bench.fleet.report(&[make::spoken(report.clone())]).await;
    assert_eq!(bench.matcher.turn().await.unwrap(), 0);
    report.fix.sequence = 4;
    report.failed = false;
    bench.fleet.report(&[make::spoken(report)]).await;
    assert_eq!(bench.matcher.turn().await.unwrap(), 1);

    assert_eq!(bench.reserve(3, 0, false, 1.0).await, ReserveOutcome::Waiting);
    bench.fleet.register(&[make::registration(2, "north")]).await;
    assert_eq!(bench.matcher.turn().await.unwrap(), 1);
    assert_eq!(bench.holder(2).await, Some(3));
}

#[tokio::test]
async fn entries_that_no_drone_can_serve_do_not_starve_the_rest() {
    let mut bench = bench(0).await;
    let mut commands = Vec::new();
    for number in 1..=1_400 {
        let mut command = make::reserve(make::delivery(number), 1);
        command.requested_at -= chrono::Duration::milliseconds(2_000 - i64::try_from(number).unwrap());
        command.weight_kg = if number <= 1_399 { 50.0 } else { 1.0 };
        commands.push(command);
    }
    bench.fleet.reserve(&commands).await;
    bench.fleet.register(&[make::registration(1, "north")]).await;
    let mut turns = 0;
    while bench.holder(1).await.is_none() {
        bench.matcher.turn().await.unwrap();
        turns += 1;
        assert!(turns <= 3, "the end of the line was not reached");
    }
    assert_eq!(bench.holder(1).await, Some(1_400));
}
