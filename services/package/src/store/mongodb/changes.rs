//! The outbox of a MongoDB store by a change stream: it tells which packages have something to say.

use std::{collections::HashSet, time::Duration};

use ::mongodb::{
    Collection, Database,
    action::Watch,
    bson::{self, Document, Uuid, doc},
    change_stream::{ChangeStream, event::ResumeToken},
    error::{Error, ErrorKind},
};
use async_trait::async_trait;
use contracts::Timestamp;
use futures::FutureExt;
use messaging::{
    abort_point,
    outbox::{Bucket, OutboxError, OutboxRow, OutboxSource, Place},
};
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};
use tracing::warn;

use super::{
    PACKAGES, documents,
    outbox::{MongoOutbox, of_buckets, unavailable},
    positions,
};

/// How often a position is stored at most: a successor hears so much again, and finds nothing left to tell in it.
const POSITION_EVERY: Duration = Duration::from_secs(5);

/// A position that is older is not gone on from: a poll finds what waits sooner than a stream that begins with all that
/// was written since.
const OLDEST_POSITION: chrono::Duration = chrono::Duration::minutes(10);

/// How often the index is polled though the stream tells everything: of documents that came in otherwise, from a backup
/// or by hand, no stream tells; and a shard without writes holds a cluster's streams up for ten seconds.
const POLL_EVERY: Duration = Duration::from_secs(30);

/// The server's codes for a position that the oplog does not hold any more, or that is none of this collection.
const LOST_POSITION: [i32; 3] = [260, 280, 286];

/// What a relay by changes reads.
///
/// The stream says only which packages have changed: the events are read from their documents, which know what has left
/// already. So a change may be heard twice, a position may be old, and a poll may come in between at any time; nothing
/// of it doubles an event, or lets one overtake another of its package.
pub(super) struct ChangesOutbox {
    database: Database,
    packages: Collection<Document>,
    polled: MongoOutbox,
    hearing: Mutex<Hearing>,
}

#[derive(Default)]
struct Hearing {
    /// The time of the last lease.
    now: Timestamp,
    /// Stored positions are good for nothing: the stream has ended, or they are not in the oplog any more.
    lost: bool,
    /// None until the leased buckets are read, and after a failure.
    held: Option<Held>,
}

/// What is heard of the buckets that are held.
struct Held {
    buckets: Vec<Bucket>,
    stream: ChangeStream<Change>,
    /// When the last change that was heard was written: what is read must not be older.
    heard_at: bson::Timestamp,
    /// Packages of these buckets that may have something to tell; each once, in the order of their changes.
    changed: Vec<Uuid>,
    known: HashSet<Uuid>,
    /// Whether the index is read first: what was written before the stream's beginning is found only there.
    polls: bool,
    polled_at: Instant,
    /// How many events the last read answered, if those were all.
    answered: Option<usize>,
    stored: Option<(ResumeToken, Instant)>,
}

/// A write of a package, as the stream tells it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Change {
    document_key: DocumentKey,
    cluster_time: bson::Timestamp,
}

#[derive(Debug, Deserialize)]
struct DocumentKey {
    #[serde(rename = "_id")]
    id: Uuid,
}

/// The stream has come to its end: the collection was dropped or renamed.
#[derive(Debug, thiserror::Error)]
#[error("the change stream has ended")]
struct Ended;

/// The server has no oplog that a stream could read.
#[derive(Debug, thiserror::Error)]
#[error("the server is no member of a replica set")]
struct Alone;

impl ChangesOutbox {
    pub(super) async fn open(database: Database) -> Result<Self, Error> {
        let packages = database.collection(PACKAGES);
        let polled = MongoOutbox::new(database.clone());
        let outbox = Self { database, packages, polled, hearing: Mutex::default() };
        // A server that has none, or a user who may not read it, is heard of now and not by a relay that stands still.
        outbox.watch().await?;
        Ok(outbox)
    }

    /// Writes of packages, but not what a relay takes out of them. Without a comment: the driver puts it where the server
    /// refuses it.
    fn watch(&self) -> Watch<'_, Document> {
        let written = doc! { "$or": [
            { "operationType": { "$in": ["insert", "replace"] } },
            { "updateDescription.updatedFields.revision": { "$exists": true } },
        ] };
        let only = doc! { "documentKey": 1, "clusterTime": 1 };
        self.packages.watch().pipeline([doc! { "$match": written }, doc! { "$project": only }])
    }

    /// Begins to hear of these buckets: from their stored position on, or else from now, with a poll for what was before.
    async fn hear(&self, buckets: &[Bucket], now: Timestamp, lost: bool) -> Result<Held, OutboxError> {
        let answer = self.database.run_command(doc! { "ping": 1 }).await.map_err(unavailable)?;
        let start = answer.get_timestamp("operationTime").map_err(|_| unavailable(Alone))?;
        let mut position = None;
        if !lost {
            let oldest = now - OLDEST_POSITION;
            position = positions::load(&self.database, buckets, oldest).await.map_err(unavailable)?;
        }
        if let Some(position) = position {
            match self.watch().resume_after(position).await {
                Ok(stream) => return Ok(Held::new(buckets, stream.with_type(), start, false)),
                Err(error) if is_lost(&error) => {
                    warn!(%error, "the relay's position is lost: it polls, and hears from now on");
                }
                Err(error) => return Err(unavailable(error)),
            }
        }
        let stream = self.watch().start_at_operation_time(start).await.map_err(unavailable)?;
        Ok(Held::new(buckets, stream.with_type(), start, true))
    }

    /// Everything that was heard of, or polled, has left: remembers how far that is.
    async fn handled(&self, held: &mut Held, now: Timestamp) -> Result<(), OutboxError> {
        held.answered = None;
        if held.polls {
            held.polls = false;
            held.polled_at = Instant::now();
        } else {
            held.changed.clear();
            held.known.clear();
        }
        let Some(position) = held.stream.resume_token() else { return Ok(()) };
        let known =
            held.stored.as_ref().is_some_and(|(stored, at)| *stored == position || at.elapsed() < POSITION_EVERY);
        if !known {
            abort_point("package.events_pulled");
            positions::store(&self.database, &held.buckets, &position, now).await.map_err(unavailable)?;
            held.stored = Some((position, Instant::now()));
        }
        Ok(())
    }
}

