//! What the Kafka producer writes, read back by a plain client.

mod on_kafka {
    use std::time::Duration;

    use contracts::events::{PARTITIONS, UNDECODABLE};
    use messaging::{
        kafka::{Names, producer::Producer, record},
        keys::part_of,
    };
    use rdkafka::{
        ClientConfig, Message, Offset, TopicPartitionList,
        admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
        client::DefaultClientContext,
        consumer::{Consumer, StreamConsumer},
        producer::{FutureProducer, FutureRecord},
    };

    use crate::log_contract::event;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn records_come_out_as_they_went_in_and_what_is_no_event_says_so() {
        let Some(url) = testkit::real::url("TEST_KAFKA_URL") else { return };
        let brokers = url.strip_prefix("kafka://").unwrap();
        let topic = testkit::real::unique("producer");
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("group.id", &topic);
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        let new = NewTopic::new(&topic, PARTITIONS.cast_signed(), TopicReplication::Fixed(1));
        let made = admin.create_topics([&new], &AdminOptions::new().operation_timeout(Some(PATIENCE))).await.unwrap();
        made.into_iter().for_each(|topic| drop(topic.unwrap()));

        let mut sent: Vec<_> = (0..100).map(|number| event(&topic, "a key, with ⚠", number)).collect();
        sent[1].data = vec![0, 159, 146, 150];
        Producer::new(brokers, Names::new("").unwrap()).unwrap().publish(sent.clone()).await.unwrap();
        let partition = part_of("a key, with ⚠", PARTITIONS).cast_signed();
        let plain: FutureProducer = config.create().unwrap();
        let odd = FutureRecord::<str, str>::to(&topic).partition(partition).payload("odd");
        plain.send(odd, PATIENCE).await.unwrap();

        let consumer: StreamConsumer = config.create().unwrap();
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(&topic, partition, Offset::Beginning).unwrap();
        consumer.assign(&from).unwrap();
        let mut got = Vec::new();
        while got.len() < 101 {
            let record = tokio::time::timeout(PATIENCE, consumer.recv()).await.unwrap().unwrap();
            assert_eq!(record.offset(), i64::try_from(got.len()).unwrap());
            got.push(record::event(&record, &topic));
        }
        let odd = got.pop().unwrap();
        assert_eq!(got, sent);
        assert_eq!((odd.kind.as_str(), odd.data.as_slice()), (UNDECODABLE, b"odd".as_slice()));
    }
}
