//! Kafka as the event log: the contract of every log, and what is Kafka's own.

mod on_kafka {
    use std::time::Duration;

    use contracts::events::PARTITIONS;
    use messaging::{UNDECODABLE, keys::part_of};
    use rdkafka::{
        ClientConfig,
        producer::{FutureProducer, FutureRecord},
    };

    use crate::log_contract::{Subject, TOPIC, event, log_contract, read};

    const PATIENCE: Duration = Duration::from_secs(30);

    async fn subject() -> Option<Subject> {
        let url = testkit::real::url("TEST_KAFKA_URL")?;
        let prefix = testkit::real::unique("t");
        Some(Subject::open(|_| format!("{url}/{prefix}")).await)
    }

    log_contract!(subject);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_record_that_is_no_event_comes_as_such_with_its_data() {
        let Some(subject) = subject().await else { return };
        subject.publish("key", 0..1).await;
        let (brokers, prefix) = subject.url.strip_prefix("kafka://").unwrap().split_once('/').unwrap();
        let plain: FutureProducer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
        let topic = format!("{prefix}.{TOPIC}");
        let partition = part_of("key", PARTITIONS).cast_signed();
        let odd = FutureRecord::<str, str>::to(&topic).partition(partition).payload("odd");
        plain.send(odd, PATIENCE).await.unwrap();
        let mut subscription = subject.join("group").await;
        let got = read(&mut *subscription, 2, 10).await;
        assert_eq!(*got[0].event, event(TOPIC, "key", 0));
        assert_eq!((got[1].event.kind.as_str(), got[1].event.data.as_slice()), (UNDECODABLE, b"odd".as_slice()));
    }
}
