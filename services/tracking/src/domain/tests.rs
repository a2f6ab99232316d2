//! The rules of a flight, as tables and properties.

use contracts::commands::{CloseOutcome, OpenOutcome, Refusal, ReportFault, ReportOutcome};
use proptest::prelude::*;

use super::*;
use crate::fixtures::{at, close, drone, flying, open, opened, record, report, start};

const PICKUP: Stage = Stage::HeadedToPickup;
const DROPOFF: Stage = Stage::HeadedToDropoff;
const DONE: Stage = Stage::Completed;

fn refused(reason: Refusal) -> OpenOutcome {
    OpenOutcome::Refused { reason }
}

/// An open flight that has come to `stage` by one report, the first.
fn at_stage(stage: Stage) -> Flight {
    let mut draft = Draft::new(Some(opened(1)));
    draft.report(&report(1, 1, Some(stage)), |_| true, start());
    draft.flight.unwrap()
}

fn stages(flight: &Flight) -> Vec<Stage> {
    flight.stages.iter().map(|entry| entry.stage).collect()
}

fn changed_stages(draft: &Draft) -> usize {
    draft.notes.iter().filter(|note| matches!(note, Note::StageChanged(_))).count()
}

fn samples(draft: &Draft) -> usize {
    draft.notes.iter().filter(|note| matches!(note, Note::Sampled(_))).count()
}

#[test]
fn a_report_leads_from_each_stage_to_the_furthest_of_both() {
    let all = [Stage::Scheduled, PICKUP, DROPOFF, DONE];
    for known in all {
        for reported in Stage::ALL.map(Some).into_iter().chain([None]) {
            let mut draft = Draft::new(Some(at_stage(known)));
            assert_eq!(draft.report(&report(1, 2, reported), |_| true, start()), ReportOutcome::Accepted);
            let flight = draft.flight.as_ref().unwrap();
            let furthest = reported.filter(|stage| stage.is_flight() && stage.rank() > known.rank()).unwrap_or(known);
            assert_eq!(flight.stage(), furthest, "{known} + {reported:?}");
            assert_eq!(flight.last.unwrap().sequence, 2, "the position counts in any case");
            let passed: Vec<_> = all[1..].iter().copied().filter(|stage| stage.rank() <= furthest.rank()).collect();
            assert_eq!(stages(flight), passed, "{known} + {reported:?}");
            assert_eq!(changed_stages(&draft), usize::from(furthest != known), "{known} + {reported:?}");
            assert_eq!(draft.extent, if furthest == known { Extent::Fix } else { Extent::Whole });
        }
    }
}

#[test]
fn skipped_stages_get_the_time_of_the_report_that_skipped_them() {
    let mut draft = Draft::new(Some(opened(1)));
    draft.report(&report(1, 3, Some(DROPOFF)), |_| true, start());
    draft.report(&report(1, 9, Some(DONE)), |_| true, start());
    let entry = |stage, seconds| StageTime { stage, at: at(seconds) };
    let flight = draft.flight.as_ref().unwrap();
    assert_eq!(flight.stages, [entry(PICKUP, 3), entry(DROPOFF, 3), entry(DONE, 9)]);
    let Note::StageChanged(first) = &draft.notes[0] else { panic!("{:?}", draft.notes) };
    assert_eq!(first.stages, [entry(PICKUP, 3), entry(DROPOFF, 3)]);
    assert_eq!((changed_stages(&draft), samples(&draft)), (2, 2));
}

#[test]
fn reports_that_do_not_count_change_nothing() {
    let flight = flying(1, 5);
    let closed = Flight { closed_at: Some(start()), ..flight.clone() };
    let fresh = report(1, 6, Some(PICKUP));
    let mut other_attempt = fresh.clone();
    other_attempt.attempt = 2;
    let mut other_drone = fresh.clone();
    other_drone.drone_id = drone(9, 9);
    let mut off = fresh.clone();
    off.fix.at = at(601);
    let rejected = |reason| ReportOutcome::Rejected { reason };
    let cases = [
        ("repeated", Some(&flight), report(1, 5, Some(DONE)), true, ReportOutcome::Stale),
        ("older", Some(&flight), report(1, 4, Some(DONE)), true, ReportOutcome::Stale),
        ("closed", Some(&closed), fresh.clone(), true, ReportOutcome::Stale),
        ("unknown", None, fresh.clone(), true, ReportOutcome::Stale),
        ("another attempt", Some(&flight), other_attempt, true, ReportOutcome::Stale),
        ("another drone", Some(&flight), other_drone, true, ReportOutcome::Stale),
        ("another's drone", Some(&flight), fresh, false, ReportOutcome::Stale),
        ("clock off", Some(&flight), off, true, rejected(ReportFault::ClockOff)),
    ];
    for (name, flight, report, speaks, expected) in cases {
        let mut draft = Draft::new(flight.cloned());
        assert_eq!(draft.report(&report, |_| speaks, start()), expected, "{name}");
        assert_eq!(draft.flight.as_ref(), flight, "{name}");
        assert_eq!((draft.extent, draft.notes.len()), (Extent::Nothing, 0), "{name}");
    }
}

