//! What every store of flights must do, told as tests over the trait; one module below for each engine.

use std::{collections::BTreeSet, future::Future};

use contracts::{
    Stage,
    commands::{CloseOutcome, OpenFlight, OpenOutcome, Refusal, ReportOutcome},
    events::{FlightProgress, PositionSample},
};

use super::*;
use crate::{
    domain::{Draft, Extent},
    fixtures::{BASE, Bench, at, close, drone, flying, id, logged, open, record, report, report_of, start},
};

const PICKUP: Stage = Stage::HeadedToPickup;
const DROPOFF: Stage = Stage::HeadedToDropoff;
const DONE: Stage = Stage::Completed;

fn refused(reason: Refusal) -> OpenOutcome {
    OpenOutcome::Refused { reason }
}

fn closed(outcome: &CloseOutcome) -> bool {
    matches!(outcome, CloseOutcome::Closed { .. })
}

/// The change that opens a flight.
pub(super) fn opening(number: u128) -> Change {
    let mut draft = Draft::new(None);
    draft.open(&open(number, 1, 1), start());
    let change = Change::new(draft.flight.unwrap(), draft.extent == Extent::Whole);
    Change { missions: draft.missions, ..change }
}

/// The change that a report makes to a flight.
fn moving(from: &Flight, sequence: u64) -> Change {
    let mut draft = Draft::new(Some(from.clone()));
    draft.report(&report(1, sequence, None), |_| true, start());
    Change::new(draft.flight.unwrap(), false)
}

/// The change that closes a flight.
fn closing(from: &Flight) -> Change {
    let mut draft = Draft::new(Some(from.clone()));
    assert!(closed(&draft.close(&close(1, 1, 1, DONE), start())));
    Change::new(draft.flight.unwrap(), draft.extent == Extent::Whole)
}

pub(super) async fn what_is_saved_is_loaded_again(opened: Opened) {
    let store = opened.store;
    store.ping().await.unwrap();
    let mut flight = Flight { version: Version::default(), ..flying(1, 7) };
    flight.stages = vec![contracts::events::StageTime { stage: PICKUP, at: at(7) }];
    let mut draft = Draft::new(None);
    draft.close(&close(2, 3, 9, DONE), start());
    let changes = [Change::new(flight, true), Change::new(draft.flight.unwrap(), true)];
    let results = store.save(&changes, start()).await;
    assert!(results.iter().all(Result::is_ok));
    let mut loaded = store.load(&[id(1), id(2), id(3)]).await.unwrap();
    loaded.sort_by_key(|flight| flight.delivery_id);
    assert_eq!(loaded, changes.map(|change| change.flight));
    assert!(store.load(&[]).await.unwrap().is_empty());
    assert!(store.save(&[], start()).await.is_empty());
}

pub(super) async fn a_change_of_another_version_is_a_conflict_and_harms_no_neighbour(opened: Opened) {
    let store = opened.store;
    let (one, two) = (opening(1), opening(2));
    assert!(store.save(&[one], start()).await[0].is_ok());
    let results = store.save(&[opening(1), two], start()).await;
    assert!(matches!(results[0], Err(SaveError::Conflict)) && results[1].is_ok(), "{results:?}");
    let known = store.load(&[id(1)]).await.unwrap().remove(0);
    let (first, second) = (moving(&known, 5), moving(&known, 6));
    let flight = Flight { delivery_id: id(3), ..first.flight.clone() };
    let unknown = Change { replaces: first.replaces, flight, ..opening(3) };
    let results = store.save(&[first, unknown], start()).await;
    assert!(results[0].is_ok() && matches!(results[1], Err(SaveError::Conflict)), "{results:?}");
    assert!(matches!(store.save(&[second], start()).await[0], Err(SaveError::Conflict)));
    let stored = store.load(&[id(1), id(3)]).await.unwrap();
    assert_eq!((stored.len(), stored[0].last.unwrap().sequence), (1, 5));
}

