//! Relays by either way: killed anywhere, a successor tells the rest in order; and what only a change stream has.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    process::Command as Process,
    sync::Arc,
    time::Duration,
};

use ::mongodb::bson::{Document, doc, serialize_to_document};
use contracts::{SystemClock, Timestamp};
use futures::{StreamExt, TryStreamExt};
use messaging::{
    EventLog,
    abort::ABORT_AT,
    mongodb,
    outbox::{OutboxRow, Relay},
};
use testkit::{
    ManualClock,
    mongodb::{Commands, drop_database},
    real::Own,
    until,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{VICTIM, relayed};
use crate::store::{
    Opened, Relaying, Store,
    contract::Subject,
    mongodb::{DATABASE, PACKAGES, documents, opened, positions},
    samples::{at, id, register, withdraw},
};

/// The environment variable that names the log of the process that is killed.
const VICTIM_LOG: &str = "PACKAGE_VICTIM_LOG";

/// How long the log may be silent before there is no more in it.
const SILENCE: Duration = Duration::from_millis(500);

macro_rules! killed {
    ($($name:ident: $relaying:ident at $point:literal, $doubled:literal;)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            survives(Relaying::$relaying, $point, $doubled, stringify!($name)).await;
        })+
    };
}

killed! {
    a_poll_that_was_killed_before_it_published: Poll at "relay.read:5", false;
    a_poll_that_was_killed_after_it_published: Poll at "relay.published:5", true;
    a_poll_that_was_killed_after_it_deleted: Poll at "relay.deleted:5", false;
    by_changes_killed_at_its_beginning: Changes at "relay.read:1", false;
    by_changes_killed_before_it_published: Changes at "relay.read:5", false;
    by_changes_killed_after_it_published: Changes at "relay.published:5", true;
    by_changes_killed_before_its_first_position: Changes at "package.events_pulled:1", false;
    by_changes_killed_before_a_later_position: Changes at "package.events_pulled:2", false;
    by_changes_killed_after_it_deleted: Changes at "relay.deleted:5", false;
}

/// A relay is killed at `point` while packages come in, and another takes over: every event reaches the log, those of a
/// package in order, and none twice but where a batch was published and had not left.
async fn survives(relaying: Relaying, point: &str, doubled: bool, test: &str) {
    if let Ok(url) = std::env::var(VICTIM) {
        return relay_until_killed(&url, relaying).await;
    }
    let Some(url) = testkit::mongodb::database("package") else { return };
    let folder = tempfile::tempdir().unwrap();
    let log_url = format!("embedded:{}", folder.path().join("events.db").display());
    let output = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{}::{test}", module_path!().split_once("::").unwrap().1)])
        .envs([(ABORT_AT, point), (VICTIM, &url), (VICTIM_LOG, &log_url)])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), None, "killed by a signal: {output:?}");

    let (store, log) = open(&url, &log_url, relaying).await;
    store.store.apply(&[register(1_000_000, 1)]).await;
    let outbox = store.outbox.clone();
    let (mut relays, shutdown) = (JoinSet::new(), CancellationToken::new());
    relays.spawn(relay(store, log.clone(), "successor").run(shutdown.clone()));
    until("everything is told", || async { (outbox.backlog().await.unwrap() == 0).then_some(()) }).await;
    shutdown.cancel();
    relays.join_all().await;

    let (told, again) = everything(&*log).await;
    assert_eq!(told, written(&url).await, "every event, and those of a package in their order");
    assert_eq!(again > 0, doubled, "{again} events were doubled");
    drop_database(&url).await;
}

async fn open(url: &str, log_url: &str, relaying: Relaying) -> (Opened, Arc<dyn EventLog>) {
    let opened = crate::store::open(url, relaying, Arc::new(ManualClock::at(at(0)))).await.unwrap();
    (opened, messaging::open(log_url, Arc::new(SystemClock)).await.unwrap())
}

