//! Flights in Redis: a bucket of them shares a hash tag, so that one script changes state, mission log and outbox at once.
//!
//! An acknowledged change is in the append-only file of its primary (`appendfsync always`), and one that is not only a
//! position is at a replica besides, where the primary has any. A failover may so lose the last positions, which the next
//! report replaces, and never a command, unless the primary had lost its replicas before.

mod cluster;
mod connection;
mod documents;
mod keys;
mod news;
mod outbox;
mod save;
mod script;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use contracts::{DeliveryId, Timestamp};
use futures::future::try_join_all;
use messaging::outbox::{Bucket, OutboxSource};
use redis::{RedisError, cmd, pipe};

use self::{
    connection::{Address, Connection, Way},
    documents::{Entry, Fields, Unreadable},
    keys::{BUCKETS, Keys, bucket_of},
    news::News,
    outbox::RedisOutbox,
    save::SaveScript,
    script::{Call, Script},
};
use super::{
    Audience, AuditRow, Change, Elsewhere, LogPage, LogPosition, Look, QuietFlight, SaveError, Store, Unavailable,
};
use crate::domain::{Flight, MissionNote, Version};

/// Flights read in one request: some tens of kilobytes, and well below a millisecond of the server.
const READ_AT_ONCE: usize = 128;

impl From<RedisError> for Unavailable {
    fn from(error: RedisError) -> Self {
        Self(Arc::new(error))
    }
}

impl From<Unreadable> for Unavailable {
    fn from(error: Unreadable) -> Self {
        Self(Arc::new(error))
    }
}

impl From<redis::ParsingError> for Unavailable {
    fn from(error: redis::ParsingError) -> Self {
        Self(Arc::new(error))
    }
}

/// What the store and its outbox share.
struct Shared {
    connection: Connection,
    keys: Keys,
    news: Arc<News>,
}

/// The store of flights on a Redis server or cluster.
pub(super) struct RedisStore {
    shared: Arc<Shared>,
    save: SaveScript,
    forget: Script,
}

impl RedisStore {
    /// Connects, and listens to what other instances change.
    pub(super) async fn open(url: &str) -> anyhow::Result<Self> {
        let address = Address::parse(url)?;
        let (news, keys) = (Arc::new(News::new()), Keys::new(&address.prefix));
        let hearing = news.clone();
        let connection = Connection::open(&address, move |push| {
            hearing.hear(&push);
            Ok(())
        });
        let connection = connection.await?;
        let channels: Vec<String> = (0..BUCKETS).map(|bucket| keys.channel(bucket)).collect();
        connection.listen(&channels).await?;
        let shared = Arc::new(Shared { connection, keys, news });
        Ok(Self { shared, save: SaveScript::new(), forget: Script::new(include_str!("forget.lua")) })
    }

    /// The outbox in the same buckets.
    pub(super) fn outbox(&self) -> Arc<dyn OutboxSource> {
        Arc::new(RedisOutbox::new(self.shared.clone()))
    }

    /// Every flight and tombstone.
    pub(super) async fn audit_rows(&self) -> Result<Vec<AuditRow>, Unavailable> {
        let mut rows = Vec::new();
        for bucket in 0..BUCKETS {
            let mut ids = pipe();
            for key in [self.shared.keys.open(bucket), self.shared.keys.closed(bucket)] {
                ids.cmd("ZRANGE").arg(key).arg(0).arg(-1);
            }
            let ids: Vec<Vec<String>> = self.shared.connection.pipe(&ids).await?;
            let ids: Vec<DeliveryId> = ids.concat().iter().map(|id| id_of(id)).collect::<Result<_, _>>()?;
            let row = |flight: Flight| AuditRow {
                delivery_id: flight.delivery_id,
                attempt: flight.attempt,
                open: flight.is_open(),
                stages: flight.stages,
            };
            rows.extend(self.load(&ids).await?.into_iter().map(row));
        }
        rows.sort_unstable_by_key(|row| row.delivery_id);
        Ok(rows)
    }

