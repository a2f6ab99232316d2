//! What a drone does: the rules of flight, missions, charging and misbehaviour.

use contracts::api::Confirmation;
use uuid::Uuid;

use super::*;

const HOME: Coordinate = Coordinate { latitude: 43.30, longitude: 5.37 };
const RULES: Rules = Rules {
    handover_ms: 5_000,
    idle_ms: 12_000,
    charge_per_ms: 1.0 / 120_000.0,
    report_ms: 1_000,
    ground_report_ms: 10_000,
};
const START: i64 = 1_700_000_000_000;

fn north_of_home(metres: f64) -> Coordinate {
    Coordinate { latitude: HOME.latitude + metres / 111_195.0, ..HOME }
}

fn drone() -> Drone {
    let airframe = Airframe { payload_kg: 4.0, range_m: 20_000.0, speed_mps: 100.0 };
    let mut drone = Drone::new(DroneId(Uuid::from_u128(1)), airframe, HOME, HOME, 0.9);
    drone.begin(START, 0, &RULES);
    drone
}

fn mission(attempt: u32) -> Mission {
    Mission {
        delivery_id: DeliveryId(Uuid::from_u128(5)),
        drone_id: DroneId(Uuid::from_u128(1)),
        base_id: "base-01".parse().unwrap(),
        attempt,
        pickup: north_of_home(1_000.0),
        dropoff: north_of_home(3_000.0),
        weight_kg: 4.0,
        confirmation: Confirmation::None,
        stage: Stage::Scheduled,
        last_sequence: None,
        last_position: None,
    }
}

fn stage(drone: &Drone) -> Option<Stage> {
    drone.task.map(|task| task.stage)
}

fn fault(kind: FaultKind, carrying: bool) -> Option<Fault> {
    Some(Fault { kind, carrying, share: 0.5 })
}

#[test]
fn a_mission_is_flown_through_its_stages_in_the_time_that_the_distance_takes() {
    let mut drone = drone();
    assert!(drone.assign(&mission(1), START, &RULES, None));
    assert_eq!(stage(&drone), Some(Stage::HeadedToPickup));
    drone.advance(START + 5_000, &RULES);
    assert!(drone.position.distance_m(&north_of_home(500.0)) < 2.0);
    drone.advance(START + 12_000, &RULES);
    assert!(matches!(drone.phase, Phase::Loading { .. }));
    assert_eq!(stage(&drone), Some(Stage::HeadedToPickup), "the package is not on board yet");
    drone.advance(START + 16_000, &RULES);
    assert_eq!(stage(&drone), Some(Stage::HeadedToDropoff));
    drone.advance(START + 40_100, &RULES);
    assert_eq!(stage(&drone), Some(Stage::Completed));
    assert!(drone.position.distance_m(&north_of_home(3_000.0)) < 1.0);
    // 1 km empty, 2 km with the full payload, which costs half as much again.
    let drained = 0.9 - drone.battery;
    assert!((drained - (1_000.0 + 2_000.0 * 1.5) / 20_000.0).abs() < 1e-3, "{drained}");
}

#[test]
fn one_long_step_ends_where_many_short_ones_do() {
    let (mut slow, mut fast) = (drone(), drone());
    slow.assign(&mission(1), START, &RULES, None);
    fast.assign(&mission(1), START, &RULES, None);
    for tick in 0..300 {
        slow.advance(START + tick * 200, &RULES);
    }
    fast.advance(START + 299 * 200, &RULES);
    assert_eq!(slow.phase, fast.phase);
    assert_eq!(slow.position, fast.position);
    assert!((slow.battery - fast.battery).abs() < 1e-9);
}

#[test]
fn a_stage_is_repeated_until_the_mission_is_recalled() {
    let mut drone = drone();
    drone.assign(&mission(1), START, &RULES, None);
    let mut now = START + 60_000;
    drone.advance(now, &RULES);
    for _ in 0..5 {
        assert!(drone.is_due(now));
        let report = drone.report(now, &RULES);
        assert_eq!(report.mission.map(|mission| mission.2), Some(Stage::Completed));
        assert!(!drone.is_due(now));
        now += 1_000;
        drone.advance(now, &RULES);
    }
    let task = mission(1);
    assert_eq!(drone.recall(task.delivery_id, 1, now, &RULES), Recalled::Delivered);
    assert!(drone.is_due(now), "a free drone says so at once");
    assert_eq!(drone.report(now, &RULES).mission, None);
}

