//! Cancelling and failing drones: an intent is noted, the flight is closed, then the decision is committed.

use contracts::{
    Stage,
    commands::{OpenOutcome, Refusal, ReserveOutcome},
    events::DeliveryEventKind,
};

use super::{
    FLIGHT, answer, asked, at, closed, flown, opened, progress, registered, requested, reserved, scheduled, too_late,
};
use crate::domain::{Action, CloseReason, Delivery, Next, Outcome, Part};

const CANCEL: Action = Action::CloseFlight { before: Stage::HeadedToDropoff, reason: CloseReason::Cancel };
const REPLACE: Action = Action::CloseFlight { before: Stage::HeadedToDropoff, reason: CloseReason::DroneFailed };
const FAIL: Action = Action::CloseFlight { before: Stage::Completed, reason: CloseReason::DroneFailed };

#[test]
fn before_the_pickup_a_cancel_closes_the_flight_and_then_ends() {
    for (mut delivery, flight) in [
        (requested(), None),
        (scheduled(), Some(progress(1, &[]))),
        (flown(&FLIGHT[..1]), Some(progress(1, &FLIGHT[..1]))),
    ] {
        assert!(delivery.want_cancel(at(5)));
        assert_eq!(asked(&delivery, at(5)), Some(CANCEL));
        let changes = answer(&mut delivery, &closed(flight), at(6));
        assert_eq!(delivery.record.stage, Stage::Cancelled);
        assert_eq!(changes.events, [DeliveryEventKind::DeliveryCancelled]);
        assert_eq!(delivery.next(at(7)), Next::Over);
    }
}

#[test]
fn a_cancel_takes_up_what_the_drone_did_meanwhile() {
    let mut delivery = scheduled();
    assert!(delivery.want_cancel(at(5)));
    answer(&mut delivery, &closed(Some(progress(1, &FLIGHT[..1]))), at(6));
    let stages: Vec<Stage> = delivery.record.stages.iter().map(|entry| entry.stage).collect();
    assert_eq!(stages, [Stage::Requested, Stage::Scheduled, Stage::HeadedToPickup, Stage::Cancelled]);
}

#[test]
fn after_the_pickup_a_cancel_is_refused() {
    for mut delivery in [flown(&FLIGHT[..2]), flown(&FLIGHT)] {
        let before = delivery.clone();
        assert!(!delivery.want_cancel(at(5)));
        assert_eq!(delivery, before);
    }
}

#[test]
fn a_cancel_that_the_pickup_outran_is_dropped() {
    let mut delivery = scheduled();
    assert!(delivery.want_cancel(at(5)));
    answer(&mut delivery, &too_late(progress(1, &FLIGHT[..2])), at(6));
    assert_eq!((delivery.record.stage, delivery.intents.cancel), (Stage::HeadedToDropoff, None));
    assert!(matches!(delivery.next(at(6)), Next::Wait(_)));
}

#[test]
fn a_cancel_does_not_wait_for_a_retry() {
    let mut delivery = requested();
    answer(&mut delivery, &Outcome::Package(contracts::commands::PackageOutcome::Unavailable), at(1));
    assert!(matches!(delivery.next(at(1)), Next::Wait(_)));
    assert!(delivery.want_cancel(at(1)));
    assert_eq!(asked(&delivery, at(1)), Some(CANCEL));
}

#[test]
fn a_repeated_cancel_keeps_the_time_of_the_first() {
    let mut delivery = scheduled();
    assert!(delivery.want_cancel(at(5)));
    assert!(delivery.want_cancel(at(8)));
    assert_eq!(delivery.intents.cancel, Some(at(5)));
}

#[test]
fn a_drone_that_fails_before_the_pickup_is_replaced() {
    for stages in [&FLIGHT[..0], &FLIGHT[..1]] {
        let mut delivery = flown(stages);
        assert!(delivery.drone_failed(1, "silent"));
        assert_eq!(asked(&delivery, at(5)), Some(REPLACE));
        answer(&mut delivery, &closed(Some(progress(1, stages))), at(6));
        assert_eq!((delivery.record.stage, delivery.record.attempt), (Stage::Scheduled, 2));
        assert_eq!((&delivery.record.drone, delivery.intents.drone_failed.is_some()), (&None, false));
        assert_eq!(asked(&delivery, at(6)), Some(Action::ReserveDrone), "the package stays registered");
        answer(&mut delivery, &reserved(2), at(7));
        let changes = answer(&mut delivery, &opened(), at(8));
        assert_eq!(changes.events, [DeliveryEventKind::DeliveryScheduled]);
        assert_eq!(changes.stages, [], "it was scheduled already");
    }
}

