//! Doubled events, kills, zombies, rebalances: each row is in the lake once.

use std::{sync::Arc, time::Duration};

use contracts::{
    Clock, SystemClock,
    events::{CloudEvent, DeliveryRecord, Topic},
};
use futures::StreamExt;
use object_store::path::Path;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Bench, forgetful, some};
use crate::{
    domain::{DeliveryRow, PositionRow},
    events::{FlushLimits, Subscriber},
    fixtures::{at, delivery_event, position_event},
    lake::{KeyCache, Lake, LakeError, Place, Row, TableKind, Taken, Writer, scan_positions_keys},
};

on_each_store! {
    the_same_event_at_two_offsets_is_one_row,
    killed_between_files_and_commit_nothing_is_lost_or_doubled,
    killed_between_commit_and_offset_the_table_tells_where_to_go_on,
    a_zombie_that_checked_before_its_successor_committed_conflicts,
    a_zombie_that_reloads_the_table_sees_that_it_moved_on,
    a_writer_with_an_old_view_cannot_commit,
    late_events_land_in_their_own_date,
    a_recreated_topic_starts_afresh,
    offsets_without_rows_are_committed_now_and_then,
    records_that_the_log_no_longer_has_are_passed_over_only_after_an_alignment,
    shuffled_and_doubled_events_are_each_one_row,
    what_another_member_has_committed_is_told_to_the_group_at_the_flush,
    what_another_member_has_committed_is_told_to_the_group_when_it_is_read_again,
    members_come_and_go_and_are_killed_and_each_row_is_there_once,
    an_event_at_fault_goes_to_the_dead_letters_and_stops_nobody,
    an_idle_member_tells_that_it_has_passed_what_is_no_row,
    positions_are_told_apart_by_attempt_and_sequence,
}

/// How long a test waits for something that happens at once on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

async fn the_same_event_at_two_offsets_is_one_row(bench: Bench) {
    let records = some(100, at(1, 8));
    // In one batch, ...
    bench.publish(&records).await;
    bench.publish(&records[..5]).await;
    let mut writer = bench.writer().await;
    bench.read_all(&mut writer, "a").await;
    assert_eq!(writer.flush().await.unwrap().rows, 100);
    // ... in a later one, by the same writer, ...
    bench.publish(&records[3..]).await;
    bench.read_all(&mut writer, "b").await;
    assert_eq!(writer.flush().await.unwrap().rows, 0);
    // ... and by one that has to look into the files: at bloom filters for a few, at the keys for many.
    for doubled in [7, 100] {
        bench.publish(&records[..doubled]).await;
        let mut restarted = bench.writer().await;
        bench.read_all(&mut restarted, &format!("restarted for {doubled}")).await;
        assert_eq!(restarted.rows(), doubled);
        assert_eq!(restarted.flush().await.unwrap().rows, 0);
    }
    bench.assert_holds(&records).await;
}

async fn killed_between_files_and_commit_nothing_is_lost_or_doubled(bench: Bench) {
    let records = some(20, at(1, 8));
    bench.publish(&records).await;
    let mut killed = bench.writer().await;
    bench.read_all(&mut killed, "a").await;
    let table = bench.table().await;
    let mut locked = table.lock().await.unwrap();
    killed.prepare(&mut locked).await.unwrap();
    drop(locked);
    drop(killed);
    bench.assert_holds(&[]).await;

    let mut restarted = bench.writer().await;
    bench.read_all(&mut restarted, "b").await;
    assert_eq!(restarted.flush().await.unwrap().rows, 20);
    bench.assert_holds(&records).await;
}

async fn killed_between_commit_and_offset_the_table_tells_where_to_go_on(bench: Bench) {
    let mut records = some(20, at(1, 8));
    bench.publish(&records).await;
    let mut killed = bench.writer().await;
    bench.read_all(&mut killed, "a").await;
    // The group's offset is never committed here.
    killed.flush().await.unwrap();
    drop(killed);

    let more = some(5, at(1, 9));
    bench.publish(&more).await;
    let mut restarted = bench.writer().await;
    bench.read_all(&mut restarted, "a").await;
    assert_eq!(restarted.rows(), 5, "what the table has is not read again");
    restarted.flush().await.unwrap();
    records.extend(more);
    bench.assert_holds(&records).await;
}