#[test]
fn a_position_is_sampled_every_five_seconds_and_at_each_change_of_stage() {
    let mut draft = Draft::new(Some(opened(1)));
    for second in 1..=20 {
        draft.report(&report(1, second, (second >= 8).then_some(PICKUP)), |_| true, start());
    }
    let sampled: Vec<_> = draft
        .notes
        .iter()
        .filter_map(|note| if let Note::Sampled(sample) = note { Some(sample.fix.sequence) } else { None })
        .collect();
    assert_eq!(sampled, [1, 6, 8, 13, 18]);
    let mut set_back = report(1, 21, None);
    set_back.fix.at = at(-60);
    draft.report(&set_back, |_| true, start());
    assert_eq!(samples(&draft), 6, "a clock that was set back does not end the samples");
}

#[test]
fn open_is_judged_by_fence_attempt_and_deadline() {
    let mut draft = Draft::new(None);
    assert_eq!(draft.open(&open(1, 1, 5), at(61)), refused(Refusal::StepExpired));
    assert_eq!(draft.extent, Extent::Nothing);
    assert_eq!(draft.open(&open(1, 1, 5), start()), OpenOutcome::Opened);
    assert_eq!(draft.open(&open(1, 1, 5), at(61)), OpenOutcome::Opened, "it is open, whatever the time");
    assert_eq!(draft.open(&open(1, 1, 4), start()), refused(Refusal::StaleFence));
    assert_eq!(draft.missions.len(), 1);
    let mut again = Draft::new(Some(opened(1)));
    assert_eq!(again.open(&open(1, 1, 1), start()), OpenOutcome::Opened);
    assert_eq!((again.extent, again.missions.len()), (Extent::Whole, 0), "written again, and told to nobody");
    again.close(&close(1, 1, 1, DONE), start());
    let mut again = Draft::new(again.flight);
    assert!(matches!(again.close(&close(1, 1, 1, DONE), at(9)), CloseOutcome::Closed { .. }));
    assert_eq!((again.extent, again.missions.len()), (Extent::Whole, 0));
    assert_eq!(again.flight.unwrap().closed_at, Some(start()));
    assert_eq!(draft.open(&open(1, 2, 5), start()), OpenOutcome::Opened);
    assert_eq!(draft.open(&open(1, 1, 5), start()), refused(Refusal::Superseded));
    let missions: Vec<_> = draft.missions.iter().map(|note| (note.attempt, note.drone_id, note.assigned)).collect();
    assert_eq!(missions, [(1, drone(1, 1), true), (1, drone(1, 1), false), (2, drone(1, 2), true)]);
}

#[test]
fn close_stops_only_what_has_not_come_too_far() {
    for before in [DROPOFF, DONE] {
        for known in [Stage::Scheduled, PICKUP, DROPOFF, DONE] {
            let mut draft = Draft::new(Some(at_stage(known)));
            let outcome = draft.close(&close(1, 1, 1, before), start());
            let flight = draft.flight.as_ref().unwrap();
            let progress = flight.progress().unwrap();
            if known.rank() < before.rank() {
                assert_eq!(outcome, CloseOutcome::Closed { progress: Some(progress) }, "{known} before {before}");
                assert!(!flight.is_open());
                assert!(!draft.missions[0].assigned);
            } else {
                assert_eq!(outcome, CloseOutcome::TooLate { progress }, "{known} before {before}");
                assert!(flight.is_open() && draft.missions.is_empty());
            }
        }
    }
}

#[test]
fn what_is_closed_stays_closed_and_answers_its_progress() {
    let mut draft = Draft::new(Some(at_stage(DONE)));
    draft.settle(&record(1, 1, Stage::Completed), start());
    let ended = draft.flight.clone().unwrap();
    assert!(!ended.is_open());
    let progress = ended.progress();
    assert_eq!(draft.close(&close(1, 1, 1, DROPOFF), start()), CloseOutcome::Closed { progress });
    assert_eq!(draft.report(&report(1, 9, None), |_| true, start()), ReportOutcome::Stale);
    assert_eq!(draft.open(&open(1, 1, 1), start()), refused(Refusal::Undone));
    assert_eq!(draft.flight, Some(ended));
}

#[test]
fn close_of_an_attempt_that_is_not_the_known_one() {
    let none = CloseOutcome::Closed { progress: None };
    let mut draft = Draft::new(Some(Flight { attempt: 2, ..opened(1) }));
    assert_eq!(draft.close(&close(1, 1, 1, DROPOFF), start()), none, "an earlier one is over");
    assert!(draft.flight.as_ref().unwrap().is_open(), "and the later one is not touched");
    assert_eq!(draft.close(&close(1, 3, 0, DROPOFF), start()), CloseOutcome::Refused { reason: Refusal::StaleFence });
    assert_eq!(draft.close(&close(1, 3, 1, DROPOFF), start()), none, "a later one closes all before it");
    let tombstone = draft.flight.clone().unwrap();
    assert_eq!((tombstone.attempt, tombstone.plan.is_none(), tombstone.is_open()), (3, true, false));
    assert_eq!(draft.missions.len(), 1);
    assert_eq!(draft.open(&open(1, 3, 1), start()), refused(Refusal::Undone));
    assert_eq!(draft.open(&open(1, 4, 1), start()), OpenOutcome::Opened);
}

