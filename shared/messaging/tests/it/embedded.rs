//! The embedded log: the contract of every log, and its own retention.

use std::time::Duration;

use contracts::Clock;
use messaging::{consumer::next_offsets, dead_letters, embedded::RETENTION};
use testkit::until;

use crate::log_contract::{Subject, TOPIC, event, log_contract, number, read};

async fn subject() -> Subject {
    Subject::open(|folder| format!("embedded:{}", folder.join("log.db").display())).await
}

log_contract!(subject);

/// How many records a new group has before it.
async fn kept(subject: &Subject, group: &str) -> u64 {
    let _subscription = subject.join(group).await;
    let lags = subject.log.lag().await.unwrap();
    lags.iter().filter(|lag| lag.group == group).map(messaging::GroupLag::lag).sum()
}

/// Moves time past the retention of what is there, to just before that of what follows.
fn age(subject: &Subject) {
    subject.clock.advance(RETENTION.to_std().unwrap());
}

/// Waits until the janitor has been round: it drops what is older than the retention.
async fn until_only(subject: &Subject, count: u64) {
    let mut round = 0;
    until("the janitor", || {
        round += 1;
        // Small steps: each lets the janitor go round, all together do not age what is to stay.
        subject.clock.advance(Duration::from_secs(61));
        let group = format!("look-{round}");
        async move { (kept(subject, &group).await == count).then_some(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_records_are_dropped_and_offsets_go_on() {
    let subject = subject().await;
    let mut slow = subject.join("slow").await;
    subject.publish("key", 0..10).await;
    let read_before = read(&mut *slow, 3, 3).await;
    slow.commit(&next_offsets(&read_before)).await.unwrap();
    age(&subject);
    subject.publish("key", 10..12).await;
    until_only(&subject, 2).await;
    let kept = read(&mut *slow, 2, 10).await;
    let places: Vec<_> = kept.iter().map(|record| (record.offset, number(record))).collect();
    assert_eq!(places, [(10, 10), (11, 11)], "a slow group goes on with what is left");
    slow.commit(&next_offsets(&kept)).await.unwrap();
    drop(slow);
    age(&subject);
    until_only(&subject, 0).await;
    let subject = subject.reopen().await;
    subject.publish("key", 12..13).await;
    let mut slow = subject.join("slow").await;
    let after = read(&mut *slow, 1, 10).await;
    assert_eq!((after[0].offset, number(&after[0])), (12, 12), "an emptied partition goes on counting");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_kept_until_somebody_has_seen_to_them() {
    let subject = subject().await;
    let letters = dead_letters::topic_of("group");
    subject.log.publish(&[event(&letters, "key", 1), event(TOPIC, "key", 1)]).await.unwrap();
    age(&subject);
    subject.publish("key", 2..3).await;
    until_only(&subject, 1).await;
    assert_eq!(dead_letters::waiting(&*subject.log, "group").await.unwrap(), 1);
    let mut subscription = subject.log.subscribe("reader", &[&letters]).await.unwrap();
    assert_eq!(number(&read(&mut *subscription, 1, 1).await[0]), 1);
}

#[tokio::test]
async fn a_url_that_names_no_log_is_refused() {
    let clock = std::sync::Arc::new(testkit::ManualClock::starting_now());
    let error = messaging::open("kafkaesque:x", clock.clone()).await.err().unwrap();
    assert!(messaging::outbox::chain(&error).contains("kafkaesque:x"));
    assert!(clock.now() > contracts::Timestamp::UNIX_EPOCH);
}
