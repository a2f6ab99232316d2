//! Outbox relays: what was committed is published in order, at least once, whoever is killed where.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use contracts::{Clock, Timestamp, events::CloudEvent};
use messaging::{
    EventLog, GroupLag, LogError, Offset, Subscription,
    outbox::{self, OutboxSignal, OutboxSource, PostgresOutbox, Relay, SqliteOutbox},
    postgres::{self, Postgres},
    sqlite::{self, Sqlite},
};
use tempfile::TempDir;
use testkit::{ManualClock, until};
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    engine::Subject,
    log_contract::{TOPIC, by_key, event, read},
};

/// Longer than a relay's lease.
const LEASE_OVER: Duration = Duration::from_secs(6);

enum Tables {
    Sqlite(Sqlite),
    Postgres(Postgres),
}

struct Store {
    tables: Tables,
    outbox: Arc<dyn OutboxSource>,
    signal: OutboxSignal,
    _folder: Option<TempDir>,
}

impl Store {
    async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db").display().to_string();
        let sqlite = sqlite::open(&path, &[outbox::SQLITE_SCHEMA]).await.unwrap();
        let outbox = Arc::new(SqliteOutbox::new(sqlite.clone()));
        Self { tables: Tables::Sqlite(sqlite), outbox, signal: OutboxSignal::default(), _folder: Some(folder) }
    }

    async fn postgres() -> Option<Self> {
        let url = testkit::real::postgres().await?;
        let postgres = postgres::open(&url, &[outbox::POSTGRES_SCHEMA]).await.unwrap();
        let outbox = Arc::new(PostgresOutbox::new(postgres.clone()));
        Some(Self { tables: Tables::Postgres(postgres), outbox, signal: OutboxSignal::default(), _folder: None })
    }

    /// Whether relays can share its outbox.
    fn has_buckets(&self) -> bool {
        matches!(self.tables, Tables::Postgres(_))
    }

    /// Commits events of these numbers, in turn for each key.
    async fn commit(&self, keys: &[&str], numbers: std::ops::Range<u64>) {
        let mut events = Vec::new();
        for number in numbers {
            events.extend(keys.iter().map(|key| event(TOPIC, key, number)));
        }
        self.insert(&events, true).await;
        self.signal.wake();
    }

    /// Inserts events in a transaction and ends it, with a commit or without.
    async fn insert(&self, events: &[CloudEvent], commit: bool) {
        match &self.tables {
            Tables::Sqlite(store) => {
                let mut transaction = store.writer.begin_with("BEGIN IMMEDIATE").await.unwrap();
                outbox::insert_sqlite(&mut transaction, events).await.unwrap();
                if commit { transaction.commit().await.unwrap() } else { transaction.rollback().await.unwrap() }
            }
            Tables::Postgres(store) => {
                let mut transaction = store.pool.begin().await.unwrap();
                outbox::insert_postgres(&mut transaction, store, events).await.unwrap();
                if commit { transaction.commit().await.unwrap() } else { transaction.rollback().await.unwrap() }
            }
        }
    }

    async fn until_empty(&self) {
        until("an empty outbox", || async { (self.outbox.backlog().await.unwrap() == 0).then_some(()) }).await;
    }
}

/// The relays of a test. Dropping one's set is its kill.
struct Relays<'a> {
    subject: &'a Subject,
    store: &'a Store,
}

