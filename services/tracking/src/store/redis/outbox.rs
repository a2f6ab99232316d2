//! The outbox in Redis: a stream in each bucket, read by who has leased the bucket, which deletes what it has published.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use contracts::{Timestamp, events::CloudEvent};
use futures::future::try_join_all;
use messaging::outbox::{Bucket, Leases, OutboxError, OutboxRow, OutboxSource, Place};
use redis::cmd;

use super::{
    Shared,
    connection::Way,
    documents::{self, Entry, Unreadable},
    keys::BUCKETS,
    script::{Call, Script},
};

/// Lost races for the leases before the relay is told, which tries again by itself.
const LEASE_ATTEMPTS: usize = 10;

/// How often every leased bucket is looked at, though nobody said that there is something: a hint may be lost with the
/// process that had to give it.
const LOOK_EVERYWHERE: Duration = Duration::from_millis(500);

/// Others kept changing the leases.
#[derive(Debug, thiserror::Error)]
#[error("the leases were changed by others each time")]
struct Contended;

/// What is known of where events wait.
#[derive(Default)]
struct Known {
    /// The buckets that were leased last.
    leased: Vec<Bucket>,
    /// Buckets that had more than was read.
    left: BTreeSet<Bucket>,
    looked_everywhere: Option<Instant>,
    /// Where the next reading begins, so that a bucket that is never empty starves nobody.
    first: Bucket,
}

pub(super) struct RedisOutbox {
    shared: Arc<Shared>,
    lease: Script,
    known: Mutex<Known>,
}

impl RedisOutbox {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, lease: Script::new(include_str!("lease.lua")), known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of the buckets that may have events, in the order of reading.
    fn candidates(&self, buckets: &[Bucket]) -> Vec<Bucket> {
        let written = self.shared.news.take_outboxes(buckets);
        let mut known = self.known();
        let everywhere = known.looked_everywhere.is_none_or(|at| at.elapsed() >= LOOK_EVERYWHERE);
        let mut candidates: Vec<Bucket> = if everywhere {
            known.looked_everywhere = Some(Instant::now());
            buckets.to_vec()
        } else {
            buckets.iter().copied().filter(|bucket| written.contains(bucket) || known.left.contains(bucket)).collect()
        };
        let first = known.first;
        candidates.sort_unstable_by_key(|bucket| (*bucket < first, *bucket));
        candidates
    }

    /// How many events wait in each of these.
    async fn lengths(&self, buckets: &[Bucket]) -> Result<Vec<usize>, OutboxError> {
        let commands: Vec<_> = buckets.iter().map(|b| cmd("XLEN").arg(self.shared.keys.outbox(*b)).take()).collect();
        try_join_all(commands.iter().map(|command| self.shared.connection.ask(command))).await.map_err(unavailable)
    }
}

#[async_trait]
impl OutboxSource for RedisOutbox {
    async fn lease(&self, owner: &str, now: Timestamp, until: Timestamp) -> Result<Vec<Bucket>, OutboxError> {
        let key = self.shared.keys.leases();
        let mut read = cmd("HMGET");
        read.arg(&key).arg("revision").arg("leases");
        for _ in 0..LEASE_ATTEMPTS {
            let (revision, leases): (Option<u64>, Option<String>) =
                self.shared.connection.ask(&read).await.map_err(unavailable)?;
            let mut leases = match leases {
                Some(text) => serde_json::from_str(&text).map_err(unavailable)?,
                None => Leases::free(BUCKETS),
            };
            let held = leases.renew(owner, now, until);
            let mut call = Call::default();
            call.key(&key).arg(revision.unwrap_or(0)).arg(serde_json::to_string(&leases).map_err(unavailable)?);
            if self.shared.connection.run::<u8>(&self.lease, &call, Way::Main).await.map_err(unavailable)? == 1 {
                let mut known = self.known();
                if known.leased != held {
                    // What waits in the new ones was announced to somebody else.
                    *known = Known { leased: held.clone(), first: known.first, ..Known::default() };
                }
                return Ok(held);
            }
        }
        Err(unavailable(Contended))
    }

