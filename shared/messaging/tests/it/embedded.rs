//! The embedded log: the contract of every log, its own retention, and who may have its file.

use std::{
    os::unix::process::ExitStatusExt,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use contracts::{Clock, SystemClock, Timestamp};
use messaging::{consumer::next_offsets, dead_letters, embedded::RETENTION, outbox::chain, sqlite};
use testkit::until;
use uuid::Uuid;

use crate::log_contract::{Subject, TOPIC, event, log_contract, number, read};

async fn subject() -> Subject {
    Subject::open(|folder| format!("embedded:{}", folder.join("log.db").display())).await
}

mod on_embedded {
    use super::{Subject, log_contract};

    async fn subject() -> Option<Subject> {
        Some(super::subject().await)
    }

    log_contract!(subject);

    // Not of every log: Kafka's client takes a partition's records as they were fetched, thousands at a time.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_busy_partition_does_not_hold_up_the_others() {
        crate::log_contract::a_busy_partition_does_not_hold_up_the_others(super::subject().await).await;
    }
}

/// Nobody listens to it: what is in it goes with the first round of the janitor after the retention.
const UNHEARD: &str = "unheard.events";

/// How many records of a topic are on disk.
async fn on_disk(subject: &Subject, topic: &str) -> i64 {
    let file = sqlite::open_read_only(&subject.path("log.db")).await.unwrap();
    let (count,): (i64,) = sqlx::query_as(
        "select coalesce(sum(count), 0) from batches where topic = (select id from topics where name = ?)",
    )
    .bind(topic)
    .fetch_one(&file)
    .await
    .unwrap();
    count
}

/// Moves time past the retention of what is there, and waits until the janitor has judged all of it.
async fn age(subject: &Subject) {
    subject.log.publish(vec![event(UNHEARD, "key", 0)]).await.unwrap();
    subject.clock.advance(RETENTION.to_std().unwrap());
    until("the janitor", || async {
        // Small steps: each lets the janitor go round, all together do not age what comes after.
        subject.clock.advance(Duration::from_secs(61));
        (on_disk(subject, UNHEARD).await == 0).then_some(())
    })
    .await;
}