/// A failover loses what an instance still remembers, and another instance writes a close in its place.
pub(super) async fn what_was_lost_never_makes_a_close_undone(opened: Opened) {
    let store = opened.store;
    store.save(&[opening(1)], start()).await;
    let known = store.load(&[id(1)]).await.unwrap().remove(0);
    let position = moving(&moving(&known, 5).flight, 6).flight;
    let mut draft = Draft::new(Some(moving(&known, 5).flight));
    draft.report(&report(1, 6, Some(PICKUP)), |_| true, start());
    let stage = Change::new(draft.flight.unwrap(), true).flight;
    let moved = moving(&known, 5);
    assert!(store.save(std::slice::from_ref(&moved), start()).await[0].is_ok());
    assert!(store.save(&[closing(&moved.flight)], start()).await[0].is_ok());
    for remembered in [position, stage] {
        let results = store.save(&[moving(&remembered, 7)], start()).await;
        assert!(matches!(results[0], Err(SaveError::Conflict)), "as many writes, and not the same: {results:?}");
    }
    assert!(!store.load(&[id(1)]).await.unwrap()[0].is_open());
}

pub(super) async fn a_lost_change_leaves_no_event_and_no_mission(opened: Opened) {
    let bench = Bench::over(&opened);
    let mut position = opened.store.mission_log_end().await.unwrap();
    bench.open(open(1, 1, 1)).await;
    let lost = opening(1);
    let results = opened.store.save(&[lost], start()).await;
    assert!(matches!(results[0], Err(SaveError::Conflict)));
    assert_eq!(logged(&*opened.store, &mut position, 10).await.len(), 1);
    assert_eq!(opened.store.mission_log_end().await.unwrap(), position);
}

pub(super) async fn moved_names_only_what_is_at_another_version(opened: Opened) {
    let store = opened.store;
    let changes = [opening(1), opening(2)];
    store.save(&changes, start()).await;
    let [first, second] = changes.map(|change| change.flight);
    store.save(&[moving(&first, 5)], start()).await;
    let known = [(id(1), first.version), (id(2), second.version), (id(3), Version::default())];
    let moved = store.moved(&known).await.unwrap();
    let moved: Vec<_> = moved.iter().map(|flight| (flight.delivery_id, flight.version)).collect();
    assert_eq!(moved, [(id(1), first.version.next_position())]);
    assert!(store.moved(&[]).await.unwrap().is_empty());
}

pub(super) async fn missions_are_the_open_flights_of_the_audience(opened: Opened) {
    let bench = Bench::over(&opened);
    let mut south = open(3, 1, 1);
    south.drone.base_id = "south".parse().unwrap();
    for command in [open(1, 1, 1), open(2, 1, 1), south] {
        assert_eq!(bench.open(command).await, OpenOutcome::Opened);
    }
    bench.close(close(2, 1, 1, DROPOFF)).await;
    bench.report(vec![report(1, 4, Some(PICKUP))]).await;
    let base = Audience::Base(BASE.parse().unwrap());
    let missions = bench.missions.list(&base).await.unwrap();
    let seen: Vec<_> = missions.iter().map(|mission| (mission.delivery_id, mission.last_sequence)).collect();
    assert_eq!(seen, [(id(1), Some(4))]);
    assert_eq!(missions[0].stage, PICKUP);
    assert_eq!(bench.missions.list(&Audience::Drone(drone(1, 1))).await.unwrap(), missions);
    assert!(bench.missions.list(&Audience::Drone(drone(2, 1))).await.unwrap().is_empty());
}

/// The notes of a delivery.
fn notes_of(number: u128, notes: &[MissionNote]) -> Vec<(u32, bool)> {
    let of = notes.iter().filter(|note| note.delivery_id == id(number));
    of.map(|note| (note.attempt, note.assigned)).collect()
}

