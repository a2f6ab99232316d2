//! Publishes events to Kafka: idempotent, each answer after all in-sync replicas have the record.

use contracts::events::{CloudEvent, PARTITIONS};
use futures::future::try_join_all;
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{DeliveryFuture, FutureProducer, FutureRecord},
};

use super::{names::Names, record};
use crate::{LogError, keys::part_of};

/// A producer of events.
#[derive(Clone)]
pub(super) struct Producer {
    inner: FutureProducer,
    names: Names,
}

impl Producer {
    /// A producer to the brokers `host:port[,host:port]`. It connects when it is needed.
    pub(super) fn new(brokers: &str, names: Names) -> Result<Self, LogError> {
        let inner = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            // The most that idempotence allows without giving up order.
            .set("max.in.flight.requests.per.connection", "5")
            // Concurrent publishes share a request, and nobody notices the wait.
            .set("linger.ms", "5")
            .set("compression.type", "zstd")
            .create()
            .map_err(LogError::unavailable)?;
        Ok(Self { inner, names })
    }

    /// Appends events to topics that exist, in order within each key; answers once all are acknowledged.
    pub(super) async fn publish(&self, events: Vec<CloudEvent>) -> Result<(), LogError> {
        let mut under_way = Vec::new();
        for event in &events {
            match self.send(event) {
                // Room comes as what is under way is acknowledged; a queue that others fill is the caller's to retry.
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) if !under_way.is_empty() => {
                    delivered(std::mem::take(&mut under_way)).await?;
                    under_way.push(self.send(event).map_err(LogError::unavailable)?);
                }
                sent => under_way.push(sent.map_err(LogError::unavailable)?),
            }
        }
        delivered(under_way).await
    }

    fn send(&self, event: &CloudEvent) -> Result<DeliveryFuture, KafkaError> {
        let topic = self.names.full(&event.topic);
        let record = FutureRecord::to(&topic)
            .key(&event.key)
            .payload(&event.data)
            .partition(part_of(&event.key, PARTITIONS).cast_signed())
            .headers(record::headers(event));
        self.inner.send_result(record).map_err(|(error, _)| error)
    }
}

async fn delivered(under_way: Vec<DeliveryFuture>) -> Result<(), LogError> {
    for delivery in try_join_all(under_way).await.map_err(LogError::unavailable)? {
        delivery.map_err(|(error, _)| LogError::unavailable(error))?;
    }
    Ok(())
}