fn relay(opened: Opened, log: Arc<dyn EventLog>, owner: &str) -> Relay {
    let clock = Arc::new(SystemClock);
    Relay { source: opened.outbox, log, signal: opened.signal, clock, owner: owner.to_owned() }
}

/// Packages come and go, without end, beside a relay.
async fn relay_until_killed(url: &str, relaying: Relaying) {
    let log_url = std::env::var(VICTIM_LOG).unwrap();
    let (opened, log) = open(url, &log_url, relaying).await;
    let store = opened.store.clone();
    // Before the relay: what it finds is there already.
    store.apply(&[register(1, 1), register(2, 1)]).await;
    store.apply(&[withdraw(1, 1)]).await;
    let mut relays = JoinSet::new();
    relays.spawn(relay(opened, log, "victim").run(CancellationToken::new()));
    for number in 3..100_000 {
        store.apply(&[register(number, 1), withdraw(number - 1, 1)]).await;
    }
}

/// What the log tells of each key, in its order; and how many events came a second time. None comes a third time.
async fn everything(log: &dyn EventLog) -> (BTreeMap<String, Vec<String>>, usize) {
    let mut subscription = log.subscribe("test", &["package.events"]).await.unwrap();
    let mut told = BTreeMap::<String, Vec<String>>::new();
    let (mut seen, mut again) = (HashSet::new(), HashSet::new());
    while let Ok(records) = tokio::time::timeout(SILENCE, subscription.next(1_000)).await {
        for record in records.unwrap() {
            if seen.insert(record.event.id) {
                told.entry(record.event.key.clone()).or_default().push(record.event.kind.clone());
            } else {
                assert!(again.insert(record.event.id), "{:?} came a third time", record.event);
            }
        }
    }
    (told, again.len())
}

/// What each package must have told: each of its writes is one event.
async fn written(url: &str) -> BTreeMap<String, Vec<String>> {
    let packages = mongodb::open(url, DATABASE).await.unwrap().collection::<Document>(PACKAGES);
    let all: Vec<Document> = packages.find(doc! {}).await.unwrap().try_collect().await.unwrap();
    let kinds = |revision: i64| match revision {
        1 => vec!["PackageRegistered".to_owned()],
        2 => vec!["PackageRegistered".to_owned(), "PackageWithdrawn".to_owned()],
        _ => panic!("written {revision} times"),
    };
    let told = |package: Document| {
        let id = documents::delivery_id(documents::id(&package, "_id").unwrap());
        (id.to_string(), kinds(package.get_i64("revision").unwrap()))
    };
    all.into_iter().map(told).collect()
}

/// A store on which all that another's relay by changes does is seen from outside.
struct Watched {
    opened: Opened,
    commands: Commands,
}

impl Watched {
    async fn on(url: &str) -> Self {
        let commands = Commands::default();
        let database = mongodb::connect(commands.of(url).await, DATABASE).unwrap();
        let opened = opened(database, Relaying::Changes, Arc::new(ManualClock::at(at(0)))).await.unwrap();
        commands.take();
        Self { opened, commands }
    }

    /// Whether, since the last time, it has gone on from a position; and whether it has polled.
    fn has(&self) -> (bool, bool) {
        let (mut resumed, mut polled) = (false, false);
        for command in self.commands.take() {
            if let Ok(pipeline) = command.get_array("pipeline") {
                let stage = pipeline.first().and_then(|stage| stage.as_document()?.get_document("$changeStream").ok());
                resumed |= stage.is_some_and(|stage| stage.contains_key("resumeAfter"));
            }
            if command.get_str("find").is_ok_and(|collection| collection == PACKAGES) {
                let concern = command.get_document("readConcern").unwrap();
                assert!(concern.contains_key("afterClusterTime"), "what is read is no older than what was heard");
                polled |= command.get_document("filter").unwrap().contains_key("bucket");
            }
        }
        (resumed, polled)
    }

