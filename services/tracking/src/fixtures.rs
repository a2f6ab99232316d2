//! What the tests of this crate start from: flights, commands, reports, and a tracker over a fresh store.

use std::{sync::Arc, time::Duration};

use auth::Identity;
use contracts::{
    Coordinate, DeliveryId, DroneId, Stage, Timestamp,
    api::{Confirmation, PackageSize, PackageSpec},
    commands::{AssignedDrone, CloseFlight, CloseOutcome, FlightReport, OpenFlight, OpenOutcome, ReportOutcome},
    events::{DeliveryRecord, PositionFix},
    flight::Airframe,
};
use messaging::outbox::{OutboxRow, OutboxSignal, OutboxSource};
use testkit::ManualClock;
use tokio::{sync::Notify, task::JoinSet};
use uuid::Uuid;

use crate::{
    domain::{Draft, Flight, MissionNote},
    live::Live,
    missions::{Feed, Missions},
    store::{LogPosition, Look, Opened, Store},
    tracker::{Parts, Tracker},
};

/// The base of every drone here.
pub(crate) const BASE: &str = "north";
/// Whose deliveries these are.
pub(crate) const CUSTOMER: &str = "alice";

pub(crate) fn id(number: u128) -> DeliveryId {
    DeliveryId(Uuid::from_u128(number))
}

/// The drone that flies an attempt of delivery `number`.
pub(crate) fn drone(number: u128, attempt: u32) -> DroneId {
    DroneId(Uuid::from_u128(number * 1_000 + u128::from(attempt)))
}

pub(crate) fn start() -> Timestamp {
    Timestamp::from_timestamp(1_790_000_000, 0).unwrap()
}

/// `seconds` after the start.
pub(crate) fn at(seconds: i64) -> Timestamp {
    start() + chrono::Duration::seconds(seconds)
}

fn place(longitude: f64) -> Coordinate {
    Coordinate { latitude: 0.0, longitude }
}

pub(crate) fn open(number: u128, attempt: u32, fence: u64) -> OpenFlight {
    OpenFlight {
        delivery_id: id(number),
        attempt,
        fence,
        step_deadline: at(60),
        customer_id: CUSTOMER.parse().unwrap(),
        home_region: contracts::api::default_region(),
        drone: AssignedDrone {
            drone_id: drone(number, attempt),
            base_id: BASE.parse().unwrap(),
            airframe: Airframe { payload_kg: 4.0, range_m: 20_000.0, speed_mps: 10.0 },
            position: place(0.0),
            battery: 1.0,
        },
        pickup: place(0.01),
        dropoff: place(0.02),
        weight_kg: 1.0,
        confirmation: Confirmation::None,
        deadline: at(1_800),
    }
}

pub(crate) fn close(number: u128, attempt: u32, fence: u64, before: Stage) -> CloseFlight {
    CloseFlight { delivery_id: id(number), attempt, fence, before }
}

/// A report of attempt 1's drone, `sequence` seconds after the start.
pub(crate) fn report(number: u128, sequence: u64, stage: Option<Stage>) -> FlightReport {
    report_of(number, 1, sequence, stage)
}

/// A report of an attempt's drone.
pub(crate) fn report_of(number: u128, attempt: u32, sequence: u64, stage: Option<Stage>) -> FlightReport {
    FlightReport {
        delivery_id: id(number),
        attempt,
        drone_id: drone(number, attempt),
        stage,
        fix: PositionFix {
            position: place(0.001 * sequence as f64),
            battery: 0.5,
            at: at(i64::try_from(sequence).unwrap()),
            sequence,
        },
    }
}

/// The flight of attempt 1, just opened.
pub(crate) fn opened(number: u128) -> Flight {
    let mut draft = Draft::new(None);
    assert_eq!(draft.open(&open(number, 1, 1), start()), OpenOutcome::Opened);
    draft.flight.unwrap()
}

/// A flight whose last report and version have that number.
pub(crate) fn flying(number: u128, sequence: u64) -> Flight {
    let mut draft = Draft::new(Some(opened(number)));
    assert_eq!(draft.report(&report(number, sequence, None), |_| true, start()), ReportOutcome::Accepted);
    Flight { version: sequence.into(), ..draft.flight.unwrap() }
}