#[test]
fn a_drone_that_fails_before_its_flight_was_scheduled_leaves_it_requested() {
    let mut delivery = requested();
    answer(&mut delivery, &registered(), at(1));
    answer(&mut delivery, &reserved(1), at(1));
    assert!(delivery.drone_failed(1, "silent"));
    answer(&mut delivery, &closed(None), at(2));
    assert_eq!((delivery.record.stage, delivery.record.attempt), (Stage::Requested, 2));
    assert_eq!(asked(&delivery, at(2)), Some(Action::ReserveDrone));
}

#[test]
fn a_drone_that_fails_with_the_package_fails_the_delivery() {
    let mut delivery = flown(&FLIGHT[..2]);
    assert!(delivery.drone_failed(1, "silent"));
    assert_eq!(asked(&delivery, at(5)), Some(FAIL));
    answer(&mut delivery, &closed(Some(progress(1, &FLIGHT[..2]))), at(6));
    assert_eq!(delivery.record.stage, Stage::Failed);
    assert_eq!(delivery.record.end_reason.as_deref(), Some("the drone failed with the package: silent"));
}

#[test]
fn a_drone_that_fails_after_a_pickup_nobody_heard_of_fails_the_delivery() {
    let mut delivery = scheduled();
    assert!(delivery.drone_failed(1, "silent"));
    answer(&mut delivery, &too_late(progress(1, &FLIGHT[..2])), at(5));
    assert_eq!(asked(&delivery, at(5)), Some(FAIL));
    answer(&mut delivery, &closed(Some(progress(1, &FLIGHT[..2]))), at(6));
    assert_eq!(delivery.record.stage, Stage::Failed);
}

#[test]
fn a_drone_that_fails_after_the_drop_off_has_delivered() {
    let mut delivery = flown(&FLIGHT[..2]);
    assert!(delivery.drone_failed(1, "silent"));
    answer(&mut delivery, &too_late(progress(1, &FLIGHT)), at(6));
    assert_eq!(delivery.record.stage, Stage::Completed);
}

#[test]
fn the_failure_of_another_attempts_drone_or_of_a_known_one_changes_nothing() {
    let mut replaced = scheduled();
    assert!(replaced.drone_failed(1, "silent"));
    let noted = replaced.clone();
    assert!(!replaced.drone_failed(1, "again"), "known");
    assert_eq!(replaced, noted);
    answer(&mut replaced, &closed(None), at(2));
    for (known, attempt) in [(replaced.clone(), 1), (replaced, 3), (flown(&FLIGHT), 1)] {
        let mut delivery = known.clone();
        assert!(!delivery.drone_failed(attempt, "late"));
        assert_eq!(delivery, known);
    }
}

fn refused_at(steps: &[Outcome], refusal: &Outcome) -> Delivery {
    let mut delivery = requested();
    for outcome in steps {
        answer(&mut delivery, outcome, at(1));
    }
    answer(&mut delivery, refusal, at(2));
    delivery
}

#[test]
fn a_reservation_or_a_flight_that_is_refused_for_good_is_replaced_by_a_new_attempt() {
    for reason in [Refusal::Undone, Refusal::Superseded] {
        let reserve = refused_at(&[registered()], &Outcome::Reserve(ReserveOutcome::Refused { reason }));
        let open = refused_at(&[registered(), reserved(1)], &Outcome::Open(OpenOutcome::Refused { reason }));
        for mut delivery in [reserve, open] {
            assert_eq!(asked(&delivery, at(2)), Some(REPLACE), "{reason:?}");
            answer(&mut delivery, &closed(None), at(3));
            assert_eq!((delivery.record.attempt, delivery.saga.drone), (2, Part::Todo));
        }
    }
}
