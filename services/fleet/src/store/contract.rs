//! The suite that every store of fleet passes: each test gets an empty store and the clock that it goes by.

mod drones;
mod replicas;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use contracts::{
    DeliveryId, DroneId,
    commands::{
        DroneStatus, Refusal, ReleaseDrone, ReleaseOutcome, ReportFault, ReportOutcome, ReserveDrone, ReserveOutcome,
    },
    events::{FleetEvent, FleetEventKind},
};
use testkit::ManualClock;

use super::{Grant, Guard, LatestReport, Opened, Pick, Place, Proposal, Removal, Reserved};
use crate::{
    domain::{Drone, Ending, Hold},
    tests::make,
};

/// The suite as tests of one engine; `$open` makes a [`Subject`], or none where the engine is not there.
macro_rules! suite {
    ($open:path) => {
        suite! { $open;
            each_step_repeated_answers_the_same: common,
            a_taken_drone_is_lost_and_nothing_is_written: common,
            one_drone_in_a_batch_goes_to_one: common,
            an_undo_before_its_do_leaves_a_tombstone: common,
            every_refusal_of_a_reserve: common,
            a_later_attempt_releases_the_earlier: common,
            the_highest_fence_counts: common,
            a_release_frees_the_drone_where_it_is: common,
            a_bad_command_does_not_hurt_its_neighbours: common,
            the_line_is_in_order_and_grants_once: common,
            entries_leave_the_line_at_their_deadline: common,
            an_end_releases_all_attempts_up_to_it: common,
            reports_are_stored_once_and_never_backwards: common,
            a_broken_drone_fails_its_reservation_and_recovers: common,
            retired_drones_are_gone_until_registered_again: drones,
            only_the_base_that_a_drone_is_of_now_retires_it: drones,
            only_the_base_that_a_drone_is_of_now_reports_for_it: drones,
            a_registration_leaves_a_reserved_drone_its_position: drones,
            only_silent_reserved_drones_are_silent: drones,
            changes_are_told_apart_from_touches: common,
            pages_are_in_order_and_by_base: common,
            ended_reservations_are_forgotten_in_batches: common,
            two_instances_never_reserve_one_drone_twice: replicas,
            the_audit_reads_what_is_open: replicas,
            an_undo_that_comes_twice_in_a_batch_keeps_the_highest_fence: replicas,
        }
    };
    ($open:path; $($test:ident: $place:ident),+ $(,)?) => { $(
        #[tokio::test]
        async fn $test() {
            if let Some(subject) = $open().await {
                suite!(@call $place $test)(subject).await;
            }
        }
    )+ };
    (@call drones $test:ident) => { super::drones::$test };
    (@call replicas $test:ident) => { super::replicas::$test };
    (@call common $test:ident) => { super::$test };
}

mod on_sqlite {
    use super::*;

    async fn open() -> Option<Subject> {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::starting_now());
        let url = format!("sqlite:{}", folder.path().join("fleet.db").display());
        let store = super::super::open(&url, clock.clone()).await.unwrap();
        Some(Subject { store, clock, url, _folder: Some(folder) })
    }

    suite!(open);
}

mod on_postgres {
    use super::*;

    async fn open() -> Option<Subject> {
        let url = testkit::real::postgres().await?;
        let clock = Arc::new(ManualClock::starting_now());
        let store = super::super::open(&url, clock.clone()).await.unwrap();
        Some(Subject { store, clock, url, _folder: None })
    }

    suite!(open);
}

struct Subject {
    store: Opened,
    clock: Arc<ManualClock>,
    url: String,
    _folder: Option<tempfile::TempDir>,
}

impl Subject {
    async fn with_drones(&self, numbers: std::ops::RangeInclusive<u128>) {
        let batch: Vec<_> = numbers.map(|number| make::registration(number, "north")).collect();
        for outcome in self.store.store.register(&batch).await.unwrap().outcomes {
            outcome.unwrap();
        }
    }

