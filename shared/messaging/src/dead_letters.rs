//! Events that a consumer could not digest: kept with their cause, published again by command.

use std::time::Duration;

use contracts::{Clock, Timestamp, events::CloudEvent};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Delivered, EventLog, LogError, consumer::next_offsets};

/// The type of a dead letter's event.
pub const KIND: &str = "DeadLetter";

/// Letters read at once: they are few, and each is small.
const BATCH: usize = 100;

/// How long to wait for letters that are known to be there, before another reader is assumed to have them.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a dead letter says. The original's data are kept as text, since they may not be JSON.
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
    /// Its data, as text.
    pub data: String,
}

/// The dead-letter topic of a consumer group.
pub fn topic_of(group: &str) -> String {
    format!("{group}.dead-letters")
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
    CloudEvent {
        id: letter.id,
        topic: letter.topic,
        key: letter.key,
        kind: letter.kind,
        source: letter.source,
        time: letter.time,
        traceparent: letter.traceparent,
        data: letter.data.into_bytes(),
    }
}

/// The group that remembers which dead letters have been published again.
fn redrive_group(group: &str) -> String {
    format!("{group}.redrive")
}

/// Dead letters of `group` that wait for a redrive.
pub async fn waiting(log: &dyn EventLog, group: &str) -> Result<u64, LogError> {
    let (topic, redrive) = (topic_of(group), redrive_group(group));
    // Joining makes the group known, so that its lag counts from the first letter.
    let _subscription = log.subscribe(&redrive, &[&topic]).await?;
    let lags = log.lag().await?;
    Ok(lags.iter().filter(|lag| lag.group == redrive && lag.topic == topic).map(crate::GroupLag::lag).sum())
}

/// The oldest waiting dead letters of `group`, at most `limit`. They stay.
pub async fn peek(log: &dyn EventLog, group: &str, limit: usize) -> Result<Vec<DeadLetter>, LogError> {
    let waiting = usize::try_from(waiting(log, group).await?).unwrap_or(usize::MAX).min(limit);
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

/// Publishes every waiting dead letter of `group` to its topic again; answers how many. Killed in between, it goes on
/// where it was: some may be published twice, which no consumer minds.
pub async fn redrive(log: &dyn EventLog, group: &str) -> Result<u64, LogError> {
    let mut left = waiting(log, group).await?;
    let mut subscription = log.subscribe(&redrive_group(group), &[&topic_of(group)]).await?;
    let mut redriven = 0;
    while left > 0 {
        let Ok(records) = tokio::time::timeout(PATIENCE, subscription.next(BATCH)).await else { break };
        let records = records?;
        left = left.saturating_sub(records.len() as u64);
        let mut originals = Vec::new();
        for record in &records {
            if let Ok(letter) = serde_json::from_slice::<DeadLetter>(&record.event.data) {
                originals.push(original(letter));
            }
        }
        log.publish(&originals).await?;
        subscription.commit(&next_offsets(&records)).await?;
        redriven += originals.len() as u64;
    }
    Ok(redriven)
}

/// Every consumer group that may have dead letters: the services that listen.
pub const GROUPS: [&str; 6] = ["delivery", "package", "fleet", "tracking", "history", "lookup"];
