//! What every event log must do, whatever stands behind it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use contracts::{
    Clock, SystemClock, Timestamp,
    events::{CloudEvent, PARTITIONS},
};
use messaging::{Delivered, LogError, Offset, Subscription, consumer::next_offsets, keys::part_of};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::engine::{Subject, on_every_log};

/// The topic that most cases use.
pub(crate) const TOPIC: &str = "test.events";

/// How long a case waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// More records than any log keeps in memory for a partition.
const MORE_THAN_MEMORY: u64 = 5_500;

/// The event with that number of a key.
pub(crate) fn event(topic: &str, key: &str, number: u64) -> CloudEvent {
    CloudEvent {
        id: Uuid::from_u128(u128::from(number)),
        topic: topic.to_owned(),
        key: key.to_owned(),
        kind: "Happened".to_owned(),
        source: "test".to_owned(),
        time: Timestamp::from_timestamp_micros(1_700_000_000_000_000 + number.cast_signed()).unwrap(),
        traceparent: (number % 2 == 1).then(|| format!("00-{number:032x}-{number:016x}-01")),
        data: format!("{{\"number\":{number}}}").into_bytes(),
    }
}

/// The number that [`event`] made an event of.
pub(crate) fn number(record: &Delivered) -> u64 {
    u64::try_from(record.event.id.as_u128()).unwrap()
}

/// Reads until `count` records have come, at most `max` at once.
pub(crate) async fn read(subscription: &mut dyn Subscription, count: usize, max: usize) -> Vec<Delivered> {
    let mut records = Vec::new();
    while records.len() < count {
        let next = tokio::time::timeout(PATIENCE, subscription.next(max)).await;
        let next = next.unwrap_or_else(|_| panic!("{} of {count} records came", records.len())).unwrap();
        assert!((1..=max).contains(&next.len()), "at least one and at most {max}, not {}", next.len());
        records.extend(next);
    }
    records
}

/// A log that has more to say does so well before that.
const QUIET: Duration = Duration::from_millis(500);

async fn assert_nothing_more(subscription: &mut dyn Subscription) {
    let next = tokio::time::timeout(QUIET, subscription.next(10)).await;
    assert!(next.is_err(), "unexpected: {next:?}");
}

/// The numbers of each key, in the order in which they came.
pub(crate) fn by_key(records: &[Delivered]) -> BTreeMap<String, Vec<u64>> {
    let mut keys: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for record in records {
        keys.entry(record.event.key.clone()).or_default().push(number(record));
    }
    keys
}

async fn partitions(subscription: &mut dyn Subscription) -> BTreeSet<u32> {
    subscription.assignment().await.unwrap().into_iter().map(|offset| offset.partition).collect()
}

/// Waits until two members have half of the partitions each.
async fn settled(one: &mut dyn Subscription, other: &mut dyn Subscription) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let deadline = SystemClock.now() + PATIENCE;
    loop {
        let (mine, theirs) = (partitions(one).await, partitions(other).await);
        let half = PARTITIONS as usize / 2;
        if mine.is_disjoint(&theirs) && (mine.len(), theirs.len()) == (half, half) {
            return (mine, theirs);
        }
        assert!(SystemClock.now() < deadline, "still {mine:?} and {theirs:?}");
        SystemClock.sleep(Duration::from_millis(20)).await;
    }
}

on_every_log! {
    a_record_comes_out_as_it_went_in
    order_within_a_key_is_kept
    every_group_gets_every_record
    a_waiting_member_wakes_when_something_is_published
    a_busy_partition_does_not_hold_up_the_others
    a_group_reads_several_topics
    committed_offsets_survive_reopening_and_the_rest_comes_again
    two_members_split_the_partitions
    a_leaving_members_partitions_move_on
    a_commit_for_a_lost_partition_is_refused_and_the_others_are_kept
    a_next_that_was_dropped_has_consumed_nothing
    a_member_seeks_back_and_forth
    a_partition_of_somebody_else_cannot_be_sought
    lag_is_what_a_group_has_not_committed
    more_than_memory_holds_is_read_from_disk
    a_single_record_is_read_where_it_lies
    concurrent_publishers_keep_their_own_order
    a_topics_id_is_its_own_and_survives_reopening
}

async fn a_record_comes_out_as_it_went_in(subject: Subject) {
    let mut odd = event(TOPIC, "a key, with ⚠", 1);
    odd.data = vec![0, 159, 146, 150];
    let sent = vec![odd, event(TOPIC, "plain", 2)];
    subject.log.publish(Vec::new()).await.unwrap();
    subject.log.publish(sent.clone()).await.unwrap();
    for subject in [subject.join("before").await, subject.reopen().await.join("after").await] {
        let mut subscription = subject;
        let mut got = read(&mut *subscription, 2, 10).await;
        got.sort_by_key(number);
        let got: Vec<CloudEvent> = got.into_iter().map(|record| (*record.event).clone()).collect();
        assert_eq!(got, sent);
    }
}

