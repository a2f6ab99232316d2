//! Publishes events to Kafka: idempotent, each answer after all in-sync replicas have the record.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
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

/// How long a cluster that did not take a record in that time may be over saying that it is back.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// A producer of events.
pub(super) struct Producer {
    brokers: String,
    names: Names,
    inner: Mutex<Inner>,
}

/// The client, replaced after a fault that it cannot mend, such as a sequence that the cluster has forgotten; and after
/// a record took too long. An idempotent client whose records expire while the cluster is away takes a whole processor
/// for as long as that lasts, and keeps the cluster's own start waiting:
/// <https://github.com/confluentinc/librdkafka/issues/3692>.
struct Inner {
    client: FutureProducer,
    /// How many there were before it.
    number: u64,
    /// Whether it is given records: after one that took too long not before the cluster answers.
    is_trusted: bool,
}

impl Producer {
    /// A producer to the brokers `host:port[,host:port]`. It connects when it is needed.
    pub(super) fn new(brokers: &str, names: Names) -> Result<Self, LogError> {
        Ok(Self {
            brokers: brokers.to_owned(),
            names,
            inner: Mutex::new(Inner { client: client(brokers)?, number: 0, is_trusted: true }),
        })
    }

    /// Appends events to topics that exist, in order within each key; answers once all are acknowledged.
    pub(super) async fn publish(&self, events: Vec<CloudEvent>) -> Result<(), LogError> {
        let (client, number) = self.usable().await?;
        let result = self.publish_by(&client, number, events).await;
        if result.is_err() {
            // It may have been replaced, and the last to let go of it waits for it.
            super::end(move || drop(client));
        }
        result
    }

    async fn publish_by(&self, client: &FutureProducer, number: u64, events: Vec<CloudEvent>) -> Result<(), LogError> {
        let topics: HashMap<&str, String> =
            events.iter().map(|event| (&*event.topic, self.names.full(&event.topic))).collect();
        let send = |event: &CloudEvent| {
            let record = FutureRecord::to(&topics[&*event.topic])
                .key(&event.key)
                .payload(&event.data)
                .partition(part_of(&event.key, PARTITIONS).cast_signed())
                .headers(record::headers(event));
            client.send_result(record).map_err(|(error, _)| error)
        };
        let mut under_way = Vec::with_capacity(events.len());
        for event in &events {
            match send(event) {
                // Room comes as what is under way is acknowledged; a queue that others fill is the caller's to retry.
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) if !under_way.is_empty() => {
                    self.delivered(std::mem::take(&mut under_way), number).await?;
                    under_way.push(send(event).map_err(refused)?);
                }
                sent => under_way.push(sent.map_err(refused)?),
            }
        }
        self.delivered(under_way, number).await
    }

    async fn delivered(&self, under_way: Vec<DeliveryFuture>, number: u64) -> Result<(), LogError> {
        for delivery in try_join_all(under_way).await.map_err(LogError::unavailable)? {
            if let Err((error, _)) = delivery {
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageTimedOut) {
                    self.distrust(number)?;
                }
                return Err(refused(error));
            }
        }
        Ok(())
    }

    /// The client, once it may be given records, and its number.
    async fn usable(&self) -> Result<(FutureProducer, u64), LogError> {
        let (client, number, is_trusted) = {
            let mut inner = self.inner();
            if let Some((_, reason)) = inner.client.client().fatal_error() {
                tracing::warn!(reason, "the event log's producer is made anew");
                self.replace(&mut inner)?;
            }
            (inner.client.clone(), inner.number, inner.is_trusted)
        };
        if !is_trusted {
            let asked = client.clone();
            super::blocking(move || asked.client().fetch_metadata(None, ANSWER_DEADLINE).map(drop)).await?;
            let mut inner = self.inner();
            inner.is_trusted |= inner.number == number;
        }
        Ok((client, number))
    }

    /// Gives the client of that number no more records, nor what it has, before the cluster answers.
    fn distrust(&self, number: u64) -> Result<(), LogError> {
        let mut inner = self.inner();
        if inner.number == number {
            self.replace(&mut inner)?;
            inner.is_trusted = false;
        }
        Ok(())
    }

    fn replace(&self, inner: &mut Inner) -> Result<(), LogError> {
        let old = std::mem::replace(&mut inner.client, client(&self.brokers)?);
        inner.number += 1;
        super::end(move || drop(old));
        Ok(())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn client(brokers: &str) -> Result<FutureProducer, LogError> {
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

/// What it means for the caller that a record was not taken: by the client, which has a limit of its own, or by the
/// cluster.
fn refused(error: KafkaError) -> LogError {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => LogError::TooLarge(error.into()),
        _ => LogError::unavailable(error),
    }
}