#[test]
fn an_older_record_never_ends_a_newer_attempt() {
    let second = Flight { attempt: 2, ..opened(1) };
    for stage in Stage::ALL {
        let mut draft = Draft::new(Some(second.clone()));
        draft.settle(&record(1, 1, stage), start());
        assert_eq!(draft.flight.as_ref(), Some(&second), "{stage}");
        draft.settle(&record(1, 2, stage), start());
        assert_eq!(draft.flight.as_ref().unwrap().is_open(), !stage.is_terminal(), "{stage}");
        for attempt in 1..=2 {
            let first = Flight { attempt, ..opened(1) };
            let mut draft = Draft::new(Some(first.clone()));
            draft.settle(&record(1, 1, stage), start());
            let changed = draft.flight.as_ref() != Some(&first);
            assert!(!changed || ends_flights(&record(1, 1, stage)), "{stage}: what is passed over ends nothing");
        }
        let mut draft = Draft::new(Some(second.clone()));
        draft.settle(&record(1, 3, stage), start());
        assert!(!draft.flight.as_ref().unwrap().is_open(), "{stage}");
        assert_eq!(draft.missions.len(), 1);
    }
}

#[test]
fn the_end_of_an_unknown_delivery_leaves_a_tombstone_while_a_late_open_may_come() {
    let mut draft = Draft::new(None);
    draft.settle(&record(1, 1, Stage::Scheduled), start());
    draft.settle(&record(1, 1, Stage::Completed), at(LATE_OPEN_MINUTES * 60));
    assert_eq!(draft.flight, None);
    draft.settle(&record(1, 1, Stage::Cancelled), at(5));
    assert_eq!(draft.open(&open(1, 1, 7), at(6)), refused(Refusal::Undone));
}

#[test]
fn eta_follows_the_way_that_is_left() {
    let leg_s = opened(1).plan.unwrap().pickup.distance_m(&opened(1).plan.unwrap().dropoff) / 10.0;
    let seconds = |flight: &Flight| (flight.eta().unwrap() - start()).as_seconds_f64();
    assert!((seconds(&opened(1)) - 2.0 * leg_s).abs() < 0.01);
    // A second of flight at a tenth of the first leg.
    assert!((seconds(&flying(1, 1)) - 1.0 - 1.9 * leg_s).abs() < 0.01);
    assert!((seconds(&at_stage(DROPOFF)) - 1.0 - 1.9 * leg_s).abs() < 0.01, "straight to the drop-off");
    assert_eq!(at_stage(DONE).eta(), None);
    let standing = Plan { speed_mps: 0.0, ..(*opened(1).plan.unwrap()).clone() };
    assert_eq!(Flight { plan: Some(Arc::new(standing)), ..opened(1) }.eta(), None);
}

/// A drone's reports: every line carries the current stage, which only grows.
fn series() -> impl Strategy<Value = Vec<Option<Stage>>> {
    prop::collection::vec(0..4usize, 1..30).prop_map(|mut stages| {
        stages.sort_unstable();
        stages.into_iter().map(|stage| [None, Some(PICKUP), Some(DROPOFF), Some(DONE)][stage]).collect()
    })
}

proptest! {
    #[test]
    fn any_order_and_repetition_of_reports_leaves_the_same_stages_and_never_goes_back(
        (in_order, shuffled) in series().prop_flat_map(|series| {
            let reports: Vec<_> =
                (1..).zip(&series).map(|(sequence, stage)| report(1, sequence, *stage)).collect();
            let doubled = [reports.clone(), reports.clone()].concat();
            (Just(reports), Just(doubled).prop_shuffle())
        }),
    ) {
        let mut expected = Draft::new(Some(opened(1)));
        for report in &in_order {
            prop_assert_eq!(expected.report(report, |_| true, start()), ReportOutcome::Accepted);
        }
        let mut draft = Draft::new(Some(opened(1)));
        let mut applied = 0;
        for report in &shuffled {
            let before = draft.flight.clone().unwrap();
            let outcome = draft.report(report, |_| true, start());
            let after = draft.flight.as_ref().unwrap();
            prop_assert!(after.stages.starts_with(&before.stages));
            if outcome == ReportOutcome::Stale {
                prop_assert_eq!(&before, after);
            }
            applied += usize::from(before.stages != after.stages);
        }
        let (flight, expected) = (draft.flight.clone().unwrap(), expected.flight.unwrap());
        prop_assert_eq!(stages(&flight), stages(&expected));
        prop_assert_eq!(flight.last, expected.last);
        prop_assert_eq!(changed_stages(&draft), applied);
    }
}