pub(super) async fn the_mission_log_is_in_order_of_each_flight_and_read_in_pages(opened: Opened) {
    let bench = Bench::over(&opened);
    let store = &*opened.store;
    let mut position = store.mission_log_end().await.unwrap();
    for number in 1..=3 {
        bench.open(open(number, 1, 1)).await;
    }
    let first = logged(store, &mut position, 1).await;
    assert_eq!((first.len(), notes_of(2, &first)), (3, vec![(1, true)]));
    bench.advance_s(100);
    for attempt in 2..=4 {
        bench.open(OpenFlight { step_deadline: at(200), ..open(1, attempt, 1) }).await;
    }
    let page = store.mission_log(&position, 10, Look::WhereHeard).await.unwrap();
    assert_eq!((page.lines.len(), page.gap, page.more), (6, false, false), "this instance wrote them");
    assert_eq!(page.position, store.mission_log_end().await.unwrap());
    let more = logged(store, &mut position, 2).await;
    assert_eq!(notes_of(1, &more), [(1, false), (2, true), (2, false), (3, true), (3, false), (4, true)]);
    assert_eq!((more, position), (page.lines, page.position));
}

pub(super) async fn a_reader_of_the_mission_log_is_told_of_lines_that_are_gone(opened: Opened) {
    let bench = Bench::over(&opened);
    let store = &*opened.store;
    let mut position = store.mission_log_end().await.unwrap();
    for number in 1..=3 {
        bench.open(open(number, 1, 1)).await;
    }
    let before = position.clone();
    logged(store, &mut position, 10).await;
    bench.advance_s(100);
    bench.open(OpenFlight { step_deadline: at(200), ..open(1, 2, 1) }).await;
    assert_eq!(store.trim_mission_log(at(50), 2).await.unwrap(), 2);
    assert_eq!(store.trim_mission_log(at(50), 10).await.unwrap(), 1, "what is younger stays");
    let page = store.mission_log(&before, 10, Look::Everywhere).await.unwrap();
    assert!(page.gap);
    assert_eq!(page.position, store.mission_log_end().await.unwrap());
    assert_eq!(logged(store, &mut position, 10).await.len(), 2, "who has seen them misses nothing");
    assert_eq!(store.trim_mission_log(at(1_000), 10).await.unwrap(), 2);
    assert!(logged(store, &mut position, 10).await.is_empty());
    let page = store.mission_log(&before, 10, Look::Everywhere).await.unwrap();
    assert!(page.gap && page.lines.is_empty() && page.position == position, "{page:?}");
    bench.close(close(2, 1, 1, DROPOFF)).await;
    assert_eq!(notes_of(2, &logged(store, &mut position, 10).await), [(1, false)], "the numbers go on");
}

pub(super) async fn quiet_flights_are_open_and_unchanged_whatever_their_position_does(opened: Opened) {
    let bench = Bench::over(&opened);
    for number in 1..=4 {
        bench.open(open(number, 1, 1)).await;
    }
    bench.close(close(2, 1, 1, DROPOFF)).await;
    bench.advance_s(30);
    bench.report(vec![report(1, 30, None), report(4, 30, Some(PICKUP))]).await;
    let quiet = async |after, limit| -> Vec<DeliveryId> {
        let flights = opened.store.quiet(at(10), after, limit).await.unwrap();
        assert!(flights.iter().all(|flight| (flight.attempt, flight.changed_at) == (1, start())));
        flights.iter().map(|flight| flight.delivery_id).collect()
    };
    let all = quiet(None, 10).await;
    assert_eq!(all.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from([id(1), id(3)]));
    assert_eq!(quiet(None, 1).await, all[..1]);
    assert_eq!(quiet(Some(all[0]), 10).await, all[1..]);
    assert_eq!(quiet(Some(all[1]), 10).await, []);
}

pub(super) async fn ended_flights_and_tombstones_are_forgotten_and_open_ones_never(opened: Opened) {
    let bench = Bench::over(&opened);
    bench.open(open(1, 1, 1)).await;
    bench.open(open(2, 1, 1)).await;
    bench.close(close(2, 1, 1, DONE)).await;
    bench.close(close(3, 1, 1, DONE)).await;
    assert_eq!(opened.store.forget(start(), 10).await.unwrap(), 0);
    assert_eq!(opened.store.forget(at(1), 1).await.unwrap(), 1);
    assert_eq!(opened.store.forget(at(1), 10).await.unwrap(), 1);
    assert!(bench.stored(1).await.is_some() && bench.stored(2).await.is_none() && bench.stored(3).await.is_none());
    assert_eq!(bench.open(open(2, 2, 1)).await, OpenOutcome::Opened, "a forgotten row leaves nothing behind");
}

