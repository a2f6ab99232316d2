//! One owner at a time drives a delivery, and nothing that is due stays without one.

use contracts::Stage;

use super::{
    Subject,
    samples::{at, delivery, ended, hold, id, new, next},
    spoil,
};
use crate::store::{Claimed, LeaseChange};

fn numbers(claimed: &[Claimed]) -> Vec<u128> {
    let mut numbers: Vec<u128> =
        claimed.iter().map(|claimed| claimed.delivery.record.delivery_id.0.as_u128()).collect();
    numbers.sort_unstable();
    numbers
}

async fn due(subject: &Subject, owner: &str, now: i64) -> Vec<u128> {
    numbers(&subject.store.claim_due(owner, at(now), at(now + 10), 100).await.unwrap())
}

async fn claim(subject: &Subject, number: u128, owner: &str, now: i64) -> Option<Claimed> {
    subject.store.claim(&[id(number)], owner, at(now), at(now + 10)).await.unwrap().pop()
}

pub(super) async fn the_oldest_due_are_claimed_first_and_no_more_than_asked(subject: Subject) {
    // Each is due at the second of its number.
    subject.accept(&[new(5), new(3), new(8), new(1)]).await;
    let first = subject.store.claim_due("a", at(6), at(16), 2).await.unwrap();
    assert_eq!(numbers(&first), [1, 3]);
    assert_eq!(first[0].delivery.record.stage, Stage::Requested);
    assert_eq!(due(&subject, "a", 6).await, [5], "what is due later waits");
    assert_eq!(due(&subject, "a", 7).await, [] as [u128; 0]);
    assert_eq!(due(&subject, "a", 8).await, [8], "due is due at its second");
}

pub(super) async fn nothing_is_claimed_twice(subject: Subject) {
    subject.accept(&[new(1)]).await;
    assert_eq!(due(&subject, "a", 1).await, [1]);
    for owner in ["a", "b"] {
        assert_eq!(due(&subject, owner, 10).await, [] as [u128; 0]);
    }
    assert!(claim(&subject, 1, "b", 10).await.is_none());
}

pub(super) async fn two_owners_at_once_share_what_is_due(subject: Subject) {
    let all: Vec<_> = (1..=200).map(new).collect();
    subject.accept(&all).await;
    let take = async |owner: &str| {
        let mut taken = Vec::new();
        for _ in 0..20 {
            taken.extend(numbers(&subject.store.claim_due(owner, at(300), at(310), 7).await.unwrap()));
        }
        taken
    };
    let (a, b) = futures::join!(take("a"), take("b"));
    let mut both = [a, b].concat();
    both.sort_unstable();
    assert_eq!(both, Vec::from_iter(1..=200));
}

pub(super) async fn a_lease_that_ended_is_claimed_with_a_higher_fence(subject: Subject) {
    subject.accept(&[new(1)]).await;
    let mut fence = 0;
    for (owner, now) in [("a", 10), ("b", 20), ("b", 30), ("a", 40)] {
        let claimed = subject.store.claim_due(owner, at(now), at(now + 10), 9).await.unwrap();
        assert_eq!(numbers(&claimed), [1]);
        assert!(claimed[0].fence > fence);
        fence = claimed[0].fence;
    }
}

pub(super) async fn a_named_claim_takes_what_nobody_else_holds(subject: Subject) {
    subject.accept(&[new(100), new(200)]).await;
    let first = claim(&subject, 100, "a", 1).await.unwrap();
    let again = claim(&subject, 100, "a", 2).await.unwrap();
    assert!(again.fence > first.fence, "the owner itself may, with a new fence");
    assert!(claim(&subject, 100, "b", 3).await.is_none());
    let both = subject.store.claim(&[id(100), id(200), id(9)], "b", at(3), at(13)).await.unwrap();
    assert_eq!(numbers(&both), [200]);
    assert!(claim(&subject, 100, "b", 13).await.is_some(), "a lease that ended is anybody's");
    assert!(subject.store.claim(&[], "a", at(1), at(2)).await.unwrap().is_empty());
}

pub(super) async fn a_change_without_the_lease_keeps_it(subject: Subject) {
    subject.accept(&[new(1)]).await;
    let held = claim(&subject, 1, "a", 1).await.unwrap();
    let changed = next(&held.delivery, Some(at(5)), LeaseChange::Keep);
    subject.accept(std::slice::from_ref(&changed)).await;
    assert!(claim(&subject, 1, "b", 4).await.is_none(), "still the owner's");
    assert_eq!(due(&subject, "b", 10).await, [] as [u128; 0], "nor is it anybody's because it is due");
    let stale = next(&held.delivery, None, LeaseChange::Release { fence: held.fence });
    assert!(subject.save(&[stale]).await[0].is_err(), "the owner does not end without seeing the change");
    let own = claim(&subject, 1, "a", 10).await.unwrap();
    assert_eq!(own.delivery, changed.delivery);
}