    /// Asks one thing of every bucket.
    async fn of_every_bucket<T: redis::FromRedisValue>(
        &self,
        command: impl Fn(Bucket) -> redis::Cmd,
    ) -> Result<Vec<T>, Unavailable> {
        let commands: Vec<_> = (0..BUCKETS).map(command).collect();
        Ok(try_join_all(commands.iter().map(|command| self.shared.connection.ask(command))).await?)
    }

    /// The numbers of the last lines of the mission log.
    async fn mission_counts(&self) -> Result<Vec<u64>, Unavailable> {
        let count = |bucket| cmd("HGET").arg(self.shared.keys.counts(bucket)).arg("missions").take();
        let counts = self.of_every_bucket::<Option<u64>>(count).await?;
        Ok(counts.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Lines of a bucket's mission log after a number, with their numbers.
    async fn lines(&self, bucket: Bucket, after: u64, limit: u32) -> Result<Vec<(u64, MissionNote)>, Unavailable> {
        let mut range = cmd("XRANGE");
        range.arg(self.shared.keys.missions(bucket)).arg(format!("({after}-0")).arg("+").arg("COUNT").arg(limit);
        let entries: Vec<Entry> = self.shared.connection.ask(&range).await?;
        entries.into_iter().map(line).collect()
    }

    /// The flights' versions and the rest; in requests of one bucket each, all at once.
    async fn read<T, F>(
        &self,
        ids: &[DeliveryId],
        fields: &'static [&'static str],
        read: F,
    ) -> Result<Vec<T>, Unavailable>
    where
        F: Fn(DeliveryId, Vec<redis::Value>) -> Result<Option<T>, Unavailable> + Send + Sync,
    {
        let mut by_bucket: BTreeMap<Bucket, Vec<DeliveryId>> = BTreeMap::new();
        for id in ids {
            by_bucket.entry(bucket_of(*id)).or_default().push(*id);
        }
        let requests: Vec<&[DeliveryId]> = by_bucket.values().flat_map(|ids| ids.chunks(READ_AT_ONCE)).collect();
        let answers = requests.iter().map(|ids| {
            let mut commands = pipe();
            for id in *ids {
                commands.cmd("HMGET").arg(self.shared.keys.flight(*id)).arg(fields);
            }
            async move { self.shared.connection.pipe::<Vec<Vec<redis::Value>>>(&commands).await }
        });
        let answers = try_join_all(answers).await?;
        let mut found = Vec::with_capacity(ids.len());
        for (ids, rows) in requests.into_iter().zip(answers) {
            for (id, row) in ids.iter().zip(rows) {
                found.extend(read(*id, row)?);
            }
        }
        Ok(found)
    }
}

fn id_of(text: &str) -> Result<DeliveryId, Unreadable> {
    text.parse().map_err(|_| Unreadable::new(format!("the id '{text}'"), None))
}

/// A line of the mission log: its number and what it says.
fn line((id, fields): Entry) -> Result<(u64, MissionNote), Unavailable> {
    let unreadable = |cause| Unreadable::new(format!("line {id} of a mission log"), cause);
    let number = id.split_once('-').and_then(|(number, _)| number.parse().ok()).ok_or_else(|| unreadable(None))?;
    let fields = documents::fields_of(fields)?;
    let note = fields.get("note").ok_or_else(|| unreadable(None))?;
    Ok((number, serde_json::from_slice(note).map_err(|error| unreadable(Some(error)))?))
}

#[async_trait]
impl Store for RedisStore {
    async fn ping(&self) -> Result<(), Unavailable> {
        self.of_every_bucket::<u64>(|bucket| cmd("EXISTS").arg(self.shared.keys.counts(bucket)).take()).await?;
        Ok(self.shared.connection.ping_aside().await?)
    }

