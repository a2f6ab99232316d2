//! Packages in MongoDB, sharded by the hash of their id: a small hot document with the events that tell its changes, and
//! its bulky contents apart. One write of one document is all that must be atomic.

mod changes;
mod documents;
mod leases;
mod outbox;
mod positions;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ::mongodb::{
    Collection, Database, IndexModel,
    bson::{Document, Uuid, doc},
    error::{Error, ErrorKind},
    options::IndexOptions,
};
use async_trait::async_trait;
use chrono::SubsecRound;
use contracts::{
    Clock, DeliveryId, Timestamp,
    commands::RegisterPackage,
    events::{CloudEvent, PackageRecord, PackageState},
};
use futures::TryStreamExt;
use messaging::{
    abort_point,
    mongodb::{self, UpdateError},
    outbox::{OutboxSignal, OutboxSource},
};

use self::{
    changes::ChangesOutbox,
    documents::{Stored, Unreadable, key},
    outbox::MongoOutbox,
};
use super::{Applied, AuditPackage, Opened, Relaying, Store, StoreError};
use crate::domain::{self, Command, Package, in_time};

const PACKAGES: &str = "packages";
const CONTENTS: &str = "contents";

/// Comments of the commands that ask every shard, as the server's log and profiler show them.
const OUTBOX: &str = "outbox";
const BACKLOG: &str = "backlog";
const SWEEP: &str = "sweep";
const AUDIT: &str = "audit";

/// The database of a URL that names none.
const DATABASE: &str = "package";

/// How often commands are decided anew because another writer was faster. A delivery has few writers (its saga, its
/// end, a repeat of either), and each is done after one write.
const ATTEMPTS: usize = 10;

/// Batches of ingestion under way at once: while one waits for the journal, twice where a package has contents, the server
/// works on the others. Each has up to four commands under way, and there are sixteen connections. Batches about the same
/// package meet at its document's revision.
const WRITERS: usize = 4;

/// The server's code for a collection that exists already.
const NAMESPACE_EXISTS: i32 = 48;

pub(super) async fn open(url: &str, relaying: Relaying, clock: Arc<dyn Clock>) -> Result<Opened, StoreError> {
    opened(mongodb::open(url, DATABASE).await?, relaying, clock).await
}

async fn opened(database: Database, relaying: Relaying, clock: Arc<dyn Clock>) -> Result<Opened, StoreError> {
    if let Err(error) = database.create_collection(PACKAGES).validator(documents::schema()).await {
        match *error.kind {
            // By another replica, or by whoever sharded it before a service came.
            ErrorKind::Command(ref failure) if failure.code == NAMESPACE_EXISTS => {
                database.run_command(doc! { "collMod": PACKAGES, "validator": documents::schema() }).await?;
            }
            _ => return Err(error.into()),
        }
    }
    let packages = database.collection::<Document>(PACKAGES);
    let contents = database.collection::<Document>(CONTENTS);
    let mut indexes = vec![
        // Only the documents whose events have not all left: the relay's reads.
        index(doc! { "bucket": 1, "updated_us": 1 }, Some(outbox::waiting())),
        // Only the ended: registering does not touch it.
        index(doc! { "ended_us": 1 }, Some(doc! { "ended_us": { "$exists": true } })),
    ];
    if mongodb::through_router(&database).await? {
        // The shard key: `sh.shardCollection` finds it made. Elsewhere it would only cost each write a fifth more.
        indexes.push(index(doc! { "_id": "hashed" }, None));
    }
    packages.create_indexes(indexes).await?;
    contents.create_index(index(doc! { "delivery_id": "hashed" }, None)).await?;
    let signal = OutboxSignal::default();
    let outbox: Arc<dyn OutboxSource> = match relaying {
        Relaying::Poll => Arc::new(MongoOutbox::new(database.clone())),
        Relaying::Changes => Arc::new(ChangesOutbox::open(database.clone()).await?),
    };
    let store = Arc::new(MongoStore { database, packages, contents, clock, signal: signal.clone() });
    Ok(Opened { store, outbox, signal, writers: WRITERS })
}

fn index(keys: Document, only: Option<Document>) -> IndexModel {
    IndexModel::builder().keys(keys).options(IndexOptions::builder().partial_filter_expression(only).build()).build()
}

struct MongoStore {
    database: Database,
    packages: Collection<Document>,
    contents: Collection<Document>,
    clock: Arc<dyn Clock>,
    signal: OutboxSignal,
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        Self::Unavailable(Arc::new(error))
    }
}

impl From<UpdateError> for StoreError {
    fn from(error: UpdateError) -> Self {
        Self::Unavailable(Arc::new(error))
    }
}

impl From<Unreadable> for StoreError {
    fn from(error: Unreadable) -> Self {
        Self::Unavailable(Arc::new(error))
    }
}

