//! The audit finds each kind of damage, on a snapshot broken on purpose.

use contracts::{Stage, Timestamp, events::StageEntry};
use uuid::Uuid;

use super::*;

fn id(number: u128) -> DeliveryId {
    DeliveryId(Uuid::from_u128(number))
}

fn log(stages: &[Stage]) -> Vec<StageEntry> {
    stages.iter().map(|stage| StageEntry { stage: *stage, attempt: 1, at: Timestamp::UNIX_EPOCH }).collect()
}

const HAPPY: [Stage; 5] =
    [Stage::Requested, Stage::Scheduled, Stage::HeadedToPickup, Stage::HeadedToDropoff, Stage::Completed];

fn good() -> (Snapshot, Ledger) {
    let mut snapshot = Snapshot::default();
    for number in 1..=3 {
        let owned =
            Owned { id: id(number), stage: Stage::Completed, version: 7, finished_ms: Some(1), log: log(&HAPPY) };
        snapshot.deliveries.push(owned);
        let kept = Kept { id: id(number), stage: Stage::Completed, version: 7 };
        snapshot.lake.push(kept.clone());
        snapshot.lookup.push(kept);
    }
    (snapshot, Ledger { accepted: vec![id(1), id(2), id(3)], torn: false })
}

fn broken(damage: impl FnOnce(&mut Snapshot, &mut Ledger)) -> Vec<&'static str> {
    let (mut snapshot, mut ledger) = good();
    damage(&mut snapshot, &mut ledger);
    checks::check(&snapshot, Some(&ledger)).broken()
}

#[test]
fn a_good_snapshot_is_clean() {
    assert_eq!(broken(|_, _| {}), Vec::<&str>::new());
}

#[test]
fn a_lost_delivery_is_found() {
    assert_eq!(broken(|_, ledger| ledger.accepted.push(id(9))), ["what was accepted is there"]);
}

#[test]
fn a_doubled_row_is_found() {
    let found = broken(|snapshot, _| snapshot.deliveries.push(snapshot.deliveries[0].clone()));
    assert_eq!(found, ["no delivery is there twice"]);
}

#[test]
fn an_open_delivery_is_found() {
    let found = broken(|snapshot, _| {
        let open = Owned {
            id: id(4),
            stage: Stage::Scheduled,
            version: 3,
            finished_ms: None,
            log: log(&[Stage::Requested, Stage::Scheduled]),
        };
        snapshot.deliveries.push(open);
    });
    assert_eq!(found, ["every delivery has ended"]);
}

#[test]
fn a_second_end_is_found() {
    let found = broken(|snapshot, _| {
        snapshot.deliveries[0].log.extend(log(&[Stage::Completed]));
    });
    assert_eq!(found, ["no delivery has ended twice", "stages only move along the diagram"]);
}

#[test]
fn missing_and_doubled_history_is_found() {
    let lake = "every finished delivery is once in the lake";
    let lookup = "every finished delivery is once in the lookup store";
    let found = broken(|snapshot, _| {
        snapshot.lake.pop();
    });
    assert_eq!(found, [lake]);
    assert_eq!(broken(|snapshot, _| snapshot.lake.push(snapshot.lake[0].clone())), [lake]);
    assert_eq!(broken(|snapshot, _| snapshot.lake[0].stage = Stage::Failed), [lake]);
    let found = broken(|snapshot, _| {
        snapshot.lookup.pop();
    });
    assert_eq!(found, [lookup]);
    assert_eq!(broken(|snapshot, _| snapshot.lookup.push(snapshot.lookup[0].clone())), [lookup]);
    assert_eq!(broken(|snapshot, _| snapshot.lookup[0].version = 6), [lookup]);
    assert_eq!(broken(|snapshot, _| snapshot.doubled_positions = 2), ["no position is twice in the lake"]);
}

#[test]
fn history_of_what_is_not_over_is_found() {
    let kept = Kept { id: id(7), stage: Stage::Scheduled, version: 2 };
    let found = broken(|snapshot, _| snapshot.lake.push(kept.clone()));
    assert_eq!(found, ["the lake holds finished deliveries only"]);
    let found = broken(|snapshot, _| snapshot.lookup.push(kept));
    assert_eq!(found, ["the lookup store holds finished deliveries only"]);
}

#[test]
fn leaks_are_found() {
    let held = |number| Held { id: id(number), drone: None };
    let found = broken(|snapshot, _| snapshot.reservations.push(held(1)));
    assert_eq!(found, ["no drone is reserved for what is over"]);
    let found = broken(|snapshot, _| snapshot.packages.push(held(2)));
    assert_eq!(found, ["no package is registered for what is over"]);
    let found = broken(|snapshot, _| snapshot.flights.push(held(8)));
    assert_eq!(found, ["no flight is open for what is over"]);
    let drone = Some(DroneId(Uuid::from_u128(5)));
    let found = broken(|snapshot, _| {
        snapshot.reservations.push(Held { id: id(1), drone });
        snapshot.reservations.push(Held { id: id(2), drone });
    });
    assert_eq!(found, ["no drone is reserved for what is over", "no drone is reserved twice"]);
}

#[test]
fn illegal_stages_are_found() {
    let legal = "stages only move along the diagram";
    let found = broken(|snapshot, _| {
        snapshot.deliveries[0].log.remove(2);
    });
    assert_eq!(found, [legal]);
    let found = broken(|snapshot, _| snapshot.deliveries[0].log.swap(1, 2));
    assert_eq!(found, [legal]);
    let found = broken(|snapshot, _| snapshot.deliveries[0].log[0].attempt = 2);
    assert_eq!(found, [legal]);
}

#[test]
fn a_row_that_disagrees_with_its_log_is_found() {
    let found = broken(|snapshot, _| snapshot.deliveries[0].finished_ms = None);
    assert_eq!(found, ["the row says what its log says"]);
}

#[test]
fn the_arrow_back_belongs_to_a_new_attempt() {
    let entry = |stage, attempt| StageEntry { stage, attempt, at: Timestamp::UNIX_EPOCH };
    let mut again = log(&HAPPY[..3]);
    again.push(entry(Stage::Scheduled, 2));
    again.extend(HAPPY[2..].iter().map(|stage| entry(*stage, 2)));
    assert_eq!(broken(|snapshot, _| snapshot.deliveries[0].log = again.clone()), Vec::<&str>::new());
    again[3].attempt = 1;
    let found = broken(|snapshot, _| snapshot.deliveries[0].log = again);
    assert_eq!(found, ["stages only move along the diagram"]);
}

#[test]
fn a_ledger_is_read_and_a_torn_last_line_is_noticed() {
    let text = format!("{{\"id\":\"{}\",\"at\":\"x\"}}\n\n{{\"id\":\"{}", id(1), id(2));
    let ledger = Ledger::read(text.as_bytes()).unwrap();
    assert_eq!((ledger.accepted, ledger.torn), (vec![id(1)], true));
    assert!(Ledger::read(&b"nonsense\n"[..]).is_err());
}
