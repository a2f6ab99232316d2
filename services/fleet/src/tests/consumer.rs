//! The consumer: the same end state whatever the order of a delivery's events and however often they come.

use std::sync::Arc;

use contracts::{
    Clock, Stage, SystemClock,
    commands::{Refusal, ReserveOutcome},
    events::{DeliveryEvent, DeliveryEventKind},
};
use messaging::{Delivered, HandleError, Handler};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::make;
use crate::{AuditReservation, audit_scan, events::DeliveryEnds, fleet::Fleet, store};

const DELIVERIES: u128 = 40;

fn delivered(number: u128, kind: DeliveryEventKind, stage: Stage, attempt: u32) -> Delivered {
    let clock = SystemClock;
    let data = make::record(make::delivery(number), stage, attempt);
    let event = DeliveryEvent { id: clock.new_id(), time: clock.now(), kind, data }.encode();
    Delivered { topic: event.topic.clone().into(), partition: 0, offset: 0, event: Arc::new(event) }
}

/// What happened to the deliveries: every second one is over, every third has come to its second attempt.
fn history() -> Vec<Delivered> {
    let mut events = Vec::new();
    for number in 1..=DELIVERIES {
        events.push(delivered(number, DeliveryEventKind::DeliveryRequested, Stage::Requested, 1));
        events.push(delivered(number, DeliveryEventKind::DeliveryScheduled, Stage::Scheduled, 1));
        let attempt = if number % 3 == 0 { 2 } else { 1 };
        if attempt == 2 {
            events.push(delivered(number, DeliveryEventKind::DeliveryScheduled, Stage::Scheduled, 2));
        }
        match number % 4 {
            0 => events.push(delivered(number, DeliveryEventKind::DeliveryCompleted, Stage::Completed, attempt)),
            2 => events.push(delivered(number, DeliveryEventKind::DeliveryCancelled, Stage::Cancelled, attempt)),
            _ => {}
        }
    }
    events
}

/// Feeds the events, in batches of every size, to a fleet that reserved the first attempt of each delivery; what is
/// open in the end, and what a late second attempt hears.
async fn outcome(events: &[Delivered], rng: &mut StdRng) -> (Vec<AuditReservation>, Vec<bool>) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("fleet.db").display());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let fleet = Fleet::new(store::open(&url, clock.clone()).await.unwrap().store, clock);
    let drones: Vec<_> = (1..=DELIVERIES).map(|number| make::registration(number, "north")).collect();
    fleet.register(&drones).await;
    let commands: Vec<_> = (1..=DELIVERIES).map(|number| make::reserve(make::delivery(number), 1)).collect();
    fleet.reserve(&commands).await;
    let mut consumer = DeliveryEnds { fleet: fleet.clone() };
    let mut rest = events;
    while !rest.is_empty() {
        let (batch, later) = rest.split_at(rng.random_range(1..=rest.len()));
        for result in consumer.handle(batch).await {
            result.unwrap();
        }
        rest = later;
    }
    let mut open = audit_scan(&url).await.unwrap();
    for row in &mut open {
        // Which drone it was is the index's choice.
        row.drone_id = None;
    }
    open.sort_by_key(|row| (row.delivery_id, row.attempt, row.state.clone()));
    let mut undone = Vec::new();
    for number in 1..=DELIVERIES {
        let late = fleet.reserve(&[make::reserve(make::delivery(number), 2)]).await.remove(0);
        undone.push(late == ReserveOutcome::Refused { reason: Refusal::Undone });
    }
    (open, undone)
}

#[tokio::test]
async fn shuffled_and_doubled_events_end_in_the_same_state() {
    let seed = SystemClock.now().timestamp_millis().unsigned_abs();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let events = history();
    let expected = outcome(&events, &mut rng).await;
    let still_held = (1..=DELIVERIES).filter(|number| number % 2 == 1 && number % 3 != 0).count();
    assert_eq!(expected.0.len(), 2 * still_held, "a reservation and a drone each");
    for _ in 0..3 {
        let mut mixed = [events.clone(), events.clone()].concat();
        mixed.shuffle(&mut rng);
        assert_eq!(outcome(&mixed, &mut rng).await, expected, "seed {seed}");
    }
}

#[tokio::test]
async fn an_unreadable_event_is_at_fault_alone_and_an_unknown_kind_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("fleet.db").display());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let fleet = Fleet::new(store::open(&url, clock.clone()).await.unwrap().store, clock);
    let good = delivered(1, DeliveryEventKind::DeliveryCancelled, Stage::Cancelled, 1);
    let mut unreadable = good.clone();
    Arc::make_mut(&mut unreadable.event).data = b"{}".to_vec();
    let mut unknown = unreadable.clone();
    Arc::make_mut(&mut unknown.event).kind = "DeliveryPainted".to_owned();
    let results = DeliveryEnds { fleet: fleet.clone() }.handle(&[unreadable, unknown, good]).await;
    assert!(matches!(results[..], [Err(HandleError::Poison(_)), Ok(()), Ok(())]), "{results:?}");
    let late = fleet.reserve(&[make::reserve(make::delivery(1), 1)]).await.remove(0);
    assert_eq!(late, ReserveOutcome::Refused { reason: Refusal::Undone });
}