pub(super) async fn open_and_close_in_every_order(opened: Opened) {
    let bench = Bench::over(&opened);
    assert_eq!(bench.open(open(1, 1, 1)).await, OpenOutcome::Opened);
    assert_eq!(bench.open(open(1, 1, 1)).await, OpenOutcome::Opened, "repeated");
    let outcome = bench.close(close(1, 1, 1, DROPOFF)).await;
    assert!(matches!(outcome, CloseOutcome::Closed { progress: Some(_) }), "{outcome:?}");
    assert_eq!(bench.close(close(1, 1, 1, DROPOFF)).await, outcome, "repeated");
    assert_eq!(bench.open(open(1, 1, 1)).await, refused(Refusal::Undone));

    assert_eq!(bench.close(close(2, 1, 1, DROPOFF)).await, CloseOutcome::Closed { progress: None });
    assert_eq!(bench.close(close(2, 1, 1, DROPOFF)).await, CloseOutcome::Closed { progress: None });
    assert_eq!(bench.open(open(2, 1, 1)).await, refused(Refusal::Undone), "the undo came first");
    assert_eq!(bench.open(open(2, 2, 1)).await, OpenOutcome::Opened, "the next attempt is another one");
    assert_eq!(bench.open(open(2, 1, 1)).await, refused(Refusal::Superseded));
}

pub(super) async fn fences_and_deadlines(opened: Opened) {
    let bench = Bench::over(&opened);
    assert_eq!(bench.open(open(1, 1, 5)).await, OpenOutcome::Opened);
    assert_eq!(bench.open(open(1, 1, 4)).await, refused(Refusal::StaleFence));
    let stale = CloseOutcome::Refused { reason: Refusal::StaleFence };
    assert_eq!(bench.close(close(1, 1, 4, DROPOFF)).await, stale);
    bench.report(vec![report(1, 1, Some(DONE))]).await;
    let outcome = bench.close(close(1, 1, 6, DONE)).await;
    assert!(matches!(outcome, CloseOutcome::TooLate { .. }), "{outcome:?}");
    assert_eq!(bench.close(close(1, 1, 5, DONE)).await, stale, "a command that came too late was heard, too");
    assert!(closed(&bench.close(close(2, 1, 8, DONE)).await));
    assert_eq!(bench.open(open(2, 2, 7)).await, refused(Refusal::StaleFence), "a tombstone keeps its fence");
    bench.advance_s(61);
    assert_eq!(bench.open(open(3, 1, 1)).await, refused(Refusal::StepExpired));
    assert!(bench.stored(3).await.is_none());
}

pub(super) async fn a_close_that_is_too_late_leaves_the_flight_open(opened: Opened) {
    let bench = Bench::over(&opened);
    bench.open(open(1, 1, 1)).await;
    bench.report(vec![report(1, 1, Some(DROPOFF))]).await;
    let CloseOutcome::TooLate { progress } = bench.close(close(1, 1, 1, DROPOFF)).await else { panic!("closed") };
    assert_eq!(progress.stages.iter().map(|entry| entry.stage).collect::<Vec<_>>(), [PICKUP, DROPOFF]);
    assert_eq!(bench.report(vec![report(1, 2, None)]).await, [ReportOutcome::Accepted]);
    assert!(closed(&bench.close(close(1, 1, 1, DONE)).await));
    assert_eq!(bench.report(vec![report(1, 3, Some(DONE))]).await, [ReportOutcome::Stale]);
    let stored = bench.stored(1).await.unwrap();
    assert_eq!((stored.stage(), stored.last.unwrap().sequence), (DROPOFF, 2), "no report changes a closed flight");
}

