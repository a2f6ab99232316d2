//! Events that a consumer could not digest: kept with their cause, published again by command.

use std::{collections::HashMap, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use contracts::{Clock, Timestamp, events::CloudEvent};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Delivered, EventLog, GroupLag, LogError, Offset, consumer::next_offsets, outbox::chain};

/// The type of a dead letter's event.
pub const KIND: &str = "DeadLetter";

/// Letters read at once: they are few, and nearly all are small.
const BATCH: usize = 100;

/// Letters of up to so many bytes are published together: every log takes them. A larger one goes alone, so that a log
/// that refuses it has refused no other.
const SURELY_TAKEN: usize = 64 * 1024;

/// How many bytes of each of its original's texts a letter keeps that was refused: enough to know it by, and together
/// less than what is surely taken, though a byte may become six in JSON.
const BEGINNING: usize = 1024;

/// How many bytes of its cause a letter keeps: an error may quote the data that it is about, whatever their size.
const CAUSE: usize = 4 * 1024;

/// How long to wait for letters that are known to be there, before another reader is assumed to have them: longer than
/// the partitions of a reader that has just gone take to move on.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often the log is reminded of the group that remembers what was redriven. Kafka forgets what a group has committed
/// once it has had no member for a week (the brokers' `offsets.retention.minutes`), and letters are kept for longer: all
/// of them would wait again. A service lives for six hours at some time of a week, however often it is deployed.
const REMINDER: Duration = Duration::from_secs(6 * 60 * 60);