    async fn load(&self, ids: &[DeliveryId]) -> Result<Vec<Flight>, Unavailable> {
        self.read(ids, &documents::FIELDS, |id, row| {
            let fields: Fields = redis::FromRedisValue::from_redis_value(redis::Value::Array(row))?;
            Ok(documents::flight(id, fields)?)
        })
        .await
    }

    async fn moved(&self, known: &[(DeliveryId, Version)]) -> Result<Vec<Flight>, Unavailable> {
        let known: BTreeMap<DeliveryId, Version> = known.iter().copied().collect();
        let ids: Vec<DeliveryId> = known.keys().copied().collect();
        let moved = self.read(&ids, &["version"], |id, row| {
            let (version,): (Option<u64>,) = redis::FromRedisValue::from_redis_value(redis::Value::Array(row))?;
            Ok(version.map(Version::from).filter(|version| known.get(&id) != Some(version)).map(|_| id))
        });
        let moved = moved.await?;
        self.load(&moved).await
    }

    async fn save(&self, changes: &[Change], now: Timestamp) -> Vec<Result<(), SaveError>> {
        save::save(&self.shared, &self.save, changes, now).await
    }

    async fn missions(&self, audience: &Audience) -> Result<Vec<Flight>, Unavailable> {
        let members = |bucket| cmd("SMEMBERS").arg(self.shared.keys.audience(bucket, audience)).take();
        let ids = self.of_every_bucket::<Vec<String>>(members).await?.concat();
        let ids: Vec<DeliveryId> = ids.iter().map(|id| id_of(id)).collect::<Result<_, _>>()?;
        let mut flights = self.load(&ids).await?;
        flights.retain(|flight| {
            let flies = flight.plan.as_ref().is_some_and(|plan| match audience {
                Audience::Base(base) => plan.base_id == *base,
                Audience::Drone(drone) => plan.drone_id == *drone,
            });
            // It may have changed between the two reads.
            flies && flight.is_open()
        });
        Ok(flights)
    }

    async fn mission_log_end(&self) -> Result<LogPosition, Unavailable> {
        Ok(LogPosition(self.mission_counts().await?))
    }

    async fn mission_log(&self, after: &LogPosition, limit: u32, look: Look) -> Result<LogPage, Unavailable> {
        let mut position = after.clone();
        let mut page = LogPage { lines: Vec::new(), position: after.clone(), gap: false, more: false };
        let written = self.shared.news.take_missions();
        let buckets: Vec<Bucket> = match look {
            Look::WhereHeard => written.into_iter().collect(),
            Look::Everywhere => {
                let counts = self.mission_counts().await?;
                let behind = |(at, (read, count)): (Bucket, (&mut u64, u64))| {
                    if *read > count {
                        // The store lost its last lines, and their numbers are used again.
                        *read = count;
                        page.gap = true;
                        return None;
                    }
                    (*read < count).then_some(at)
                };
                (0..).zip(position.0.iter_mut().zip(counts)).filter_map(behind).collect()
            }
        };
        let asked = buckets.iter().map(|bucket| self.lines(*bucket, position.0[usize::from(*bucket)], limit));
        for (bucket, lines) in buckets.iter().zip(try_join_all(asked).await?) {
            let read = &mut position.0[usize::from(*bucket)];
            page.more |= lines.len() == limit as usize;
            page.gap |= lines.first().is_some_and(|(first, _)| *first != *read + 1);
            if let Some((last, _)) = lines.last() {
                *read = *last;
            } else if look == Look::Everywhere {
                // Trimmed since, all of it.
                page.gap = true;
                *read = self.mission_counts().await?[usize::from(*bucket)];
            }
            page.lines.extend(lines.into_iter().map(|(_, note)| note));
        }
        if page.more {
            // Only where it looked this time; those are known to be behind.
            for bucket in buckets {
                self.shared.news.wrote(bucket, false, true);
            }
        }
        page.position = position;
        Ok(page)
    }

