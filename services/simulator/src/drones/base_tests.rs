//! How a base station batches its drones' reports and follows its missions.

use contracts::{
    Coordinate, DeliveryId, Stage, SystemClock,
    api::{Confirmation, RejectedLine, TelemetryLine},
    flight::Airframe,
};
use uuid::Uuid;

use super::*;
use crate::{Config, Progress, drones::Rules, gateway::Gateway};

const HOME: Coordinate = Coordinate { latitude: 43.30, longitude: 5.37 };

/// A clock that stands still until it is told to go on.
#[derive(Debug)]
struct HandClock(std::sync::atomic::AtomicI64);

impl HandClock {
    fn pass(&self, millis: i64) {
        self.0.fetch_add(millis, Relaxed);
    }
}

/// A future that is never ready: these tests do not sleep.
type Never = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl contracts::Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_timestamp_millis(self.0.load(Relaxed)).unwrap()
    }

    fn sleep_until<'a, 'b>(&'a self, _: Timestamp) -> Never
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(std::future::pending())
    }

    fn new_id(&self) -> Uuid {
        contracts::Clock::new_id(&SystemClock)
    }
}

fn station(drones: u128) -> (Station, Arc<HandClock>) {
    let clock = Arc::new(HandClock(1_700_000_000_000.into()));
    let config = Config::default();
    let shared = Shared {
        gateway: Arc::new(Gateway::new("http://127.0.0.1:1", clock.clone()).unwrap()),
        clock: clock.clone(),
        progress: Arc::new(Progress::default()),
        rules: Rules::new(&config),
        misbehave: 0.0,
        seed: 7,
    };
    let airframe = Airframe { payload_kg: 4.0, range_m: 20_000.0, speed_mps: 160.0 };
    let drones = (1..=drones).map(|n| Drone::new(DroneId(Uuid::from_u128(n)), airframe, HOME, HOME, 1.0)).collect();
    let base = Base { id: "base-01".parse().unwrap(), position: HOME };
    let identity = Arc::new(Identity::new(contracts::api::Role::BaseStation, "base-01"));
    (Station::new(shared, base, identity, 0, drones), clock)
}

fn mission(drone: u128, delivery: u128) -> Mission {
    Mission {
        delivery_id: DeliveryId(Uuid::from_u128(delivery)),
        drone_id: DroneId(Uuid::from_u128(drone)),
        base_id: "base-01".parse().unwrap(),
        attempt: 1,
        pickup: Coordinate { latitude: 43.31, ..HOME },
        dropoff: Coordinate { latitude: 43.32, ..HOME },
        weight_kg: 1.0,
        confirmation: Confirmation::None,
        stage: Stage::Scheduled,
        last_sequence: None,
        last_position: None,
    }
}