    async fn reserve(&self, command: &ReserveDrone, drone: Option<u128>) -> Reserved {
        let pick = drone.map(pick);
        self.store.store.reserve(&[Proposal { command, pick }]).await.unwrap().outcomes.remove(0)
    }

    async fn release(&self, command: &ReleaseDrone) -> ReleaseOutcome {
        self.store.store.release(std::slice::from_ref(command)).await.unwrap().outcomes.remove(0)
    }

    async fn drone(&self, number: u128) -> Drone {
        self.store.store.drones(&[make::drone_id(number)]).await.unwrap().remove(0)
    }

    async fn report(&self, report: LatestReport) -> ReportOutcome {
        self.store.store.report(&[report]).await.unwrap().outcomes.remove(0)
    }

    async fn remove(&self, number: u128, to: DroneStatus, guard: Guard) -> Option<Drone> {
        let removal = Removal { drone_id: make::drone_id(number), to, reason: "test".to_owned(), guard };
        self.store.store.remove(&[removal]).await.unwrap().outcomes.remove(0)
    }

    async fn line(&self) -> Vec<DeliveryId> {
        self.store.store.line(None, 100).await.unwrap().into_iter().map(|entry| entry.hold.delivery_id).collect()
    }

    /// Everything that was said so far.
    async fn events(&self) -> Vec<FleetEvent> {
        let rows = testkit::outbox::pending(&*self.store.outbox).await;
        rows.iter().map(|row| FleetEvent::decode(&row.event).unwrap().unwrap()).collect()
    }

    /// How often each kind of event was said.
    async fn said(&self) -> BTreeMap<String, usize> {
        let mut said = BTreeMap::new();
        for event in self.events().await {
            *said.entry(format!("{:?}", event.kind)).or_default() += 1;
        }
        said
    }
}

fn pick(number: u128) -> Pick {
    Pick { drone_id: make::drone_id(number), needed_battery: 0.5 }
}

fn hold(number: u128, attempt: u32) -> Hold {
    Hold { delivery_id: make::delivery(number), attempt }
}

fn reserved_drone(outcome: &Reserved) -> Option<DroneId> {
    match outcome {
        Reserved::Outcome(ReserveOutcome::Reserved { drone }) => Some(drone.drone_id),
        _ => None,
    }
}

fn refused(reason: Refusal) -> Reserved {
    Reserved::Outcome(ReserveOutcome::Refused { reason })
}

fn latest(number: u128, sequence: u64) -> LatestReport {
    LatestReport {
        drone_id: make::drone_id(number),
        base: None,
        position: make::PICKUP,
        battery: 0.75,
        sequence,
        failed_at: None,
        recovers: false,
        announce: false,
    }
}

const WAITING: Reserved = Reserved::Outcome(ReserveOutcome::Waiting);

fn times(kinds: &[(FleetEventKind, usize)]) -> BTreeMap<String, usize> {
    kinds.iter().map(|(kind, count)| (format!("{kind:?}"), *count)).collect()
}