async fn order_within_a_key_is_kept(subject: Subject) {
    let keys: Vec<String> = (0..20).map(|key| format!("key-{key}")).collect();
    for start in (0..100).step_by(10) {
        let mut events = Vec::new();
        for number in start..start + 10 {
            events.extend(keys.iter().map(|key| event(TOPIC, key, number)));
        }
        subject.log.publish(events).await.unwrap();
    }
    let mut subscription = subject.join("group").await;
    let records = read(&mut *subscription, 2_000, 77).await;
    let expected: Vec<u64> = (0..100).collect();
    for (key, numbers) in by_key(&records) {
        assert_eq!(numbers, expected, "{key}");
    }
    let used: BTreeSet<_> = records.iter().map(|record| record.partition).collect();
    assert!(used.len() > 1, "keys spread over partitions");
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    for record in &records {
        let expected = next.entry(record.partition).or_insert(0);
        assert_eq!(record.offset, *expected, "offsets of partition {} have no gap", record.partition);
        *expected += 1;
    }
}

async fn every_group_gets_every_record(subject: Subject) {
    let mut early = subject.join("early").await;
    subject.publish("key", 0..50).await;
    let mut late = subject.join("late").await;
    for subscription in [&mut early, &mut late] {
        let records = read(&mut **subscription, 50, 100).await;
        assert_eq!(by_key(&records)["key"], (0..50).collect::<Vec<_>>());
        assert_nothing_more(&mut **subscription).await;
    }
}

async fn a_waiting_member_wakes_when_something_is_published(subject: Subject) {
    let mut subscription = subject.join("group").await;
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { read(&mut *subscription, 1, 10).await });
    tokio::task::yield_now().await;
    subject.publish("key", 7..8).await;
    let records = waiting.join_next().await.unwrap().unwrap();
    assert_eq!(number(&records[0]), 7);
}

async fn a_busy_partition_does_not_hold_up_the_others(subject: Subject) {
    let keys: Vec<String> = (0..64).map(|key| format!("quiet-{key}")).collect();
    subject.publish("busy", 0..2_000).await;
    for key in &keys {
        subject.publish(key, 0..1).await;
    }
    let mut subscription = subject.join("group").await;
    // Twice as many turns as there are partitions: each has had the first one.
    let mut seen = BTreeSet::new();
    for _ in 0..2 * PARTITIONS {
        for record in read(&mut *subscription, 1, 64).await {
            seen.insert(record.partition);
        }
    }
    assert_eq!(seen.len(), PARTITIONS as usize);
}

async fn a_group_reads_several_topics(subject: Subject) {
    let events = vec![event("one.events", "key", 1), event("two.events", "key", 2), event("three.events", "key", 3)];
    subject.log.publish(events).await.unwrap();
    let mut subscription = subject.log.subscribe("group", &["one.events", "two.events"]).await.unwrap();
    let mut got: Vec<_> = read(&mut *subscription, 2, 10).await.iter().map(|r| r.topic.to_string()).collect();
    got.sort();
    assert_eq!(got, ["one.events", "two.events"]);
    assert_nothing_more(&mut *subscription).await;
}

async fn committed_offsets_survive_reopening_and_the_rest_comes_again(subject: Subject) {
    subject.publish("key", 0..30).await;
    let mut subscription = subject.join("group").await;
    let first = read(&mut *subscription, 10, 10).await;
    subscription.commit(&next_offsets(&first)).await.unwrap();
    read(&mut *subscription, 10, 10).await;
    drop(subscription);
    let mut subscription = subject.join("group").await;
    assert_eq!(number(&read(&mut *subscription, 1, 1).await[0]), 10, "a new member starts at the committed offset");
    drop(subscription);
    let subject = subject.reopen().await;
    subject.publish("key", 30..40).await;
    let mut subscription = subject.join("group").await;
    let records = read(&mut *subscription, 30, 100).await;
    assert_eq!(by_key(&records)["key"], (10..40).collect::<Vec<_>>());
    subscription.commit(&next_offsets(&records)).await.unwrap();
    drop(subscription);
    let subject = subject.reopen().await;
    let mut subscription = subject.join("group").await;
    assert_nothing_more(&mut *subscription).await;
}

/// One record in each of many keys, so that every partition has some; and how many there are.
async fn fill_all_partitions(subject: &Subject) -> usize {
    for key in 0..64 {
        subject.publish(&format!("key-{key}"), 0..1).await;
    }
    64
}