/// What a dead letter says. The original's data are kept as text, since they may not be JSON; or as bytes, where they
/// are not even text. It holds all of them, unless its log did not take that: a letter is larger than its original.
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
    /// Its data, where they are text.
    pub data: String,
    /// Its data in base64, only where they are not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<String>,
    /// How many bytes of data it has, only where the log did not take them all: `data` is then how they begin, and
    /// other texts that are long end early, too. A redrive publishes the original from where it lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_from: Option<u64>,
    /// Why the last redrive has left it waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl DeadLetter {
    /// The original's data, as far as they are here.
    fn bytes(&self) -> Vec<u8> {
        // Earlier letters have both, and their text is not all of what the bytes are.
        let bytes = self.data_base64.as_ref().and_then(|bytes| BASE64_STANDARD.decode(bytes).ok());
        bytes.unwrap_or_else(|| self.data.clone().into_bytes())
    }
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
    let text = std::str::from_utf8(&original.data).ok();
    let letter = DeadLetter {
        group: group.to_owned(),
        cause: if cause.len() > CAUSE { beginning(cause.as_bytes(), CAUSE) } else { cause },
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
        data: text.unwrap_or_default().to_owned(),
        data_base64: text.is_none().then(|| BASE64_STANDARD.encode(&original.data)),
        cut_from: None,
        refused: None,
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

/// How a text begins.
fn beginning(text: &[u8], most: usize) -> String {
    String::from_utf8_lossy(&text[..text.len().min(most)]).into_owned()
}

/// Publishes dead letters. One that the log refuses for its size is cut, so that no record is too large to be put aside
/// and holds up its partition.
pub async fn publish(log: &dyn EventLog, letters: Vec<CloudEvent>) -> Result<(), LogError> {
    let (small, large): (Vec<_>, Vec<_>) = letters.into_iter().partition(|letter| letter.data.len() <= SURELY_TAKEN);
    log.publish(small).await?;
    for letter in large {
        match log.publish(vec![letter.clone()]).await {
            Err(LogError::TooLarge(_)) => log.publish(vec![cut(letter)]).await?,
            done => done?,
        }
    }
    Ok(())
}

/// A letter with how its original begins, instead of the whole.
fn cut(letter: CloudEvent) -> CloudEvent {
    // What `dead_letter` has written can be read.
    let Ok(whole) = serde_json::from_slice::<DeadLetter>(&letter.data) else { return letter };
    let bytes = whole.bytes();
    let short = |text: &str| beginning(text.as_bytes(), BEGINNING);
    let cut = DeadLetter {
        key: short(&whole.key),
        kind: short(&whole.kind),
        source: short(&whole.source),
        traceparent: whole.traceparent.filter(|parent| parent.len() <= BEGINNING),
        data: beginning(&bytes, BEGINNING),
        data_base64: None,
        cut_from: Some(bytes.len() as u64),
        ..whole
    };
    CloudEvent {
        key: cut.key.clone(),
        traceparent: cut.traceparent.clone(),
        data: serde_json::to_vec(&cut).unwrap_or_default(),
        ..letter
    }
}

fn original(letter: DeadLetter) -> CloudEvent {
    let data = letter.bytes();
    CloudEvent {
        id: letter.id,
        topic: letter.topic,
        key: letter.key,
        kind: letter.kind,
        source: letter.source,
        time: letter.time,
        traceparent: letter.traceparent,
        data,
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
/// many. Killed in between, it goes on where it was: some may be published twice, which no consumer minds. A letter
/// whose original cannot be published again stays and says why.
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
        let (mut originals, mut cut) = (Vec::new(), Vec::new());
        for record in &records {
            let next = published.entry(record.partition).or_insert(0);
            if record.offset < *next {
                continue;
            }
            *next = record.offset + 1;
            left = left.saturating_sub(1);
            match serde_json::from_slice::<DeadLetter>(&record.event.data) {
                Ok(letter) if letter.cut_from.is_some() => cut.push((&record.event, letter)),
                Ok(letter) => originals.push(original(letter)),
                Err(_) => {}
            }
        }
        let mut published_again = originals.len() as u64;
        log.publish(originals).await?;
        for (record, letter) in cut {
            published_again += u64::from(redrive_cut(log, record, letter).await?);
        }
        match subscription.commit(&next_offsets(&records)).await {
            Ok(()) | Err(LogError::Rebalanced) => {}
            Err(error) => return Err(error),
        }
        redriven += published_again;
    }
    Ok(redriven)
}

/// Publishes the original of a cut letter again, from where it lies; true where it was published. Where it has gone, or
/// the log does not take it, the letter goes to the end of those that wait: its beginning must not pass for the whole.
async fn redrive_cut(log: &dyn EventLog, record: &CloudEvent, mut letter: DeadLetter) -> Result<bool, LogError> {
    let place = Offset { topic: letter.topic.clone(), partition: letter.partition, offset: letter.offset };
    let found = log.record_at(&place).await?;
    // A topic that was made anew may have another one there.
    let is_it = |found: &CloudEvent| found.id == letter.id && letter.cut_from == Some(found.data.len() as u64);
    let refused = match found.filter(is_it) {
        None => "its original is not in the log any more".to_owned(),
        Some(original) => match log.publish(vec![original]).await {
            Ok(()) => return Ok(true),
            Err(error @ LogError::TooLarge(_)) => chain(&error),
            Err(error) => return Err(error),
        },
    };
    error!(
        group = letter.group,
        topic = letter.topic,
        partition = letter.partition,
        offset = letter.offset,
        refused,
        "a dead letter cannot be published again, and waits on"
    );
    letter.refused = Some(refused);
    let data = serde_json::to_vec(&letter).unwrap_or_default();
    log.publish(vec![CloudEvent { data, ..record.clone() }]).await?;
    Ok(false)
}

/// Has the log remember which letters of `group` have been redriven, as long as this runs: without end.
pub async fn remember(log: &dyn EventLog, clock: &dyn Clock, group: &str) {
    loop {
        clock.sleep(REMINDER).await;
        // To join and leave is what counts: a commit from outside of the group does not make the time start anew.
        match log.subscribe(&redrive_group(group), &[&topic_of(group)]).await {
            Ok(subscription) => drop(subscription),
            Err(error) => warn!(group, error = %chain(&error), "the log is reminded of redriven letters later"),
        }
    }
}

/// Every consumer group that may have dead letters: the services that listen.
pub const GROUPS: [&str; 6] = ["delivery", "package", "fleet", "tracking", "history", "lookup"];