/// Commits the next `count` records of a group.
async fn take(subject: &Subject, group: &str, topic: &str, count: usize) -> Vec<(u64, u64)> {
    let mut subscription = subject.log.subscribe(group, &[topic]).await.unwrap();
    let records = read(&mut *subscription, count, count).await;
    subscription.commit(&next_offsets(&records)).await.unwrap();
    records.iter().map(|record| (record.offset, number(record))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_records_that_every_group_has_committed_are_dropped_and_offsets_go_on() {
    let subject = subject().await;
    subject.publish("key", 0..10).await;
    take(&subject, "early", TOPIC, 10).await;
    age(&subject).await;
    assert_eq!(on_disk(&subject, TOPIC).await, 0);
    subject.publish("key", 10..12).await;
    assert_eq!(take(&subject, "late", TOPIC, 2).await, [(10, 10), (11, 11)], "a new group starts at what is left");
    take(&subject, "early", TOPIC, 2).await;
    age(&subject).await;
    assert_eq!(on_disk(&subject, TOPIC).await, 0);
    let subject = subject.reopen().await;
    subject.publish("key", 12..13).await;
    assert_eq!(take(&subject, "early", TOPIC, 1).await, [(12, 12)], "an emptied partition goes on counting");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_group_has_not_committed_is_kept_however_old() {
    let subject = subject().await;
    subject.publish("key", 0..3).await;
    subject.publish("key", 3..10).await;
    take(&subject, "quick", TOPIC, 10).await;
    take(&subject, "slow", TOPIC, 5).await;
    age(&subject).await;
    assert_eq!(on_disk(&subject, TOPIC).await, 7, "the batch with the slow group's next record, and no other");
    assert_eq!(take(&subject, "slow", TOPIC, 5).await, [(5, 5), (6, 6), (7, 7), (8, 8), (9, 9)]);
    age(&subject).await;
    assert_eq!(on_disk(&subject, TOPIC).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_has_only_joined_is_remembered_over_a_restart() {
    let subject = subject().await;
    drop(subject.join("joined").await);
    subject.publish("key", 0..3).await;
    take(&subject, "quick", TOPIC, 3).await;
    let subject = subject.reopen().await;
    age(&subject).await;
    assert_eq!(take(&subject, "joined", TOPIC, 3).await, [(0, 0), (1, 1), (2, 2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_kept_until_their_redrive_and_no_longer_than_others_after_it() {
    let subject = subject().await;
    let letters = dead_letters::topic_of("group");
    subject.log.publish(vec![event(&letters, "key", 1)]).await.unwrap();
    take(&subject, "curious", &letters, 1).await;
    age(&subject).await;
    assert_eq!(on_disk(&subject, &letters).await, 1, "whoever else has read it");
    assert_eq!(dead_letters::waiting(&*subject.log, "group").await.unwrap(), 1);
    age(&subject).await;
    assert_eq!(on_disk(&subject, &letters).await, 1, "to look is not to redrive");
    dead_letters::redrive(&*subject.log, "group").await.unwrap();
    assert_eq!(on_disk(&subject, &letters).await, 1);
    age(&subject).await;
    assert_eq!(on_disk(&subject, &letters).await, 0);
}

#[tokio::test]
async fn a_file_that_is_in_use_is_refused_until_it_is_let_go() {
    let subject = subject().await;
    let refused = messaging::open(&subject.url, subject.clock.clone()).await.err().unwrap();
    let told = chain(&refused);
    assert!(told.contains("another process") && told.contains(&subject.path("log.db")), "{told}");
    subject.publish("key", 0..1).await;
    let subject = subject.reopen().await;
    assert_eq!(take(&subject, "group", TOPIC, 1).await, [(0, 0)]);
}

/// Tells a copy of this program that it is the one to die, and where its log is.
const DOOMED_LOG: &str = "DOOMED_LOG";

/// A clock that panics from some moment on, and the log's writer with it.
#[derive(Default)]
struct BrokenClock {
    broken: AtomicBool,
}

#[async_trait]
impl Clock for BrokenClock {
    fn now(&self) -> Timestamp {
        assert!(!self.broken.load(Ordering::SeqCst), "the clock is broken");
        SystemClock.now()
    }

    async fn sleep_until(&self, _deadline: Timestamp) {
        std::future::pending::<()>().await;
    }

    fn new_id(&self) -> Uuid {
        SystemClock.new_id()
    }
}

#[tokio::test]
async fn a_writer_that_panics_ends_the_process() {
    if let Ok(url) = std::env::var(DOOMED_LOG) {
        let clock = Arc::new(BrokenClock::default());
        let log = messaging::open(&url, clock.clone()).await.unwrap();
        log.publish(vec![event(TOPIC, "key", 1)]).await.unwrap();
        clock.broken.store(true, Ordering::SeqCst);
        let answer = log.publish(vec![event(TOPIC, "key", 2)]).await;
        panic!("lives on, and answers {answer:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let doomed = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "embedded::a_writer_that_panics_ends_the_process", "--nocapture"])
        .env(DOOMED_LOG, format!("embedded:{}", folder.path().join("log.db").display()))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&doomed.stderr);
    let sigabrt = 6;
    assert_eq!(doomed.status.signal(), Some(sigabrt), "{told}");
    assert!(told.contains("the clock is broken"), "{told}");
}

#[tokio::test]
async fn a_url_that_names_no_log_is_refused() {
    let clock = std::sync::Arc::new(testkit::ManualClock::starting_now());
    let error = messaging::open("kafkaesque:x", clock.clone()).await.err().unwrap();
    assert!(messaging::outbox::chain(&error).contains("kafkaesque:x"));
    assert!(clock.now() > contracts::Timestamp::UNIX_EPOCH);
}
