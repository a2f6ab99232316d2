//! The deadline, the expiry, and what a flight that cannot be closed any more does to each reason for closing it.

use contracts::{
    Stage,
    commands::{PackageOutcome, Refusal, ReleaseOutcome, ReserveOutcome},
    events::DeliveryEventKind,
};

use super::{FLIGHT, answer, asked, at, closed, flown, progress, registered, requested, reserved, scheduled, too_late};
use crate::domain::{Action, CloseReason, Delivery, EXPIRY, Goal, Next, Outcome, Part};

const UNDO: Action = Action::CloseFlight { before: Stage::HeadedToDropoff, reason: CloseReason::Undo };
const EXPIRE: Action = Action::CloseFlight { before: Stage::Completed, reason: CloseReason::Expire };

/// The deadline of [`requested`], in seconds.
const DEADLINE: i64 = 1_800;

fn waiting() -> Delivery {
    let mut delivery = requested();
    answer(&mut delivery, &registered(), at(1));
    answer(&mut delivery, &Outcome::Reserve(ReserveOutcome::Waiting), at(1));
    delivery
}

/// Undoes every step, last first; what the last undo changed.
fn undo(delivery: &mut Delivery, now: i64) -> Vec<DeliveryEventKind> {
    assert_eq!(asked(delivery, at(now)), Some(UNDO));
    answer(delivery, &closed(None), at(now));
    assert_eq!(asked(delivery, at(now)), Some(Action::ReleaseDrone));
    answer(delivery, &Outcome::Release(ReleaseOutcome::Done), at(now));
    assert_eq!(asked(delivery, at(now)), Some(Action::WithdrawPackage));
    answer(delivery, &Outcome::Package(PackageOutcome::Done), at(now)).events
}

#[test]
fn without_a_drone_until_the_deadline_it_is_undone_backwards_and_rejected() {
    for mut delivery in [requested(), waiting()] {
        assert_ne!(asked(&delivery, at(DEADLINE - 1)), Some(Action::GiveUp));
        assert_eq!(asked(&delivery, at(DEADLINE)), Some(Action::GiveUp));
        answer(&mut delivery, &Outcome::Local, at(DEADLINE));
        assert_eq!(undo(&mut delivery, DEADLINE), [DeliveryEventKind::DeliveryRejected]);
        assert_eq!(delivery.record.stage, Stage::Rejected);
        assert_eq!(delivery.record.end_reason.as_deref(), Some("no drone before the deadline"));
    }
}

#[test]
fn without_another_drone_until_the_deadline_it_fails() {
    let mut delivery = scheduled();
    assert!(delivery.drone_failed(1, "silent"));
    answer(&mut delivery, &closed(None), at(5));
    answer(&mut delivery, &Outcome::Reserve(ReserveOutcome::Waiting), at(5));
    answer(&mut delivery, &Outcome::Local, at(DEADLINE));
    assert_eq!(undo(&mut delivery, DEADLINE), [DeliveryEventKind::DeliveryFailed]);
    assert_eq!(delivery.record.stage, Stage::Failed);
}

#[test]
fn a_retry_or_the_waiting_line_does_not_hold_up_the_deadline() {
    let mut delivery = waiting();
    delivery.saga.not_before = Some(at(DEADLINE + 60));
    assert_eq!(delivery.next(at(DEADLINE - 1)), Next::Wait(at(DEADLINE)));
    assert_eq!(asked(&delivery, at(DEADLINE)), Some(Action::GiveUp));
}

#[test]
fn a_cancel_while_giving_up_ends_as_cancelled() {
    let mut delivery = waiting();
    answer(&mut delivery, &Outcome::Local, at(DEADLINE));
    assert!(delivery.want_cancel(at(DEADLINE)));
    assert_eq!(undo(&mut delivery, DEADLINE), [DeliveryEventKind::DeliveryCancelled]);
}

#[test]
fn an_unanswered_undo_is_asked_again_without_end() {
    let mut delivery = waiting();
    answer(&mut delivery, &Outcome::Local, at(DEADLINE));
    let mut now = at(DEADLINE);
    for _ in 0..100 {
        assert_eq!(asked(&delivery, now), Some(UNDO));
        answer(&mut delivery, &Outcome::Close(contracts::commands::CloseOutcome::Unavailable), now);
        let Next::Wait(until) = delivery.next(now) else { panic!("asks again at once") };
        assert!(until > now && until - now <= crate::domain::LONGEST_RETRY);
        now = until;
    }
}

