//! Reads a single record where it lies, for no consumer group.

use std::time::Instant;

use contracts::events::CloudEvent;
use rdkafka::{
    Message, Offset as At, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{ANSWER, blocking, client, names::Names, record};
use crate::{LogError, Offset};

/// The client library assigns partitions only to a consumer that names a group. Nobody joins it, and nothing is
/// committed, so that the cluster never hears of it.
const GROUP: &str = "single-records";

/// The record at a place of a topic that exists; none where it has been dropped, or was never written.
pub(super) async fn record_at(brokers: &str, names: &Names, place: &Offset) -> Result<Option<CloudEvent>, LogError> {
    let (topic, place) = (names.full(&place.topic), place.clone());
    let mut config = client(brokers);
    config
        .set("group.id", names.full(GROUP))
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        // Of what follows nothing is wanted.
        .set("queued.min.messages", "1");
    blocking(move || {
        let reader: BaseConsumer = config.create()?;
        read(&reader, &topic, &place)
    })
    .await
}

fn read(reader: &BaseConsumer, topic: &str, place: &Offset) -> Result<Option<CloudEvent>, KafkaError> {
    let (partition, offset) = (place.partition.cast_signed(), place.offset.cast_signed());
    let (start, end) = reader.fetch_watermarks(topic, partition, ANSWER)?;
    if !(start..end).contains(&offset) {
        return Ok(None);
    }
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, At::Offset(offset))?;
    reader.assign(&list)?;
    let deadline = Instant::now() + ANSWER;
    let mut failed = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match reader.poll(left) {
            // A later one comes where that one was a transaction's mark, or of one that was aborted.
            Some(Ok(found)) => return Ok((found.offset() == offset).then(|| record::event(&found, &place.topic))),
            // It goes on by itself where it can.
            Some(Err(error)) => failed = error,
            None => {}
        }
        if left.is_zero() {
            return Err(failed);
        }
    }
}