pub(super) async fn a_change_that_its_lease_holder_never_sees_is_due_when_the_lease_ends(subject: Subject) {
    subject.accept(&[new(1), new(2)]).await;
    for number in [1, 2] {
        let held = claim(&subject, number, "a", 1).await.unwrap();
        subject.accept(&[next(&held.delivery, Some(at(5)), LeaseChange::Keep)]).await;
    }
    assert_eq!(due(&subject, "b", 10).await, [] as [u128; 0]);
    assert_eq!(numbers(&subject.store.claim_due("a", at(6), at(16), 1).await.unwrap()), [1], "due for its owner");
    assert_eq!(due(&subject, "b", 11).await, [2], "the lease of second 1 has ended");
}

pub(super) async fn a_change_is_due_at_once_where_the_lease_was_given_back(subject: Subject) {
    subject.accept(&[new(1)]).await;
    let held = claim(&subject, 1, "a", 1).await.unwrap();
    let released = next(&held.delivery, Some(at(100)), LeaseChange::Release { fence: held.fence });
    subject.accept(std::slice::from_ref(&released)).await;
    subject.accept(&[next(&released.delivery, Some(at(5)), LeaseChange::Keep)]).await;
    assert_eq!(due(&subject, "b", 5).await, [1]);
}

pub(super) async fn a_release_gives_the_lease_back(subject: Subject) {
    subject.accept(&[new(1)]).await;
    let held = claim(&subject, 1, "a", 1).await.unwrap();
    subject.accept(&[next(&held.delivery, Some(at(100)), LeaseChange::Release { fence: held.fence })]).await;
    assert_eq!(due(&subject, "b", 99).await, [] as [u128; 0], "not before its time");
    let other = claim(&subject, 1, "b", 3).await.unwrap();
    assert!(other.fence > held.fence);
}

pub(super) async fn a_hold_prolongs_the_lease(subject: Subject) {
    let mut made = new(1);
    (made.lease, made.due) = (hold(1, "a", 10), Some(at(10)));
    subject.accept(&[made]).await;
    assert!(claim(&subject, 1, "b", 5).await.is_none(), "leased from the beginning");
    subject.accept(&[next(&delivery(1, "alice"), Some(at(20)), hold(1, "a", 20))]).await;
    assert!(claim(&subject, 1, "b", 15).await.is_none());
    assert_eq!(due(&subject, "b", 19).await, [] as [u128; 0]);
    assert_eq!(due(&subject, "b", 20).await, [1]);
}

pub(super) async fn one_that_cannot_be_read_keeps_no_other_waiting(subject: Subject) {
    subject.accept(&[new(1), new(2), new(3)]).await;
    spoil(&subject.url, 2).await;
    assert_eq!(due(&subject, "a", 3).await, [1, 3]);
    let named = subject.store.claim(&[id(1), id(2), id(3)], "b", at(13), at(23)).await.unwrap();
    assert_eq!(numbers(&named), [1, 3]);
}

pub(super) async fn an_owner_that_starts_anew_releases_what_it_had(subject: Subject) {
    subject.accept(&[new(1), new(2), new(3)]).await;
    let old = claim(&subject, 1, "a", 5).await.unwrap();
    claim(&subject, 2, "b", 5).await.unwrap();
    assert_eq!(subject.store.release_all("a", at(6)).await.unwrap(), 1);
    assert_eq!(due(&subject, "a", 6).await, [1, 3]);
    let stale = next(&old.delivery, None, LeaseChange::Release { fence: old.fence });
    assert!(subject.save(&[stale]).await[0].is_err(), "its former self has lost the lease");
}

pub(super) async fn what_is_over_is_never_claimed(subject: Subject) {
    subject.accept(&[new(1)]).await;
    let held = claim(&subject, 1, "a", 1).await.unwrap();
    subject.accept(&[ended(&held.delivery, 5)]).await;
    assert_eq!(due(&subject, "b", 1_000).await, [] as [u128; 0]);
    for owner in ["a", "b"] {
        assert!(claim(&subject, 1, owner, 1_000).await.is_none());
    }
    assert_eq!(subject.store.release_all("a", at(1_000)).await.unwrap(), 0);
}
