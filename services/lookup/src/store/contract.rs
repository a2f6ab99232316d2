//! What every store of finished deliveries must do, whatever the engine.

use std::{path::Path, sync::Arc};

use chrono::Duration;
use contracts::{
    CustomerId, DeliveryId, Stage, Timestamp,
    events::{DeliveryEventKind, DeliveryRecord},
};
use tempfile::TempDir;

use super::{
    Store, open,
    samples::{at, event, finished, id, row},
};
use crate::domain::{FinishedDelivery, page_start};

/// A fresh store.
pub(crate) struct Subject {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) url: String,
    folder: TempDir,
}

impl Subject {
    /// Opens the store whose URL `url` makes of a fresh folder.
    pub(crate) async fn open(url: impl Fn(&Path) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = url(folder.path());
        Self { store: open(&url).await.unwrap(), url, folder }
    }

    /// A file in the store's folder.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    async fn keep(&self, records: &[&DeliveryRecord]) {
        let rows: Vec<_> = records.iter().map(|record| row(record)).collect();
        self.store.upsert(&rows).await.unwrap();
    }

    async fn find(&self, customer: &str, number: u128) -> Option<DeliveryRecord> {
        self.store.find(Some(&name(customer)), id(number)).await.unwrap()
    }

    /// The ids of a customer's deliveries in `from..to`, read in pages of that size.
    async fn pages(&self, customer: &str, (from, to): (Timestamp, Timestamp), size: usize) -> Vec<DeliveryId> {
        let (mut ids, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.list(&name(customer), from, page_start(to, after), size).await.unwrap();
            assert!(page.len() <= size);
            let Some(last) = page.last() else { return ids };
            after = Some((last.finished_at.unwrap(), last.delivery_id));
            ids.extend(page.iter().map(|record| record.delivery_id));
        }
    }
}

/// Leaves nothing of a store that is not a file in the subject's folder.
pub(crate) async fn forget(url: &str) {
    if url.starts_with("mongodb:") {
        testkit::mongodb::drop_database(url).await;
    }
}

fn name(customer: &str) -> CustomerId {
    customer.parse().unwrap()
}

macro_rules! store_contract {
    ($subject:path) => {
        store_contract!(@cases $subject:
            a_delivery_is_found_whole_by_its_owner_only
            a_higher_version_wins_whatever_the_order
            fields_of_a_newer_version_are_kept
            a_list_is_newest_first_and_only_the_customers_own
            pages_tell_everything_once_even_within_one_instant
            the_time_begins_with_from_and_ends_before_to
            contains_answers_those_that_are_stored_in_the_order_asked
            what_was_answered_survives_reopening
            the_sweep_takes_the_oldest_first
            it_answers_that_it_is_ready
        );
    };
    (@cases $subject:path: $($case:ident)+) => {
        $(#[tokio::test]
        async fn $case() {
            let Some(subject) = $subject().await else { return };
            let url = subject.url.clone();
            $crate::store::contract::$case(subject).await;
            $crate::store::contract::forget(&url).await;
        })+
    };
}
pub(crate) use store_contract;

pub(crate) async fn a_delivery_is_found_whole_by_its_owner_only(subject: Subject) {
    let record = finished(1, "alice", at(1));
    subject.keep(&[&record]).await;
    assert_eq!(subject.find("alice", 1).await, Some(record.clone()));
    assert_eq!(subject.store.find(None, id(1)).await.unwrap(), Some(record));
    assert_eq!(subject.find("bob", 1).await, None);
    assert_eq!(subject.find("alice", 2).await, None);
}

pub(crate) async fn a_higher_version_wins_whatever_the_order(subject: Subject) {
    let version = |version, stage| DeliveryRecord { version, stage, ..finished(1, "alice", at(1)) };
    let (low, high) = (version(4, Stage::Failed), version(6, Stage::Completed));
    subject.keep(&[&low, &high, &low]).await;
    assert_eq!(subject.find("alice", 1).await, Some(high.clone()));
    subject.keep(&[&low]).await;
    // The same version again is a no-op, whatever it says.
    subject.keep(&[&version(6, Stage::Failed)]).await;
    assert_eq!(subject.find("alice", 1).await, Some(high));
    let moved = DeliveryRecord { finished_at: Some(at(9)), ..version(7, Stage::Completed) };
    subject.keep(&[&moved]).await;
    assert_eq!(subject.pages("alice", (at(2), at(10)), 10).await, [id(1)]);
    assert_eq!(subject.pages("alice", (at(0), at(9)), 10).await, []);
}