    /// As a relay that leases everything, and finds so many events.
    async fn finds(&self, owner: &str, now: Timestamp, events: usize) -> Vec<OutboxRow> {
        let outbox = &*self.opened.outbox;
        let buckets = outbox.lease(owner, now, now + chrono::Duration::seconds(5)).await.unwrap();
        assert!(!buckets.is_empty());
        until("the events are read", || async {
            let rows = outbox.read(&buckets, 100).await.ok()?;
            (rows.len() == events).then_some(rows)
        })
        .await
    }

    /// The same, and publishes them, and goes.
    async fn relays(&self, owner: &str, now: Timestamp, events: usize) {
        self.relays_and_stays(owner, now, events).await;
        self.opened.outbox.lease(owner, now, Timestamp::UNIX_EPOCH).await.unwrap();
    }

    async fn relays_and_stays(&self, owner: &str, now: Timestamp, events: usize) {
        let places: Vec<_> = self.finds(owner, now, events).await.into_iter().map(|row| row.place).collect();
        self.opened.outbox.delete(&places).await.unwrap();
    }
}

#[tokio::test]
async fn a_successor_goes_on_from_the_stored_position_and_polls_nothing() {
    let Some(subject) = relayed(Relaying::Changes).await else { return };
    let store: &dyn Store = &*subject.opened.store;
    store.apply(&[register(1, 1)]).await;
    let first = Watched::on(&subject.url).await;
    first.relays("first", at(0), 1).await;
    assert_eq!(first.has(), (false, true), "there was no position, and a package from before");
    store.apply(&[withdraw(1, 1), register(2, 1)]).await;
    let second = Watched::on(&subject.url).await;
    second.relays("second", at(60), 2).await;
    assert_eq!(second.has(), (true, false));
    store.apply(&[register(3, 1)]).await;
    let late = Watched::on(&subject.url).await;
    late.relays("late", at(3_600), 1).await;
    assert_eq!(late.has(), (false, true), "after an hour a poll is faster");
    assert_eq!(subject.opened.outbox.backlog().await.unwrap(), 0);
    drop_database(&subject.url).await;
}

#[tokio::test]
async fn a_position_that_the_oplog_does_not_hold_any_more_is_replaced_by_a_poll() {
    let Some(subject) = relayed(Relaying::Changes).await else { return };
    let store: &dyn Store = &*subject.opened.store;
    store.apply(&[register(1, 1)]).await;
    Watched::on(&subject.url).await.relays("first", at(0), 1).await;
    let database = mongodb::open(&subject.url, DATABASE).await.unwrap();
    let mut events = database.collection::<Document>(PACKAGES).watch().await.unwrap();
    store.apply(&[register(2, 1)]).await;
    let event = serialize_to_document(&events.next().await.unwrap().unwrap().id).unwrap();
    let event = event.get_str("_data").unwrap();
    // A type, the seconds since 1970 and a count within the second, and the rest: of an event that no oplog holds. (The
    // position between two events can be gone on from for as long as the oplog has its first entry.)
    let gone = format!("{}0000000100000001{}", &event[..2], &event[18..]);
    let stored = database.collection::<Document>(positions::COLLECTION);
    let mut document = stored.find_one(doc! {}).await.unwrap().unwrap();
    let mut tokens = BTreeSet::new();
    for (_, position) in document.get_document_mut("buckets").unwrap().iter_mut() {
        let token = position.as_document_mut().unwrap().get_document_mut("token").unwrap();
        tokens.insert(token.get_str("_data").unwrap().to_owned());
        token.insert("_data", &gone);
    }
    assert_eq!(tokens.len(), 1, "a relay is as far in each of its buckets");
    stored.replace_one(doc! {}, document).await.unwrap();
    let second = Watched::on(&subject.url).await;
    second.relays_and_stays("second", at(60), 1).await;
    assert_eq!(second.has(), (true, true), "it tried, and polled");
    store.apply(&[register(3, 1)]).await;
    second.relays("second", at(61), 1).await;
    assert_eq!(second.has(), (false, false), "it hears again");
    let third = Watched::on(&subject.url).await;
    third.finds("third", at(70), 0).await;
    assert_eq!(third.has(), (true, false), "and its position is one to go on from");
    drop_database(&subject.url).await;
}