impl Relays<'_> {
    fn start(&self, owner: &str, log: Arc<dyn EventLog>) -> JoinSet<()> {
        self.start_until(owner, log, CancellationToken::new())
    }

    fn start_until(&self, owner: &str, log: Arc<dyn EventLog>, shutdown: CancellationToken) -> JoinSet<()> {
        let relay = Relay {
            source: self.store.outbox.clone(),
            log,
            signal: self.store.signal.clone(),
            clock: self.subject.clock.clone(),
            owner: owner.to_owned(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(relay.run(shutdown));
        tasks
    }
}

/// A log that appends, and then behaves as the test wants.
struct Troubled {
    log: Arc<dyn EventLog>,
    /// How many answers are still lost after the append.
    answers_to_lose: AtomicU32,
    /// Publishing waits for a permit before it appends.
    gate: Option<Semaphore>,
    arrived: Semaphore,
}

impl Troubled {
    fn losing(log: &Arc<dyn EventLog>, answers: u32) -> Arc<Self> {
        let answers_to_lose = AtomicU32::new(answers);
        Arc::new(Self { log: log.clone(), answers_to_lose, gate: None, arrived: Semaphore::new(0) })
    }

    fn gated(log: &Arc<dyn EventLog>) -> Arc<Self> {
        let gate = Some(Semaphore::new(0));
        Arc::new(Self { log: log.clone(), answers_to_lose: AtomicU32::new(0), gate, arrived: Semaphore::new(0) })
    }
}

#[async_trait]
impl EventLog for Troubled {
    async fn publish(&self, events: Vec<CloudEvent>) -> Result<(), LogError> {
        self.arrived.add_permits(1);
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        self.log.publish(events).await?;
        let one_less = |left: u32| left.checked_sub(1);
        match self.answers_to_lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
            Ok(_) => Err(LogError::unavailable("the answer was lost")),
            Err(_) => Ok(()),
        }
    }

    async fn subscribe(&self, group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, LogError> {
        self.log.subscribe(group, topics).await
    }

    async fn record_at(&self, place: &Offset) -> Result<Option<CloudEvent>, LogError> {
        self.log.record_at(place).await
    }

    async fn lag(&self) -> Result<Vec<GroupLag>, LogError> {
        self.log.lag().await
    }

    async fn topic_id(&self, topic: &str) -> Result<String, LogError> {
        self.log.topic_id(topic).await
    }

    async fn ping(&self) -> Result<(), LogError> {
        self.log.ping().await
    }
}

/// A test's clock that remembers how long somebody wanted to sleep.
struct Pauses {
    clock: Arc<ManualClock>,
    asked_ms: Mutex<Vec<i64>>,
}

#[async_trait]
impl Clock for Pauses {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn sleep_until(&self, deadline: Timestamp) {
        self.asked_ms.lock().unwrap().push((deadline - self.now()).num_milliseconds());
        self.clock.sleep_until(deadline).await;
    }

    fn new_id(&self) -> Uuid {
        self.clock.new_id()
    }
}

/// Everything that is in the log, by key.
async fn published(subject: &Subject, group: &str) -> BTreeMap<String, Vec<u64>> {
    let mut subscription = subject.join(group).await;
    let lags = subject.log.lag().await.unwrap();
    let count: u64 = lags.iter().filter(|lag| lag.group == group).map(GroupLag::lag).sum();
    by_key(&read(&mut *subscription, usize::try_from(count).unwrap(), 1_000).await)
}

/// The first occurrences, in order: what a consumer makes of doubles.
fn once(numbers: &[u64]) -> Vec<u64> {
    let mut seen = Vec::new();
    for number in numbers {
        if !seen.contains(number) {
            seen.push(*number);
        }
    }
    seen
}

fn upto(end: u64) -> Vec<u64> {
    (0..end).collect()
}

/// Tests of these names, which call the functions of these names: on SQLite with the embedded log, and on PostgreSQL with
/// Kafka.
macro_rules! on_every_store_and_log {
    ($($case:ident)+) => {
        mod on_embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let store = super::Store::sqlite().await;
                $crate::engine::on_embedded(|subject| super::$case(subject, store)).await;
            })+
        }
        mod on_postgres {
            mod on_kafka {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let Some(store) = super::super::Store::postgres().await else { return };
                    $crate::engine::on_kafka(|subject| super::super::$case(subject, store)).await;
                })+
            }
        }
    };
}

on_every_store_and_log! {
    what_was_committed_is_published_in_order_and_what_was_rolled_back_is_not
    an_event_leaves_as_it_was_committed
    a_relay_that_does_not_hear_the_logs_answer_doubles_but_never_loses
    a_log_that_fails_is_asked_again_after_pauses_that_double_however_busy_the_store_is
    a_killed_relays_successor_publishes_what_it_left
    two_relays_on_one_outbox_do_not_double_and_keep_the_order
    a_paused_relay_that_lost_its_lease_doubles_but_deletes_nothing_unpublished
    a_relay_whose_clock_was_set_back_reads_nothing_that_another_has_leased
    a_relay_that_was_asked_to_stop_leaves_at_once_to_its_successor
}

async fn what_was_committed_is_published_in_order_and_what_was_rolled_back_is_not(subject: Subject, store: Store) {
    let relays = Relays { subject: &subject, store: &store };
    store.commit(&["a", "b"], 0..700).await;
    let _relay = relays.start("one", subject.log.clone());
    for start in (700..1_500).step_by(100) {
        store.commit(&["b", "a"], start..start + 100).await;
        store.insert(&[event(TOPIC, "never", start)], false).await;
    }
    store.until_empty().await;
    let all = published(&subject, "reader").await;
    assert_eq!(all, BTreeMap::from([("a".to_owned(), upto(1_500)), ("b".to_owned(), upto(1_500))]));
}