async fn each_step_repeated_answers_the_same(fleet: Subject) {
    fleet.with_drones(1..=2).await;
    let command = make::reserve(make::delivery(1), 1);
    let first = fleet.reserve(&command, Some(1)).await;
    assert_eq!(reserved_drone(&first), Some(make::drone_id(1)));
    assert_eq!(fleet.reserve(&command, Some(2)).await, first, "the same drone, whatever is proposed now");
    assert_eq!(fleet.reserve(&command, None).await, first);
    let waiting = make::reserve(make::delivery(2), 1);
    assert_eq!(fleet.reserve(&waiting, None).await, WAITING);
    assert_eq!(fleet.reserve(&waiting, Some(2)).await, WAITING);
    for _ in 0..2 {
        assert_eq!(fleet.release(&make::release(make::delivery(1), 1)).await, ReleaseOutcome::Done);
        assert_eq!(fleet.release(&make::release(make::delivery(2), 1)).await, ReleaseOutcome::Done);
    }
    assert_eq!(fleet.reserve(&command, Some(1)).await, refused(Refusal::Undone));
    assert_eq!(fleet.reserve(&waiting, Some(1)).await, refused(Refusal::Undone));
    assert_eq!(fleet.said().await, times(&[(FleetEventKind::DroneReserved, 1), (FleetEventKind::DroneReleased, 1)]));
    let event = &fleet.events().await[0];
    assert_eq!(event.data.delivery_id, Some(make::delivery(1)));
    assert_eq!(event.data.attempt, Some(1));
    assert_eq!(event.data.customer_id, Some(command.customer_id));
    assert_eq!(event.data.drone.drone_id, make::drone_id(1));
}

async fn a_taken_drone_is_lost_and_nothing_is_written(fleet: Subject) {
    fleet.with_drones(1..=1).await;
    fleet.reserve(&make::reserve(make::delivery(1), 1), Some(1)).await;
    let command = make::reserve(make::delivery(2), 1);
    let proposal = Proposal { command: &command, pick: Some(pick(1)) };
    let written = fleet.store.store.reserve(&[proposal]).await.unwrap();
    assert_eq!(written.outcomes, [Reserved::Lost]);
    assert_eq!(written.drones.len(), 1, "the lost drone's row comes back");
    assert_eq!(written.drones[0].hold, Some(hold(1, 1)));
    assert!(fleet.line().await.is_empty());
    // One that is idle but too empty is lost just so.
    fleet.with_drones(2..=2).await;
    fleet.report(LatestReport { battery: 0.4, ..latest(2, 1) }).await;
    assert_eq!(fleet.reserve(&command, Some(2)).await, Reserved::Lost);
    assert_eq!(fleet.drone(2).await.status, DroneStatus::Idle);
}

async fn one_drone_in_a_batch_goes_to_one(fleet: Subject) {
    fleet.with_drones(1..=1).await;
    let commands: Vec<_> = (1..=3).map(|number| make::reserve(make::delivery(number), 1)).collect();
    let batch: Vec<_> = commands.iter().map(|command| Proposal { command, pick: Some(pick(1)) }).collect();
    let outcomes = fleet.store.store.reserve(&batch).await.unwrap().outcomes;
    assert_eq!(outcomes.iter().filter(|outcome| reserved_drone(outcome).is_some()).count(), 1);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Reserved::Lost).count(), 2);
    assert_eq!(fleet.said().await, times(&[(FleetEventKind::DroneReserved, 1)]));
}

async fn an_undo_before_its_do_leaves_a_tombstone(fleet: Subject) {
    fleet.with_drones(1..=1).await;
    assert_eq!(fleet.release(&make::release(make::delivery(1), 1)).await, ReleaseOutcome::Done);
    let late = fleet.reserve(&make::reserve(make::delivery(1), 1), Some(1)).await;
    assert_eq!(late, refused(Refusal::Undone));
    assert_eq!(fleet.drone(1).await.status, DroneStatus::Idle);
    let next = fleet.reserve(&make::reserve(make::delivery(1), 2), Some(1)).await;
    assert_eq!(reserved_drone(&next), Some(make::drone_id(1)));
    assert_eq!(fleet.said().await, times(&[(FleetEventKind::DroneReserved, 1)]));
}