pub(super) async fn reports_are_judged_one_by_one_and_in_order(opened: Opened) {
    let bench = Bench::over(&opened);
    bench.open(open(1, 1, 1)).await;
    bench.open(open(2, 1, 1)).await;
    let mut stranger = report(2, 1, None);
    stranger.drone_id = drone(9, 9);
    let outcomes = bench
        .report(vec![
            report(1, 1, None),
            report(3, 1, None),
            report(1, 3, Some(PICKUP)),
            stranger,
            report(1, 2, Some(DONE)),
            report_of(2, 2, 1, None),
            report(2, 1, Some(DONE)),
        ])
        .await;
    let (accepted, stale) = (ReportOutcome::Accepted, ReportOutcome::Stale);
    assert_eq!(outcomes, [accepted, stale, accepted, stale, stale, stale, accepted], "a stranger's is stale, too");
    assert_eq!(bench.stored(1).await.unwrap().stage(), PICKUP);
    assert_eq!(bench.stored(2).await.unwrap().stage(), DONE);
}

pub(super) async fn each_change_of_stage_is_one_event_in_the_same_write(opened: Opened) {
    let bench = Bench::over(&opened);
    bench.open(open(1, 1, 1)).await;
    let reports: Vec<_> = (1..)
        .zip([None, Some(PICKUP), Some(PICKUP), Some(DROPOFF), Some(DROPOFF)])
        .map(|(n, s)| report(1, n, s))
        .collect();
    bench.report(reports.clone()).await;
    bench.report(reports).await;
    bench.report(vec![report(1, 9, Some(DONE)), report(1, 8, Some(DONE)), report(1, 10, Some(DONE))]).await;
    let told: Vec<FlightProgress> =
        bench.events("StageChanged").await.iter().map(|row| serde_json::from_slice(&row.event.data).unwrap()).collect();
    let told: Vec<_> = told.iter().map(|progress| (progress.stage, progress.stages.len())).collect();
    assert_eq!(told, [(PICKUP, 1), (DROPOFF, 2), (DONE, 3)]);
    let sampled: Vec<PositionSample> = bench
        .events("PositionSampled")
        .await
        .iter()
        .map(|row| serde_json::from_slice(&row.event.data).unwrap())
        .collect();
    let sampled: Vec<_> = sampled.iter().map(|sample| (sample.fix.sequence, sample.stage)).collect();
    assert_eq!(sampled, [(1, Stage::Scheduled), (2, PICKUP), (4, DROPOFF), (9, DONE)]);
    let topics: Vec<_> = bench.events("PositionSampled").await.into_iter().map(|row| row.event.topic).collect();
    assert!(topics.iter().all(|topic| topic == "tracking.positions"));
}

pub(super) async fn two_instances_on_one_store_agree(opened: Opened) {
    let (here, there) = (Bench::over(&opened), Bench::over(&opened));
    here.open(open(1, 1, 1)).await;
    assert_eq!(there.report(vec![report(1, 1, None)]).await, [ReportOutcome::Accepted]);
    assert_eq!(here.report(vec![report(1, 2, Some(PICKUP))]).await, [ReportOutcome::Accepted]);
    let (ours, theirs) = tokio::join!(here.report(vec![report(1, 4, Some(DROPOFF))]), async {
        there.report(vec![report(1, 3, Some(DROPOFF))]).await
    });
    assert_eq!(ours, [ReportOutcome::Accepted]);
    assert!(matches!(theirs[0], ReportOutcome::Accepted | ReportOutcome::Stale));
    assert_eq!(here.stored(1).await.unwrap().last.unwrap().sequence, 4);
    assert_eq!(here.events("StageChanged").await.len(), 2, "whoever was first said it");

    assert!(closed(&there.close(close(1, 1, 1, DONE)).await));
    assert_eq!(here.report(vec![report(1, 5, Some(DONE))]).await, [ReportOutcome::Stale], "closed elsewhere");
    there.open(open(1, 2, 1)).await;
    assert_eq!(here.report(vec![report_of(1, 2, 6, None)]).await, [ReportOutcome::Accepted], "opened elsewhere");
    there.open(open(1, 3, 1)).await;
    assert_eq!(here.report(vec![report_of(1, 2, 7, None)]).await, [ReportOutcome::Stale], "replaced elsewhere");
    assert_eq!(here.report(vec![report_of(1, 3, 8, None)]).await, [ReportOutcome::Accepted]);
}

