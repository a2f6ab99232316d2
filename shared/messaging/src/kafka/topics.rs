//! The topics of a system on Kafka: made with their fixed partitions and a retention, and told apart from namesakes.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use contracts::events::{PARTITIONS, Topic};
use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{ANSWER, PING, blocking, client, names::Names};
use crate::{LogError, dead_letters::TOPIC_SUFFIX};

/// How long a topic keeps its records: a new group finds that much, and a group that was away for longer loses what it
/// missed. A week: nobody overlooks a consumer that stands still for that long.
pub const RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A letter waits for its redrive for ever.
const KEPT_FOR_EVER: &str = "-1";

/// The setting that holds a topic's own id, drawn when it is made and gone with it. Kafka has an id of its own for each
/// topic, but the client library does not tell it. This setting bounds how late a topic is compacted; ours never are, so
/// that its value means nothing to the cluster.
const ID_SETTING: &str = "max.compaction.lag.ms";

/// The least of these ids: a setting that somebody made in earnest, in milliseconds, is not taken for one.
const LEAST_ID: u64 = 1 << 53;

/// How often to ask whether a new topic is there: it takes tens of milliseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How often at most: ten seconds in all, in which a cluster finds a leader for each partition.
const LOOKS: u32 = 200;

/// Makes topics and knows which are there.
pub(super) struct Topics {
    admin: Arc<AdminClient<DefaultClientContext>>,
    names: Names,
    /// Our names of topics that were seen to be as they should.
    known: Mutex<BTreeSet<String>>,
}

impl Topics {
    pub(super) fn new(brokers: &str, names: Names) -> Result<Self, LogError> {
        let admin = Arc::new(client(brokers).create().map_err(LogError::unavailable)?);
        Ok(Self { admin, names, known: Mutex::default() })
    }

    /// Makes those that are not there.
    pub(super) async fn ensure<'a>(&self, topics: impl IntoIterator<Item = &'a str>) -> Result<(), LogError> {
        let missing: BTreeSet<&str> = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            topics.into_iter().filter(|topic| !known.contains(*topic)).collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        // An operation of an administrator that finds no broker takes a whole processor until its time is up, and every
        // client of a cluster that is away comes by here: Kafka's own start would be kept waiting.
        self.answers(ANSWER).await?;
        self.create(&missing).await?;
        for topic in &missing {
            self.until_ready(topic).await?;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(missing.into_iter().map(str::to_owned));
        Ok(())
    }

    /// Looks again the next time: a topic that was there has gone.
    pub(super) fn forget<'a>(&self, topics: impl IntoIterator<Item = &'a str>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for topic in topics {
            known.remove(topic);
        }
    }

    async fn create(&self, topics: &BTreeSet<&str>) -> Result<(), LogError> {
        let retention = RETENTION.as_millis().to_string();
        let names: Vec<(String, String, &str)> = topics
            .iter()
            .map(|topic| {
                let retention = if topic.ends_with(TOPIC_SUFFIX) { KEPT_FOR_EVER } else { &retention };
                let id = rand::random_range(LEAST_ID..u64::MAX / 2);
                (self.names.full(topic), id.to_string(), retention)
            })
            .collect();
        let new: Vec<NewTopic<'_>> = names
            .iter()
            .map(|(name, id, retention)| {
                // As many replicas as the cluster's owner has set: three, where there are brokers for them.
                NewTopic::new(name, PARTITIONS.cast_signed(), TopicReplication::Fixed(-1))
                    .set("cleanup.policy", "delete")
                    .set("retention.ms", retention)
                    .set(ID_SETTING, id)
            })
            .collect();
        let options = AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER));
        for made in self.admin.create_topics(&new, &options).await.map_err(LogError::unavailable)? {
            match made {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => {
                    return Err(LogError::unavailable(format!("the topic '{topic}' could not be made: {code}")));
                }
            }
        }
        Ok(())
    }

    async fn until_ready(&self, topic: &str) -> Result<(), LogError> {
        let full = self.names.full(topic);
        let mut again = tokio::time::interval(LOOK_AGAIN);
        for _ in 0..LOOKS {
            again.tick().await;
            let (admin, name) = (self.admin.clone(), full.clone());
            let found = blocking(move || partitions(&admin, &name)).await?;
            match found {
                Some(PARTITIONS) => return Ok(()),
                Some(other) => {
                    return Err(LogError::unavailable(format!(
                        "the topic '{full}' has {other} partitions and must have {PARTITIONS}: make it anew"
                    )));
                }
                None => {}
            }
        }
        Err(LogError::unavailable(format!("the topic '{full}' has no leaders")))
    }

    /// Asks a broker for what it knows of one topic.
    pub(super) async fn ping(&self) -> Result<(), LogError> {
        self.answers(PING).await
    }

    async fn answers(&self, within: Duration) -> Result<(), LogError> {
        let (admin, name) = (self.admin.clone(), self.names.full(Topic::Delivery.name()));
        blocking(move || admin.inner().fetch_metadata(Some(&name), within).map(|_| ())).await
    }

    /// The topic's own id. One that was made by hand, without [`ID_SETTING`], has only its name and its cluster's id: if
    /// it is deleted and made again, it cannot be told from the old one.
    pub(super) async fn id(&self, topic: &str) -> Result<String, LogError> {
        self.ensure([topic]).await?;
        let full = self.names.full(topic);
        let options = AdminOptions::new().request_timeout(Some(ANSWER));
        let resource = ResourceSpecifier::Topic(&full);
        let described = self.admin.describe_configs([&resource], &options).await;
        let described = described.map_err(LogError::unavailable)?.into_iter().next();
        // Every topic has the setting, by default if not by us; one without has just been deleted.
        let entry = match &described {
            Some(Ok(settings)) => settings.get(ID_SETTING),
            Some(Err(code)) => return Err(LogError::unavailable(KafkaError::AdminOp(*code))),
            None => None,
        };
        let Some(entry) = entry else {
            self.forget([topic]);
            return Err(LogError::unavailable(format!("the topic '{full}' is not there")));
        };
        let set = Some(entry).filter(|entry| entry.source == ConfigSource::DynamicTopic);
        let id = set.and_then(|entry| entry.value.as_ref()?.parse::<u64>().ok()).filter(|id| *id >= LEAST_ID);
        if let Some(id) = id {
            return Ok(format!("{id:016x}"));
        }
        let admin = self.admin.clone();
        let cluster = blocking(move || Ok(admin.inner().fetch_cluster_id(ANSWER))).await?;
        match cluster {
            Some(cluster) => Ok(format!("{cluster}.{full}")),
            None => Err(LogError::unavailable("the cluster does not tell its id")),
        }
    }
}

/// How many partitions a topic has; none as long as one of them cannot be used.
fn partitions(admin: &AdminClient<DefaultClientContext>, topic: &str) -> Result<Option<u32>, KafkaError> {
    let metadata = admin.inner().fetch_metadata(Some(topic), ANSWER)?;
    let Some(topic) = metadata.topics().first().filter(|topic| topic.error().is_none()) else { return Ok(None) };
    let leaders = topic.partitions().iter().filter(|partition| partition.leader() >= 0).count();
    let all = topic.partitions().len();
    Ok((all > 0 && leaders == all).then(|| u32::try_from(all).unwrap_or(u32::MAX)))
}
