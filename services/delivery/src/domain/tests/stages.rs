//! Every transition from every stage, through the one door.

use contracts::{
    Stage,
    events::{DeliveryEventKind, StageEntry},
};

use super::{FLIGHT, at, flown, progress, requested, scheduled};
use crate::domain::{Changes, Delivery, IllegalTransition, Part};

/// From each stage, an x where it may go: in the order of [`Stage::ALL`].
const TABLE: [(Stage, &str); 8] = [
    // Re Sc HP HD Co Ca Re Fa
    (Stage::Requested, ".x...xxx"),
    (Stage::Scheduled, "..x..x.x"),
    (Stage::HeadedToPickup, "...x.x.x"),
    (Stage::HeadedToDropoff, "....x..x"),
    (Stage::Completed, "........"),
    (Stage::Cancelled, "........"),
    (Stage::Rejected, "........"),
    (Stage::Failed, "........"),
];

fn in_stage(stage: Stage) -> Delivery {
    let mut delivery = requested();
    delivery.record.stage = stage;
    delivery
}

fn told_by(stage: Stage) -> Option<DeliveryEventKind> {
    match stage {
        Stage::Requested | Stage::HeadedToPickup | Stage::HeadedToDropoff => None,
        Stage::Scheduled => Some(DeliveryEventKind::DeliveryScheduled),
        Stage::Completed => Some(DeliveryEventKind::DeliveryCompleted),
        Stage::Cancelled => Some(DeliveryEventKind::DeliveryCancelled),
        Stage::Rejected => Some(DeliveryEventKind::DeliveryRejected),
        Stage::Failed => Some(DeliveryEventKind::DeliveryFailed),
    }
}

#[test]
fn a_delivery_takes_the_transitions_of_the_table_and_no_other() {
    for (from, row) in TABLE {
        for (to, cell) in Stage::ALL.into_iter().zip(row.chars()) {
            let before = in_stage(from);
            let (mut delivery, mut changes) = (before.clone(), Changes::default());
            let result = delivery.enter(to, at(5), at(6), &mut changes);
            if cell == '.' {
                assert_eq!(result, Err(IllegalTransition { from, to }), "{from} -> {to}");
                assert_eq!((delivery, changes), (before, Changes::default()), "{from} -> {to}");
                continue;
            }
            assert_eq!(result, Ok(()), "{from} -> {to}");
            let entry = StageEntry { stage: to, attempt: 1, at: at(5) };
            assert_eq!(delivery.record.stage, to);
            assert_eq!(delivery.record.stages.last(), Some(&entry));
            assert_eq!(changes.stages, [entry]);
            assert_eq!(changes.events, Vec::from_iter(told_by(to)));
            assert_eq!(delivery.record.finished_at, to.is_terminal().then_some(at(6)), "{from} -> {to}");
        }
    }
}

#[test]
fn an_end_forgets_intents_and_retries() {
    let mut delivery = in_stage(Stage::HeadedToPickup);
    assert!(delivery.want_cancel(at(3)));
    assert!(delivery.drone_failed(1, "silent"));
    delivery.saga.not_before = Some(at(9));
    delivery.end(Stage::Failed, "why", at(5), &mut Changes::default()).unwrap();
    assert_eq!(delivery.intents, crate::domain::Intents::default());
    assert_eq!((delivery.saga.not_before, delivery.record.end_reason.as_deref()), (None, Some("why")));
}

#[test]
fn the_only_arrow_back_leads_to_scheduled_and_belongs_to_a_new_attempt() {
    for mut delivery in [scheduled(), flown(&FLIGHT[..1])] {
        let mut changes = Changes::default();
        delivery.next_attempt(at(5), &mut changes);
        let entry = StageEntry { stage: Stage::Scheduled, attempt: 2, at: at(5) };
        assert_eq!((delivery.record.stage, delivery.record.attempt), (Stage::Scheduled, 2));
        assert_eq!(changes.stages, [entry]);
        assert_eq!(delivery.record.drone, None);
        assert_eq!((delivery.saga.package, delivery.saga.drone), (Part::Done, Part::Todo));
    }
    let (mut delivery, mut changes) = (requested(), Changes::default());
    delivery.next_attempt(at(5), &mut changes);
    assert_eq!((delivery.record.stage, delivery.record.attempt), (Stage::Requested, 2));
    assert_eq!(changes.stages, [], "what was never scheduled stays requested");
}

#[test]
fn the_first_answer_is_that_of_the_request_whatever_came_since() {
    let first = requested().record;
    for stages in [&FLIGHT[..0], &FLIGHT[..2], &FLIGHT[..]] {
        let mut delivery = flown(stages);
        delivery.stamp(at(700));
        assert_eq!(delivery.first_answer(), first);
    }
    let mut replaced = scheduled();
    replaced.next_attempt(at(5), &mut Changes::default());
    replaced.apply_progress(&progress(2, &FLIGHT), at(9));
    assert_eq!(replaced.first_answer(), first);
}