    async fn read(&self, buckets: &[Bucket], limit: usize) -> Result<Vec<OutboxRow>, OutboxError> {
        let candidates = self.candidates(buckets);
        let result = async {
            let lengths = self.lengths(&candidates).await?;
            let (mut room, mut asked, mut left) = (limit, Vec::new(), BTreeSet::new());
            for (bucket, length) in candidates.iter().zip(lengths) {
                let count = length.min(room);
                room -= count;
                if count > 0 {
                    let key = self.shared.keys.outbox(*bucket);
                    asked.push((*bucket, cmd("XRANGE").arg(key).arg("-").arg("+").arg("COUNT").arg(count).take()));
                }
                if length > 0 {
                    // Until a look finds it empty: what was read may not have been published.
                    left.insert(*bucket);
                }
            }
            let entries = try_join_all(asked.iter().map(|(_, range)| self.shared.connection.ask::<Vec<Entry>>(range)));
            let entries = entries.await.map_err(unavailable)?;
            let mut known = self.known();
            known.left = left;
            known.first = asked.last().map_or(0, |(bucket, _)| (bucket + 1) % BUCKETS);
            drop(known);
            let rows = asked
                .iter()
                .zip(entries)
                .flat_map(|((bucket, _), entries)| entries.into_iter().map(|entry| row(*bucket, entry)));
            rows.collect()
        };
        let rows: Result<Vec<OutboxRow>, OutboxError> = result.await;
        if rows.is_err() {
            self.known().looked_everywhere = None;
        }
        rows
    }

    async fn delete(&self, places: &[Place]) -> Result<(), OutboxError> {
        let mut by_bucket: BTreeMap<Bucket, Vec<&str>> = BTreeMap::new();
        for place in places {
            if let Place::Entry { bucket, id } = place {
                by_bucket.entry(*bucket).or_default().push(id);
            }
        }
        let commands: Vec<_> = by_bucket
            .into_iter()
            .map(|(bucket, ids)| cmd("XDEL").arg(self.shared.keys.outbox(bucket)).arg(ids).take())
            .collect();
        let deleted = commands.iter().map(|command| self.shared.connection.ask::<u64>(command));
        try_join_all(deleted).await.map_err(unavailable)?;
        Ok(())
    }

    async fn backlog(&self) -> Result<u64, OutboxError> {
        let all: Vec<Bucket> = (0..BUCKETS).collect();
        Ok(self.lengths(&all).await?.into_iter().map(|length| length as u64).sum())
    }

    async fn woken(&self) -> Result<(), OutboxError> {
        self.shared.news.outbox_written_elsewhere().await;
        Ok(())
    }
}

fn row(bucket: Bucket, (id, fields): Entry) -> Result<OutboxRow, OutboxError> {
    let mut fields = documents::fields_of(fields).map_err(unavailable)?;
    let event = event(&mut fields).ok_or_else(|| Unreadable::new(format!("entry {id} of outbox {bucket}"), None));
    Ok(OutboxRow { place: Place::Entry { bucket, id }, event: event.map_err(unavailable)? })
}

fn event(fields: &mut HashMap<String, Vec<u8>>) -> Option<CloudEvent> {
    let data = fields.remove("data")?;
    let mut text = |name: &str| String::from_utf8(fields.remove(name)?).ok();
    Some(CloudEvent {
        id: text("id")?.parse().ok()?,
        topic: text("topic")?,
        key: text("key")?,
        kind: text("kind")?,
        source: text("source")?,
        time: text("time")?.parse().ok()?,
        traceparent: text("traceparent").filter(|parent| !parent.is_empty()),
        data,
    })
}

fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> OutboxError {
    OutboxError::Unavailable(error.into())
}