#[async_trait]
impl Store for MongoStore {
    async fn apply(&self, commands: &[Command]) -> Vec<Applied> {
        let mut outcomes: Vec<Option<Applied>> = vec![None; commands.len()];
        let mut open: Vec<usize> = (0..commands.len()).collect();
        let mut todo = Cow::Borrowed(commands);
        for attempt in 0..ATTEMPTS {
            if open.is_empty() {
                break;
            }
            let answers = match self.round(&todo, attempt == 0).await {
                Ok(answers) => answers,
                Err(error) => vec![Some(Err(error)); open.len()],
            };
            let (mut lost, mut again) = (Vec::new(), Vec::new());
            for ((answer, place), command) in answers.into_iter().zip(open).zip(todo.iter()) {
                if answer.is_none() {
                    lost.push(place);
                    again.push(command.clone());
                } else if let Some(outcome) = outcomes.get_mut(place) {
                    *outcome = answer;
                }
            }
            (open, todo) = (lost, Cow::Owned(again));
        }
        let contended = || Err(UpdateError::Answer("other writers were faster each time".to_owned()).into());
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(contended)).collect()
    }

    async fn find(&self, delivery_id: DeliveryId) -> Result<Option<PackageRecord>, StoreError> {
        let Some(document) = self.packages.find_one(doc! { "_id": key(delivery_id) }).await? else { return Ok(None) };
        let mut found = vec![Stored::of(&document)?];
        self.fill(&mut found).await?;
        Ok(found.pop().map(|stored| stored.package.record()))
    }

    async fn sweep(&self, ended_before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let old = doc! {
            "ended_us": { "$lt": ended_before.timestamp_micros() },
            "outbox.0": { "$exists": false },
        };
        let mut found = self
            .packages
            .find(old.clone())
            .sort(doc! { "ended_us": 1 })
            .limit(i64::from(limit))
            .projection(doc! { "_id": 1 })
            .comment(SWEEP)
            .await?;
        let mut keys = Vec::new();
        while let Some(document) = found.try_next().await? {
            keys.push(documents::id(&document, "_id")?);
        }
        if keys.is_empty() {
            return Ok(0);
        }
        // All that were ever written for them, also by who was killed before the package was. Before the packages: what
        // remains of a sweep that was cut off is found by the next.
        self.contents.delete_many(doc! { "delivery_id": { "$in": keys.clone() } }).await?;
        abort_point("package.contents_swept");
        let mut filter = old;
        filter.insert("_id", doc! { "$in": keys });
        Ok(self.packages.delete_many(filter).await?.deleted_count)
    }

    async fn ready(&self) -> Result<(), StoreError> {
        self.database.run_command(doc! { "ping": 1 }).await?;
        Ok(())
    }
}

impl MongoStore {
    /// Decides commands over what is stored and writes what changes: an answer for each, or none where another writer
    /// was faster. A `blind` one takes it that what is registered is not stored, as nearly always: where it is, that
    /// writer was faster.
    async fn round(&self, commands: &[Command], blind: bool) -> Result<Vec<Option<Applied>>, StoreError> {
        // As precise as the document: what is read back equals what was told.
        let now = self.clock.now().trunc_subsecs(6);
        let stored = self.load(commands, |register| blind && in_time(register, now)).await?;
        let mut packages: HashMap<_, _> = stored.iter().map(|(id, stored)| (*id, stored.package.clone())).collect();
        let decided = domain::decide(&mut packages, commands, now, || self.clock.new_id());
        let mut events: HashMap<DeliveryId, Vec<CloudEvent>> = HashMap::new();
        for event in &decided.events {
            events.entry(event.data.delivery_id).or_default().push(event.encode());
        }
        let changed: Vec<&Package> = decided.changed.iter().filter_map(|id| packages.get(id)).collect();
        let refused = self.write(&changed, &stored, &events).await?;
        if !events.is_empty() {
            self.signal.wake();
        }
        let mut answers = Vec::with_capacity(commands.len());
        for (command, outcome) in commands.iter().zip(decided.outcomes) {
            answers.push(match refused.get(&command.delivery_id()) {
                None => Some(Ok(outcome)),
                Some(Fate::Lost) => None,
                Some(Fate::Failed(error)) => Some(Err(error.clone())),
            });
        }
        Ok(answers)
    }