#[tokio::test]
async fn a_stream_that_has_ended_is_begun_anew() {
    let Some(subject) = relayed(Relaying::Changes).await else { return };
    subject.opened.store.apply(&[register(1, 1)]).await;
    let relay = Watched::on(&subject.url).await;
    relay.relays_and_stays("relay", at(0), 1).await;
    mongodb::open(&subject.url, DATABASE).await.unwrap().collection::<Document>(PACKAGES).drop().await.unwrap();
    let subject = Subject::relayed(Relaying::Changes, |_| subject.url.clone()).await;
    subject.opened.store.apply(&[register(2, 1)]).await;
    relay.relays("relay", at(1), 1).await;
    drop_database(&subject.url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_by_changes_outlives_its_server() {
    let Some(server) = Own::start("mongo", "TEST_MONGODB_URL").await else { return };
    let url = server.url.replace("/?", "/package?");
    let folder = tempfile::tempdir().unwrap();
    let log_url = format!("embedded:{}", folder.path().join("events.db").display());
    let (opened, log) = open(&url, &log_url, Relaying::Changes).await;
    let (store, outbox) = (opened.store.clone(), opened.outbox.clone());
    let (mut relays, shutdown) = (JoinSet::new(), CancellationToken::new());
    relays.spawn(relay(opened, log.clone(), "relay").run(shutdown.clone()));
    for round in 0..2 {
        for number in 1..=20 {
            let command = if round == 0 { register(number, 1) } else { withdraw(number, 1) };
            store.apply(&[command]).await.into_iter().for_each(|outcome| assert!(outcome.is_ok(), "{outcome:?}"));
        }
        // Somewhere among them.
        server.kill().await;
        server.start_again().await;
        until("it answers again", || async { store.ready().await.ok() }).await;
    }
    until("everything is told", || async { (outbox.backlog().await.ok()? == 0).then_some(()) }).await;
    shutdown.cancel();
    relays.join_all().await;
    let (told, _) = everything(&*log).await;
    assert_eq!(told, written(&url).await);
    assert_eq!(told.len(), 20);
}

#[tokio::test]
async fn a_commit_of_another_process_wakes_the_relay_of_its_bucket() {
    let Some(subject) = relayed(Relaying::Changes).await else { return };
    let (one, two) = (Watched::on(&subject.url).await, Watched::on(&subject.url).await);
    // The second lease of each gives it a half.
    for now in [0, 1, 2] {
        for (relay, owner) in [(&one, "one"), (&two, "two")] {
            let outbox = &*relay.opened.outbox;
            let buckets = outbox.lease(owner, at(now), at(now + 5)).await.unwrap();
            assert!(outbox.read(&buckets, 100).await.unwrap().is_empty());
        }
    }
    let outbox = &*one.opened.outbox;
    let mine: HashSet<_> = outbox.lease("one", at(3), at(8)).await.unwrap().into_iter().collect();
    let of = |held: bool| (1..).find(|n| mine.contains(&documents::bucket(id(*n))) == held).unwrap();
    let (own, foreign) = (of(true), of(false));
    subject.opened.store.apply(&[register(foreign, 1)]).await;
    two.opened.outbox.woken().await.unwrap();
    assert!(tokio::time::timeout(SILENCE, outbox.woken()).await.is_err(), "not of what is another's");
    let commit = [register(own, 1)];
    let (woken, _) = tokio::join!(outbox.woken(), subject.opened.store.apply(&commit));
    woken.unwrap();
    let buckets: Vec<_> = mine.into_iter().collect();
    let told = outbox.read(&buckets, 100).await.unwrap();
    assert_eq!(told.iter().map(|row| row.event.key.clone()).collect::<Vec<_>>(), [id(own).to_string()]);
    drop_database(&subject.url).await;
}
