//! The part of the suite that is about several instances on one store, and about reading it raw.

use contracts::commands::{Refusal, ReleaseOutcome};

use super::{Subject, pick, refused, reserved_drone};
use crate::{store::Proposal, tests::make};

pub(super) async fn two_instances_never_reserve_one_drone_twice(subject: Subject) {
    subject.with_drones(1..=8).await;
    let other = super::super::open(&subject.url, subject.clock.clone()).await.unwrap();
    let commands: Vec<_> = (1..=32).map(|number| make::reserve(make::delivery(number), 1)).collect();
    let mut wins = 0;
    // Both want the same eight drones, each for deliveries of its own, at the same time.
    for (mine, theirs) in commands[..16].iter().zip(&commands[16..]) {
        let number = wins % 8 + 1;
        let (one, two) = (
            [Proposal { command: mine, pick: Some(pick(number)) }],
            [Proposal { command: theirs, pick: Some(pick(number)) }],
        );
        let (mine, theirs) = tokio::join!(subject.store.store.reserve(&one), other.store.reserve(&two));
        let outcomes = [mine.unwrap().outcomes.remove(0), theirs.unwrap().outcomes.remove(0)];
        let won = outcomes.iter().filter(|outcome| reserved_drone(outcome).is_some()).count();
        assert!(won <= 1, "{outcomes:?}");
        assert!(won == 1 || wins >= 8, "a free drone is given to one of the two");
        wins += won as u128;
    }
    assert_eq!(wins, 8);
    assert_eq!(subject.said().await["DroneReserved"], 8);
}

pub(super) async fn the_audit_reads_what_is_open(subject: Subject) {
    subject.with_drones(1..=1).await;
    subject.reserve(&make::reserve(make::delivery(1), 1), Some(1)).await;
    subject.reserve(&make::reserve(make::delivery(2), 1), None).await;
    let mut open: Vec<_> = crate::audit_scan(&subject.url).await.unwrap().into_iter().map(|row| row.state).collect();
    open.sort();
    assert_eq!(open, ["drone_reserved", "reserved", "waiting"]);
}

pub(super) async fn an_undo_that_comes_twice_in_a_batch_keeps_the_highest_fence(subject: Subject) {
    let mut undo = [make::release(make::delivery(1), 1), make::release(make::delivery(1), 1)];
    (undo[0].fence, undo[1].fence) = (0, 5);
    undo[0].reason = "odd \0 text".to_owned();
    let outcomes = subject.store.store.release(&undo).await.unwrap().outcomes;
    assert_eq!(outcomes, [ReleaseOutcome::Done, ReleaseOutcome::Done]);
    let mut late = make::reserve(make::delivery(1), 1);
    late.fence = 4;
    assert_eq!(subject.reserve(&late, None).await, refused(Refusal::StaleFence));
}
