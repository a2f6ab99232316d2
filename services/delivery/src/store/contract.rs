//! What every store of deliveries must do, whatever the engine; run on each engine at the end of this file.

mod changes;
mod instances;
mod leases;
mod reading;
pub(crate) mod samples;

use std::sync::Arc;

use contracts::{DeliveryId, api::StepEntry, events::CloudEvent};
use messaging::sql::{Bind, Engine};
use tempfile::TempDir;

use self::samples::id;
use super::{Change, Store, StoreError, audit_scan, open, sql::MIGRATIONS};
use crate::domain::Delivery;

/// A fresh store.
struct Subject {
    store: Arc<dyn Store>,
    url: String,
    _folder: Option<TempDir>,
}

impl Subject {
    /// Opens it again, as after a restart.
    async fn reopen(mut self) -> Self {
        self.store = open(&self.url).await.unwrap();
        self
    }

    /// Another instance on the same store.
    async fn another(&self) -> Self {
        Self { store: open(&self.url).await.unwrap(), url: self.url.clone(), _folder: None }
    }

    async fn save(&self, changes: &[Change]) -> Vec<Result<(), Refused>> {
        let results = self.store.save(changes).await;
        assert_eq!(results.len(), changes.len());
        results.into_iter().map(|result| result.map_err(Refused::from)).collect()
    }

    /// Saves what must be accepted.
    async fn accept(&self, changes: &[Change]) {
        assert_eq!(self.save(changes).await, vec![Ok(()); changes.len()]);
    }

    async fn find(&self, number: u128) -> Option<Delivery> {
        self.store.load(&[id(number)]).await.unwrap().pop().transpose().unwrap()
    }

    async fn get(&self, number: u128) -> Delivery {
        self.find(number).await.unwrap()
    }

    async fn steps(&self, number: u128) -> Vec<StepEntry> {
        self.store.steps(id(number)).await.unwrap()
    }

    /// What waits in the outbox, in order.
    async fn told(&self) -> Vec<CloudEvent> {
        let rows = testkit::outbox::pending(&*self.store.outbox()).await;
        rows.into_iter().map(|row| row.event).collect()
    }

    /// The stage log of a delivery, as the audit reads it.
    async fn stage_log(&self, number: u128) -> Vec<contracts::events::StageEntry> {
        let (deliveries, _) = audit_scan(&self.url).await.unwrap();
        let found = deliveries.into_iter().find(|entry| entry.delivery.record.delivery_id == id(number));
        found.map(|entry| entry.stages).unwrap_or_default()
    }
}

/// Makes a delivery one that a newer version of the service has written.
pub(crate) async fn spoil(url: &str, number: u128) {
    let (engine, _) = Engine::open(url, MIGRATIONS).await.unwrap();
    let mut tx = engine.begin().await.unwrap();
    let binds = [Bind::Text("{}"), Bind::Text(&id(number).to_string())];
    assert_eq!(tx.done("update deliveries set doc = $1 where delivery_id = $2", &binds).await.unwrap(), 1);
    engine.commit(tx, &[]).await.unwrap();
}

/// A [`StoreError`] that can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refused {
    Conflict,
    KeyUsed { delivery_id: DeliveryId, same_body: bool },
    Unavailable(String),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::Conflict,
            StoreError::KeyUsed { delivery_id, same_body } => Self::KeyUsed { delivery_id, same_body },
            StoreError::Unavailable(cause) => Self::Unavailable(cause.to_string()),
        }
    }
}

/// The suite as tests of one engine; `$subject` makes a [`Subject`], or none where the engine is not there.
macro_rules! suite {
    ($subject:path) => {
        suite! {
            $subject;
            changes:
                what_is_saved_is_there,
                a_change_of_another_version_is_refused,
                a_new_delivery_that_exists_is_refused,
                a_lease_holder_with_an_old_fence_is_refused,
                a_bad_change_fails_no_neighbour,
                of_two_changes_of_one_delivery_in_a_batch_the_first_counts,
                only_changes_that_succeeded_leave_lines_and_events,
                a_key_gives_the_first_delivery_again,
                a_key_with_another_body_says_so,
                of_two_in_a_batch_one_gets_the_key,
                a_key_is_its_customers,
                a_refused_delivery_leaves_no_key,
                old_keys_are_forgotten,
                a_batch_of_nothing_is_no_batch,
                what_was_saved_outlives_the_process;
            instances:
                of_two_instances_that_change_a_delivery_at_once_one_wins,
                of_two_instances_that_insert_at_once_one_wins_with_its_key,
                two_instances_at_once_lease_nothing_twice;
            leases:
                the_oldest_due_are_claimed_first_and_no_more_than_asked,
                nothing_is_claimed_twice,
                two_owners_at_once_share_what_is_due,
                a_lease_that_ended_is_claimed_with_a_higher_fence,
                a_named_claim_takes_what_nobody_else_holds,
                a_change_without_the_lease_keeps_it,
                a_change_that_its_lease_holder_never_sees_is_due_when_the_lease_ends,
                a_change_is_due_at_once_where_the_lease_was_given_back,
                a_release_gives_the_lease_back,
                a_hold_prolongs_the_lease,
                an_owner_that_starts_anew_releases_what_it_had,
                one_that_cannot_be_read_keeps_no_other_waiting,
                what_is_over_is_never_claimed;
            reading:
                a_list_is_paged_newest_first_and_shows_only_ones_own,
                loading_answers_those_that_exist,
                one_that_cannot_be_read_hides_no_other,
                the_quiet_are_open_and_unchanged,
                the_finished_are_listed_by_id,
                what_is_forgotten_is_gone_with_its_logs,
                the_summary_counts;
        }
    };
    ($subject:path; $($part:ident: $($name:ident),+;)+) => {
        $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(subject) = $subject().await {
                    super::$part::$name(subject).await;
                }
            }
        )+)+
    };
}

mod on_postgres {
    use super::Subject;

    async fn subject() -> Option<Subject> {
        let url = testkit::real::postgres().await?;
        Some(Subject { store: super::open(&url).await.unwrap(), url, _folder: None })
    }

    suite!(subject);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_one_instance_changes_the_other_hears() {
        if let Some(subject) = subject().await {
            super::instances::what_one_instance_changes_the_other_hears(subject).await;
        }
    }
}

mod on_sqlite {
    use std::path::Path;

    use super::Subject;

    fn url(folder: &Path) -> String {
        format!("sqlite:{}", folder.join("delivery.db").display())
    }

    async fn subject() -> Option<Subject> {
        let folder = tempfile::tempdir().unwrap();
        let url = url(folder.path());
        Some(Subject { store: super::open(&url).await.unwrap(), url, _folder: Some(folder) })
    }

    suite!(subject);

    #[tokio::test]
    async fn a_file_of_a_newer_schema_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let url = url(folder.path());
        drop(super::open(&url).await.unwrap());
        let path = url.trim_start_matches("sqlite:");
        let newer = ["select 1"; 99];
        messaging::sqlite::open(path, &newer).await.unwrap();
        let error = super::open(&url).await.err().unwrap();
        assert!(format!("{error:#}").contains("version"), "{error:#}");
    }

    #[tokio::test]
    async fn another_scheme_is_refused() {
        let error = super::open("paper:deliveries").await.err().unwrap();
        assert!(error.to_string().contains("sqlite:PATH"), "{error}");
    }
}
