//! Answers that decide nothing: the same step is asked again, after a pause.

use contracts::{
    Stage,
    commands::{CloseOutcome, OpenOutcome, PackageOutcome, Refusal, ReleaseOutcome, ReserveOutcome},
};

use super::{FLIGHT, answer, asked, at, closed, opened, progress, registered, requested, reserved};
use crate::domain::{
    Action, Delivery, FIRST_REPLACEMENT_PAUSE, FIRST_RETRY, LONGEST_REPLACEMENT_PAUSE, LONGEST_RETRY, MAX_ATTEMPTS,
    Next, Outcome,
};

/// Each step that asks somebody, as a delivery that is about to take it, with the answers of one kind.
fn steps(package: &PackageOutcome, refusal: Option<Refusal>) -> Vec<(Delivery, Outcome)> {
    let (mut reserving, mut undoing) = (requested(), requested());
    answer(&mut reserving, &registered(), at(1));
    let mut opening = reserving.clone();
    answer(&mut opening, &reserved(1), at(1));
    undoing.apply(Action::GiveUp, &Outcome::Local, at(1)).unwrap();
    let mut releasing = undoing.clone();
    answer(&mut releasing, &super::closed(None), at(1));
    let mut withdrawing = releasing.clone();
    answer(&mut withdrawing, &Outcome::Release(ReleaseOutcome::Done), at(1));
    let reserve = refusal.map_or(ReserveOutcome::Unavailable, |reason| ReserveOutcome::Refused { reason });
    let open = refusal.map_or(OpenOutcome::Unavailable, |reason| OpenOutcome::Refused { reason });
    let close = refusal.map_or(CloseOutcome::Unavailable, |reason| CloseOutcome::Refused { reason });
    let release = refusal.map_or(ReleaseOutcome::Unavailable, |reason| ReleaseOutcome::Refused { reason });
    vec![
        (requested(), Outcome::Package(package.clone())),
        (reserving, Outcome::Reserve(reserve)),
        (opening, Outcome::Open(open)),
        (undoing, Outcome::Close(close)),
        (releasing, Outcome::Release(release)),
        (withdrawing, Outcome::Package(package.clone())),
    ]
}

#[test]
fn silence_repeats_the_step_after_a_pause_that_doubles_to_a_bound() {
    for (mut delivery, silence) in steps(&PackageOutcome::Unavailable, None) {
        let step = asked(&delivery, at(2));
        let (mut now, mut pause) = (at(2), FIRST_RETRY);
        for tries in 0..12 {
            let changes = answer(&mut delivery, &silence, now);
            assert_eq!(changes.steps.len(), usize::from(tries == 0), "the log has it once");
            assert_eq!((changes.stages.len(), changes.events.len()), (0, 0));
            assert_eq!(delivery.next(now), Next::Wait(now + pause), "{step:?}");
            now += pause;
            assert_eq!(asked(&delivery, now), step);
            pause = (pause * 2).min(LONGEST_RETRY);
        }
    }
}

#[test]
fn a_step_that_came_too_late_is_asked_again_with_a_new_deadline() {
    let reason = Refusal::StepExpired;
    for (mut delivery, refusal) in steps(&PackageOutcome::Refused { reason }, Some(reason)) {
        let step = asked(&delivery, at(2));
        answer(&mut delivery, &refusal, at(2));
        let Next::Wait(until) = delivery.next(at(2)) else { panic!("asks again at once: {step:?}") };
        assert_eq!(asked(&delivery, until), step);
    }
}

#[test]
fn only_a_stale_fence_means_that_the_lease_is_lost() {
    for reason in [Refusal::Undone, Refusal::StaleFence, Refusal::StepExpired, Refusal::Superseded] {
        for (_, outcome) in steps(&PackageOutcome::Refused { reason }, Some(reason)) {
            assert_eq!(outcome.lease_lost(), reason == Refusal::StaleFence, "{outcome:?}");
        }
    }
    for (_, outcome) in steps(&PackageOutcome::Unavailable, None) {
        assert!(!outcome.lease_lost());
    }
}

#[test]
fn an_answer_of_another_kind_decides_nothing() {
    for (mut delivery, _) in steps(&PackageOutcome::Unavailable, None) {
        let before = asked(&delivery, at(2));
        let changes = answer(&mut delivery, &Outcome::Local, at(2));
        assert_eq!(changes, super::Changes::default());
        let Next::Wait(until) = delivery.next(at(2)) else { panic!("asks again at once") };
        assert_eq!(asked(&delivery, until), before);
    }
}

