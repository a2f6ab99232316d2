//! Consumers: effects before offsets, failures that pass, events at fault, dead letters and their way back.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use contracts::{
    Clock, SystemClock,
    events::{CloudEvent, Topic, UNDECODABLE},
};
use messaging::{Consumer, Delivered, EventLog, HandleError, Handler, dead_letters};
use testkit::until;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{Subject, on_every_log},
    log_contract::{event, number, read},
};

const GROUP: &str = "fleet";
const EVENTS: Topic = Topic::Fleet;

fn fleet_event(key: &str, number: u64) -> CloudEvent {
    event(EVENTS.name(), key, number)
}

/// What a handler should answer for an event that it sees for the n-th time (from 1).
#[derive(Clone, Copy)]
enum Mood {
    Fine,
    AwayUntil(u32),
    AtFaultUntil(u32),
}

#[derive(Default)]
struct Seen {
    /// How often each event was handled.
    tries: HashMap<u64, u32>,
    /// The last effect for each key: a store that remembers one value.
    effects: BTreeMap<String, u64>,
    moods: HashMap<u64, Mood>,
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Seen>>);

impl Recorder {
    fn with(moods: &[(u64, Mood)]) -> Self {
        let recorder = Self::default();
        recorder.0.lock().unwrap().moods.extend(moods.iter().copied());
        recorder
    }

    fn set(&self, number: u64, mood: Mood) {
        self.0.lock().unwrap().moods.insert(number, mood);
    }

    fn tries(&self, number: u64) -> u32 {
        self.0.lock().unwrap().tries.get(&number).copied().unwrap_or(0)
    }

    fn effect(&self, key: &str) -> Option<u64> {
        self.0.lock().unwrap().effects.get(key).copied()
    }
}

#[async_trait]
impl Handler for Recorder {
    async fn handle(&mut self, batch: &[Delivered]) -> Vec<Result<(), HandleError>> {
        let mut seen = self.0.lock().unwrap();
        let mut results = Vec::new();
        for record in batch {
            let number = number(record);
            let tries = seen.tries.entry(number).or_insert(0);
            *tries += 1;
            let tries = *tries;
            results.push(match seen.moods.get(&number).copied().unwrap_or(Mood::Fine) {
                Mood::AwayUntil(try_number) if tries < try_number => Err(HandleError::unavailable("the store is away")),
                Mood::AtFaultUntil(try_number) if tries < try_number => Err(HandleError::poison("it makes no sense")),
                Mood::Fine | Mood::AwayUntil(_) | Mood::AtFaultUntil(_) => {
                    seen.effects.insert(record.event.key.clone(), number);
                    Ok(())
                }
            });
        }
        results
    }
}