async fn every_refusal_of_a_reserve(fleet: Subject) {
    fleet.with_drones(1..=3).await;
    let mut command = make::reserve(make::delivery(1), 2);
    command.fence = 5;
    fleet.reserve(&command, Some(1)).await;
    let stale = ReserveDrone { fence: 4, ..command.clone() };
    assert_eq!(fleet.reserve(&stale, Some(2)).await, refused(Refusal::StaleFence));
    let earlier = ReserveDrone { attempt: 1, ..command.clone() };
    assert_eq!(fleet.reserve(&earlier, Some(2)).await, refused(Refusal::Superseded));
    let mut late = make::reserve(make::delivery(2), 1);
    fleet.clock.advance(Duration::from_secs(7_200));
    assert_eq!(fleet.reserve(&late, Some(2)).await, refused(Refusal::StepExpired));
    assert_eq!(reserved_drone(&fleet.reserve(&command, None).await), Some(make::drone_id(1)), "done stays done");
    late.step_deadline += chrono::Duration::hours(3);
    assert!(reserved_drone(&fleet.reserve(&late, Some(2)).await).is_some(), "the refusal has left nothing behind");
    fleet.remove(2, DroneStatus::Failed, Guard::Always).await;
    assert_eq!(fleet.reserve(&late, Some(3)).await, refused(Refusal::Undone), "a failed attempt is over");
}

async fn a_later_attempt_releases_the_earlier(fleet: Subject) {
    fleet.with_drones(1..=2).await;
    fleet.reserve(&make::reserve(make::delivery(1), 1), Some(1)).await;
    let second = fleet.reserve(&make::reserve(make::delivery(1), 2), Some(2)).await;
    assert_eq!(reserved_drone(&second), Some(make::drone_id(2)));
    assert_eq!(fleet.drone(1).await.hold, None);
    let third = fleet.reserve(&make::reserve(make::delivery(1), 3), None).await;
    assert_eq!(third, WAITING);
    assert_eq!(fleet.drone(2).await.status, DroneStatus::Idle);
    assert_eq!(fleet.said().await, times(&[(FleetEventKind::DroneReserved, 2), (FleetEventKind::DroneReleased, 2)]));
    assert_eq!(fleet.reserve(&make::reserve(make::delivery(1), 2), Some(2)).await, refused(Refusal::Superseded));
}

async fn the_highest_fence_counts(fleet: Subject) {
    fleet.with_drones(1..=1).await;
    let mut command = make::reserve(make::delivery(1), 1);
    command.fence = 3;
    fleet.reserve(&command, Some(1)).await;
    command.fence = 7;
    assert!(reserved_drone(&fleet.reserve(&command, None).await).is_some(), "a new holder asks again");
    let mut release = make::release(make::delivery(1), 1);
    release.fence = 6;
    let stale = ReleaseOutcome::Refused { reason: Refusal::StaleFence };
    assert_eq!(fleet.release(&release).await, stale);
    assert_eq!(fleet.drone(1).await.status, DroneStatus::Reserved);
    release.fence = 9;
    assert_eq!(fleet.release(&release).await, ReleaseOutcome::Done);
    release.fence = 8;
    assert_eq!(fleet.release(&release).await, stale, "a release is heard with its fence, too");
    command.attempt = 2;
    command.fence = 8;
    assert_eq!(fleet.reserve(&command, Some(1)).await, refused(Refusal::StaleFence));
}

async fn a_release_frees_the_drone_where_it_is(fleet: Subject) {
    fleet.with_drones(1..=1).await;
    fleet.reserve(&make::reserve(make::delivery(1), 1), Some(1)).await;
    assert_eq!(fleet.report(latest(1, 5)).await, ReportOutcome::Accepted);
    assert_eq!(fleet.drone(1).await.hold, Some(hold(1, 1)), "a report without mission does not free it");
    let written = fleet.store.store.release(&[make::release(make::delivery(1), 1)]).await.unwrap();
    let drone = fleet.drone(1).await;
    assert_eq!(written.drones, std::slice::from_ref(&drone));
    assert_eq!((drone.status, drone.position, drone.hold), (DroneStatus::Idle, make::PICKUP, None));
    let released = fleet.events().await.pop().unwrap();
    assert_eq!(released.kind, FleetEventKind::DroneReleased);
    assert_eq!(released.data.reason.as_deref(), Some("cancelled"));
    assert_eq!(released.data.delivery_id, Some(make::delivery(1)));
}

