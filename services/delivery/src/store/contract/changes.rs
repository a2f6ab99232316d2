//! Changes are written whole or not at all, each for itself.

use std::slice::from_ref;

use contracts::{DeliveryId, Stage};

use super::{
    Refused, Subject,
    samples::{at, delivery, ended, hold, id, new, new_of, next, with_key},
};
use crate::store::LeaseChange;

pub(super) async fn what_is_saved_is_there(subject: Subject) {
    let change = new(1);
    subject.accept(from_ref(&change)).await;
    assert_eq!(subject.get(1).await, change.delivery);
    let change = next(&change.delivery, Some(at(60)), LeaseChange::Keep);
    subject.accept(from_ref(&change)).await;
    assert_eq!(subject.get(1).await, change.delivery);
    assert_eq!(subject.steps(1).await, change.steps);
    assert_eq!(subject.stage_log(1).await, change.delivery.record.stages);
    let told = subject.told().await;
    assert_eq!(told, [new(1).events, change.events].concat(), "events as they were encoded, in order");
}

pub(super) async fn a_change_of_another_version_is_refused(subject: Subject) {
    subject.accept(&[new(1)]).await;
    let first = subject.get(1).await;
    let change = next(&first, None, LeaseChange::Keep);
    subject.accept(from_ref(&change)).await;
    assert_eq!(subject.save(&[next(&first, None, LeaseChange::Keep)]).await, [Err(Refused::Conflict)]);
    let mut early = next(&change.delivery, None, LeaseChange::Keep);
    early.expected_version += 1;
    let absent = next(&delivery(9, "alice"), None, LeaseChange::Keep);
    assert_eq!(subject.save(&[early, absent]).await, [Err(Refused::Conflict), Err(Refused::Conflict)]);
    assert_eq!(subject.get(1).await, change.delivery);
    assert_eq!(subject.find(9).await, None);
}

pub(super) async fn a_new_delivery_that_exists_is_refused(subject: Subject) {
    subject.accept(&[new(1)]).await;
    assert_eq!(subject.save(&[new_of(1, "bob")]).await, [Err(Refused::Conflict)]);
    assert_eq!(subject.get(1).await, delivery(1, "alice"));
}

pub(super) async fn a_lease_holder_with_an_old_fence_is_refused(subject: Subject) {
    subject.accept(&[new(1)]).await;
    let old = subject.store.claim(&[id(1)], "a", at(1), at(10)).await.unwrap().remove(0);
    let current = subject.store.claim(&[id(1)], "b", at(11), at(20)).await.unwrap().remove(0);
    assert!(current.fence > old.fence);
    for lease in [hold(old.fence, "a", 30), LeaseChange::Release { fence: old.fence }, hold(current.fence + 1, "b", 30)]
    {
        assert_eq!(subject.save(&[next(&old.delivery, None, lease)]).await, [Err(Refused::Conflict)]);
    }
    assert_eq!(subject.get(1).await, old.delivery);
    subject.accept(&[next(&current.delivery, Some(at(20)), hold(current.fence, "b", 30))]).await;
}

pub(super) async fn a_bad_change_fails_no_neighbour(subject: Subject) {
    subject.accept(&[new(1), new(2), new(3)]).await;
    let keep = LeaseChange::Keep;
    let mut stale = next(&delivery(2, "alice"), None, keep.clone());
    stale.expected_version = 7;
    let (one, three) = (next(&delivery(1, "alice"), None, keep.clone()), ended(&delivery(3, "alice"), 60));
    let fenced = next(&delivery(2, "alice"), None, LeaseChange::Release { fence: 5 });
    let results = subject.save(&[one.clone(), stale, new(4), new(1), three.clone(), fenced, new(5)]).await;
    let conflict = Err(Refused::Conflict);
    assert_eq!(results, [Ok(()), conflict.clone(), Ok(()), conflict.clone(), Ok(()), conflict, Ok(())]);
    assert_eq!((subject.get(1).await, subject.get(3).await), (one.delivery, three.delivery));
    assert_eq!(subject.get(2).await, delivery(2, "alice"));
    assert_eq!((subject.get(4).await, subject.get(5).await), (delivery(4, "alice"), delivery(5, "alice")));
}

pub(super) async fn of_two_changes_of_one_delivery_in_a_batch_the_first_counts(subject: Subject) {
    subject.accept(&[new(1)]).await;
    let first = next(&delivery(1, "alice"), Some(at(60)), LeaseChange::Keep);
    let second = ended(&delivery(1, "alice"), 60);
    assert_eq!(subject.save(&[first.clone(), second]).await, [Ok(()), Err(Refused::Conflict)]);
    assert_eq!(subject.get(1).await, first.delivery);
    assert_eq!(subject.stage_log(1).await.len(), 2);
}

pub(super) async fn only_changes_that_succeeded_leave_lines_and_events(subject: Subject) {
    subject.accept(&[with_key(new(1), "k", "body")]).await;
    let good = next(&delivery(1, "alice"), None, LeaseChange::Keep);
    let mut bad = next(&delivery(2, "alice"), None, LeaseChange::Keep);
    bad.expected_version = 1;
    let refused = with_key(new(3), "k", "body");
    subject.save(&[bad, good.clone(), refused]).await;
    subject.save(from_ref(&good)).await;
    assert_eq!(subject.told().await, [new(1).events, good.events].concat());
    assert_eq!(subject.steps(1).await, good.steps);
    assert_eq!(subject.stage_log(1).await, good.delivery.record.stages);
    for absent in [2, 3] {
        assert_eq!((subject.find(absent).await, subject.steps(absent).await), (None, vec![]));
        assert_eq!(subject.stage_log(absent).await, []);
    }
}