/// A consumer that runs until it is stopped.
struct Running {
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Running {
    fn start(log: &Arc<dyn EventLog>, recorder: &Recorder) -> Self {
        Self::start_by(Arc::new(SystemClock), log, recorder)
    }

    fn start_by(clock: Arc<dyn Clock>, log: &Arc<dyn EventLog>, recorder: &Recorder) -> Self {
        let shutdown = CancellationToken::new();
        let consumer = Consumer { log: log.clone(), clock, group: GROUP, topics: &[EVENTS] };
        let mut tasks = JoinSet::new();
        tasks.spawn(consumer.run(recorder.clone(), shutdown.clone()));
        Self { tasks, shutdown }
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.tasks.join_next().await.unwrap().unwrap();
    }
}

/// What the group has not committed; `None` before it has joined.
async fn lag(log: &dyn EventLog) -> Option<u64> {
    let lags = log.lag().await.unwrap();
    let mine = lags.iter().filter(|lag| lag.group == GROUP && lag.topic == EVENTS.name()).map(messaging::GroupLag::lag);
    mine.reduce(|sum, lag| sum + lag)
}

async fn until_caught_up(log: &dyn EventLog) {
    until("the consumer to catch up", || async { (lag(log).await == Some(0)).then_some(()) }).await;
}

async fn until_waiting(log: &dyn EventLog, letters: u64) {
    until("the dead letters", || async {
        let waiting = dead_letters::waiting(log, GROUP).await.unwrap();
        (waiting == letters).then_some(())
    })
    .await;
}

on_every_log! {
    an_event_at_fault_goes_to_the_dead_letters_after_three_tries_and_holds_nobody_up
    a_record_that_is_no_event_goes_to_the_dead_letters_as_it_was_and_no_handler_sees_it
    records_of_which_a_letter_is_too_large_hold_nobody_up_and_come_back_whole
    a_letter_of_an_earlier_version_comes_back_as_its_bytes
    a_fault_that_passes_makes_no_dead_letter
    a_redrive_publishes_exactly_the_waiting_letters_again
    a_redrive_that_somebody_watches_still_takes_each_letter_once
    a_running_consumer_joins_its_redrives_group_now_and_then
    an_unavailable_store_is_asked_without_end_and_its_partition_waits_in_order
    what_was_not_committed_is_handled_again_by_the_next_one
    what_is_handled_while_members_come_and_go_is_committed_without_another_record
}

/// Keys of every partition.
const MANY_KEYS: u64 = 32;

async fn what_is_handled_while_members_come_and_go_is_committed_without_another_record(subject: Subject) {
    let recorder = Recorder::default();
    let stays = Running::start(&subject.log, &recorder);
    let mut last = 0;
    for _ in 0..3 {
        let comes_and_goes = Running::start(&subject.log, &recorder);
        for _ in 0..5 {
            last += 1;
            let records = (0..MANY_KEYS).map(|key| fleet_event(&format!("key {key}"), last)).collect();
            subject.log.publish(records).await.unwrap();
        }
        until_caught_up(&*subject.log).await;
        comes_and_goes.stop().await;
        until_caught_up(&*subject.log).await;
    }
    assert!((0..MANY_KEYS).all(|key| recorder.effect(&format!("key {key}")) == Some(last)));
    stays.stop().await;
}

async fn an_event_at_fault_goes_to_the_dead_letters_after_three_tries_and_holds_nobody_up(subject: Subject) {
    let recorder = Recorder::with(&[(2, Mood::AtFaultUntil(u32::MAX))]);
    let bad = fleet_event("key", 2);
    subject.log.publish(vec![fleet_event("key", 1), bad.clone(), fleet_event("key", 3)]).await.unwrap();
    let running = Running::start(&subject.log, &recorder);
    until_waiting(&*subject.log, 1).await;
    until_caught_up(&*subject.log).await;
    assert_eq!((recorder.tries(2), recorder.effect("key")), (3, Some(3)));
    let letter = dead_letters::peek(&*subject.log, GROUP, 10).await.unwrap().remove(0);
    assert_eq!((letter.group.as_str(), letter.topic.as_str()), (GROUP, EVENTS.name()));
    assert_eq!((letter.id, letter.key, letter.kind, letter.time), (bad.id, bad.key, bad.kind, bad.time));
    assert_eq!((letter.source, letter.traceparent), (bad.source, bad.traceparent));
    assert_eq!((letter.data.as_bytes(), letter.offset), (&*bad.data, 1));
    assert!(letter.cause.contains("it makes no sense"), "{}", letter.cause);
    assert_eq!(dead_letters::waiting(&*subject.log, GROUP).await.unwrap(), 1, "to look is not to take");
    let mut subscription = subject.log.subscribe("reader", &["fleet.dead-letters"]).await.unwrap();
    assert_eq!(read(&mut *subscription, 1, 10).await[0].event.kind, dead_letters::KIND);
    running.stop().await;
}

async fn a_record_that_is_no_event_goes_to_the_dead_letters_as_it_was_and_no_handler_sees_it(subject: Subject) {
    let recorder = Recorder::default();
    let odd = CloudEvent { kind: UNDECODABLE.to_owned(), data: vec![0, 159, 146, 150], ..fleet_event("key", 2) };
    subject.log.publish(vec![fleet_event("key", 1), odd.clone(), fleet_event("key", 3)]).await.unwrap();
    let running = Running::start(&subject.log, &recorder);
    until_waiting(&*subject.log, 1).await;
    until_caught_up(&*subject.log).await;
    assert_eq!((recorder.tries(2), recorder.effect("key")), (0, Some(3)));
    let mut watcher = subject.log.subscribe("watcher", &[EVENTS.name()]).await.unwrap();
    read(&mut *watcher, 3, 10).await;
    assert_eq!(dead_letters::redrive(&*subject.log, GROUP).await.unwrap(), 1);
    assert_eq!(*read(&mut *watcher, 1, 10).await[0].event, odd);
    // Still none: it comes back.
    until_waiting(&*subject.log, 1).await;
    running.stop().await;
}

/// As many bytes as Kafka just takes in a record: in base64, or with each quote escaped, they are more than that.
const LARGE: usize = 900_000;

async fn records_of_which_a_letter_is_too_large_hold_nobody_up_and_come_back_whole(subject: Subject) {
    let recorder = Recorder::with(&[(2, Mood::AtFaultUntil(u32::MAX))]);
    let foreign = CloudEvent { kind: UNDECODABLE.to_owned(), data: vec![159; LARGE], ..fleet_event("key", 1) };
    let quotes = format!("{{\"text\":\"{}\"}}", "\\\"".repeat(LARGE / 2));
    let poison = CloudEvent { data: quotes.into_bytes(), ..fleet_event("key", 2) };
    let large = [foreign, poison];
    subject.log.publish(large.to_vec()).await.unwrap();
    subject.log.publish(vec![fleet_event("key", 3)]).await.unwrap();
    let running = Running::start(&subject.log, &recorder);
    until_waiting(&*subject.log, 2).await;
    until_caught_up(&*subject.log).await;
    assert_eq!((recorder.tries(1), recorder.tries(2), recorder.effect("key")), (0, 3, Some(3)));
    for letter in dead_letters::peek(&*subject.log, GROUP, 10).await.unwrap() {
        let original = large.iter().find(|original| original.id == letter.id).unwrap();
        assert_eq!((letter.kind, letter.key), (original.kind.clone(), original.key.clone()));
        // Whole, or it says of how much it is the beginning.
        assert!(letter.cut_from.is_none_or(|bytes| bytes == original.data.len() as u64 && letter.data.len() < LARGE));
    }
    let mut watcher = subject.log.subscribe("watcher", &[EVENTS.name()]).await.unwrap();
    read(&mut *watcher, 3, 10).await;
    assert_eq!(dead_letters::redrive(&*subject.log, GROUP).await.unwrap(), 2);
    for record in read(&mut *watcher, 2, 10).await {
        let original = large.iter().find(|original| original.id == record.event.id).unwrap();
        assert!(*record.event == *original, "{} is not what it was", record.event.kind);
    }
    // As bad as before: they come back.
    until_waiting(&*subject.log, 2).await;
    running.stop().await;
}

async fn a_letter_of_an_earlier_version_comes_back_as_its_bytes(subject: Subject) {
    let original = CloudEvent { data: b"\x9f\x92".to_vec(), ..fleet_event("key", 2) };
    let letter = serde_json::json!({
        "group": GROUP, "cause": "its record is no CloudEvent", "failed_at": original.time, "topic": original.topic,
        "partition": 3, "offset": 7, "id": original.id, "key": original.key, "kind": original.kind,
        "source": original.source, "time": original.time, "traceparent": original.traceparent,
        "data": "\u{fffd}\u{fffd}", "data_base64": "n5I=",
    });
    let letter = CloudEvent {
        topic: dead_letters::topic_of(GROUP),
        kind: dead_letters::KIND.to_owned(),
        data: letter.to_string().into_bytes(),
        ..fleet_event("key", 1)
    };
    subject.log.publish(vec![letter]).await.unwrap();
    assert_eq!(dead_letters::peek(&*subject.log, GROUP, 10).await.unwrap()[0].offset, 7);
    assert_eq!(dead_letters::redrive(&*subject.log, GROUP).await.unwrap(), 1);
    let mut watcher = subject.log.subscribe("watcher", &[EVENTS.name()]).await.unwrap();
    assert_eq!(*read(&mut *watcher, 1, 10).await[0].event, original);
}

async fn a_fault_that_passes_makes_no_dead_letter(subject: Subject) {
    let recorder = Recorder::with(&[(1, Mood::AtFaultUntil(3))]);
    subject.log.publish(vec![fleet_event("key", 1)]).await.unwrap();
    let running = Running::start(&subject.log, &recorder);
    until_caught_up(&*subject.log).await;
    assert_eq!((recorder.tries(1), recorder.effect("key")), (3, Some(1)));
    assert_eq!(dead_letters::waiting(&*subject.log, GROUP).await.unwrap(), 0);
    running.stop().await;
}

async fn a_redrive_publishes_exactly_the_waiting_letters_again(subject: Subject) {
    let at_fault: Vec<u64> = (0..25).collect();
    let moods: Vec<_> = at_fault.iter().map(|number| (*number, Mood::AtFaultUntil(u32::MAX))).collect();
    let recorder = Recorder::with(&moods);
    let events: Vec<_> = (0..50).map(|number| fleet_event(&format!("key-{number}"), number)).collect();
    subject.log.publish(events).await.unwrap();
    let running = Running::start(&subject.log, &recorder);
    until_waiting(&*subject.log, 25).await;
    let mut watcher = subject.log.subscribe("watcher", &[EVENTS.name()]).await.unwrap();
    let before = read(&mut *watcher, 50, 100).await;
    // Still at fault: each comes back as a fresh letter, and the redrive does not run after those.
    assert_eq!(dead_letters::redrive(&*subject.log, GROUP).await.unwrap(), 25);
    until("the letters to come back", || async { (recorder.tries(24) == 6).then_some(()) }).await;
    until_waiting(&*subject.log, 25).await;
    for number in &at_fault {
        recorder.set(*number, Mood::Fine);
    }
    assert_eq!(dead_letters::redrive(&*subject.log, GROUP).await.unwrap(), 25);
    until("the effects", || async {
        at_fault.iter().all(|number| recorder.effect(&format!("key-{number}")).is_some()).then_some(())
    })
    .await;
    assert_eq!(dead_letters::waiting(&*subject.log, GROUP).await.unwrap(), 0);
    assert_eq!(dead_letters::redrive(&*subject.log, GROUP).await.unwrap(), 0);
    let again = read(&mut *watcher, 50, 100).await;
    for record in again {
        let original = before.iter().find(|before| before.event.id == record.event.id).unwrap();
        assert_eq!(record.event, original.event, "the original, not a retelling");
        assert!(number(&record) < 25);
    }
    running.stop().await;
}

async fn a_redrive_that_somebody_watches_still_takes_each_letter_once(subject: Subject) {
    let moods: Vec<_> = (0..40).map(|number| (number, Mood::AtFaultUntil(u32::MAX))).collect();
    let recorder = Recorder::with(&moods);
    let events: Vec<_> = (0..40).map(|number| fleet_event(&format!("key-{number}"), number)).collect();
    subject.log.publish(events).await.unwrap();
    let running = Running::start(&subject.log, &recorder);
    until_waiting(&*subject.log, 40).await;
    running.stop().await;
    let watched = CancellationToken::new();
    let mut watchers = JoinSet::new();
    let (log, watching) = (subject.log.clone(), watched.clone());
    watchers.spawn(async move {
        while !watching.is_cancelled() {
            dead_letters::waiting(&*log, GROUP).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let redriven = dead_letters::redrive(&*subject.log, GROUP).await.unwrap();
    watched.cancel();
    watchers.join_next().await.unwrap().unwrap();
    assert_eq!((redriven, dead_letters::waiting(&*subject.log, GROUP).await.unwrap()), (40, 0));
}

async fn a_running_consumer_joins_its_redrives_group_now_and_then(subject: Subject) {
    let remembers = || async { subject.log.lag().await.unwrap().iter().any(|lag| lag.group == "fleet.redrive") };
    let running = Running::start_by(subject.clock.clone(), &subject.log, &Recorder::default());
    until("the consumer to join", || async { lag(&*subject.log).await }).await;
    assert!(!remembers().await, "nobody has asked for dead letters");
    until("the redrive's group", || async {
        subject.clock.advance(Duration::from_secs(3_600));
        remembers().await.then_some(())
    })
    .await;
    running.stop().await;
}

async fn an_unavailable_store_is_asked_without_end_and_its_partition_waits_in_order(subject: Subject) {
    let recorder = Recorder::with(&[(1, Mood::AwayUntil(6))]);
    let events = vec![fleet_event("key", 1), fleet_event("key", 2), fleet_event("key", 3)];
    subject.log.publish(events).await.unwrap();
    let running = Running::start(&subject.log, &recorder);
    until("the third try", || async { (recorder.tries(1) >= 3).then_some(()) }).await;
    assert_eq!(lag(&*subject.log).await, Some(3), "nothing is committed while an effect is missing");
    until_caught_up(&*subject.log).await;
    assert_eq!(recorder.tries(1), 6);
    assert_eq!(recorder.effect("key"), Some(3), "the last effect is that of the last event");
    assert_eq!(dead_letters::waiting(&*subject.log, GROUP).await.unwrap(), 0);
    running.stop().await;
}

async fn what_was_not_committed_is_handled_again_by_the_next_one(subject: Subject) {
    let recorder = Recorder::with(&[(1, Mood::AwayUntil(u32::MAX))]);
    subject.log.publish(vec![fleet_event("key", 0), fleet_event("key", 1)]).await.unwrap();
    let running = Running::start(&subject.log, &recorder);
    until("a try", || async { (recorder.tries(1) > 0).then_some(()) }).await;
    running.stop().await;
    recorder.set(1, Mood::Fine);
    let subject = subject.reopen().await;
    let running = Running::start(&subject.log, &recorder);
    until_caught_up(&*subject.log).await;
    assert_eq!(recorder.effect("key"), Some(1));
    running.stop().await;
}

/// Names the log of the process that is to be killed.
const VICTIM: &str = "CONSUMER_VICTIM_LOG";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_a_dead_letter_and_the_offset_loses_neither_it_nor_what_follows() {
    let recorder = Recorder::with(&[(1, Mood::AtFaultUntil(u32::MAX))]);
    if let Ok(url) = std::env::var(VICTIM) {
        let log = messaging::open(&url, Arc::new(SystemClock)).await.unwrap();
        let _running = Running::start(&log, &recorder);
        return until_caught_up(&*log).await;
    }
    let subject = Subject::open(|folder| format!("embedded:{}", folder.join("log.db").display())).await;
    subject.log.publish(vec![fleet_event("key", 1), fleet_event("key", 2)]).await.unwrap();
    let (url, subject) = subject.close();
    let victim = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "consumer::a_kill_between_a_dead_letter_and_the_offset_loses_neither_it_nor_what_follows"])
        .env(messaging::abort::ABORT_AT, "consumer.buried")
        .env(VICTIM, &url)
        .output()
        .unwrap();
    assert_eq!(victim.status.code(), None, "killed by a signal: {victim:?}");
    let subject = subject.open().await;
    assert_eq!(dead_letters::waiting(&*subject.log, GROUP).await.unwrap(), 1, "it was on disk before the kill");
    let running = Running::start(&subject.log, &recorder);
    until_caught_up(&*subject.log).await;
    running.stop().await;
    assert_eq!(recorder.effect("key"), Some(2));
    let letters = dead_letters::peek(&*subject.log, GROUP, 10).await.unwrap();
    let ids: std::collections::BTreeSet<_> = letters.iter().map(|letter| letter.id).collect();
    assert_eq!((letters.len(), ids.len()), (2, 1), "once more, under the same id");
}