#[test]
fn a_new_stage_is_reported_at_once() {
    let mut drone = drone();
    drone.assign(&mission(1), START, &RULES, None);
    drone.report(START, &RULES);
    drone.advance(START + 15_000, &RULES);
    drone.report(START + 15_000, &RULES);
    assert!(drone.wake_at_ms() <= START + 16_000);
    drone.advance(START + 15_200, &RULES);
    assert_eq!(stage(&drone), Some(Stage::HeadedToDropoff));
    assert!(drone.is_due(START + 15_200));
}

#[test]
fn sequences_only_grow_even_past_a_restart() {
    let mut drone = drone();
    let ahead = Mission { last_sequence: Some(START as u64 + 500), ..mission(1) };
    drone.assign(&ahead, START, &RULES, None);
    let first = drone.report(START, &RULES).sequence;
    let second = drone.report(START, &RULES).sequence;
    assert_eq!(first, START as u64 + 501);
    assert!(second > first);
}

#[test]
fn a_restarted_drone_goes_on_from_where_the_mission_was_seen_last() {
    let mut drone = drone();
    let position = north_of_home(2_000.0);
    let seen = Mission { stage: Stage::HeadedToDropoff, last_position: Some(position), ..mission(1) };
    drone.assign(&seen, START, &RULES, None);
    assert_eq!(stage(&drone), Some(Stage::HeadedToDropoff));
    assert_eq!(drone.position, position);
    drone.advance(START + 15_100, &RULES);
    assert_eq!(stage(&drone), Some(Stage::Completed));
}

#[test]
fn a_later_attempt_replaces_the_mission_and_an_earlier_one_does_not() {
    let mut drone = drone();
    assert!(drone.assign(&mission(2), START, &RULES, None));
    assert!(!drone.assign(&mission(1), START, &RULES, None));
    assert!(!drone.assign(&mission(2), START, &RULES, None), "the same mission again changes nothing");
    assert_eq!(drone.recall(mission(1).delivery_id, 1, START, &RULES), Recalled::NotMine);
    assert!(drone.assign(&mission(3), START, &RULES, None));
    assert_eq!(drone.task.map(|task| task.attempt), Some(3));
    assert_eq!(drone.recall(mission(3).delivery_id, 3, START, &RULES), Recalled::Unfinished);
    assert!(drone.task.is_none());
}

#[test]
fn a_changed_dropoff_is_flown_to() {
    let mut drone = drone();
    drone.assign(&mission(1), START, &RULES, None);
    drone.advance(START + 20_000, &RULES);
    let elsewhere = Mission { dropoff: north_of_home(1_500.0), ..mission(1) };
    drone.assign(&elsewhere, START + 20_000, &RULES, None);
    drone.advance(START + 60_000, &RULES);
    assert_eq!(stage(&drone), Some(Stage::Completed));
    assert!(drone.position.distance_m(&north_of_home(1_500.0)) < 1.0);
}

#[test]
fn a_free_drone_waits_then_goes_home_and_charges() {
    let mut drone = drone();
    drone.assign(&mission(1), START, &RULES, None);
    drone.advance(START + 41_000, &RULES);
    drone.recall(mission(1).delivery_id, 1, START + 41_000, &RULES);
    assert!(matches!(drone.phase, Phase::Parked { .. }));
    drone.advance(START + 54_000, &RULES);
    assert!(matches!(drone.phase, Phase::Homing(_)));
    drone.advance(START + 84_000, &RULES);
    assert_eq!(drone.phase, Phase::Home);
    assert!(drone.position.distance_m(&HOME) < 1.0);
    let before = drone.battery;
    drone.advance(START + 96_000, &RULES);
    assert!((drone.battery - before - 0.1).abs() < 1e-9, "a tenth of the time that a full charge takes");
    drone.advance(START + 900_000, &RULES);
    assert!((drone.battery - 1.0).abs() < 1e-9);
}