async fn a_bad_command_does_not_hurt_its_neighbours(fleet: Subject) {
    fleet.with_drones(1..=2).await;
    fleet.release(&make::release(make::delivery(2), 1)).await;
    let commands: Vec<_> = (1..=4).map(|number| make::reserve(make::delivery(number), 1)).collect();
    let picks = [Some(pick(1)), Some(pick(2)), Some(pick(1)), None];
    let batch: Vec<_> = commands.iter().zip(picks).map(|(command, pick)| Proposal { command, pick }).collect();
    let outcomes = fleet.store.store.reserve(&batch).await.unwrap().outcomes;
    assert_eq!(outcomes[1], refused(Refusal::Undone));
    assert_eq!([&outcomes[0], &outcomes[2]].iter().filter(|outcome| reserved_drone(outcome).is_some()).count(), 1);
    assert_eq!(outcomes[3], WAITING);
    assert_eq!(fleet.drone(2).await.status, DroneStatus::Idle);
}

async fn the_line_is_in_order_and_grants_once(fleet: Subject) {
    fleet.with_drones(1..=2).await;
    for (number, minutes, expedited) in [(1, 3, false), (2, 1, false), (3, 2, true), (4, 1, false)] {
        let mut command = make::reserve(make::delivery(number), 1);
        command.requested_at = make::now() - chrono::Duration::minutes(10 - minutes);
        command.expedited = expedited;
        assert_eq!(fleet.reserve(&command, None).await, WAITING);
    }
    let line = fleet.line().await;
    assert_eq!((line[0], line[3]), (make::delivery(3), make::delivery(1)));
    let first = fleet.store.store.line(None, 2).await.unwrap();
    let rest = fleet.store.store.line(Some(first[1].place), 10).await.unwrap();
    assert_eq!(rest.iter().map(|entry| entry.hold.delivery_id).collect::<Vec<_>>(), line[2..]);
    assert_eq!(first[0].trip, make::trip());
    assert!(first[0].place < Place { priority: 1, ..first[0].place });
    let grants = [Grant { hold: hold(3, 1), pick: pick(1) }, Grant { hold: hold(2, 1), pick: pick(1) }];
    let granted = fleet.store.store.grant(&grants).await.unwrap();
    assert_eq!(granted.outcomes.iter().filter(|granted| **granted).count(), 1, "one drone, one grant");
    let winner = fleet.drone(1).await.hold.unwrap();
    let again = fleet.store.store.grant(&[Grant { hold: winner, pick: pick(2) }]).await.unwrap();
    assert_eq!(again.outcomes, [false], "it does not wait any more");
    let command = make::reserve(winner.delivery_id, 1);
    assert_eq!(reserved_drone(&fleet.reserve(&command, None).await), Some(make::drone_id(1)));
    let event = fleet.events().await.pop().unwrap();
    assert_eq!((event.kind, event.data.delivery_id), (FleetEventKind::DroneReserved, Some(winner.delivery_id)));
    assert_eq!((event.data.attempt, event.data.customer_id), (Some(1), Some(command.customer_id)));
    assert_eq!(fleet.line().await.len(), 3);
}

async fn entries_leave_the_line_at_their_deadline(fleet: Subject) {
    fleet.with_drones(1..=1).await;
    let command = make::reserve(make::delivery(1), 1);
    fleet.reserve(&command, None).await;
    assert_eq!(fleet.store.store.expire().await.unwrap(), 0);
    fleet.clock.advance(Duration::from_secs(3_700));
    assert!(fleet.line().await.is_empty());
    let late = fleet.store.store.grant(&[Grant { hold: hold(1, 1), pick: pick(1) }]).await.unwrap();
    assert_eq!(late.outcomes, [false]);
    assert_eq!(fleet.store.store.expire().await.unwrap(), 1);
    assert_eq!(fleet.store.store.expire().await.unwrap(), 0);
    assert_eq!(fleet.reserve(&command, Some(1)).await, refused(Refusal::Undone));
    assert!(fleet.events().await.is_empty());
}