async fn two_members_split_the_partitions(subject: Subject) {
    let mut one = subject.join("group").await;
    assert_eq!(partitions(&mut *one).await.len(), PARTITIONS as usize);
    let mut other = subject.join("group").await;
    let (mine, theirs) = settled(&mut *one, &mut *other).await;
    let count = fill_all_partitions(&subject).await;
    let keys: Vec<u32> = (0..count).map(|key| part_of(&format!("key-{key}"), PARTITIONS)).collect();
    for (subscription, partitions) in [(&mut one, &mine), (&mut other, &theirs)] {
        let expected = keys.iter().filter(|partition| partitions.contains(partition)).count();
        for record in read(&mut **subscription, expected, 100).await {
            assert!(partitions.contains(&record.partition));
        }
        assert_nothing_more(&mut **subscription).await;
    }
}

async fn a_leaving_members_partitions_move_on(subject: Subject) {
    let (mut one, mut other) = (subject.join("group").await, subject.join("group").await);
    let (_, theirs) = settled(&mut *one, &mut *other).await;
    let count = fill_all_partitions(&subject).await;
    let moved = read(&mut *other, 1, count).await;
    drop(other);
    // What the one that left has not committed comes again, to the one that stays.
    let records = read(&mut *one, count, count).await;
    assert_eq!(records.len(), count);
    for record in moved {
        assert!(theirs.contains(&record.partition));
        assert!(records.iter().any(|again| again.event.key == record.event.key));
    }
    assert_nothing_more(&mut *one).await;
}

async fn a_commit_for_a_lost_partition_is_refused_and_the_others_are_kept(subject: Subject) {
    let count = fill_all_partitions(&subject).await;
    let mut one = subject.join("group").await;
    let records = read(&mut *one, count, count).await;
    let mut other = subject.join("group").await;
    let (mine, theirs) = settled(&mut *one, &mut *other).await;
    let refused = one.commit(&next_offsets(&records)).await;
    assert!(matches!(refused, Err(LogError::Rebalanced)), "{refused:?}");
    let lost = records.iter().filter(|record| theirs.contains(&record.partition)).count();
    assert_eq!(read(&mut *other, lost, count).await.len(), lost, "the new owner sees them again");
    drop((one, other));
    let mut next = subject.join("group").await;
    let again = read(&mut *next, lost, count).await;
    assert!(again.iter().all(|record| !mine.contains(&record.partition)), "what was kept is not seen again");
    assert_nothing_more(&mut *next).await;
}

