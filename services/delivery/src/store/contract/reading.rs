//! What customers, operators and the service's own rounds read.

use contracts::{CustomerId, DeliveryId};

use super::{
    Subject,
    samples::{at, delivery, ended, id, new, new_of, next, with_key},
    spoil,
};
use crate::{
    domain::Delivery,
    store::{LeaseChange, Unreadable},
};

fn numbers<'a>(ids: impl IntoIterator<Item = &'a DeliveryId>) -> Vec<u128> {
    ids.into_iter().map(|id| id.0.as_u128()).collect()
}

fn ids(deliveries: &[Delivery]) -> Vec<u128> {
    numbers(deliveries.iter().map(|delivery| &delivery.record.delivery_id))
}

/// Ids of those that can be read, and the others' negated, in their order.
fn signed(deliveries: Vec<Result<Delivery, Unreadable>>) -> Vec<i64> {
    let number = |id: DeliveryId| i64::try_from(id.0.as_u128()).unwrap();
    let signed = |one: Result<Delivery, Unreadable>| {
        one.map_or_else(|one| -number(one.id), |one| number(one.record.delivery_id))
    };
    deliveries.into_iter().map(signed).collect()
}

pub(super) async fn a_list_is_paged_newest_first_and_shows_only_ones_own(subject: Subject) {
    let (alice, bob): (CustomerId, CustomerId) = ("alice".parse().unwrap(), "bob".parse().unwrap());
    subject.accept(&[new(3), new_of(4, "bob"), new(1), new(20), new(7)]).await;
    subject.accept(&[ended(&delivery(7, "alice"), 60)]).await;
    let page =
        async |before: Option<u128>, limit| ids(&subject.store.list(&alice, before.map(id), limit).await.unwrap());
    assert_eq!(page(None, 3).await, [20, 7, 3]);
    assert_eq!(page(Some(3), 3).await, [1]);
    assert_eq!(page(Some(1), 3).await, [] as [u128; 0]);
    assert_eq!(page(Some(5), 9).await, [3, 1], "a cursor need not exist");
    assert_eq!(ids(&subject.store.list(&bob, None, 9).await.unwrap()), [4]);
    assert!(subject.store.list(&"carol".parse().unwrap(), None, 9).await.unwrap().is_empty());
}

pub(super) async fn loading_answers_those_that_exist(subject: Subject) {
    subject.accept(&[new(1), new(2)]).await;
    assert_eq!(loaded(&subject, &[2, 9, 1, 2]).await, [1, 2]);
    assert_eq!(loaded(&subject, &[]).await, [] as [i64; 0]);
    assert!(subject.steps(9).await.is_empty());
}

async fn loaded(subject: &Subject, numbers: &[u128]) -> Vec<i64> {
    let asked: Vec<_> = numbers.iter().copied().map(id).collect();
    let mut found = signed(subject.store.load(&asked).await.unwrap());
    found.sort_unstable();
    found
}

pub(super) async fn one_that_cannot_be_read_hides_no_other(subject: Subject) {
    subject.accept(&[new(1), new(2), new(3)]).await;
    spoil(&subject.url, 2).await;
    assert_eq!(loaded(&subject, &[1, 2, 3, 4]).await, [-2, 1, 3]);
    assert_eq!(signed(subject.store.quiet(at(50), None, 9).await.unwrap()), [1, -2, 3]);
    let list = subject.store.list(&"alice".parse().unwrap(), None, 9).await;
    assert!(list.is_err(), "its customer is not told that it does not exist");
}

pub(super) async fn the_quiet_are_open_and_unchanged(subject: Subject) {
    // Each was last changed at the second of its number.
    subject.accept(&[new(1), new(2), new(3), new(4), new(90)]).await;
    subject.accept(&[ended(&delivery(2, "alice"), 2)]).await;
    let quiet =
        async |after: Option<u128>, limit| signed(subject.store.quiet(at(50), after.map(id), limit).await.unwrap());
    assert_eq!(quiet(None, 2).await, [1, 3]);
    assert_eq!(quiet(Some(3), 2).await, [4]);
    assert_eq!(quiet(Some(4), 2).await, [] as [i64; 0]);
    let mut touched = next(&delivery(1, "alice"), Some(at(99)), LeaseChange::Keep);
    touched.delivery.record.updated_at = at(60);
    subject.accept(&[touched]).await;
    assert_eq!(quiet(None, 9).await, [3, 4]);
}

pub(super) async fn the_finished_are_listed_by_id(subject: Subject) {
    subject.accept(&[new(1), new(2), new(3), new(4)]).await;
    for (number, second) in [(3, 10), (1, 20), (4, 30)] {
        subject.accept(&[ended(&delivery(number, "alice"), second)]).await;
    }
    let finished = async |before, after: Option<u128>, limit| {
        numbers(&subject.store.finished(at(before), after.map(id), limit).await.unwrap())
    };
    assert_eq!(finished(100, None, 2).await, [1, 3]);
    assert_eq!(finished(100, Some(3), 2).await, [4]);
    assert_eq!(finished(30, None, 9).await, [1, 3], "before is before");
    assert_eq!(finished(10, None, 9).await, [] as [u128; 0]);
}

pub(super) async fn what_is_forgotten_is_gone_with_its_logs(subject: Subject) {
    subject.accept(&[with_key(new(1), "k", "body"), new(2)]).await;
    for number in [1, 2] {
        subject.accept(&[next(&delivery(number, "alice"), None, LeaseChange::Keep)]).await;
    }
    let told = subject.told().await;
    subject.store.forget(&[id(1), id(9)]).await.unwrap();
    assert_eq!((subject.find(1).await, subject.steps(1).await), (None, vec![]));
    assert_eq!(subject.steps(2).await.len(), 2);
    assert_eq!((subject.stage_log(1).await.len(), subject.stage_log(2).await.len()), (0, 2));
    assert_eq!(subject.told().await, told, "what was to be told still is");
    subject.store.forget(&[]).await.unwrap();
}

pub(super) async fn the_summary_counts(subject: Subject) {
    let empty = subject.store.summary(at(0)).await.unwrap();
    assert_eq!((empty.open, empty.due), (0, 0));
    subject.accept(&[new(1), new(2), new(30), new(4)]).await;
    subject.accept(&[ended(&delivery(2, "alice"), 5)]).await;
    subject.accept(&[next(&delivery(4, "alice"), Some(at(4)), LeaseChange::Keep)]).await;
    let summary = subject.store.summary(at(10)).await.unwrap();
    assert_eq!((summary.open, summary.due), (3, 2));
}
