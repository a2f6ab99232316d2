//! What is Kafka's own among the logs: records of others, topics made by hand, members and brokers that are killed.

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use contracts::{
    SystemClock,
    events::{CloudEvent, PARTITIONS, Topic, UNDECODABLE},
};
use messaging::{
    Delivered, LogError, Offset, consumer::next_offsets, dead_letters, kafka::RETENTION, keys::part_of, outbox::chain,
};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    producer::{FutureProducer, FutureRecord},
};
use testkit::{real, until};
use tokio::task::JoinSet;

use crate::{
    engine::{self, Subject},
    log_contract::{TOPIC, event, number, read},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The brokers and the prefix of a log.
fn place(url: &str) -> (&str, &str) {
    url.strip_prefix("kafka://").unwrap().split_once('/').unwrap()
}

/// A topic of the cluster, and who may change it.
fn topic(subject: &Subject, name: &str) -> (String, AdminClient<DefaultClientContext>) {
    let (brokers, prefix) = place(&subject.url);
    (format!("{prefix}.{name}"), ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap())
}

/// A setting of a topic.
async fn setting(subject: &Subject, name: &str, setting: &str) -> String {
    let (full, admin) = topic(subject, name);
    let resource = ResourceSpecifier::Topic(&full);
    let mut settings = admin.describe_configs([&resource], &AdminOptions::new()).await.unwrap();
    settings.remove(0).unwrap().get(setting).unwrap().value.clone().unwrap()
}

/// What is no part of the contract of every log.
mod on_kafka {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_record_that_is_no_event_comes_as_such_with_its_data() {
        engine::on_kafka(async |subject| {
            subject.publish("key", 0..1).await;
            let (brokers, prefix) = place(&subject.url);
            let plain: FutureProducer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
            let topic = format!("{prefix}.{TOPIC}");
            let partition = part_of("key", PARTITIONS).cast_signed();
            let bytes = [0, 159, 146, 150];
            let odd = FutureRecord::<str, [u8]>::to(&topic).partition(partition).payload(&bytes);
            plain.send(odd, PATIENCE).await.unwrap();
            let mut subscription = subject.join("group").await;
            let got = read(&mut *subscription, 2, 10).await;
            assert_eq!(*got[0].event, event(TOPIC, "key", 0));
            let odd = &got[1].event;
            assert_eq!((odd.kind.as_str(), &*odd.topic, &*odd.data), (UNDECODABLE, TOPIC, &bytes[..]));
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_record_that_is_too_large_is_refused_as_such_and_the_next_one_is_taken() {
        engine::on_kafka(async |subject| {
            let large = CloudEvent { data: vec![b' '; 1_100_000], ..event(TOPIC, "key", 0) };
            let refused = subject.log.publish(vec![large]).await;
            assert!(matches!(refused, Err(LogError::TooLarge(_))), "{refused:?}");
            subject.publish("key", 1..2).await;
            let mut subscription = subject.join("group").await;
            assert_eq!(number(&read(&mut *subscription, 1, 10).await[0]), 1);
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_cut_letter_whose_original_is_gone_waits_on_and_says_why_and_holds_up_no_other() {
        engine::on_kafka(async |subject| {
            let gone = CloudEvent { data: vec![159; 900_000], ..event(TOPIC, "key", 1) };
            let here = event(TOPIC, "key", 2);
            let letters = [gone.clone(), here.clone()].map(|original| {
                let record = Delivered { topic: TOPIC.into(), partition: 0, offset: 7, event: Arc::new(original) };
                dead_letters::dead_letter("group", &record, "no reason".to_owned(), &SystemClock)
            });
            let [cut, whole] = letters;
            dead_letters::publish(&*subject.log, vec![cut]).await.unwrap();
            dead_letters::publish(&*subject.log, vec![whole]).await.unwrap();
            // Time and again: it neither gets lost nor is published as what is left of it.
            for redriven in [1, 0] {
                assert_eq!(dead_letters::redrive(&*subject.log, "group").await.unwrap(), redriven);
                let letters = dead_letters::peek(&*subject.log, "group", 10).await.unwrap();
                assert_eq!((letters.len(), letters[0].id, letters[0].cut_from), (1, gone.id, Some(900_000)));
                let refused = letters[0].refused.as_deref().unwrap();
                assert!(refused.contains("not in the log any more"), "{refused}");
            }
            let mut subscription = subject.join("watcher").await;
            assert_eq!(*read(&mut *subscription, 1, 10).await[0].event, here);
            let more = tokio::time::timeout(Duration::from_millis(500), subscription.next(10)).await;
            assert!(more.is_err(), "{more:?}");
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn topics_keep_their_records_for_a_week_and_dead_letters_for_ever() {
        engine::on_kafka(async |subject| {
            subject.log.publish(vec![event(&dead_letters::topic_of("group"), "key", 1)]).await.unwrap();
            for topic in Topic::ALL {
                let kept = setting(&subject, topic.name(), "retention.ms").await;
                assert_eq!(kept, RETENTION.as_millis().to_string(), "{topic:?}");
            }
            assert_eq!(setting(&subject, "group.dead-letters", "retention.ms").await, "-1");
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_topic_that_is_made_anew_has_another_id_and_is_read_from_its_beginning() {
        engine::on_kafka(async |subject| {
            subject.publish("key", 0..3).await;
            let id = subject.log.topic_id(TOPIC).await.unwrap();
            let mut subscription = subject.join("group").await;
            let records = read(&mut *subscription, 3, 10).await;
            subscription.commit(&next_offsets(&records)).await.unwrap();
            drop(subscription);
            let (full, admin) = topic(&subject, TOPIC);
            admin.delete_topics(&[&full], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
            let anew = until("the topic to be made anew", || async {
                let now = subject.log.topic_id(TOPIC).await.ok()?;
                (now != id).then_some(now)
            })
            .await;
            let subject = subject.reopen().await;
            assert_eq!(subject.log.topic_id(TOPIC).await.unwrap(), anew);
            subject.publish("key", 7..8).await;
            let mut subscription = subject.join("group").await;
            assert_eq!(number(&read(&mut *subscription, 1, 10).await[0]), 7);
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_topic_that_was_made_by_hand_has_its_name_and_its_cluster_as_its_id() {
        engine::on_kafka(async |subject| {
            let (full, admin) = topic(&subject, "made.by-hand");
            let new = NewTopic::new(&full, PARTITIONS.cast_signed(), TopicReplication::Fixed(1));
            admin.create_topics([&new], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
            let id = subject.log.topic_id("made.by-hand").await.unwrap();
            assert!(id.ends_with(&format!(".{full}")), "{id}");
            assert_eq!(subject.reopen().await.log.topic_id("made.by-hand").await.unwrap(), id);
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_topic_with_other_partitions_is_refused() {
        engine::on_kafka(async |subject| {
            let (full, admin) = topic(&subject, "narrow.events");
            let new = NewTopic::new(&full, 3, TopicReplication::Fixed(1));
            admin.create_topics([&new], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
            let refused = subject.log.publish(vec![event("narrow.events", "key", 1)]).await.unwrap_err();
            assert!(chain(&refused).contains("3 partitions"), "{}", chain(&refused));
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_place_beyond_the_end_cannot_be_sought() {
        engine::on_kafka(async |subject| {
            subject.publish("key", 0..3).await;
            let mut subscription = subject.join("group").await;
            let partition = part_of("key", PARTITIONS);
            let at = |offset| Offset { topic: TOPIC.to_owned(), partition, offset };
            subscription.seek(&at(3)).await.unwrap();
            let refused = subscription.seek(&at(4)).await;
            assert!(matches!(refused, Err(LogError::Unavailable(_))), "{refused:?}");
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_partitions_of_a_member_that_was_killed_move_on_within_ten_seconds() {
        if let Ok(url) = std::env::var(DOOMED_MEMBER) {
            doomed_member(&url).await;
        }
        engine::on_kafka(killed_member).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_broker_that_was_killed_has_all_that_it_acknowledged_and_its_clients_go_on() {
        let Some(own) = real::Own::start("kafka", "TEST_KAFKA_URL").await else { return };
        killed_broker(&own).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn while_its_broker_is_away_a_client_leaves_the_processor_to_others() {
        let Some(own) = real::Own::start("kafka", "TEST_KAFKA_URL").await else { return };
        let subject = Subject::open(|_| format!("{}/log", own.url)).await;
        let publish = async |number| subject.log.publish(vec![event(TOPIC, "key", number)]).await;
        publish(0).await.unwrap();
        own.kill().await;
        assert!(matches!(publish(1).await, Err(LogError::Unavailable(_))), "its time has run out");
        let (began, used) = (Instant::now(), processor_time());
        assert!(matches!(publish(2).await, Err(LogError::Unavailable(_))));
        let (used, waited) = (processor_time() - used, began.elapsed());
        assert!(used < waited / 5, "{used:?} of {waited:?}: Kafka's own start needs it");
        own.start_again().await;
        until("the broker takes records again", async || publish(3).await.ok()).await;
    }
}

/// Tells a copy of this program that it is the member to be killed, and where its log is.
const DOOMED_MEMBER: &str = "DOOMED_MEMBER";

/// Joins, and reads what comes until it is killed.
async fn doomed_member(url: &str) {
    let log = messaging::open(url, Arc::new(SystemClock)).await.unwrap();
    let mut subscription = log.subscribe("group", &[TOPIC]).await.unwrap();
    loop {
        subscription.next(10).await.unwrap();
    }
}

/// Ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn killed_member(subject: Subject) {
    let mut stays = subject.join("group").await;
    let me = "kafka::on_kafka::the_partitions_of_a_member_that_was_killed_move_on_within_ten_seconds";
    let doomed = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", me])
        .env(DOOMED_MEMBER, &subject.url)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let doomed = Killed(doomed);
    let deadline = Instant::now() + PATIENCE;
    while stays.assignment().await.unwrap().len() > PARTITIONS as usize / 2 {
        assert!(Instant::now() < deadline, "the other one has not joined");
        let _ = tokio::time::timeout(Duration::from_millis(20), stays.next(10)).await;
    }
    for key in 0..64 {
        subject.publish(&format!("key-{key}"), 0..1).await;
    }
    drop(doomed);
    let killed = Instant::now();
    let records = read(&mut *stays, 64, 64).await;
    assert_eq!(stays.assignment().await.unwrap().len(), PARTITIONS as usize);
    let moved = killed.elapsed();
    assert!(moved < Duration::from_secs(10), "after {moved:?}");
    stays.commit(&next_offsets(&records)).await.unwrap();
}

/// What this process has had of the processors, in Linux's hundredths of a second.
fn processor_time() -> Duration {
    let told = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = told.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(10 * ticks)
}

async fn killed_broker(own: &real::Own) {
    let subject = Subject::open(|_| format!("{}/log", own.url)).await;
    let mut tasks = JoinSet::new();
    let log = subject.log.clone();
    let acknowledged = Arc::new(tokio::sync::watch::Sender::new(0));
    let (told, mut heard) = (acknowledged.clone(), acknowledged.subscribe());
    tasks.spawn(async move {
        for number in 0..300 {
            while log.publish(vec![event(TOPIC, "key", number)]).await.is_err() {}
            told.send_replace(number + 1);
        }
    });
    let mut subscription = subject.join("group").await;
    let mut seen: Vec<u64> = Vec::new();
    let mut consume = async |count: u64| {
        while (seen.len() as u64) < count {
            let records = tokio::time::timeout(2 * PATIENCE, subscription.next(10)).await;
            let records = records.unwrap_or_else(|_| panic!("{} of {count} came", seen.len())).unwrap();
            for record in &records {
                if !seen.contains(&number(record)) {
                    seen.push(number(record));
                }
            }
            // Where the group has forgotten its member, the records come again.
            while let Err(LogError::Unavailable(_)) = subscription.commit(&next_offsets(&records)).await {}
        }
        assert!(seen.is_sorted(), "in order");
    };
    heard.wait_for(|count| *count >= 100).await.unwrap();
    consume(50).await;
    own.kill().await;
    let asked = Instant::now();
    assert!(subject.log.ping().await.is_err());
    assert!(asked.elapsed() < PATIENCE / 2, "a log that is away says so soon, not after {:?}", asked.elapsed());
    tokio::join!(consume(300), own.start_again());
    tasks.join_next().await.unwrap().unwrap();
    until("the lag to be gone", || async {
        let lags = subject.log.lag().await.ok()?;
        (lags.iter().map(messaging::GroupLag::lag).sum::<u64>() == 0 && !lags.is_empty()).then_some(())
    })
    .await;
}