async fn a_zombie_that_checked_before_its_successor_committed_conflicts(bench: Bench) {
    let records = some(20, at(1, 8));
    bench.publish(&records).await;
    let (mut zombie, mut successor) = (bench.writer().await, bench.writer().await);
    let zombies_table = bench.table().await;
    bench.read_all(&mut zombie, "zombie").await;
    let mut held_up = zombies_table.lock().await.unwrap();
    let prepared = zombie.prepare(&mut held_up).await.unwrap();

    bench.read_all(&mut successor, "successor").await;
    successor.flush().await.unwrap();

    assert!(matches!(zombie.finish(&mut held_up, prepared).await, Err(LakeError::Conflict)));
    drop(held_up);
    let flushed = zombie.flush().await.unwrap();
    assert_eq!(flushed.rows, 0);
    assert!(!flushed.moved.is_empty(), "it is told where to read on");
    bench.assert_holds(&records).await;
}

async fn a_zombie_that_reloads_the_table_sees_that_it_moved_on(bench: Bench) {
    let records = some(20, at(1, 8));
    bench.publish(&records[..10]).await;
    let (mut zombie, mut successor) = (bench.writer().await, bench.writer().await);
    bench.read_all(&mut zombie, "zombie").await;
    bench.publish(&records[10..]).await;
    bench.read_all(&mut successor, "successor").await;
    successor.flush().await.unwrap();
    let flushed = zombie.flush().await.unwrap();
    assert_eq!((flushed.rows, flushed.committed.len()), (0, 0));
    bench.assert_holds(&records).await;
}

async fn a_writer_with_an_old_view_cannot_commit(bench: Bench) {
    let records = some(6, at(1, 8));
    bench.publish(&records).await;
    let table = bench.table().await;
    let mut late = Writer::<DeliveryRow>::new(table.clone(), forgetful());
    bench.read_all(&mut late, "late").await;
    let mut other = bench.writer().await;
    bench.read_all(&mut other, "other").await;
    other.flush().await.unwrap();
    let mut stale = table.lock_stale().await;
    let prepared = late.prepare(&mut stale).await.unwrap();
    assert!(matches!(late.finish(&mut stale, prepared).await, Err(LakeError::Conflict)));
}

async fn late_events_land_in_their_own_date(bench: Bench) {
    let today = some(5, at(9, 8));
    let late = some(5, at(2, 23));
    bench.publish(&today).await;
    let mut writer = bench.writer().await;
    bench.read_all(&mut writer, "a").await;
    writer.flush().await.unwrap();
    bench.publish(&late).await;
    bench.read_all(&mut writer, "b").await;
    writer.flush().await.unwrap();
    let folder = Path::from("date=2025-03-02");
    assert_eq!(bench.table().await.store().list(Some(&folder)).count().await, 1);
    bench.assert_holds(&[today, late].concat()).await;
}

async fn a_recreated_topic_starts_afresh(bench: Bench) {
    let records = some(4, at(1, 8));
    let place = Place { topic: Topic::Delivery.name().into(), partition: 0 };
    let mut writer = bench.writer().await;
    for topic_id in ["first", "second"] {
        assert_eq!(writer.align(place.clone(), topic_id).await.unwrap(), 0);
        for (offset, record) in (0..).zip(&records) {
            assert_eq!(writer.expects(&place, offset), Taken::Yes);
            writer.take(&place, offset, DeliveryRow::from_event(&delivery_event(record).encode()).unwrap());
        }
        writer.flush().await.unwrap();
    }
    assert_eq!(writer.align(place.clone(), "first").await.unwrap(), 4);
    bench.assert_holds(&records).await;
}

async fn offsets_without_rows_are_committed_now_and_then(bench: Bench) {
    let place = Place { topic: Topic::Delivery.name().into(), partition: 0 };
    let mut writer = bench.writer().await;
    writer.align(place.clone(), "t").await.unwrap();
    writer.take(&place, 0, None);
    assert!(writer.flush().await.unwrap().committed.is_empty());
    bench.clock.advance(chrono::Duration::minutes(2));
    assert_eq!(writer.flush().await.unwrap().committed[0].offset, 1);
    assert_eq!(bench.writer().await.align(place, "t").await.unwrap(), 1);
}