fn used_by(number: u128, same_body: bool) -> Result<(), Refused> {
    Err(Refused::KeyUsed { delivery_id: id(number), same_body })
}

async fn key_use(subject: &Subject, customer: &str, key: &str) -> Option<(DeliveryId, String)> {
    subject.store.key_use(&customer.parse().unwrap(), key).await.unwrap()
}

pub(super) async fn a_key_gives_the_first_delivery_again(subject: Subject) {
    subject.accept(&[with_key(new(1), "k", "body")]).await;
    for number in [2, 3] {
        assert_eq!(subject.save(&[with_key(new(number), "k", "body")]).await, [used_by(1, true)]);
        assert_eq!(subject.find(number).await, None);
    }
    assert_eq!(key_use(&subject, "alice", "k").await, Some((id(1), "body".to_owned())));
    assert_eq!(key_use(&subject, "alice", "other").await, None);
}

pub(super) async fn a_key_with_another_body_says_so(subject: Subject) {
    subject.accept(&[with_key(new(1), "k", "body")]).await;
    assert_eq!(subject.save(&[with_key(new(2), "k", "other")]).await, [used_by(1, false)]);
    assert_eq!(subject.save(&[with_key(new(3), "k", "body")]).await, [used_by(1, true)], "the first body still holds");
}

pub(super) async fn of_two_in_a_batch_one_gets_the_key(subject: Subject) {
    let batch = [
        with_key(new(1), "k", "body"),
        with_key(new(2), "k", "body"),
        with_key(new(3), "k", "other"),
        with_key(new(4), "l", "body"),
    ];
    assert_eq!(subject.save(&batch).await, [Ok(()), used_by(1, true), used_by(1, false), Ok(())]);
    assert_eq!(subject.told().await.len(), 2);
}

pub(super) async fn a_key_is_its_customers(subject: Subject) {
    subject.accept(&[with_key(new(1), "k", "body"), with_key(new_of(2, "bob"), "k", "body")]).await;
    assert_eq!(subject.save(&[with_key(new_of(3, "bob"), "k", "body")]).await, [used_by(2, true)]);
    assert_eq!(key_use(&subject, "bob", "k").await, Some((id(2), "body".to_owned())));
}

pub(super) async fn a_refused_delivery_leaves_no_key(subject: Subject) {
    subject.accept(&[new(1)]).await;
    assert_eq!(subject.save(&[with_key(new(1), "k", "body")]).await, [Err(Refused::Conflict)]);
    assert_eq!(key_use(&subject, "alice", "k").await, None);
    subject.accept(&[with_key(new(2), "k", "body")]).await;
    // The same insert once more, as after an answer that was lost: the key stays.
    assert_eq!(subject.save(&[with_key(new(2), "k", "body")]).await, [Err(Refused::Conflict)]);
    assert_eq!(key_use(&subject, "alice", "k").await, Some((id(2), "body".to_owned())));
}

pub(super) async fn old_keys_are_forgotten(subject: Subject) {
    subject.accept(&[with_key(new(10), "old", "body"), with_key(new(20), "young", "body")]).await;
    subject.accept(&[with_key(new_of(11, "bob"), "a", "body"), with_key(new_of(12, "bob"), "b", "body")]).await;
    let forget = async |limit| subject.store.forget_keys(at(20), limit).await.unwrap();
    assert_eq!([forget(2).await, forget(2).await, forget(2).await], [2, 1, 0]);
    for (customer, key) in [("alice", "old"), ("bob", "a"), ("bob", "b")] {
        assert_eq!(key_use(&subject, customer, key).await, None, "{customer}'s {key}");
    }
    subject.accept(&[with_key(new(30), "old", "other")]).await;
    assert_eq!(subject.save(&[with_key(new(31), "young", "body")]).await, [used_by(20, true)]);
    assert!(subject.find(10).await.is_some(), "the delivery itself stays");
}

pub(super) async fn a_batch_of_nothing_is_no_batch(subject: Subject) {
    assert_eq!(subject.save(&[]).await, []);
}

pub(super) async fn what_was_saved_outlives_the_process(subject: Subject) {
    subject.accept(&[with_key(new(1), "k", "body"), new(2)]).await;
    let change = next(&delivery(1, "alice"), Some(at(60)), LeaseChange::Keep);
    subject.accept(from_ref(&change)).await;
    let claimed = subject.store.claim(&[id(2)], "a", at(1), at(10)).await.unwrap().remove(0);
    let told = subject.told().await;
    let subject = subject.reopen().await;
    assert_eq!(subject.get(1).await, change.delivery);
    assert_eq!((subject.steps(1).await, subject.told().await), (change.steps, told));
    assert_eq!(subject.stage_log(1).await, change.delivery.record.stages);
    assert_eq!(subject.save(&[with_key(new(3), "k", "body")]).await, [used_by(1, true)]);
    assert!(subject.store.claim(&[id(2)], "b", at(9), at(20)).await.unwrap().is_empty(), "the lease holds");
    let again = subject.store.claim_due("b", at(11), at(20), 9).await.unwrap();
    assert_eq!((again.len(), again[0].fence > claimed.fence), (1, true));
    assert_eq!(again[0].delivery.record.stage, Stage::Requested);
}
