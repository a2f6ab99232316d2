//! Two instances on one store, whatever their indexes believe: no drone is reserved twice or spoken for by strangers.

use std::{collections::HashSet, sync::Arc};

use contracts::{
    BaseId, Clock, DroneId, SystemClock,
    commands::{ReportFault, ReportOutcome, ReserveOutcome},
};
use tokio::task::JoinSet;

use super::make;
use crate::{audit_scan, fleet::Fleet, reports::Report, store, upkeep};

const DRONES: u128 = 60;
const DELIVERIES: u128 = 100;

async fn instance(url: &str) -> Arc<Fleet> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let opened = store::open(url, clock.clone()).await.unwrap();
    Fleet::new(opened.store, clock)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_never_reserve_a_drone_twice() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("fleet.db").display());
    let first = instance(&url).await;
    let second = instance(&url).await;
    let drones: Vec<_> = (1..=DRONES).map(|number| make::registration(number, "north")).collect();
    first.register(&drones).await;
    upkeep::fill(&second, 0).await.unwrap();
    assert_eq!(second.index.available(), first.index.available());

    let mut calls = JoinSet::new();
    for number in 1..=DELIVERIES {
        // Every fourth delivery is asked of both, as after a time-out.
        for (turn, fleet) in [(0, &first), (1, &second)] {
            if number % 2 == turn || number % 4 == 0 {
                let fleet = fleet.clone();
                calls.spawn(async move {
                    let outcome = fleet.reserve(&[make::reserve(make::delivery(number), 1)]).await.remove(0);
                    (number, outcome)
                });
            }
        }
    }
    let mut reserved: HashSet<(u128, DroneId)> = HashSet::new();
    let mut waiting = HashSet::new();
    while let Some(done) = calls.join_next().await {
        match done.unwrap() {
            (number, ReserveOutcome::Reserved { drone }) => {
                reserved.insert((number, drone.drone_id));
            }
            (number, ReserveOutcome::Waiting) => {
                waiting.insert(number);
            }
            (number, other) => panic!("delivery {number}: {other:?}"),
        }
    }
    let deliveries: HashSet<_> = reserved.iter().map(|(number, _)| number).collect();
    let taken: HashSet<_> = reserved.iter().map(|(_, drone)| drone).collect();
    assert_eq!((deliveries.len(), taken.len()), (reserved.len(), reserved.len()), "one to one");

    // What lost every round waits, and the matchers of both give it what is left.
    for fleet in [&first, &second] {
        upkeep::fill(fleet, 0).await.unwrap();
        let line = fleet.line.clone();
        let mut matcher = crate::matcher::Matcher::new(fleet.store.clone(), fleet.index.clone(), line);
        while matcher.turn().await.unwrap() > 0 {}
    }
    let open = audit_scan(&url).await.unwrap();
    let with = |state: &str| open.iter().filter(|row| row.state == state).count();
    assert_eq!(with("reserved"), usize::try_from(DRONES).unwrap());
    assert_eq!(with("drone_reserved"), usize::try_from(DRONES).unwrap());
    assert_eq!(with("waiting"), usize::try_from(DELIVERIES - DRONES).unwrap());
    let drones: HashSet<_> = open.iter().filter(|row| row.state == "reserved").map(|row| row.drone_id).collect();
    assert_eq!(drones.len(), usize::try_from(DRONES).unwrap());
}

#[tokio::test]
async fn a_base_reports_for_no_drone_that_another_instance_has_moved_away() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("fleet.db").display());
    let (first, second) = (instance(&url).await, instance(&url).await);
    first.register(&[make::registration(1, "north")]).await;
    upkeep::fill(&second, 0).await.unwrap();
    let mut away = make::registration(1, "south");
    away.may_move = true;
    first.register(&[away]).await;
    let north: BaseId = "north".parse().unwrap();
    let believed = second.index.of_bases([make::drone_id(1)].into_iter(), |_, base| base == Some(&north));
    assert_eq!(believed, [true], "the second has not heard of it yet");

    // The drone speaks for itself before and after, in the same batch.
    let report =
        |sequence, base: Option<&BaseId>| Report { base: base.cloned(), ..make::spoken(make::report(1, sequence)) };
    let outcomes = second.report(&[report(1, None), report(2, Some(&north)), report(3, None)]).await;
    let unknown = ReportOutcome::Rejected { reason: ReportFault::UnknownDrone };
    assert_eq!(outcomes, [ReportOutcome::Accepted, unknown, ReportOutcome::Accepted]);
}
