//! Events that a consumer could not digest: kept with their cause, published again by command.

use std::{collections::HashMap, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use contracts::{Clock, Timestamp, events::CloudEvent};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Delivered, EventLog, GroupLag, LogError, consumer::next_offsets};

/// The type of a dead letter's event.
pub const KIND: &str = "DeadLetter";

/// Letters read at once: they are few, and each is small.
const BATCH: usize = 100;

/// How long to wait for letters that are known to be there, before another reader is assumed to have them: longer than
/// the partitions of a reader that has just gone take to move on.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a dead letter says. The original's data are kept as text, since they may not be JSON; and as bytes, where they
/// are not even text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeadLetter {
    /// The consumer group that gave up.
    pub group: String,
    /// Why, with all causes.
    pub cause: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub failed_at: Timestamp,
    /// Where the original lies.
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// `ce_id` of the original.
    #[schema(value_type = String, format = Uuid)]
    pub id: Uuid,
    /// Its key.
    pub key: String,
    /// Its type.
    pub kind: String,
    /// Its source.
    pub source: String,
    /// Its time.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// Its trace context.
    pub traceparent: Option<String>,
    /// Its data, as text; what is not text is replaced in it.
    pub data: String,
    /// Its data in base64, only where `data` is not the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<String>,
}

/// How the name of every dead-letter topic ends. Letters that wait for a redrive are kept, however old.
pub(crate) const TOPIC_SUFFIX: &str = ".dead-letters";

/// How the name of every group ends that remembers which dead letters have been published again.
pub(crate) const REDRIVE_SUFFIX: &str = ".redrive";

/// The dead-letter topic of a consumer group.
pub fn topic_of(group: &str) -> String {
    format!("{group}{TOPIC_SUFFIX}")
}

/// The dead letter for a record that `group` could not digest.
pub fn dead_letter(group: &str, record: &Delivered, cause: String, clock: &dyn Clock) -> CloudEvent {
    let original = &record.event;
    let letter = DeadLetter {
        group: group.to_owned(),
        cause,
        failed_at: clock.now(),
        topic: record.topic.to_string(),
        partition: record.partition,
        offset: record.offset,
        id: original.id,
        key: original.key.clone(),
        kind: original.kind.clone(),
        source: original.source.clone(),
        time: original.time,
        traceparent: original.traceparent.clone(),
        data: String::from_utf8_lossy(&original.data).into_owned(),
        data_base64: std::str::from_utf8(&original.data).is_err().then(|| BASE64_STANDARD.encode(&original.data)),
    };
    CloudEvent {
        id: clock.new_id(),
        topic: topic_of(group),
        key: original.key.clone(),
        kind: KIND.to_owned(),
        source: group.to_owned(),
        time: letter.failed_at,
        traceparent: original.traceparent.clone(),
        // A struct with text keys: serializing it to memory cannot fail.
        data: serde_json::to_vec(&letter).unwrap_or_default(),
    }
}

fn original(letter: DeadLetter) -> CloudEvent {
    let bytes = letter.data_base64.and_then(|bytes| BASE64_STANDARD.decode(bytes).ok());
    CloudEvent {
        id: letter.id,
        topic: letter.topic,
        key: letter.key,
        kind: letter.kind,
        source: letter.source,
        time: letter.time,
        traceparent: letter.traceparent,
        data: bytes.unwrap_or_else(|| letter.data.into_bytes()),
    }
}

/// The group that remembers which dead letters have been published again.
fn redrive_group(group: &str) -> String {
    format!("{group}{REDRIVE_SUFFIX}")
}

/// Dead letters of `group` that wait for a redrive.
pub async fn waiting(log: &dyn EventLog, group: &str) -> Result<u64, LogError> {
    Ok(waiting_lags(log, group).await?.iter().map(GroupLag::lag).sum())
}

async fn waiting_lags(log: &dyn EventLog, group: &str) -> Result<Vec<GroupLag>, LogError> {
    let (topic, redrive) = (topic_of(group), redrive_group(group));
    let mine = |lags: Vec<GroupLag>| -> Vec<GroupLag> {
        lags.into_iter().filter(|lag| lag.group == redrive && lag.topic == topic).collect()
    };
    let known = mine(log.lag().await?);
    if !known.is_empty() {
        return Ok(known);
    }
    // Joining makes the group known, so that its lag counts from the first letter. Only once: a member more would
    // take partitions from a redrive that is under way.
    let _subscription = log.subscribe(&redrive, &[&topic]).await?;
    Ok(mine(log.lag().await?))
}

/// The oldest waiting dead letters of `group`, at most `limit`. They stay.
pub async fn peek(log: &dyn EventLog, group: &str, limit: usize) -> Result<Vec<DeadLetter>, LogError> {
    let waiting = usize::try_from(waiting(log, group).await?).unwrap_or(usize::MAX).min(limit);
    if waiting == 0 {
        return Ok(Vec::new());
    }
    let mut subscription = log.subscribe(&redrive_group(group), &[&topic_of(group)]).await?;
    let mut letters = Vec::new();
    while letters.len() < waiting {
        let next = tokio::time::timeout(PATIENCE, subscription.next(waiting - letters.len()));
        let Ok(records) = next.await else { break };
        for record in records? {
            letters.extend(serde_json::from_slice::<DeadLetter>(&record.event.data).ok());
        }
    }
    Ok(letters)
}

/// Publishes every waiting dead letter of `group` to its topic again, but none that comes in the meantime; answers how
/// many. Killed in between, it goes on where it was: some may be published twice, which no consumer minds.
pub async fn redrive(log: &dyn EventLog, group: &str) -> Result<u64, LogError> {
    let lags = waiting_lags(log, group).await?;
    let mut left: u64 = lags.iter().map(GroupLag::lag).sum();
    if left == 0 {
        return Ok(0);
    }
    let ends: HashMap<u32, u64> = lags.into_iter().map(|lag| (lag.partition, lag.end)).collect();
    // How far each partition has been published: what a rebalance brings back is not published twice.
    let mut published: HashMap<u32, u64> = HashMap::new();
    let mut subscription = log.subscribe(&redrive_group(group), &[&topic_of(group)]).await?;
    let mut redriven = 0;
    while left > 0 {
        let Ok(records) = tokio::time::timeout(PATIENCE, subscription.next(BATCH)).await else { break };
        let mut records = records?;
        records.retain(|record| ends.get(&record.partition).is_some_and(|end| record.offset < *end));
        let mut originals = Vec::new();
        for record in &records {
            let next = published.entry(record.partition).or_insert(0);
            if record.offset < *next {
                continue;
            }
            *next = record.offset + 1;
            left = left.saturating_sub(1);
            if let Ok(letter) = serde_json::from_slice::<DeadLetter>(&record.event.data) {
                originals.push(original(letter));
            }
        }
        let published_again = originals.len() as u64;
        log.publish(originals).await?;
        match subscription.commit(&next_offsets(&records)).await {
            Ok(()) | Err(LogError::Rebalanced) => {}
            Err(error) => return Err(error),
        }
        redriven += published_again;
    }
    Ok(redriven)
}

/// Every consumer group that may have dead letters: the services that listen.
pub const GROUPS: [&str; 6] = ["delivery", "package", "fleet", "tracking", "history", "lookup"];