fn ending(number: u128, up_to: u32, tombstone: bool) -> Ending {
    let delivery_id = make::delivery(number);
    Ending { delivery_id, up_to, tombstone, fence: 0, reason: "over".to_owned() }
}

async fn an_end_releases_all_attempts_up_to_it(fleet: Subject) {
    fleet.with_drones(1..=2).await;
    fleet.reserve(&make::reserve(make::delivery(1), 2), Some(1)).await;
    fleet.store.store.end(&[ending(1, 1, false)]).await.unwrap();
    assert_eq!(fleet.drone(1).await.status, DroneStatus::Reserved, "a later attempt is not concerned");
    let batch = [ending(1, 2, true), ending(1, 2, true), ending(2, 1, true)];
    let written = fleet.store.store.end(&batch).await.unwrap();
    assert_eq!(written.drones.len(), 1);
    assert_eq!(fleet.drone(1).await.status, DroneStatus::Idle);
    fleet.store.store.end(&batch).await.unwrap();
    for (number, attempt) in [(1, 2), (2, 1)] {
        let zombie = fleet.reserve(&make::reserve(make::delivery(number), attempt), Some(2)).await;
        assert_eq!(zombie, refused(Refusal::Undone));
    }
    assert_eq!(fleet.said().await, times(&[(FleetEventKind::DroneReserved, 1), (FleetEventKind::DroneReleased, 1)]));
}

async fn reports_are_stored_once_and_never_backwards(fleet: Subject) {
    fleet.with_drones(1..=2).await;
    let unknown = ReportOutcome::Rejected { reason: ReportFault::UnknownDrone };
    let batch = [latest(1, 5), latest(9, 5), latest(2, 3)];
    let outcomes = fleet.store.store.report(&batch).await.unwrap().outcomes;
    assert_eq!(outcomes, [ReportOutcome::Accepted, unknown, ReportOutcome::Accepted]);
    let batch = [latest(1, 5), LatestReport { battery: 0.1, ..latest(2, 2) }];
    let outcomes = fleet.store.store.report(&batch).await.unwrap().outcomes;
    assert_eq!(outcomes, [ReportOutcome::Stale, ReportOutcome::Stale]);
    let drone = fleet.drone(2).await;
    assert_eq!((drone.battery, drone.position, drone.last_sequence), (0.75, make::PICKUP, 3));
    assert_eq!(fleet.report(LatestReport { battery: 0.1, ..latest(2, 4) }).await, ReportOutcome::Accepted);
    assert_eq!(fleet.drone(2).await.battery, 0.1);
    assert!(fleet.store.store.last_heard().await.unwrap().is_some());
}

async fn a_broken_drone_fails_its_reservation_and_recovers(fleet: Subject) {
    fleet.with_drones(1..=1).await;
    fleet.reserve(&make::reserve(make::delivery(1), 1), Some(1)).await;
    fleet.report(latest(1, 5)).await;
    let broken = |sequence| LatestReport { failed_at: Some(sequence), ..latest(1, sequence) };
    assert_eq!(fleet.report(broken(4)).await, ReportOutcome::Stale);
    assert_eq!(fleet.drone(1).await.status, DroneStatus::Reserved, "an old report fails nothing");
    for sequence in [6, 7] {
        assert_eq!(fleet.report(broken(sequence)).await, ReportOutcome::Accepted);
    }
    assert_eq!(fleet.drone(1).await.status, DroneStatus::Failed);
    let failed = fleet.events().await.pop().unwrap();
    assert_eq!((failed.kind, failed.data.delivery_id), (FleetEventKind::DroneFailed, Some(make::delivery(1))));
    assert_eq!(failed.data.attempt, Some(1));
    fleet.release(&make::release(make::delivery(1), 1)).await;
    assert_eq!(fleet.drone(1).await.status, DroneStatus::Failed, "a release does not repair it");
    fleet.report(LatestReport { recovers: true, ..latest(1, 7) }).await;
    assert_eq!(fleet.drone(1).await.status, DroneStatus::Failed, "nor does an old report");
    fleet.report(LatestReport { recovers: true, ..latest(1, 8) }).await;
    assert_eq!(fleet.drone(1).await.status, DroneStatus::Idle);
    assert_eq!(fleet.said().await, times(&[(FleetEventKind::DroneReserved, 1), (FleetEventKind::DroneFailed, 1)]));
    assert!(fleet.remove(9, DroneStatus::Failed, Guard::Always).await.is_none());
}

