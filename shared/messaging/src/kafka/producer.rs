//! Publishes events to Kafka: idempotent, each answer after all in-sync replicas have the record.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use contracts::events::{CloudEvent, PARTITIONS};
use futures::future::try_join_all;
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _},
};

use super::{names::Names, record};
use crate::{LogError, keys::part_of};

/// How long a record may be under way before its publisher hears that it failed: longer than a partition needs for a new
/// leader, and a relay that waits for longer could as well ask anew.
const UNDER_WAY_MS: &str = "15000";

/// A producer of events.
pub(super) struct Producer {
    brokers: String,
    names: Names,
    /// Replaced after a fault that it cannot mend, such as a sequence that the cluster has forgotten.
    inner: Mutex<FutureProducer>,
}

impl Producer {
    /// A producer to the brokers `host:port[,host:port]`. It connects when it is needed.
    pub(super) fn new(brokers: &str, names: Names) -> Result<Self, LogError> {
        Ok(Self { brokers: brokers.to_owned(), names, inner: Mutex::new(inner(brokers)?) })
    }

    /// Appends events to topics that exist, in order within each key; answers once all are acknowledged.
    pub(super) async fn publish(&self, events: Vec<CloudEvent>) -> Result<(), LogError> {
        let producer = self.healthy()?;
        let topics: HashMap<&str, String> =
            events.iter().map(|event| (&*event.topic, self.names.full(&event.topic))).collect();
        let send = |event: &CloudEvent| {
            let record = FutureRecord::to(&topics[&*event.topic])
                .key(&event.key)
                .payload(&event.data)
                .partition(part_of(&event.key, PARTITIONS).cast_signed())
                .headers(record::headers(event));
            producer.send_result(record).map_err(|(error, _)| error)
        };
        let mut under_way = Vec::with_capacity(events.len());
        for event in &events {
            match send(event) {
                // Room comes as what is under way is acknowledged; a queue that others fill is the caller's to retry.
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) if !under_way.is_empty() => {
                    delivered(std::mem::take(&mut under_way)).await?;
                    under_way.push(send(event).map_err(refused)?);
                }
                sent => under_way.push(sent.map_err(refused)?),
            }
        }
        delivered(under_way).await
    }

    fn healthy(&self) -> Result<FutureProducer, LogError> {
        let mut producer = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, reason)) = producer.client().fatal_error() {
            tracing::warn!(reason, "the event log's producer is made anew");
            let old = std::mem::replace(&mut *producer, inner(&self.brokers)?);
            super::end(move || drop(old));
        }
        Ok(producer.clone())
    }
}

fn inner(brokers: &str) -> Result<FutureProducer, LogError> {
    super::client(brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        // The most that idempotence allows without giving up order.
        .set("max.in.flight.requests.per.connection", "5")
        // Concurrent publishes share a request, and nobody notices the wait.
        .set("linger.ms", "5")
        .set("compression.type", "zstd")
        .set("message.timeout.ms", UNDER_WAY_MS)
        .create()
        .map_err(LogError::unavailable)
}

async fn delivered(under_way: Vec<DeliveryFuture>) -> Result<(), LogError> {
    for delivery in try_join_all(under_way).await.map_err(LogError::unavailable)? {
        delivery.map_err(|(error, _)| refused(error))?;
    }
    Ok(())
}

/// What it means for the caller that a record was not taken: by the client, which has a limit of its own, or by the
/// cluster.
fn refused(error: KafkaError) -> LogError {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => LogError::TooLarge(error.into()),
        _ => LogError::unavailable(error),
    }
}
