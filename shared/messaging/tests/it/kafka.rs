//! What is Kafka's own among the logs.

mod on_kafka {
    use std::time::Duration;

    use contracts::events::{PARTITIONS, UNDECODABLE};
    use messaging::keys::part_of;
    use rdkafka::{
        ClientConfig,
        producer::{FutureProducer, FutureRecord},
    };

    use crate::{
        engine::{self, Subject},
        log_contract::{TOPIC, event, read},
    };

    const PATIENCE: Duration = Duration::from_secs(30);

    /// The brokers and the prefix of a subject.
    fn place(subject: &Subject) -> (&str, &str) {
        subject.url.strip_prefix("kafka://").unwrap().split_once('/').unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_record_that_is_no_event_comes_as_such_with_its_data() {
        engine::on_kafka(async |subject| {
            subject.publish("key", 0..1).await;
            let (brokers, prefix) = place(&subject);
            let plain: FutureProducer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
            let topic = format!("{prefix}.{TOPIC}");
            let partition = part_of("key", PARTITIONS).cast_signed();
            let odd = FutureRecord::<str, [u8]>::to(&topic).partition(partition).payload(&[0, 159, 146, 150]);
            plain.send(odd, PATIENCE).await.unwrap();
            let mut subscription = subject.join("group").await;
            let got = read(&mut *subscription, 2, 10).await;
            assert_eq!(*got[0].event, event(TOPIC, "key", 0));
            let odd = &got[1].event;
            assert_eq!(
                (odd.kind.as_str(), &*odd.topic, odd.data.as_slice()),
                (UNDECODABLE, TOPIC, &[0, 159, 146, 150][..])
            );
        })
        .await;
    }
}