pub(super) async fn concurrent_calls_each_get_their_own_answer(opened: Opened) {
    let bench = Bench::over(&opened);
    let commands: Vec<_> = (1..=300).map(|number| open(number, 1, 1)).collect();
    assert!(bench.tracker.open(commands).await.iter().all(|outcome| *outcome == OpenOutcome::Opened));
    let calls = (1..=300u128).map(|number| bench.report(vec![report(number, number as u64, Some(PICKUP))]));
    for (number, outcomes) in (1..=300u64).zip(futures::future::join_all(calls).await) {
        assert_eq!(outcomes, [ReportOutcome::Accepted], "{number}");
    }
    let flight = bench.tracker.flight(id(7)).await.unwrap().unwrap();
    assert_eq!(flight.last.unwrap().sequence, 7);
    assert!(bench.tracker.flight(id(999)).await.unwrap().is_none());
    assert_eq!(bench.events("StageChanged").await.len(), 300);
}

pub(super) async fn what_the_owner_says_ends_flights(opened: Opened) {
    let bench = Bench::over(&opened);
    for number in 1..=2 {
        bench.open(open(number, 1, 1)).await;
    }
    bench.settle(record(1, 1, Stage::Scheduled)).await;
    assert!(bench.stored(1).await.unwrap().is_open());
    bench.settle(record(1, 2, Stage::Scheduled)).await;
    bench.settle(record(2, 1, Stage::Failed)).await;
    bench.settle(record(3, 1, Stage::Cancelled)).await;
    assert!(!bench.stored(1).await.unwrap().is_open() && !bench.stored(2).await.unwrap().is_open());
    assert_eq!(bench.open(open(1, 2, 2)).await, OpenOutcome::Opened);
    bench.settle(record(1, 1, Stage::Requested)).await;
    assert!(bench.stored(1).await.unwrap().is_open(), "old news");
    assert_eq!(bench.open(open(2, 1, 2)).await, refused(Refusal::Undone));
    assert_eq!(bench.open(open(3, 1, 2)).await, refused(Refusal::Undone));
}

/// Makes a test of each part of the suite for one engine: `fresh` gives an empty store and what keeps it alive, or nothing
/// where there is no such engine.
macro_rules! suite {
    ($engine:ident, $fresh:path, [$($test:ident),+ $(,)?]) => {
        mod $engine {
            $(
                #[tokio::test]
                async fn $test() {
                    if let Some(fresh) = $fresh().await {
                        super::run(fresh, super::$test).await;
                    }
                }
            )+
        }
    };
}

async fn run<K, Fut: Future<Output = ()>>((kept, opened): (K, Opened), test: impl FnOnce(Opened) -> Fut) {
    test(opened).await;
    drop(kept);
}

macro_rules! suites {
    ($tests:tt) => {
        suite!(on_sqlite, crate::fixtures::embedded, $tests);
        suite!(on_redis, crate::fixtures::redis, $tests);
        suite!(on_redis_cluster, crate::fixtures::redis_cluster, $tests);
    };
}

suites!([
    what_is_saved_is_loaded_again,
    a_change_of_another_version_is_a_conflict_and_harms_no_neighbour,
    what_was_lost_never_makes_a_close_undone,
    a_lost_change_leaves_no_event_and_no_mission,
    moved_names_only_what_is_at_another_version,
    missions_are_the_open_flights_of_the_audience,
    the_mission_log_is_in_order_of_each_flight_and_read_in_pages,
    a_reader_of_the_mission_log_is_told_of_lines_that_are_gone,
    quiet_flights_are_open_and_unchanged_whatever_their_position_does,
    ended_flights_and_tombstones_are_forgotten_and_open_ones_never,
    open_and_close_in_every_order,
    fences_and_deadlines,
    a_close_that_is_too_late_leaves_the_flight_open,
    reports_are_judged_one_by_one_and_in_order,
    each_change_of_stage_is_one_event_in_the_same_write,
    two_instances_on_one_store_agree,
    concurrent_calls_each_get_their_own_answer,
    what_the_owner_says_ends_flights,
]);