async fn an_event_leaves_as_it_was_committed(subject: Subject, store: Store) {
    let relays = Relays { subject: &subject, store: &store };
    let mut sent = event(TOPIC, "it's a \"key\" ⚠", 1);
    sent.data =
        r#"{"text":"it's \"⚠\" \u0007 50 %","tiny":0.30000000000000004,"whole":9007199254740993,"none":null}"#.into();
    store.insert(std::slice::from_ref(&sent), true).await;
    let _relay = relays.start("one", subject.log.clone());
    let mut subscription = subject.join("reader").await;
    let got = read(&mut *subscription, 1, 1).await.remove(0);
    assert_eq!(*got.event, sent);
}

async fn a_relay_that_does_not_hear_the_logs_answer_doubles_but_never_loses(subject: Subject, store: Store) {
    let relays = Relays { subject: &subject, store: &store };
    store.commit(&["a", "b"], 0..50).await;
    let troubled = Troubled::losing(&subject.log, 3);
    let _relay = relays.start("one", troubled);
    until("an empty outbox", || async {
        subject.clock.advance(Duration::from_secs(1));
        (store.outbox.backlog().await.unwrap() == 0).then_some(())
    })
    .await;
    for (key, numbers) in published(&subject, "reader").await {
        assert_eq!(numbers.len(), 4 * 50, "{key}: published four times, heard once");
        assert_eq!(once(&numbers), upto(50), "{key}");
    }
}

async fn a_log_that_fails_is_asked_again_after_pauses_that_double_however_busy_the_store_is(
    subject: Subject,
    store: Store,
) {
    let troubled = Troubled::losing(&subject.log, u32::MAX);
    let pauses = Arc::new(Pauses { clock: subject.clock.clone(), asked_ms: Mutex::default() });
    store.commit(&["a"], 0..1).await;
    let relay = Relay {
        source: store.outbox.clone(),
        log: troubled.clone(),
        signal: store.signal.clone(),
        clock: pauses.clone(),
        owner: "one".to_owned(),
    };
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(relay.run(shutdown.clone()));
    let expected = [200, 400, 800, 1_600, 2_000, 2_000];
    for (number, pause) in (1..).zip(expected) {
        until("a pause", || async { (pauses.asked_ms.lock().unwrap().len() == number).then_some(()) }).await;
        // Time stands still, and commits wake nobody.
        for commit in 0..10 {
            store.commit(&["a"], commit..commit + 1).await;
        }
        assert_eq!(troubled.arrived.available_permits(), number);
        subject.clock.advance(Duration::from_millis(pause));
    }
    until("the last try", || async { (troubled.arrived.available_permits() == 7).then_some(()) }).await;
    assert_eq!(pauses.asked_ms.lock().unwrap()[..6], expected.map(u64::cast_signed));
    shutdown.cancel();
    tasks.join_next().await.unwrap().unwrap();
}

async fn a_killed_relays_successor_publishes_what_it_left(subject: Subject, store: Store) {
    let relays = Relays { subject: &subject, store: &store };
    store.commit(&["a"], 0..50).await;
    let troubled = Troubled::losing(&subject.log, u32::MAX);
    let mut first = relays.start("first", troubled.clone());
    troubled.arrived.acquire().await.unwrap().forget();
    let mut subscription = subject.join("watcher").await;
    read(&mut *subscription, 50, 50).await;
    // Published, and not deleted.
    first.shutdown().await;
    store.commit(&["a"], 50..60).await;
    let _second = relays.start("second", subject.log.clone());
    until("an empty outbox", || async {
        subject.clock.advance(Duration::from_secs(1));
        (store.outbox.backlog().await.unwrap() == 0).then_some(())
    })
    .await;
    let all = published(&subject, "reader").await;
    assert!(all["a"].len() > 60);
    assert_eq!(once(&all["a"]), upto(60));
}