async fn records_that_the_log_no_longer_has_are_passed_over_only_after_an_alignment(bench: Bench) {
    let place = Place { topic: Topic::Delivery.name().into(), partition: 0 };
    let mut writer = bench.writer().await;
    assert_eq!(writer.expects(&place, 0), Taken::Misplaced);
    writer.align(place.clone(), "t").await.unwrap();
    assert_eq!(writer.expects(&place, 7), Taken::Yes);
    writer.take(&place, 7, None);
    assert_eq!(writer.expects(&place, 9), Taken::Misplaced);
    assert_eq!(writer.expects(&place, 7), Taken::Misplaced);
    assert_eq!(writer.expects(&place, 8), Taken::Yes);
}

/// A service's member for a table, as `run` starts it, on the machine's clock.
async fn member<R: Row>(bench: &Bench, topic: Topic, shutdown: CancellationToken) -> Subscriber<R> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let lake = Lake::open(&bench.lake, clock.clone()).await.unwrap();
    let table = if R::TABLE == TableKind::Deliveries { lake.deliveries } else { lake.positions };
    Subscriber {
        log: bench.log.clone(),
        clock,
        topic,
        group: "history",
        limits: FlushLimits { interval: Duration::from_millis(20), rows: 50 },
        writer: Writer::new(table, Arc::new(KeyCache::default())),
        shutdown,
    }
}

/// Waits until the lake has as many deliveries.
pub(super) async fn until_rows(bench: &Bench, count: usize) {
    let waiting = async {
        while bench.rows().await.len() < count {
            SystemClock.sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the rows did not come");
}

async fn shuffled_and_doubled_events_are_each_one_row(bench: Bench) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let records = some(300, at(1, 8));
    let mut doubled = [records.clone(), records.clone()].concat();
    doubled.shuffle(&mut StdRng::seed_from_u64(seed));
    let (shutdown, mut tasks) = (CancellationToken::new(), JoinSet::new());
    tasks.spawn(member::<DeliveryRow>(&bench, Topic::Delivery, shutdown.clone()).await.run());
    for part in doubled.chunks(37) {
        bench.publish(part).await;
    }
    until_rows(&bench, 300).await;
    shutdown.cancel();
    tasks.join_all().await;
    bench.assert_holds(&records).await;
}

/// A member that has read `records` of a topic that is new to it.
async fn reader_of(
    bench: &Bench,
    records: &[DeliveryRecord],
) -> (Subscriber<DeliveryRow>, Box<dyn messaging::Subscription>) {
    let mut member = member::<DeliveryRow>(bench, Topic::Delivery, CancellationToken::new()).await;
    let mut subscription = bench.subscribe("history").await;
    member.follow_assignment(subscription.as_mut()).await.unwrap();
    bench.publish(records).await;
    while member.writer.rows() < records.len() {
        let read = subscription.next(100).await.unwrap();
        member.take(subscription.as_mut(), &read).await.unwrap();
    }
    (member, subscription)
}

async fn lag_of_history(bench: &Bench) -> u64 {
    bench.log.lag().await.unwrap().iter().filter(|lag| lag.group == "history").map(messaging::GroupLag::lag).sum()
}

async fn what_another_member_has_committed_is_told_to_the_group_at_the_flush(bench: Bench) {
    let records = some(20, at(1, 8));
    let (mut member, mut subscription) = reader_of(&bench, &records).await;
    let mut other = bench.writer().await;
    bench.read_all(&mut other, "other").await;
    other.flush().await.unwrap();

    assert_eq!(lag_of_history(&bench).await, 20);
    member.flush(subscription.as_mut()).await.unwrap();
    assert_eq!(lag_of_history(&bench).await, 0);
    bench.assert_holds(&records).await;
}

async fn what_another_member_has_committed_is_told_to_the_group_when_it_is_read_again(bench: Bench) {
    let records = some(20, at(1, 8));
    let (mut member, subscription) = reader_of(&bench, &records).await;
    // Its partitions are taken before it could say what it has committed, and come back.
    member.writer.flush().await.unwrap();
    drop(subscription);
    let mut subscription = bench.subscribe("history").await;

    while lag_of_history(&bench).await > 0 {
        let read =
            tokio::time::timeout(PATIENCE, subscription.next(100)).await.expect("a lag without records").unwrap();
        member.take(subscription.as_mut(), &read).await.unwrap();
    }
    assert_eq!(member.writer.rows(), 0, "what the table has is not read again");
    bench.assert_holds(&records).await;
}

async fn members_come_and_go_and_are_killed_and_each_row_is_there_once(bench: Bench) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let records = some(600, at(1, 8));
    let shutdown = CancellationToken::new();
    let mut members = JoinSet::new();
    let mut running = Vec::new();
    for part in records.chunks(40) {
        running.push(members.spawn(member::<DeliveryRow>(&bench, Topic::Delivery, shutdown.clone()).await.run()));
        bench.publish(part).await;
        bench.publish(&part[..10]).await;
        SystemClock.sleep(Duration::from_millis(random.random_range(0..60))).await;
        if running.len() > 2 {
            // Wherever it is now: reading, writing files, committing.
            running.swap_remove(random.random_range(0..running.len())).abort();
        }
    }
    until_rows(&bench, 600).await;
    shutdown.cancel();
    while members.join_next().await.is_some() {}
    bench.assert_holds(&records).await;
}

