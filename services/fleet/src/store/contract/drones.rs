//! What a drone's registration, removal and silence do to it.

use std::time::Duration;

use contracts::{
    commands::{DroneStatus, ReportFault, ReportOutcome},
    events::FleetEventKind,
};

use super::{Subject, hold, latest, times};
use crate::{
    domain::RegistrationRefusal,
    store::{Guard, LatestReport, Reserved},
    tests::make,
};

pub(super) async fn retired_drones_are_gone_until_registered_again(fleet: Subject) {
    fleet.with_drones(1..=2).await;
    fleet.reserve(&make::reserve(make::delivery(1), 1), Some(1)).await;
    for number in [1, 1, 2] {
        let drone = fleet.remove(number, DroneStatus::Retired, Guard::Always).await.unwrap();
        assert_eq!(drone.status, DroneStatus::Retired);
    }
    assert_eq!(fleet.said().await, times(&[(FleetEventKind::DroneReserved, 1), (FleetEventKind::DroneFailed, 1)]));
    let unknown = ReportOutcome::Rejected { reason: ReportFault::UnknownDrone };
    assert_eq!(fleet.report(latest(1, 5)).await, unknown);
    assert_eq!(fleet.reserve(&make::reserve(make::delivery(2), 1), Some(1)).await, Reserved::Lost);
    let failed = fleet.remove(1, DroneStatus::Failed, Guard::Always).await.unwrap();
    assert_eq!(failed.status, DroneStatus::Retired, "what is retired cannot fail");
    fleet.with_drones(1..=1).await;
    assert_eq!(fleet.drone(1).await.status, DroneStatus::Idle);
    assert_eq!(fleet.report(latest(1, 5)).await, ReportOutcome::Accepted);
}

pub(super) async fn only_the_base_that_a_drone_is_of_now_retires_it(fleet: Subject) {
    fleet.with_drones(1..=1).await;
    let based_at = |base: &str| Guard::BasedAt(base.parse().unwrap());
    let mut away = make::registration(1, "south");
    away.may_move = true;
    fleet.store.store.register(&[away]).await.unwrap().outcomes.remove(0).unwrap();
    let kept = fleet.remove(1, DroneStatus::Retired, based_at("north")).await.unwrap();
    assert_eq!((kept.status, kept.base_id.as_str()), (DroneStatus::Idle, "south"), "it was moved a moment before");
    assert_eq!(fleet.drone(1).await.status, DroneStatus::Idle);
    let gone = fleet.remove(1, DroneStatus::Retired, based_at("south")).await.unwrap();
    assert_eq!(gone.status, DroneStatus::Retired);
}

pub(super) async fn only_the_base_that_a_drone_is_of_now_reports_for_it(fleet: Subject) {
    fleet.with_drones(1..=2).await;
    let mut away = make::registration(1, "south");
    away.may_move = true;
    fleet.store.store.register(&[away]).await.unwrap().outcomes.remove(0).unwrap();
    let before = fleet.drone(1).await;
    let of = |base: &str, report: LatestReport| LatestReport { base: Some(base.parse().unwrap()), ..report };
    let unknown = ReportOutcome::Rejected { reason: ReportFault::UnknownDrone };

    let broken = LatestReport { failed_at: Some(5), announce: true, ..latest(1, 5) };
    let batch = [of("north", broken.clone()), of("north", latest(2, 5))];
    let outcomes = fleet.store.store.report(&batch).await.unwrap().outcomes;
    assert_eq!(outcomes, [unknown, ReportOutcome::Accepted], "it was moved a moment before");
    assert_eq!(fleet.drone(1).await, before);
    assert!(fleet.events().await.is_empty(), "nor has it failed");

    assert_eq!(fleet.report(of("south", broken)).await, ReportOutcome::Accepted);
    assert_eq!(fleet.drone(1).await.status, DroneStatus::Failed);
    assert_eq!(fleet.report(of("north", latest(1, 4))).await, unknown, "how old it is does not concern the north");
    assert_eq!(fleet.report(of("south", latest(1, 4))).await, ReportOutcome::Stale);
    let recovered = |sequence| LatestReport { recovers: true, ..latest(1, sequence) };
    fleet.report(of("north", recovered(6))).await;
    assert_eq!(fleet.drone(1).await.status, DroneStatus::Failed);
    assert_eq!(fleet.report(recovered(6)).await, ReportOutcome::Accepted, "it speaks for itself, wherever it is based");
    assert_eq!(fleet.drone(1).await.status, DroneStatus::Idle);
}

pub(super) async fn a_registration_leaves_a_reserved_drone_its_position(fleet: Subject) {
    fleet.with_drones(1..=1).await;
    fleet.reserve(&make::reserve(make::delivery(1), 1), Some(1)).await;
    fleet.report(latest(1, 5)).await;
    let mut change = make::registration(1, "north");
    change.facts.payload_kg = 9.0;
    let written = fleet.store.store.register(std::slice::from_ref(&change)).await.unwrap();
    let drone = written.outcomes.into_iter().next().unwrap().unwrap();
    assert_eq!((drone.airframe.payload_kg, drone.position, drone.battery), (9.0, make::PICKUP, 0.75));
    assert_eq!(drone.hold, Some(hold(1, 1)));
    let refusal =
        async |registration| fleet.store.store.register(&[registration]).await.unwrap().outcomes.remove(0).unwrap_err();
    change.facts.base_id = "south".parse().unwrap();
    assert_eq!(refusal(change.clone()).await, RegistrationRefusal::Foreign);
    change.may_move = true;
    assert_eq!(refusal(change.clone()).await, RegistrationRefusal::Reserved);
    fleet.release(&make::release(make::delivery(1), 1)).await;
    let moved = fleet.store.store.register(&[change]).await.unwrap().outcomes.remove(0).unwrap();
    assert_eq!((moved.base_id.as_str(), moved.position), ("south", make::HOME));
}

pub(super) async fn only_silent_reserved_drones_are_silent(fleet: Subject) {
    fleet.with_drones(1..=3).await;
    for number in 1..=2 {
        fleet.reserve(&make::reserve(make::delivery(number), 1), Some(number)).await;
    }
    fleet.clock.advance(Duration::from_secs(40));
    fleet.report(latest(2, 1)).await;
    let since = contracts::Clock::now(&*fleet.clock) - chrono::Duration::seconds(30);
    assert_eq!(fleet.store.store.silent(since, 10).await.unwrap(), [make::drone_id(1)]);
    let guard = Guard::SilentSince(since.timestamp_millis());
    for number in 1..=3 {
        fleet.remove(number, DroneStatus::Failed, guard.clone()).await;
    }
    let status = async |number| fleet.drone(number).await.status;
    assert_eq!(status(1).await, DroneStatus::Failed);
    assert_eq!((status(2).await, status(3).await), (DroneStatus::Reserved, DroneStatus::Idle));
}
