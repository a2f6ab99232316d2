//! PostgreSQL as stores use it: the outbox gives back what was put in, notifications are heard or known to be missed.

use std::time::Duration;

use contracts::{Clock, SystemClock, Timestamp, events::CloudEvent};
use futures::FutureExt;
use messaging::{
    outbox::{self, OutboxRow, OutboxSource, POSTGRES_BUCKETS, PostgresOutbox},
    postgres::{self, Heard, Hearing, MAX_WORD, Postgres},
};
use testkit::until;

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// A store, and a second process on it; none where there is no PostgreSQL.
async fn two() -> Option<(Postgres, Postgres)> {
    let url = testkit::real::postgres().await?;
    let open = || async { postgres::open(&url, &[outbox::POSTGRES_SCHEMA]).await.unwrap() };
    Some((open().await, open().await))
}

fn event(key: &str, number: i64) -> CloudEvent {
    CloudEvent {
        id: SystemClock.new_id(),
        topic: "things.events".to_owned(),
        key: key.to_owned(),
        kind: "ThingHappened".to_owned(),
        source: "thing 'ünïcode' \u{1F681}".to_owned(),
        time: Timestamp::from_timestamp_micros(1_700_000_000_123_456 + number).unwrap(),
        traceparent: (number % 2 == 0).then(|| format!("00-{number:032x}-{number:016x}-01")),
        data: vec![0, 0xff, u8::try_from(number % 256).unwrap(), b'\\'],
    }
}

async fn commit(store: &Postgres, events: &[CloudEvent]) {
    let mut transaction = store.pool.begin().await.unwrap();
    outbox::insert_postgres(&mut transaction, store, events).await.unwrap();
    transaction.commit().await.unwrap();
}

/// Every row of the outbox.
async fn rows(outbox: &PostgresOutbox) -> Vec<OutboxRow> {
    let all: Vec<_> = (0..POSTGRES_BUCKETS).collect();
    outbox.read(&all, 10_000).await.unwrap()
}

