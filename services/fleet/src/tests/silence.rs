//! Silence at work: which drones fail by it, on a clock that the test moves.

use std::{sync::Arc, time::Duration};

use contracts::{Clock, commands::DroneStatus};
use testkit::ManualClock;

use super::make;
use crate::{
    fleet::Fleet,
    silence::{Hearing, check},
    store,
};

struct Sky {
    fleet: Arc<Fleet>,
    clock: Arc<ManualClock>,
    hearing: Hearing,
    sequence: u64,
    _folder: tempfile::TempDir,
}

/// Three drones; the first two are reserved.
async fn sky() -> Sky {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("fleet.db").display());
    let clock = Arc::new(ManualClock::starting_now());
    let shared: Arc<dyn Clock> = clock.clone();
    let fleet = Fleet::new(store::open(&url, shared.clone()).await.unwrap().store, shared);
    for number in 1..=3 {
        fleet.register(&[make::registration(number, "north")]).await;
        if number <= 2 {
            fleet.reserve(&[make::reserve(make::delivery(number), 1)]).await;
        }
    }
    let hearing = Hearing::starting(clock.now());
    Sky { fleet, clock, hearing, sequence: 0, _folder: folder }
}

impl Sky {
    /// Lets time pass in which only those drones report; how many failed.
    async fn pass(&mut self, seconds: u32, reporting: &[u128]) -> usize {
        let mut failed = 0;
        for second in 0..seconds {
            self.clock.advance(Duration::from_secs(1));
            self.sequence += 1;
            let mut reports = Vec::new();
            for number in reporting {
                let mut report = make::report(*number, self.sequence);
                report.fix.at = self.clock.now();
                reports.push(make::spoken(report));
            }
            self.fleet.report(&reports).await;
            if second % 2 == 1 {
                failed += check(&self.fleet, &mut self.hearing).await.unwrap();
            }
        }
        failed
    }

    async fn status(&self, number: u128) -> DroneStatus {
        self.fleet.store.drones(&[make::drone_id(number)]).await.unwrap()[0].status
    }
}

#[tokio::test]
async fn a_reserved_drone_fails_after_half_a_minute_of_silence_and_others_do_not() {
    let mut sky = sky().await;
    assert_eq!(sky.pass(28, &[2]).await, 0);
    assert_eq!(sky.pass(6, &[2]).await, 1);
    assert_eq!(sky.status(1).await, DroneStatus::Failed);
    assert_eq!(sky.status(2).await, DroneStatus::Reserved);
    assert_eq!(sky.status(3).await, DroneStatus::Idle, "an idle drone may be silent");
    sky.pass(2, &[1, 2]).await;
    assert_eq!(sky.status(1).await, DroneStatus::Idle, "offered again once it reports without a mission");
}

#[tokio::test]
async fn an_outage_of_all_telemetry_fails_nobody() {
    let mut sky = sky().await;
    assert_eq!(sky.pass(10, &[1, 2]).await, 0);
    assert_eq!(sky.pass(600, &[]).await, 0);
    assert_eq!(sky.pass(20, &[2]).await, 0, "the first drone has half a minute of hearing left");
    assert_eq!(sky.pass(14, &[2]).await, 1);
    assert_eq!(sky.status(1).await, DroneStatus::Failed);
}

#[tokio::test]
async fn after_a_restart_silence_counts_from_the_start() {
    let mut sky = sky().await;
    assert_eq!(sky.pass(20, &[2]).await, 0);
    sky.clock.advance(Duration::from_secs(300));
    sky.hearing = Hearing::starting(sky.clock.now());
    assert_eq!(sky.pass(28, &[2]).await, 0);
    assert_eq!(sky.pass(6, &[2]).await, 1);
}