#[test]
fn a_drone_with_little_battery_left_goes_home_at_once() {
    let mut drone = drone();
    drone.battery = 0.7;
    drone.assign(&mission(1), START, &RULES, None);
    drone.advance(START + 41_000, &RULES);
    drone.recall(mission(1).delivery_id, 1, START + 41_000, &RULES);
    assert!(matches!(drone.phase, Phase::Homing(_)));
}

#[test]
fn an_empty_battery_is_a_failure_and_the_drone_is_brought_home() {
    let mut drone = drone();
    drone.battery = 0.1;
    drone.assign(&mission(1), START, &RULES, None);
    let incidents = drone.advance(START + 60_000, &RULES);
    assert_eq!(incidents.breakdowns, 1);
    assert_eq!(stage(&drone), Some(Stage::Failed));
    assert!(drone.battery < 1e-6);
    assert!(drone.position.distance_m(&north_of_home(3_000.0)) > 500.0, "it never got there");
    drone.recall(mission(1).delivery_id, 1, START + 60_000, &RULES);
    drone.advance(START + 120_000, &RULES);
    assert_eq!(drone.phase, Phase::Home);
    assert!(drone.battery > 0.1, "it charges again");
}

#[test]
fn a_breakdown_is_reported_until_the_recall_and_then_the_drone_goes_home() {
    for carrying in [false, true] {
        let mut drone = drone();
        drone.assign(&mission(1), START, &RULES, fault(FaultKind::Breakdown, carrying));
        let incidents = drone.advance(START + 60_000, &RULES);
        assert_eq!(incidents, Incidents { breakdowns: 1, silences: 0 });
        assert_eq!(drone.report(START + 60_000, &RULES).mission.map(|mission| mission.2), Some(Stage::Failed));
        let flown_m = drone.position.distance_m(&HOME);
        let expected_m = if carrying { 2_000.0 } else { 500.0 };
        assert!((flown_m - expected_m).abs() < 2.0, "{flown_m}");
        assert_eq!(drone.recall(mission(1).delivery_id, 1, START + 60_000, &RULES), Recalled::Unfinished);
        assert_eq!(drone.report(START + 60_000, &RULES).mission, None);
        assert!(matches!(drone.phase, Phase::Homing(_)));
    }
}

#[test]
fn a_silent_drone_flies_on_and_speaks_again_later() {
    let mut drone = drone();
    drone.assign(&mission(1), START, &RULES, fault(FaultKind::Silence { for_ms: 45_000 }, false));
    assert_eq!(drone.advance(START + 6_000, &RULES).silences, 1);
    for second in 6..50 {
        drone.advance(START + second * 1_000, &RULES);
        assert!(!drone.is_due(START + second * 1_000), "second {second}");
    }
    drone.advance(START + 51_000, &RULES);
    assert!(drone.is_due(START + 51_000));
    assert_eq!(stage(&drone), Some(Stage::Completed));
}

#[test]
fn a_stutter_begins_on_its_leg() {
    let mut drone = drone();
    drone.assign(&mission(1), START, &RULES, fault(FaultKind::Stutter, true));
    assert!(drone.stutter.is_none());
    drone.advance(START + 20_000, &RULES);
    assert!(drone.stutter.is_some());
}

#[test]
fn reports_keep_their_rhythm() {
    let mut drone = drone();
    drone.begin(START, 300, &RULES);
    drone.advance(START + 400, &RULES);
    assert!(drone.is_due(START + 400));
    drone.report(START + 400, &RULES);
    assert_eq!(drone.wake_at_ms(), START + 10_300, "a late tick does not shift the next report");
    drone.assign(&mission(1), START + 500, &RULES, None);
    drone.report(START + 500, &RULES);
    assert_eq!(drone.wake_at_ms(), START + 1_500);
    drone.advance(START + 9_500, &RULES);
    drone.report(START + 9_500, &RULES);
    assert!(drone.wake_at_ms() > START + 9_500, "what was missed is not sent again and again");
}

#[test]
fn an_unregistered_drone_says_nothing() {
    let mut drone = drone();
    drone.registered = false;
    assert!(!drone.is_due(START + 60_000));
}