    async fn changed_elsewhere(&self) -> Elsewhere {
        self.shared.news.changed_elsewhere().await
    }

    /// By bucket, and by id within a bucket.
    async fn quiet(
        &self,
        changed_before: Timestamp,
        after: Option<DeliveryId>,
        limit: u32,
    ) -> Result<Vec<QuietFlight>, Unavailable> {
        let mut quiet = Vec::new();
        for bucket in after.map_or(0, bucket_of)..BUCKETS {
            let mut range = cmd("ZRANGE");
            range.arg(self.shared.keys.open(bucket)).arg("-inf").arg(format!("({}", changed_before.timestamp_micros()));
            let ids: Vec<String> = self.shared.connection.ask(range.arg("BYSCORE")).await?;
            let mut ids: Vec<DeliveryId> = ids.iter().map(|id| id_of(id)).collect::<Result<_, _>>()?;
            ids.sort_unstable();
            ids.retain(|id| after.is_none_or(|after| bucket != bucket_of(after) || *id > after));
            ids.truncate(limit as usize - quiet.len());
            let mut flights = self.load(&ids).await?;
            flights.retain(|flight| flight.is_open() && flight.changed_at < changed_before);
            flights.sort_unstable_by_key(|flight| flight.delivery_id);
            quiet.extend(flights.into_iter().map(|flight| QuietFlight {
                delivery_id: flight.delivery_id,
                attempt: flight.attempt,
                changed_at: flight.changed_at,
            }));
            if quiet.len() >= limit as usize {
                break;
            }
        }
        Ok(quiet)
    }

    async fn forget(&self, closed_before: Timestamp, limit: u32) -> Result<u64, Unavailable> {
        let mut forgotten = 0;
        let before = closed_before.timestamp_micros();
        for bucket in 0..BUCKETS {
            let mut range = cmd("ZRANGE");
            range.arg(self.shared.keys.closed(bucket)).arg("-inf").arg(format!("({before}")).arg("BYSCORE");
            range.arg("LIMIT").arg(0).arg(u64::from(limit) - forgotten);
            let ids: Vec<String> = self.shared.connection.ask(&range).await?;
            if ids.is_empty() {
                continue;
            }
            let mut call = Call::default();
            call.key(&self.shared.keys.closed(bucket)).key(&self.shared.keys.positions(bucket)).arg(before);
            for id in ids {
                call.key(&self.shared.keys.flight(id_of(&id)?)).arg(id);
            }
            forgotten += self.shared.connection.run::<u64>(&self.forget, &call, Way::Main).await?;
            if forgotten >= u64::from(limit) {
                break;
            }
        }
        Ok(forgotten)
    }

    async fn trim_mission_log(&self, logged_before: Timestamp, limit: u32) -> Result<u64, Unavailable> {
        let mut trimmed = 0;
        for bucket in 0..BUCKETS {
            let key = self.shared.keys.missions(bucket);
            let mut range = cmd("XRANGE");
            range.arg(&key).arg("-").arg("+").arg("COUNT").arg(u64::from(limit) - trimmed);
            let entries: Vec<Entry> = self.shared.connection.ask(&range).await?;
            let mut delete = cmd("XDEL");
            delete.arg(&key);
            let mut old = 0;
            for (id, fields) in entries {
                let at =
                    documents::fields_of(fields)?.get("at").and_then(|at| std::str::from_utf8(at).ok()?.parse().ok());
                if at.is_some_and(|at: i64| at >= logged_before.timestamp_micros()) {
                    break;
                }
                delete.arg(id);
                old += 1;
            }
            if old > 0 {
                trimmed += self.shared.connection.ask::<u64>(&delete).await?;
            }
            if trimmed >= u64::from(limit) {
                break;
            }
        }
        Ok(trimmed)
    }
}

#[cfg(test)]
mod tests;