#[test]
fn a_flight_that_turns_out_to_be_picked_up_is_not_undone() {
    let mut delivery = requested();
    answer(&mut delivery, &registered(), at(1));
    answer(&mut delivery, &reserved(1), at(1));
    answer(&mut delivery, &Outcome::Local, at(DEADLINE));
    assert!(matches!(delivery.saga.goal, Goal::GiveUp { .. }));
    answer(&mut delivery, &too_late(progress(1, &FLIGHT[..2])), at(DEADLINE));
    assert_eq!((delivery.record.stage, &delivery.saga.goal), (Stage::HeadedToDropoff, &Goal::Schedule));
    assert_eq!(delivery.saga.flight, Part::Done);
    assert_eq!(delivery.next(at(DEADLINE)), Next::Wait(at(DEADLINE) + EXPIRY));
}

#[test]
fn a_flight_expires_ten_minutes_past_the_deadline() {
    for (stages, before) in [(0, Stage::Scheduled), (1, Stage::HeadedToPickup), (2, Stage::HeadedToDropoff)] {
        let mut delivery = flown(&FLIGHT[..stages]);
        assert_eq!(delivery.record.stage, before);
        assert_eq!(delivery.next(at(DEADLINE)), Next::Wait(at(DEADLINE + 600)));
        assert_eq!(asked(&delivery, at(DEADLINE + 600)), Some(EXPIRE));
        answer(&mut delivery, &closed(Some(progress(1, &FLIGHT[..stages]))), at(DEADLINE + 600));
        assert_eq!(delivery.record.stage, Stage::Failed);
    }
}

#[test]
fn a_flight_that_dropped_off_in_time_completes_instead_of_expiring() {
    let mut delivery = scheduled();
    assert_eq!(asked(&delivery, at(DEADLINE + 600)), Some(EXPIRE));
    answer(&mut delivery, &too_late(progress(1, &FLIGHT)), at(DEADLINE + 600));
    assert_eq!(delivery.record.stage, Stage::Completed);
}

#[test]
fn an_expiry_that_tracking_does_not_answer_is_retried_with_pauses() {
    let mut delivery = scheduled();
    let now = at(DEADLINE + 700);
    answer(&mut delivery, &Outcome::Close(contracts::commands::CloseOutcome::Unavailable), now);
    let Next::Wait(until) = delivery.next(now) else { panic!("asks again at once") };
    assert!(until > now, "a timer that has passed makes it no earlier");
    assert_eq!(asked(&delivery, until), Some(EXPIRE));
}

#[test]
fn a_cancel_that_tracking_does_not_answer_is_retried_with_pauses_even_past_the_deadline() {
    let mut delivery = waiting();
    assert!(delivery.want_cancel(at(DEADLINE + 1)));
    let now = at(DEADLINE + 1);
    answer(&mut delivery, &Outcome::Local, now);
    answer(&mut delivery, &Outcome::Close(contracts::commands::CloseOutcome::Unavailable), now);
    let Next::Wait(until) = delivery.next(now) else { panic!("asks again at once") };
    assert!(until > now);
}

#[test]
fn too_late_without_anything_new_is_not_asked_again_at_once() {
    let mut failing = scheduled();
    assert!(failing.drone_failed(1, "silent"));
    for (mut delivery, now) in [(failing, at(5)), (scheduled(), at(DEADLINE + 600))] {
        answer(&mut delivery, &too_late(progress(1, &[Stage::HeadedToDropoff])), now);
        assert!(matches!(delivery.next(now), Next::Wait(until) if until > now));
    }
}

#[test]
fn a_flight_closed_after_the_pickup_by_a_lost_decision_is_not_cancelled_but_fails() {
    // The expiry closed the flight at HeadedToDropoff; the process was killed before the commit; a cancel came.
    let mut delivery = flown(&FLIGHT[..1]);
    assert!(delivery.want_cancel(at(DEADLINE + 600)));
    answer(&mut delivery, &closed(Some(progress(1, &FLIGHT[..2]))), at(DEADLINE + 600));
    assert_eq!((delivery.record.stage, delivery.intents.cancel), (Stage::HeadedToDropoff, None));
    assert_eq!(asked(&delivery, at(DEADLINE + 600)), Some(EXPIRE));
    answer(&mut delivery, &closed(Some(progress(1, &FLIGHT[..2]))), at(DEADLINE + 601));
    assert_eq!(delivery.record.stage, Stage::Failed);
}

#[test]
fn a_package_that_was_withdrawn_gives_the_delivery_up() {
    for reason in [Refusal::Undone, Refusal::Superseded] {
        let mut delivery = requested();
        answer(&mut delivery, &Outcome::Package(PackageOutcome::Refused { reason }), at(1));
        assert_eq!(undo(&mut delivery, 1), [DeliveryEventKind::DeliveryRejected]);
        assert_eq!(delivery.record.end_reason.as_deref(), Some("the package was withdrawn"));
    }
}