/// What the owner says of a delivery.
pub(crate) fn record(number: u128, attempt: u32, stage: Stage) -> DeliveryRecord {
    DeliveryRecord {
        delivery_id: id(number),
        customer_id: CUSTOMER.parse().unwrap(),
        home_region: contracts::api::default_region(),
        version: 1,
        stage,
        attempt,
        pickup: place(0.01),
        dropoff: place(0.02),
        package: PackageSpec { size: PackageSize::Small, weight_kg: 1.0, tag: None, description: None },
        expedited: false,
        confirmation: Confirmation::None,
        requested_at: start(),
        deadline: at(1_800),
        updated_at: start(),
        finished_at: stage.is_terminal().then(start),
        drone: None,
        stages: Vec::new(),
        end_reason: None,
        confirmation_missing: false,
    }
}

/// A tracker over a store, with everything around it, on a clock that stands at [`start`].
pub(crate) struct Bench {
    pub(crate) tracker: Tracker,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) outbox: Arc<dyn OutboxSource>,
    pub(crate) missions: Missions,
    pub(crate) live: Live,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) feed: Option<Feed>,
    pub(crate) tasks: JoinSet<()>,
}

impl Bench {
    pub(crate) fn over(opened: &Opened) -> Self {
        let clock = Arc::new(ManualClock::at(start()));
        let (live, wake) = (Live::default(), Arc::new(Notify::new()));
        let missions = Missions::new(opened.store.clone(), clock.clone());
        let (tracker, worker) = Tracker::new(Parts {
            store: opened.store.clone(),
            clock: clock.clone(),
            outbox: OutboxSignal::default(),
            missions: wake.clone(),
            live: live.clone(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(worker);
        let feed = Some(Feed::new(missions.clone(), live.clone(), wake));
        let (store, outbox) = (opened.store.clone(), opened.outbox.clone());
        Self { tracker, store, outbox, missions, live, clock, feed, tasks }
    }

    pub(crate) fn advance_s(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    pub(crate) async fn open(&self, command: OpenFlight) -> OpenOutcome {
        self.tracker.open(vec![command]).await.pop().unwrap()
    }

    pub(crate) async fn close(&self, command: CloseFlight) -> CloseOutcome {
        self.tracker.close(vec![command]).await.pop().unwrap()
    }

    /// Reports in the name of the base.
    pub(crate) async fn report(&self, reports: Vec<FlightReport>) -> Vec<ReportOutcome> {
        self.tracker.report(Identity::BaseStation(BASE.parse().unwrap()), reports).await
    }

    pub(crate) async fn settle(&self, record: DeliveryRecord) {
        assert_eq!(self.tracker.settle(vec![record]).await, [true]);
    }

    pub(crate) async fn stored(&self, number: u128) -> Option<Flight> {
        self.store.load(&[id(number)]).await.unwrap().pop()
    }

    pub(crate) async fn events(&self, kind: &str) -> Vec<OutboxRow> {
        let rows = testkit::outbox::pending(&*self.outbox).await;
        rows.into_iter().filter(|row| row.event.kind == kind).collect()
    }
}

/// What the mission log says from there on, read in pages.
pub(crate) async fn logged(store: &dyn Store, position: &mut LogPosition, page: u32) -> Vec<MissionNote> {
    let mut notes = Vec::new();
    loop {
        let read = store.mission_log(position, page, Look::Everywhere).await.unwrap();
        assert!(!read.gap, "nothing is missing");
        *position = read.position;
        notes.extend(read.lines);
        if !read.more {
            return notes;
        }
    }
}

/// A fresh embedded store; the folder must outlive it.
pub(crate) async fn sqlite() -> (tempfile::TempDir, Opened) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("tracking.db").display());
    let opened = crate::store::open(&url).await.unwrap();
    (folder, opened)
}

/// The same, for suites of several engines.
pub(crate) async fn embedded() -> Option<(tempfile::TempDir, Opened)> {
    Some(sqlite().await)
}

/// A fresh store on the server that `TEST_REDIS_URL` names.
pub(crate) async fn redis() -> Option<((), Opened)> {
    fresh_redis("TEST_REDIS_URL").await
}

/// A fresh store on the cluster that `TEST_REDIS_CLUSTER_URL` names.
pub(crate) async fn redis_cluster() -> Option<((), Opened)> {
    fresh_redis("TEST_REDIS_CLUSTER_URL").await
}

async fn fresh_redis(variable: &str) -> Option<((), Opened)> {
    let url = format!("{}?prefix={}", testkit::real::url(variable)?, testkit::real::unique("t"));
    Some(((), crate::store::open(&url).await.unwrap()))
}