fn poison() -> CloudEvent {
    let mut poison = delivery_event(&some(1, at(1, 8))[0]).encode();
    poison.data = b"{\"no\":1}".to_vec();
    poison
}

async fn an_idle_member_tells_that_it_has_passed_what_is_no_row(bench: Bench) {
    let (shutdown, mut tasks) = (CancellationToken::new(), JoinSet::new());
    let table = bench.table().await;
    let clock = bench.clock.clone();
    let member = member::<DeliveryRow>(&bench, Topic::Delivery, shutdown.clone()).await;
    let member = Subscriber { writer: Writer::new(table, Arc::default()), clock: clock.clone(), ..member };
    tasks.spawn(member.run());
    bench.log.publish(vec![poison()]).await.unwrap();
    let waiting = async {
        while messaging::dead_letters::peek(bench.log.as_ref(), "history", 1).await.unwrap().is_empty() {
            SystemClock.sleep(Duration::from_millis(20)).await;
        }
        while lag_of_history(&bench).await > 0 {
            clock.advance(chrono::Duration::seconds(1));
            SystemClock.sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("a lag without end");
    shutdown.cancel();
    tasks.join_all().await;
}

async fn an_event_at_fault_goes_to_the_dead_letters_and_stops_nobody(bench: Bench) {
    let records = some(3, at(1, 8));
    bench.log.publish(vec![poison()]).await.unwrap();
    bench.publish(&records).await;
    let (shutdown, mut tasks) = (CancellationToken::new(), JoinSet::new());
    tasks.spawn(member::<DeliveryRow>(&bench, Topic::Delivery, shutdown.clone()).await.run());
    until_rows(&bench, 3).await;
    shutdown.cancel();
    tasks.join_all().await;
    let letters = messaging::dead_letters::peek(bench.log.as_ref(), "history", 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].kind, "DeliveryCompleted");
    bench.assert_holds(&records).await;
}

async fn positions_are_told_apart_by_attempt_and_sequence(bench: Bench) {
    let mut events = Vec::new();
    for (delivery, attempt, sequence) in [(1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1), (1, 1, 2), (2, 1, 1)] {
        events.push(position_event(delivery, attempt, sequence, at(1, 9)).encode());
    }
    let (shutdown, mut tasks) = (CancellationToken::new(), JoinSet::new());
    tasks.spawn(member::<PositionRow>(&bench, Topic::Positions, shutdown.clone()).await.run());
    for part in events.chunks(2) {
        bench.log.publish(part.to_vec()).await.unwrap();
    }
    let waiting = async {
        while bench.log.lag().await.unwrap().iter().filter(|lag| lag.group == "history").any(|lag| lag.lag() > 0) {
            SystemClock.sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the positions were not read");
    shutdown.cancel();
    tasks.join_all().await;
    let keys = scan_positions_keys(&bench.lake).await.unwrap();
    assert_eq!((keys.rows, keys.doubled), (4, 0));
}