async fn a_next_that_was_dropped_has_consumed_nothing(subject: Subject) {
    for start in (0..MORE_THAN_MEMORY).step_by(500) {
        subject.publish("key", start..start + 500).await;
    }
    let mut subscription = subject.join("group").await;
    let mut got: Vec<u64> = Vec::new();
    for round in 0u32..200 {
        // A read of the disk is pending for a while: it is dropped after some polls, sooner or later.
        let mut next = subscription.next(10);
        let mut answer = None;
        for _ in 0..=round % 5 {
            if let Some(records) = futures::FutureExt::now_or_never(&mut next) {
                answer = Some(records.unwrap());
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(next);
        got.extend(answer.iter().flatten().map(number));
    }
    let left = usize::try_from(MORE_THAN_MEMORY).unwrap() - got.len();
    got.extend(read(&mut *subscription, left, 1_000).await.iter().map(number));
    assert_eq!(got, (0..MORE_THAN_MEMORY).collect::<Vec<_>>());
}

async fn a_member_seeks_back_and_forth(subject: Subject) {
    subject.publish("key", 0..100).await;
    let mut subscription = subject.join("group").await;
    let first = read(&mut *subscription, 10, 10).await.remove(0);
    for target in [50u64, 3, 99, 0] {
        let to = Offset { topic: TOPIC.to_owned(), partition: first.partition, offset: target };
        subscription.seek(&to).await.unwrap();
        assert!(subscription.assignment().await.unwrap().contains(&to));
        assert_eq!(number(&read(&mut *subscription, 1, 1).await[0]), target);
    }
    let rest = read(&mut *subscription, 99, 30).await;
    assert_eq!(by_key(&rest)["key"], (1..100).collect::<Vec<_>>());
}

async fn a_partition_of_somebody_else_cannot_be_sought(subject: Subject) {
    let (mut one, mut other) = (subject.join("group").await, subject.join("group").await);
    let (_, theirs) = settled(&mut *one, &mut *other).await;
    let to = Offset { topic: TOPIC.to_owned(), partition: *theirs.first().unwrap(), offset: 0 };
    let refused = one.seek(&to).await;
    assert!(matches!(refused, Err(LogError::Rebalanced)), "{refused:?}");
    other.seek(&to).await.unwrap();
}

async fn lag_of(subject: &Subject, group: &str) -> u64 {
    let lags = subject.log.lag().await.unwrap();
    lags.iter().filter(|lag| lag.group == group && lag.topic == TOPIC).map(messaging::GroupLag::lag).sum()
}

async fn lag_is_what_a_group_has_not_committed(subject: Subject) {
    let mut subscription = subject.join("group").await;
    assert_eq!(lag_of(&subject, "group").await, 0);
    subject.publish("one", 0..5).await;
    subject.publish("two", 0..5).await;
    let records = read(&mut *subscription, 10, 10).await;
    assert_eq!(lag_of(&subject, "group").await, 10, "reading is not committing");
    subscription.commit(&next_offsets(&records[..4])).await.unwrap();
    assert_eq!(lag_of(&subject, "group").await, 6);
    drop(subscription);
    let subject = subject.reopen().await;
    assert_eq!(lag_of(&subject, "group").await, 6);
    let mut subscription = subject.join("group").await;
    let records = read(&mut *subscription, 6, 10).await;
    subscription.commit(&next_offsets(&records)).await.unwrap();
    assert_eq!(lag_of(&subject, "group").await, 0);
}

async fn more_than_memory_holds_is_read_from_disk(subject: Subject) {
    for start in (0..MORE_THAN_MEMORY).step_by(50) {
        subject.publish("key", start..start + 50).await;
    }
    subject.publish("key", MORE_THAN_MEMORY..MORE_THAN_MEMORY + 1).await;
    let expected: Vec<u64> = (0..=MORE_THAN_MEMORY).collect();
    // Page sizes that end within, at, and across the batches that were published.
    for (group, max) in [("small", 7), ("even", 50), ("odd", 512), ("large", 10_000)] {
        let mut subscription = subject.join(group).await;
        let records = read(&mut *subscription, expected.len(), max).await;
        assert_eq!(by_key(&records)["key"], expected, "{group}");
        let record = &records[4_321];
        assert_eq!(*record.event, event(TOPIC, "key", record.offset), "{group}");
    }
    let subject = subject.reopen().await;
    let mut subscription = subject.join("again").await;
    assert_eq!(by_key(&read(&mut *subscription, expected.len(), 512).await)["key"], expected);
}

async fn a_single_record_is_read_where_it_lies(subject: Subject) {
    for start in (0..MORE_THAN_MEMORY).step_by(500) {
        subject.publish("key", start..start + 500).await;
    }
    let partition = part_of("key", PARTITIONS);
    let at = |offset| Offset { topic: TOPIC.to_owned(), partition, offset };
    // In the middle of a batch on disk, and in memory.
    for offset in [0, 1_234, MORE_THAN_MEMORY - 1] {
        let found = subject.log.record_at(&at(offset)).await.unwrap();
        assert_eq!(found, Some(event(TOPIC, "key", offset)));
    }
    assert_eq!(subject.log.record_at(&at(MORE_THAN_MEMORY)).await.unwrap(), None, "it was never written");
    let elsewhere = Offset { partition: (partition + 1) % PARTITIONS, ..at(0) };
    assert_eq!(subject.log.record_at(&elsewhere).await.unwrap(), None);
    assert!(subject.log.lag().await.unwrap().is_empty(), "no group has come of it");
}

async fn concurrent_publishers_keep_their_own_order(subject: Subject) {
    let mut publishers = JoinSet::new();
    for publisher in 0..8 {
        let log = subject.log.clone();
        publishers.spawn(async move {
            for start in (0..100).step_by(4) {
                let key = format!("publisher-{publisher}");
                let events: Vec<_> = (start..start + 4).map(|number| event(TOPIC, &key, number)).collect();
                log.publish(events).await.unwrap();
            }
        });
    }
    let mut subscription = subject.join("group").await;
    let records = read(&mut *subscription, 800, 64).await;
    let keys = by_key(&records);
    assert_eq!(keys.len(), 8);
    for (key, numbers) in keys {
        assert_eq!(numbers, (0..100).collect::<Vec<_>>(), "{key}");
    }
    while let Some(ended) = publishers.join_next().await {
        ended.unwrap();
    }
    assert_nothing_more(&mut *subscription).await;
}

async fn a_topics_id_is_its_own_and_survives_reopening(subject: Subject) {
    let id = subject.log.topic_id(TOPIC).await.unwrap();
    assert!(!id.is_empty());
    subject.publish("key", 0..1).await;
    assert_eq!(subject.log.topic_id(TOPIC).await.unwrap(), id);
    let subject = subject.reopen().await;
    subject.log.ping().await.unwrap();
    assert_eq!(subject.log.topic_id(TOPIC).await.unwrap(), id);
}