fn lines(batch: &Batch) -> Vec<TelemetryLine> {
    let text = std::str::from_utf8(&batch.body).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn snapshot(missions: Vec<Mission>) -> MissionUpdate {
    MissionUpdate::Snapshot { missions }
}

#[test]
fn drones_in_the_air_report_once_a_second_evenly_spread() {
    let (mut station, clock) = station(500);
    station.follow(snapshot((1..=500).map(|n| mission(n, 1_000 + n)).collect()));
    // The missions' first stage is reported at once by all.
    assert_eq!(station.tick(true).map(|batch| batch.lines.len()), Some(500));
    let mut sizes = Vec::new();
    for _ in 0..25 {
        clock.pass(200);
        sizes.push(station.tick(true).map_or(0, |batch| batch.lines.len()));
    }
    assert_eq!(sizes.iter().sum::<usize>(), 5 * 500, "{sizes:?}");
}

#[test]
fn drones_on_the_ground_report_every_ten_seconds_and_never_all_at_once() {
    let (mut station, clock) = station(500);
    station.follow(snapshot(vec![]));
    let mut sizes = Vec::new();
    for _ in 0..100 {
        clock.pass(200);
        sizes.push(station.tick(true).map_or(0, |batch| batch.lines.len()));
    }
    assert!((950..=1_050).contains(&sizes.iter().sum::<usize>()), "{sizes:?}");
    assert!(sizes.iter().all(|size| *size < 150), "{sizes:?}");
}

#[test]
fn nothing_is_said_before_the_missions_are_known() {
    let (mut station, clock) = station(5);
    clock.pass(60_000);
    assert!(station.tick(true).is_none());
    station.follow(snapshot(vec![]));
    assert_eq!(station.tick(true).map(|batch| batch.lines.len()), Some(5));
}

#[test]
fn a_batch_waits_for_the_one_before_and_then_takes_everything_that_is_due() {
    let (mut station, clock) = station(50);
    station.follow(snapshot((1..=50).map(|n| mission(n, 1_000 + n)).collect()));
    assert!(station.tick(false).is_none());
    clock.pass(3_000);
    assert!(station.tick(false).is_none());
    assert_eq!(station.tick(true).map(|batch| batch.lines.len()), Some(50), "one line a drone, however late");
}

#[test]
fn a_batch_is_never_larger_than_the_gateway_allows() {
    let (mut station, clock) = station(MAX_TELEMETRY_LINES as u128 + 100);
    station.follow(snapshot(vec![]));
    clock.pass(1_000);
    assert!(station.tick(true).unwrap().lines.len() <= MAX_TELEMETRY_LINES);
    assert!(station.tick(true).unwrap().lines.len() >= 100);
}

#[test]
fn reports_that_were_not_taken_are_sent_again_after_a_pause() {
    let (mut station, clock) = station(1);
    station.follow(snapshot(vec![mission(1, 9)]));
    let batch = station.tick(true).unwrap();
    let down = Answer { status: reqwest::StatusCode::SERVICE_UNAVAILABLE, body: Bytes::new(), retry_after: None };
    station.settle_reports(batch, Ok(down));
    assert!(station.tick(true).is_none(), "not at once");
    clock.pass(200);
    assert_eq!(lines(&station.tick(true).unwrap())[0].stage, Some(Stage::HeadedToPickup));
    assert_eq!(station.shared.progress.report_errors.load(Relaxed), 1);
}

#[test]
fn a_drone_that_the_fleet_has_lost_is_registered_again() {
    let (mut station, clock) = station(2);
    station.follow(snapshot(vec![]));
    clock.pass(1_000);
    let batch = station.tick(true).unwrap();
    let lost = batch.lines[1] as usize;
    let rejected = RejectedLine { line: 2, reason: UNKNOWN_DRONE_REASON.to_owned(), retryable: false };
    let body = serde_json::to_vec(&TelemetryAnswer { accepted: 1, stale: 0, rejected: vec![rejected] }).unwrap();
    let answer = Answer { status: reqwest::StatusCode::OK, body: body.into(), retry_after: None };
    station.settle_reports(batch, Ok(answer));
    assert_eq!(station.unregistered, [lost]);
    clock.pass(20_000);
    assert_eq!(station.tick(true).unwrap().lines.len(), 1, "it is silent meanwhile");
    let created = Answer { status: reqwest::StatusCode::CREATED, body: Bytes::new(), retry_after: None };
    station.settle_registration(lost, &Ok(created));
    assert_eq!(station.tick(true).unwrap().lines, [lost as u32]);
}

#[test]
fn a_mission_that_is_not_in_the_snapshot_is_over() {
    let (mut station, clock) = station(3);
    station.follow(snapshot(vec![mission(1, 11), mission(2, 12)]));
    station.follow(MissionUpdate::Assigned { mission: mission(3, 13) });
    assert_eq!(station.shared.progress.missions.load(Relaxed), 3);
    clock.pass(2_000);
    station.follow(snapshot(vec![mission(2, 12)]));
    assert_eq!(station.shared.progress.missions.load(Relaxed), 1);
    let said = lines(&station.tick(true).unwrap());
    let missions: Vec<_> = said.iter().map(|line| line.delivery_id.map(|id| id.0.as_u128())).collect();
    assert_eq!(missions, [None, Some(12), None]);
    station.follow(MissionUpdate::Recalled {
        delivery_id: DeliveryId(Uuid::from_u128(12)),
        drone_id: DroneId(Uuid::from_u128(2)),
        base_id: "base-01".parse().unwrap(),
        attempt: 1,
    });
    assert_eq!(station.shared.progress.missions.load(Relaxed), 0);
}