fn of_key(rows: &[OutboxRow], key: &str) -> Vec<CloudEvent> {
    rows.iter().map(|row| row.event.clone()).filter(|event| event.key == key).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outbox_gives_back_what_was_put_in_in_order_within_a_key() {
    let Some((store, other)) = two().await else { return };
    let outbox = PostgresOutbox::new(store.clone());
    let keys = ["a", "b", "c\u{1F681}", ""];
    let batches: Vec<Vec<CloudEvent>> =
        (0..5).map(|batch| (0..40).map(|n| event(keys[n % 4], batch * 40 + n as i64)).collect()).collect();
    for (n, batch) in batches.iter().enumerate() {
        commit(if n % 2 == 0 { &store } else { &other }, batch).await;
    }
    commit(&store, &[]).await;
    let found = rows(&outbox).await;
    assert_eq!((found.len(), outbox.backlog().await.unwrap()), (200, 200));
    let sent = batches.concat();
    for key in keys {
        let of_it: Vec<CloudEvent> = sent.iter().filter(|event| event.key == key).cloned().collect();
        assert_eq!(of_key(&found, key), of_it);
    }
    // A part of them: the others stay.
    let places: Vec<_> = found[..150].iter().map(|row| row.place.clone()).collect();
    outbox.delete(&places).await.unwrap();
    let left = rows(&outbox).await;
    let expected: Vec<_> = found[150..].iter().map(|row| &row.event).collect();
    assert_eq!(left.iter().map(|row| &row.event).collect::<Vec<_>>(), expected);
    assert_eq!(outbox.read(&[], 10).await.unwrap().len(), 0, "no bucket, no event");
    assert_eq!(outbox.read(&(0..POSTGRES_BUCKETS).collect::<Vec<_>>(), 7).await.unwrap().len(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_lies_in_one_bucket_and_all_of_its_key_in_the_same() {
    let Some((store, _)) = two().await else { return };
    let outbox = PostgresOutbox::new(store.clone());
    let events: Vec<_> = (0..400).map(|n| event(&format!("key-{}", n % 100), n)).collect();
    commit(&store, &events).await;
    let mut seen = 0;
    for bucket in 0..POSTGRES_BUCKETS {
        let here = outbox.read(&[bucket], 10_000).await.unwrap();
        assert!(!here.is_empty(), "a hundred keys and none in bucket {bucket}");
        seen += here.len();
        for row in &here {
            assert_eq!(of_key(&here, &row.event.key).len(), 4, "{}", row.event.key);
        }
    }
    assert_eq!(seen, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_a_lease_for_every_bucket() {
    let Some((store, _)) = two().await else { return };
    let now = SystemClock.now();
    let mut leased = PostgresOutbox::new(store).lease("me", now, now + chrono::Duration::minutes(1)).await.unwrap();
    leased.sort_unstable();
    assert_eq!(leased, Vec::from_iter(0..POSTGRES_BUCKETS));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_asked_for_at_once_never_overlap() {
    let Some((store, other)) = two().await else { return };
    let (one, two) = (PostgresOutbox::new(store), PostgresOutbox::new(other));
    let now = SystemClock.now();
    for round in 0..20 {
        let at = now + chrono::Duration::seconds(round);
        let until = at + chrono::Duration::seconds(5);
        let (a, b) = futures::join!(one.lease("a", at, until), two.lease("b", at, until));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert!(a.iter().all(|bucket| !b.contains(bucket)), "{a:?} {b:?}");
        assert!(round == 0 || a.len() + b.len() <= usize::from(POSTGRES_BUCKETS));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_another_process_wakes_the_relay_and_a_rollback_does_not() {
    let Some((store, other)) = two().await else { return };
    let outbox = PostgresOutbox::new(store);
    // The first time it connects, and may have missed something.
    tokio::time::timeout(PATIENCE, outbox.woken()).await.unwrap().unwrap();
    for round in 0..3 {
        let mut waiting = Box::pin(outbox.woken());
        let mut transaction = other.pool.begin().await.unwrap();
        outbox::insert_postgres(&mut transaction, &other, &[event("a", round)]).await.unwrap();
        transaction.rollback().await.unwrap();
        assert!(waiting.as_mut().now_or_never().is_none(), "nothing was committed");
        commit(&other, &[event("a", round)]).await;
        tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    }
    // What comes while nobody waits is heard at the next wait.
    commit(&other, &[event("a", 3)]).await;
    tokio::time::timeout(PATIENCE, outbox.woken()).await.unwrap().unwrap();
    assert_eq!(outbox.backlog().await.unwrap(), 4);
}

async fn say(store: &Postgres, words: &[&str]) {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let mut transaction = store.pool.begin().await.unwrap();
    store.say(&mut transaction, "news", &words).await.unwrap();
    transaction.commit().await.unwrap();
}

/// Listens until that many words were said; what is heard anew is not counted.
async fn heard(hearing: &Hearing, count: usize) -> Vec<String> {
    let mut words = Vec::new();
    while words.len() < count {
        match tokio::time::timeout(PATIENCE, hearing.next()).await.unwrap().unwrap() {
            Heard::Said(more) => words.extend(more),
            Heard::Anew => panic!("the connection was lost"),
        }
    }
    words
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_is_heard_in_order_by_everybody_who_listens_to_the_channel() {
    let Some((store, other)) = two().await else { return };
    let Some((stranger, _)) = two().await else { return };
    let (here, there, elsewhere) = (store.hearing("news"), other.hearing("news"), stranger.hearing("news"));
    for hearing in [&here, &there, &elsewhere] {
        assert_eq!(hearing.next().await.unwrap(), Heard::Anew);
    }
    let longest = "x".repeat(MAX_WORD);
    say(&store, &["one", &longest]).await;
    let many: Vec<String> = (0..600).map(|n| format!("word {n}")).collect();
    say(&other, &many.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let all = [vec!["one".to_owned(), longest], many].concat();
    assert_eq!(heard(&here, 602).await, all);
    assert_eq!(heard(&there, 602).await, all);
    assert!(elsewhere.next().now_or_never().is_none(), "another schema's channel is another channel");
    let mut transaction = store.pool.begin().await.unwrap();
    assert!(store.say(&mut transaction, "news", &["x".repeat(MAX_WORD + 1)]).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_told_of() {
    let Some((store, other)) = two().await else { return };
    let hearing = store.hearing("news");
    assert_eq!(hearing.next().await.unwrap(), Heard::Anew);
    say(&other, &["one"]).await;
    assert_eq!(heard(&hearing, 1).await, ["one"]);
    let channel = store.channel("news");
    let (cut,): (i64,) = sqlx::query_as(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where query = 'LISTEN \"' || $1 || '\"'",
    )
    .bind(channel)
    .fetch_one(&other.pool)
    .await
    .unwrap();
    assert_eq!(cut, 1);
    say(&other, &["two"]).await;
    until("the new connection", || async {
        // An error is allowed: the next call connects.
        (hearing.next().await.ok()? == Heard::Anew).then_some(())
    })
    .await;
    say(&other, &["three"]).await;
    assert_eq!(heard(&hearing, 1).await, ["three"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_url_sets_stays_set_beside_the_settings_of_every_session() {
    let Some(url) = testkit::real::postgres().await else { return };
    let schema = url.rsplit('=').next().unwrap().to_owned();
    let store = postgres::open(&url, &[outbox::POSTGRES_SCHEMA]).await.unwrap();
    let reader = postgres::open_read_only(&url).await.unwrap();
    for (pool, read_only) in [(&store.pool, "off"), (&reader, "on")] {
        let found: (String, String) =
            sqlx::query_as("select current_schema()::text, current_setting('default_transaction_read_only')")
                .fetch_one(pool)
                .await
                .unwrap();
        assert_eq!(found, (schema.clone(), read_only.to_owned()));
    }
    let (timeout,): (String,) =
        sqlx::query_as("select current_setting('statement_timeout')").fetch_one(&store.pool).await.unwrap();
    assert_eq!(timeout, "5s");
    assert!(sqlx::query("delete from outbox").execute(&reader).await.is_err());
    assert!(store.channel("news").starts_with(&schema));
}