async fn two_relays_on_one_outbox_do_not_double_and_keep_the_order(subject: Subject, store: Store) {
    let relays = Relays { subject: &subject, store: &store };
    let keys: Vec<String> = (0..32).map(|key| format!("key-{key}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let logs = ["one", "two"].map(|owner| (owner, Troubled::losing(&subject.log, 0)));
    let _running = logs.each_ref().map(|(owner, log)| relays.start(owner, log.clone()));
    let published_by = |at: usize| logs[at].1.arrived.available_permits();
    let end = Cell::new(0);
    until("both relays to publish", || async {
        let start = end.replace(end.get() + 20);
        store.commit(&keys, start..end.get()).await;
        // At the pace of real time: a publish that takes long must not outlast its lease. The signal may wake the one
        // without the lease, and the other one looks by itself.
        until("an empty outbox", || async {
            subject.clock.advance(Duration::from_millis(20));
            (store.outbox.backlog().await.unwrap() == 0).then_some(())
        })
        .await;
        let shared = (0..2).all(|at| published_by(at) >= 5) || !store.has_buckets();
        (shared && end.get() >= 200).then_some(())
    })
    .await;
    for (key, numbers) in published(&subject, "reader").await {
        assert_eq!(numbers, upto(end.get()), "{key}");
    }
}

async fn a_paused_relay_that_lost_its_lease_doubles_but_deletes_nothing_unpublished(subject: Subject, store: Store) {
    let relays = Relays { subject: &subject, store: &store };
    store.commit(&["a"], 0..10).await;
    let gated = Troubled::gated(&subject.log);
    let _paused = relays.start("paused", gated.clone());
    gated.arrived.acquire().await.unwrap().forget();
    // The paused one has read 0..10 and hangs before it publishes.
    subject.clock.advance(LEASE_OVER);
    let mut successor = relays.start("successor", subject.log.clone());
    store.until_empty().await;
    store.commit(&["a"], 10..20).await;
    store.until_empty().await;
    successor.shutdown().await;
    store.commit(&["a"], 20..30).await;
    // Now it goes on, publishes and deletes what it had read, and then sees that its lease is not its own.
    gated.gate.as_ref().unwrap().add_permits(1);
    until("the doubles", || async {
        let all = published(&subject, &format!("reader-{}", subject.clock.new_id())).await;
        (all["a"].len() == 30).then_some(())
    })
    .await;
    gated.gate.as_ref().unwrap().add_permits(1_000);
    until("an empty outbox", || async {
        subject.clock.advance(Duration::from_secs(1));
        (store.outbox.backlog().await.unwrap() == 0).then_some(())
    })
    .await;
    let all = published(&subject, "reader").await;
    assert_eq!(once(&all["a"]), upto(30));
}

async fn a_relay_whose_clock_was_set_back_reads_nothing_that_another_has_leased(subject: Subject, store: Store) {
    let now = subject.clock.now();
    let own = Arc::new(ManualClock::at(now));
    let pauses = Arc::new(Pauses { clock: own.clone(), asked_ms: Mutex::default() });
    let relay = Relay {
        source: store.outbox.clone(),
        log: subject.log.clone(),
        signal: store.signal.clone(),
        clock: pauses.clone(),
        owner: "set back".to_owned(),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(relay.run(CancellationToken::new()));
    store.commit(&["a"], 0..5).await;
    store.until_empty().await;
    // By everybody else's time its lease is over. It has not heard of that, since its own time stands still.
    let later = now + LEASE_OVER;
    let taken = store.outbox.lease("other", later, later + LEASE_OVER).await.unwrap();
    assert!(!taken.is_empty());
    own.set_back(Duration::from_secs(3_600));
    // It pauses after each turn: after the first pause, every turn has begun with the clock as it is now.
    let pauses_so_far = || pauses.asked_ms.lock().unwrap().len();
    let some_turns = async || {
        let before = pauses_so_far();
        until("some turns", || async {
            store.signal.wake();
            (pauses_so_far() >= before + 3).then_some(())
        })
        .await;
    };
    some_turns().await;
    store.commit(&["a"], 5..9).await;
    some_turns().await;
    assert_eq!(store.outbox.backlog().await.unwrap(), 4, "they are another's");
    store.outbox.lease("other", later, Timestamp::UNIX_EPOCH).await.unwrap();
    until("the buckets are its again", || async {
        store.signal.wake();
        (store.outbox.backlog().await.unwrap() == 0).then_some(())
    })
    .await;
    assert_eq!(published(&subject, "reader").await["a"], upto(9));
    tasks.shutdown().await;
}

async fn a_relay_that_was_asked_to_stop_leaves_at_once_to_its_successor(subject: Subject, store: Store) {
    let relays = Relays { subject: &subject, store: &store };
    let shutdown = CancellationToken::new();
    let mut first = relays.start_until("first", subject.log.clone(), shutdown.clone());
    store.commit(&["a"], 0..5).await;
    store.until_empty().await;
    shutdown.cancel();
    first.join_next().await.unwrap().unwrap();
    store.commit(&["a"], 5..9).await;
    // Time stands still: no lease ends by itself.
    let _second = relays.start("second", subject.log.clone());
    store.until_empty().await;
    assert_eq!(published(&subject, "reader").await["a"], upto(9));
}

#[tokio::test]
async fn leases_on_sqlite_keep_the_contract() {
    testkit::outbox::shares_its_buckets(&*Store::sqlite().await.outbox, false).await;
}

#[tokio::test]
async fn leases_on_postgres_keep_the_contract() {
    let Some(store) = Store::postgres().await else { return };
    testkit::outbox::shares_its_buckets(&*store.outbox, true).await;
}