    /// The packages that commands are about, but for those whose first command is a register that `skips` it; with their
    /// contents only where an event may have to tell them.
    async fn load(
        &self,
        commands: &[Command],
        skips: impl Fn(&RegisterPackage) -> bool + Send,
    ) -> Result<HashMap<DeliveryId, Stored>, StoreError> {
        let mut seen = HashSet::with_capacity(commands.len());
        let (mut keys, mut ends) = (Vec::new(), HashSet::new());
        for command in commands {
            let id = command.delivery_id();
            let skipped = match command {
                Command::Register(register) => skips(register),
                Command::Withdraw(_) | Command::End(_) => {
                    ends.insert(id);
                    false
                }
            };
            if seen.insert(id) && !skipped {
                keys.push(key(id));
            }
        }
        let (mut told, mut known) = (Vec::new(), Vec::new());
        if !keys.is_empty() {
            let mut found =
                self.packages.find(doc! { "_id": { "$in": keys } }).projection(doc! { "outbox": 0 }).await?;
            while let Some(document) = found.try_next().await? {
                let stored = Stored::of(&document)?;
                let tells =
                    stored.package.state == PackageState::Registered && ends.contains(&stored.package.delivery_id);
                if tells { told.push(stored) } else { known.push(stored) }
            }
        }
        self.fill(&mut told).await?;
        Ok(told.into_iter().chain(known).map(|stored| (stored.package.delivery_id, stored)).collect())
    }

    /// Gives packages what their contents say.
    async fn fill(&self, packages: &mut [Stored]) -> Result<(), StoreError> {
        let mut by_contents: HashMap<Uuid, &mut Stored> =
            packages.iter_mut().filter_map(|stored| Some((stored.contents?, stored))).collect();
        if by_contents.is_empty() {
            return Ok(());
        }
        let ids: Vec<Uuid> = by_contents.keys().copied().collect();
        let owners: Vec<Uuid> = by_contents.values().map(|stored| key(stored.package.delivery_id)).collect();
        let filter = doc! { "delivery_id": { "$in": owners }, "_id": { "$in": ids } };
        let mut found = self.contents.find(filter).await?;
        while let Some(document) = found.try_next().await? {
            if let Some(stored) = by_contents.remove(&documents::id(&document, "_id")?) {
                documents::fill(&mut stored.package, &document);
            }
        }
        // Of an ended one the sweep may have taken them a moment ago.
        let missing = by_contents.values().find(|stored| stored.package.state == PackageState::Registered);
        missing.map_or(Ok(()), |stored| {
            Err(Unreadable::new(format!("{} has lost its contents", stored.package.delivery_id)).into())
        })
    }

    /// Writes contents, then packages with their events: those that were refused.
    async fn write(
        &self,
        packages: &[&Package],
        stored: &HashMap<DeliveryId, Stored>,
        events: &HashMap<DeliveryId, Vec<CloudEvent>>,
    ) -> Result<HashMap<DeliveryId, Fate>, StoreError> {
        let (mut contents, mut inserts, mut updates) = (Vec::new(), Vec::new(), Vec::new());
        for package in packages {
            let id = package.delivery_id;
            let events = events.get(&id).map(Vec::as_slice).unwrap_or_default();
            if let Some(known) = stored.get(&id) {
                updates.push((id, documents::Update::of(package, known, events)));
            } else {
                // An id of their own: of two writers, each has its own, and the package names the winner's.
                let place = Uuid::from_bytes(self.clock.new_id().into_bytes());
                let said = documents::Contents::of(package, place);
                inserts.push((id, documents::Insert::of(package, said.as_ref().map(|said| said.id), events)));
                contents.extend(said);
            }
        }
        if !contents.is_empty() {
            let refused = mongodb::insert(&self.database, CONTENTS, &contents).await?;
            if let Some(first) = refused.into_iter().next() {
                return Err(UpdateError::Answer(first.message).into());
            }
            abort_point("package.contents_written");
        }
        let (fresh, inserts): (Vec<DeliveryId>, Vec<_>) = inserts.into_iter().unzip();
        let (known, updates): (Vec<DeliveryId>, Vec<_>) = updates.into_iter().unzip();
        let (not_inserted, not_updated) = futures::try_join!(
            mongodb::insert(&self.database, PACKAGES, &inserts),
            mongodb::update(&self.database, PACKAGES, &updates),
        )?;
        let mut fates = HashMap::new();
        for (ids, refusals) in [(fresh, not_inserted), (known, not_updated)] {
            for refused in refusals {
                let Some(id) = ids.get(refused.index) else { continue };
                let fate =
                    if refused.lost { Fate::Lost } else { Fate::Failed(UpdateError::Answer(refused.message).into()) };
                fates.insert(*id, fate);
            }
        }
        Ok(fates)
    }
}

/// What became of a package that was not written.
enum Fate {
    /// Another writer was faster.
    Lost,
    /// The server does not take it.
    Failed(StoreError),
}

pub(super) async fn audit_scan(url: &str) -> Result<Vec<AuditPackage>, StoreError> {
    let packages = mongodb::open(url, DATABASE).await?.collection::<Document>(PACKAGES);
    let fields = doc! { "state": 1 };
    let mut rows = packages.find(doc! {}).sort(doc! { "_id": 1 }).projection(fields).comment(AUDIT).await?;
    let mut audited = Vec::new();
    while let Some(row) = rows.try_next().await? {
        let delivery_id = documents::delivery_id(documents::id(&row, "_id")?);
        audited.push(AuditPackage { delivery_id, state: documents::state(&row)? });
    }
    Ok(audited)
}