async fn changes_are_told_apart_from_touches(fleet: Subject) {
    fleet.with_drones(1..=2).await;
    let changed = async |after| fleet.store.store.changed_since(after).await.unwrap();
    assert_eq!(changed(0).await.len(), 2);
    let last = fleet.store.store.last_change().await.unwrap();
    fleet.report(latest(1, 1)).await;
    assert!(changed(last).await.is_empty(), "a position is no change");
    let (touched, now) = fleet.store.store.touched_since(last).await.unwrap();
    assert_eq!((touched.len(), touched[0].id), (1, make::drone_id(1)));
    assert!(fleet.store.store.touched_since(now).await.unwrap().0.is_empty());
    fleet.report(LatestReport { announce: true, ..latest(2, 1) }).await;
    assert_eq!(changed(last).await[0].id, make::drone_id(2));
    let last = fleet.store.store.last_change().await.unwrap();
    fleet.reserve(&make::reserve(make::delivery(1), 1), Some(1)).await;
    assert_eq!(changed(last).await[0].status, DroneStatus::Reserved);
}

async fn pages_are_in_order_and_by_base(fleet: Subject) {
    fleet.with_drones(1..=3).await;
    fleet.store.store.register(&[make::registration(4, "south")]).await.unwrap();
    fleet.remove(2, DroneStatus::Retired, Guard::Always).await;
    let page = async |base: Option<&str>, after: Option<u128>, limit| {
        let base = base.map(|base| base.parse().unwrap());
        let drones = fleet.store.store.page(base.as_ref(), after.map(make::drone_id), limit).await.unwrap();
        drones.into_iter().map(|drone| drone.id).collect::<Vec<_>>()
    };
    assert_eq!(page(None, None, 2).await, [1, 3].map(make::drone_id));
    assert_eq!(page(None, Some(3), 2).await, [make::drone_id(4)]);
    assert_eq!(page(Some("north"), None, usize::MAX).await, [1, 3].map(make::drone_id));
    assert_eq!(page(Some("south"), Some(4), 2).await, []);
}

async fn ended_reservations_are_forgotten_in_batches(fleet: Subject) {
    fleet.with_drones(1..=1).await;
    for number in 1..=3 {
        fleet.release(&make::release(make::delivery(number), 1)).await;
    }
    fleet.reserve(&make::reserve(make::delivery(4), 1), Some(1)).await;
    let forget = async |hours, limit| {
        let before = make::now() + chrono::Duration::hours(hours);
        fleet.store.store.forget(before, limit).await.unwrap()
    };
    assert_eq!(forget(-1, 10).await, 0);
    assert_eq!(forget(1, 2).await, 2);
    assert_eq!(forget(1, 2).await, 1);
    assert_eq!(forget(1, 2).await, 0, "what is reserved stays");
    let free = fleet.reserve(&make::reserve(make::delivery(1), 1), None).await;
    assert_eq!(free, WAITING, "a day later a tombstone may have expired");
}
