//! What a flight's progress and a drone's grant change: in any order, however often, only for the current attempt.

use contracts::{
    Stage,
    events::{DeliveryEventKind, StageEntry},
};
use proptest::prelude::*;

use super::{Action, FLIGHT, answer, asked, at, drone, flown, progress, reached_at, registered, requested, scheduled};
use crate::domain::{Changes, Delivery, Next, Outcome, Part};
use contracts::commands::ReserveOutcome;

fn entries(attempt: u32, stages: &[Stage]) -> Vec<StageEntry> {
    stages.iter().map(|stage| StageEntry { stage: *stage, attempt, at: reached_at(*stage) }).collect()
}

#[test]
fn progress_passes_through_every_stage_with_its_own_time() {
    for count in 1..=3 {
        let mut delivery = scheduled();
        let changes = delivery.apply_progress(&progress(1, &FLIGHT[..count]), at(500));
        assert_eq!(changes.stages, entries(1, &FLIGHT[..count]));
        assert_eq!(delivery.record.stage, FLIGHT[count - 1]);
        assert_eq!(delivery.record.finished_at, (count == 3).then_some(at(500)));
        let completed = [DeliveryEventKind::DeliveryCompleted];
        assert_eq!(changes.events, if count == 3 { &completed[..] } else { &[] });
    }
}

#[test]
fn progress_that_is_repeated_or_behind_changes_nothing() {
    let before = flown(&FLIGHT[..2]);
    for count in 0..=2 {
        let mut delivery = before.clone();
        assert_eq!(delivery.apply_progress(&progress(1, &FLIGHT[..count]), at(9)), Changes::default());
        assert_eq!(delivery, before);
    }
}

#[test]
fn progress_of_another_attempt_changes_nothing() {
    let mut current = scheduled();
    current.next_attempt(at(3), &mut Changes::default());
    for attempt in [1, 3] {
        let mut delivery = current.clone();
        assert_eq!(delivery.apply_progress(&progress(attempt, &FLIGHT), at(9)), Changes::default());
        assert_eq!(delivery, current);
    }
}

#[test]
fn progress_after_the_end_changes_nothing() {
    let mut cancelled = scheduled();
    cancelled.end(Stage::Cancelled, "cancelled", at(3), &mut Changes::default()).unwrap();
    for over in [cancelled, flown(&FLIGHT)] {
        let mut delivery = over.clone();
        assert_eq!(delivery.apply_progress(&progress(1, &FLIGHT), at(9)), Changes::default());
        assert_eq!(delivery, over);
    }
}

#[test]
fn progress_with_a_gap_waits_for_the_whole_of_it() {
    let mut delivery = scheduled();
    let gap = progress(1, &[Stage::HeadedToDropoff, Stage::Completed]);
    assert_eq!(delivery.apply_progress(&gap, at(9)).stages, []);
    assert_eq!(delivery.record.stage, Stage::Scheduled);
    delivery.apply_progress(&progress(1, &FLIGHT), at(9));
    assert_eq!(delivery.record.stage, Stage::Completed);
}

#[test]
fn a_stage_that_is_not_a_flights_is_not_progress() {
    let mut delivery = scheduled();
    let before = delivery.clone();
    let odd = progress(1, &[Stage::Cancelled, Stage::Failed, Stage::Requested]);
    assert_eq!(delivery.apply_progress(&odd, at(9)), Changes::default());
    assert_eq!(delivery, before);
}

/// Registered and reserved; open-flight was done, but its answer was never committed.
fn unscheduled() -> Delivery {
    let mut delivery = requested();
    answer(&mut delivery, &registered(), at(1));
    answer(&mut delivery, &super::reserved(1), at(1));
    delivery
}