impl Hearing {
    /// The stream is of no use any more.
    fn fail(&mut self, failure: Failure) -> OutboxError {
        self.held = None;
        match failure {
            Failure::Ended => {
                self.lost = true;
                unavailable(Ended)
            }
            Failure::Driver(error) => {
                self.lost = is_lost(&error);
                unavailable(error)
            }
        }
    }
}

/// Why nothing more is heard.
enum Failure {
    Ended,
    Driver(Error),
}

impl Held {
    fn new(buckets: &[Bucket], stream: ChangeStream<Change>, start: bson::Timestamp, polls: bool) -> Self {
        Self {
            buckets: buckets.to_vec(),
            stream,
            heard_at: start,
            changed: Vec::new(),
            known: HashSet::new(),
            polls,
            polled_at: Instant::now(),
            answered: None,
            stored: None,
        }
    }

    fn has(&self, buckets: &[Bucket]) -> bool {
        self.buckets.len() == buckets.len() && self.buckets.iter().all(|bucket| buckets.contains(bucket))
    }

    /// Takes the next change, and waits for it as long as the server does for one request; whether there may be more.
    /// Cancel-safe: what was asked of the server goes on in the cursor.
    async fn next(&mut self) -> Result<bool, Failure> {
        let Some(change) = self.stream.next_if_any().await.map_err(Failure::Driver)? else {
            return if self.stream.is_alive() { Ok(false) } else { Err(Failure::Ended) };
        };
        self.heard_at = self.heard_at.max(change.cluster_time);
        let id = change.document_key.id;
        if self.buckets.contains(&documents::bucket(documents::delivery_id(id))) && self.known.insert(id) {
            self.changed.push(id);
        }
        Ok(true)
    }

    /// Takes the changes that are here already.
    fn take(&mut self, limit: usize) -> Result<(), Failure> {
        while self.changed.len() < limit {
            match self.next().now_or_never() {
                Some(Ok(true)) => {}
                Some(Ok(false)) | None => break,
                Some(Err(failure)) => return Err(failure),
            }
        }
        Ok(())
    }

    /// What is to be read.
    fn filter(&self) -> Document {
        if self.polls {
            of_buckets(&self.buckets)
        } else {
            doc! { "_id": { "$in": self.changed.clone() } }
        }
    }
}

fn is_lost(error: &Error) -> bool {
    matches!(*error.kind, ErrorKind::Command(ref failure) if LOST_POSITION.contains(&failure.code))
}

#[async_trait]
impl OutboxSource for ChangesOutbox {
    async fn lease(&self, owner: &str, now: Timestamp, until: Timestamp) -> Result<Vec<Bucket>, OutboxError> {
        let buckets = self.polled.lease(owner, now, until).await?;
        let mut hearing = self.hearing.lock().await;
        hearing.now = now;
        if hearing.held.as_ref().is_some_and(|held| !held.has(&buckets)) {
            hearing.held = None;
        }
        Ok(buckets)
    }

    async fn read(&self, buckets: &[Bucket], limit: usize) -> Result<Vec<OutboxRow>, OutboxError> {
        let mut guard = self.hearing.lock().await;
        let hearing = &mut *guard;
        let held = match &mut hearing.held {
            Some(held) if held.has(buckets) => held,
            slot => {
                let held = self.hear(buckets, hearing.now, hearing.lost).await?;
                hearing.lost = false;
                slot.insert(held)
            }
        };
        if held.changed.is_empty() && held.polled_at.elapsed() >= POLL_EVERY {
            held.polls = true;
        }
        if !held.polls
            && let Err(failure) = held.take(limit)
        {
            return Err(hearing.fail(failure));
        }
        let rows = if held.polls || !held.changed.is_empty() {
            self.polled.told(held.filter(), limit, Some(held.heard_at)).await?
        } else {
            Vec::new()
        };
        held.answered = (rows.len() < limit).then_some(rows.len());
        if rows.is_empty() {
            self.handled(held, hearing.now).await?;
        }
        Ok(rows)
    }

    async fn delete(&self, places: &[Place]) -> Result<(), OutboxError> {
        self.polled.delete(places).await?;
        let mut guard = self.hearing.lock().await;
        let hearing = &mut *guard;
        match &mut hearing.held {
            Some(held) if held.answered == Some(places.len()) => self.handled(held, hearing.now).await,
            _ => Ok(()),
        }
    }

    async fn backlog(&self) -> Result<u64, OutboxError> {
        self.polled.backlog().await
    }

    async fn woken(&self) -> Result<(), OutboxError> {
        let mut hearing = self.hearing.lock().await;
        let Some(held) = &mut hearing.held else {
            drop(hearing);
            return std::future::pending().await;
        };
        while !held.polls && held.changed.is_empty() {
            if let Err(failure) = held.next().await {
                return Err(hearing.fail(failure));
            }
        }
        Ok(())
    }
}