pub(crate) async fn fields_of_a_newer_version_are_kept(subject: Subject) {
    let record = finished(1, "alice", at(1));
    let mut told = event(DeliveryEventKind::DeliveryCompleted, &record).encode();
    let mut data: serde_json::Value = serde_json::from_slice(&told.data).unwrap();
    data["from_the_future"] = 7.into();
    told.data = serde_json::to_vec(&data).unwrap();
    subject.store.upsert(&[FinishedDelivery::of(&told).unwrap().unwrap()]).await.unwrap();
    assert_eq!(subject.find("alice", 1).await, Some(record));
}

pub(crate) async fn a_list_is_newest_first_and_only_the_customers_own(subject: Subject) {
    let theirs = finished(9, "bob", at(5));
    let mine: Vec<_> = (1..=4).map(|number| finished(number, "alice", at(number as i64))).collect();
    subject.keep(&[&mine[2], &mine[0], &theirs, &mine[3], &mine[1]]).await;
    assert_eq!(subject.pages("alice", (at(0), at(99)), 10).await, [id(4), id(3), id(2), id(1)]);
    assert_eq!(subject.pages("bob", (at(0), at(99)), 10).await, [id(9)]);
    assert_eq!(subject.pages("carol", (at(0), at(99)), 10).await, []);
}

pub(crate) async fn pages_tell_everything_once_even_within_one_instant(subject: Subject) {
    // Several in the same instant, others only a microsecond apart.
    let when = |number: u128| at(0) + Duration::microseconds(number as i64 / 3);
    let records: Vec<_> = (1..=20).map(|number| finished(number, "alice", when(number))).collect();
    subject.keep(&records.iter().collect::<Vec<_>>()).await;
    let expected: Vec<_> = (1..=20).rev().map(id).collect();
    for size in [1, 2, 7, 20, 21] {
        assert_eq!(subject.pages("alice", (at(0), at(1)), size).await, expected, "pages of {size}");
    }
}

pub(crate) async fn the_time_begins_with_from_and_ends_before_to(subject: Subject) {
    let records: Vec<_> = (1..=4).map(|number| finished(number, "alice", at(number as i64))).collect();
    subject.keep(&records.iter().collect::<Vec<_>>()).await;
    assert_eq!(subject.pages("alice", (at(2), at(4)), 1).await, [id(3), id(2)]);
    assert_eq!(subject.pages("alice", (at(4), at(2)), 1).await, []);
}

pub(crate) async fn contains_answers_those_that_are_stored_in_the_order_asked(subject: Subject) {
    subject.keep(&[&finished(1, "alice", at(1)), &finished(2, "bob", at(2))]).await;
    assert_eq!(subject.store.contains(&[id(3), id(2), id(1)]).await.unwrap(), [id(2), id(1)]);
    assert_eq!(subject.store.contains(&[]).await.unwrap(), []);
}

pub(crate) async fn what_was_answered_survives_reopening(mut subject: Subject) {
    let record = finished(1, "alice", at(1));
    subject.keep(&[&record]).await;
    subject.store = open(&subject.url).await.unwrap();
    assert_eq!(subject.find("alice", 1).await, Some(record));
}

pub(crate) async fn the_sweep_takes_the_oldest_first(subject: Subject) {
    let records: Vec<_> = (1..=5).map(|number| finished(number, "alice", at(number as i64))).collect();
    subject.keep(&records.iter().collect::<Vec<_>>()).await;
    assert_eq!(subject.store.sweep(at(4), 2).await.unwrap(), 2);
    assert_eq!(subject.pages("alice", (at(0), at(9)), 10).await, [id(5), id(4), id(3)]);
    assert_eq!(subject.store.sweep(at(4), 2).await.unwrap(), 1);
    assert_eq!(subject.store.sweep(at(4), 2).await.unwrap(), 0);
    assert_eq!(subject.pages("alice", (at(0), at(9)), 10).await, [id(5), id(4)]);
}

pub(crate) async fn it_answers_that_it_is_ready(subject: Subject) {
    subject.store.ready().await.unwrap();
}