#[test]
fn what_waits_in_the_line_asks_again_for_all_its_life() {
    let mut delivery = requested();
    answer(&mut delivery, &registered(), at(1));
    let waiting = Outcome::Reserve(ReserveOutcome::Waiting);
    assert_eq!(answer(&mut delivery, &waiting, at(1)).steps.len(), 1);
    let mut now = at(1);
    let mut asked_again = 0;
    while let Next::Wait(until) = delivery.next(now) {
        assert!(until > now);
        now = until;
        if asked(&delivery, now) == Some(Action::ReserveDrone) {
            asked_again += 1;
            assert_eq!(answer(&mut delivery, &waiting, now).steps, [], "the log has it once");
        }
    }
    assert_eq!((asked(&delivery, now), now), (Some(Action::GiveUp), at(1_800)));
    assert!((40..=60).contains(&asked_again), "{asked_again} times in half an hour");
}

/// Every drone of the delivery fails, on its way to the pickup where it `opens` its flight, else once reserved. The
/// pauses before the replacements, in milliseconds.
fn lose_all_drones(delivery: &mut Delivery, opens: bool) -> Vec<i64> {
    let (mut now, mut pauses) = (at(2), Vec::new());
    for attempt in 1..=MAX_ATTEMPTS {
        assert_eq!(delivery.record.attempt, attempt);
        if let Next::Wait(until) = delivery.next(now) {
            pauses.push((until - now).num_milliseconds());
            now = until;
        } else if attempt > 1 {
            pauses.push(0);
        }
        assert_eq!(asked(delivery, now), Some(Action::ReserveDrone));
        answer(delivery, &reserved(attempt), now);
        if opens {
            answer(delivery, &opened(), now);
            delivery.apply_progress(&progress(attempt, &FLIGHT[..1]), now);
        }
        assert!(delivery.drone_failed(attempt, "broken"));
        answer(delivery, &closed(None), now);
    }
    pauses
}

#[test]
fn drones_that_fail_again_and_again_are_replaced_ever_more_slowly_and_in_the_end_no_more() {
    let (first, longest) = (FIRST_REPLACEMENT_PAUSE.num_milliseconds(), LONGEST_REPLACEMENT_PAUSE.num_milliseconds());
    for (opens, end) in [(false, Stage::Rejected), (true, Stage::Failed)] {
        let mut delivery = requested();
        answer(&mut delivery, &registered(), at(1));
        let pauses = lose_all_drones(&mut delivery, opens);
        assert_eq!(pauses.len(), MAX_ATTEMPTS as usize - 1);
        assert_eq!(pauses[..6], [0, first, 2 * first, 4 * first, 8 * first, 16 * first]);
        assert!(pauses[6..].iter().all(|pause| *pause == longest), "{pauses:?}");
        let now = at(900);
        assert_eq!(asked(&delivery, now), Some(Action::ReleaseDrone), "the flight is closed, the rest is undone");
        answer(&mut delivery, &Outcome::Release(ReleaseOutcome::Done), now);
        answer(&mut delivery, &registered(), now);
        assert_eq!((delivery.record.stage, delivery.record.attempt), (end, MAX_ATTEMPTS));
        assert_eq!(delivery.record.end_reason.as_deref(), Some("20 drones failed before the pickup"));
    }
}

#[test]
fn the_pause_before_a_replacement_holds_up_no_cancel_and_no_deadline() {
    let mut delivery = requested();
    answer(&mut delivery, &registered(), at(1));
    for attempt in 1..=2 {
        answer(&mut delivery, &reserved(attempt), at(2));
        assert!(delivery.drone_failed(attempt, "broken"));
        answer(&mut delivery, &closed(None), at(2));
    }
    assert_eq!(delivery.next(at(2)), Next::Wait(at(2) + FIRST_REPLACEMENT_PAUSE));
    assert_eq!(asked(&delivery, at(1_800)), Some(Action::GiveUp));
    let mut cancelled = delivery.clone();
    assert!(cancelled.want_cancel(at(2)));
    answer(&mut cancelled, &closed(None), at(2));
    assert_eq!(cancelled.record.stage, Stage::Cancelled);
    // A drone that fleet had granted though nobody here knew it was asked.
    delivery.grant(3, &super::drone(3), at(2));
    assert_eq!(asked(&delivery, at(2)), Some(Action::OpenFlight));
}