#[test]
fn progress_before_the_commit_of_scheduled_schedules_first() {
    let mut delivery = unscheduled();
    let changes = delivery.apply_progress(&progress(1, &FLIGHT[..1]), at(9));
    assert_eq!(changes.events, [DeliveryEventKind::DeliveryScheduled]);
    let stages: Vec<Stage> = changes.stages.iter().map(|entry| entry.stage).collect();
    assert_eq!(stages, [Stage::Scheduled, Stage::HeadedToPickup]);
    assert_eq!(delivery.saga.flight, Part::Done);
    assert_eq!(asked(&delivery, at(9)), None, "the flight is not opened again");
}

#[test]
fn progress_of_a_later_attempt_before_its_commit_tells_of_the_new_drone() {
    let mut delivery = scheduled();
    delivery.next_attempt(at(3), &mut Changes::default());
    answer(&mut delivery, &super::reserved(2), at(4));
    let changes = delivery.apply_progress(&progress(2, &FLIGHT[..1]), at(9));
    assert_eq!(changes.events, [DeliveryEventKind::DeliveryScheduled]);
    assert_eq!(changes.stages, entries(2, &FLIGHT[..1]));
    let again = delivery.apply_progress(&progress(2, &FLIGHT[..2]), at(9));
    assert_eq!(again.events, [], "once is enough");
}

#[test]
fn a_grant_counts_once_and_moves_the_saga_on() {
    let mut delivery = requested();
    answer(&mut delivery, &registered(), at(1));
    answer(&mut delivery, &Outcome::Reserve(ReserveOutcome::Waiting), at(1));
    assert!(matches!(delivery.next(at(2)), Next::Wait(_)));
    let changes = delivery.grant(1, &drone(1), at(2));
    assert_eq!(changes.steps.len(), 1);
    assert_eq!(delivery.record.drone, Some(drone(1)));
    assert_eq!(asked(&delivery, at(2)), Some(Action::OpenFlight));
    let granted = delivery.clone();
    assert_eq!(delivery.grant(1, &drone(9), at(3)), Changes::default(), "repeated");
    assert_eq!(delivery, granted);
}

#[test]
fn a_grant_of_another_attempt_or_after_the_end_changes_nothing() {
    let mut replaced = scheduled();
    replaced.next_attempt(at(3), &mut Changes::default());
    let mut given_up = requested();
    given_up.apply(Action::GiveUp, &Outcome::Local, at(1_800)).unwrap();
    for (known, attempt) in [(replaced.clone(), 1), (replaced, 3), (flown(&FLIGHT), 1), (given_up, 1)] {
        let mut delivery = known.clone();
        assert_eq!(delivery.grant(attempt, &drone(attempt), at(4)), Changes::default());
        assert_eq!(delivery, known);
    }
}

#[test]
fn a_grant_before_the_answer_to_register_is_kept() {
    let mut delivery = requested();
    delivery.grant(1, &drone(1), at(1));
    assert_eq!(asked(&delivery, at(1)), Some(Action::RegisterPackage));
    answer(&mut delivery, &registered(), at(1));
    assert_eq!(asked(&delivery, at(1)), Some(Action::OpenFlight));
}

proptest! {
    #[test]
    fn the_order_and_the_number_of_events_make_no_difference(
        events in proptest::collection::vec((1u32..=3, 0usize..=3), 0..24),
        known in any::<bool>(),
    ) {
        // The second of three attempts, with or without the commit of its flight.
        let mut delivery = scheduled();
        delivery.next_attempt(at(3), &mut Changes::default());
        answer(&mut delivery, &super::reserved(2), at(4));
        if known {
            answer(&mut delivery, &super::opened(), at(4));
        }
        let before = delivery.record.stages.len();
        for (attempt, count) in &events {
            delivery.apply_progress(&progress(*attempt, &FLIGHT[..*count]), at(500));
        }
        let furthest = events.iter().filter(|event| event.0 == 2).map(|event| event.1).max().unwrap_or(0);
        prop_assert_eq!(&delivery.record.stages[before..], &entries(2, &FLIGHT[..furthest])[..]);
        let stage = if furthest == 0 { Stage::Scheduled } else { FLIGHT[furthest - 1] };
        prop_assert_eq!(delivery.record.stage, stage);
    }
}
