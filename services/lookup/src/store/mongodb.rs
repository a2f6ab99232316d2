//! Finished deliveries in MongoDB: one document for each, sharded by the hash of its customer.

use std::{sync::Arc, time::Duration};

use ::mongodb::{
    Client, Collection, Database, IndexModel,
    bson::{Bson, Document, Uuid, doc},
    options::{Acknowledgment, ClientOptions, ReadConcern, WriteConcern},
};
use async_trait::async_trait;
use contracts::{CustomerId, DeliveryId, Stage, Timestamp, events::DeliveryRecord};
use futures::TryStreamExt;

use super::{AuditLookup, Store, StoreError};
use crate::domain::{FinishedDelivery, Place};

const COLLECTION: &str = "deliveries";

/// The database of a URL that names none.
const DATABASE: &str = "lookup";

/// How long a command looks for a primary: longer than this a caller had better be told; an election may outlast it,
/// and the consumer's repeat mends that.
const SELECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections to each server: more than this many commands at once only wait for the server's disk instead.
const POOL_SIZE: u32 = 16;

/// Writes in one command: with records of some kilobytes far below the 16 MB of a command.
const WRITES: usize = 500;

/// How often a write is sent that lost the race for its first insert. The second finds the winner's document; only a
/// sweep in between makes a third useful.
const ATTEMPTS: usize = 3;

/// The server's code of a unique index that was violated.
const DUPLICATE_KEY: i32 = 11_000;

pub(super) async fn open(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    let database = connect(url).await?;
    let indexes = [
        // The shard key. Where the cluster is sharded, `sh.shardCollection` finds it made.
        doc! { "customer_id": "hashed" },
        // A page of a customer's history is one range of this index.
        doc! { "customer_id": 1, "finished_us": -1, "_id": -1 },
        doc! { "finished_us": 1 },
    ];
    let deliveries = database.collection::<Document>(COLLECTION);
    deliveries.create_indexes(indexes.map(|keys| IndexModel::builder().keys(keys).build())).await?;
    Ok(Arc::new(MongoStore { database, deliveries }))
}

async fn connect(url: &str) -> Result<Database, StoreError> {
    let mut options = ClientOptions::parse(url).await?;
    options.server_selection_timeout.get_or_insert(SELECTION_TIMEOUT);
    options.max_pool_size.get_or_insert(POOL_SIZE);
    options.write_concern = Some(WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build());
    options.read_concern = Some(ReadConcern::majority());
    let name = options.default_database.clone().unwrap_or_else(|| DATABASE.to_owned());
    Ok(Client::with_options(options)?.database(&name))
}

struct MongoStore {
    database: Database,
    deliveries: Collection<Document>,
}

impl From<::mongodb::error::Error> for StoreError {
    fn from(error: ::mongodb::error::Error) -> Self {
        Self::Unavailable(Arc::new(error))
    }
}

#[async_trait]
impl Store for MongoStore {
    async fn upsert(&self, deliveries: &[FinishedDelivery]) -> Result<(), StoreError> {
        let writes = deliveries.iter().map(write).collect::<Result<Vec<_>, _>>()?;
        for some in writes.chunks(WRITES) {
            self.send(some.to_vec()).await?;
        }
        Ok(())
    }

    async fn list(
        &self,
        customer: &CustomerId,
        from: Timestamp,
        start: Place,
        limit: usize,
    ) -> Result<Vec<DeliveryRecord>, StoreError> {
        let mut behind = vec![doc! { "finished_us": { "$lt": start.finished_us } }];
        if let Some(id) = start.delivery_id {
            behind.push(doc! { "finished_us": start.finished_us, "_id": { "$lt": key(id) } });
        }
        let range = doc! { "$gte": from.timestamp_micros(), "$lte": start.finished_us };
        let found: Vec<_> = self
            .deliveries
            .find(doc! { "customer_id": customer.as_str(), "finished_us": range, "$or": behind })
            .sort(doc! { "finished_us": -1, "_id": -1 })
            .limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .projection(doc! { "record": 1 })
            .await?
            .try_collect()
            .await?;
        found.iter().map(record).collect()
    }

    async fn find(
        &self,
        customer: Option<&CustomerId>,
        delivery: DeliveryId,
    ) -> Result<Option<DeliveryRecord>, StoreError> {
        let mut filter = doc! { "_id": key(delivery) };
        if let Some(customer) = customer {
            filter.insert("customer_id", customer.as_str());
        }
        self.deliveries.find_one(filter).await?.as_ref().map(record).transpose()
    }

    async fn contains(&self, ids: &[DeliveryId]) -> Result<Vec<DeliveryId>, StoreError> {
        let keys: Vec<Uuid> = ids.iter().copied().map(key).collect();
        let found: Vec<_> = self
            .deliveries
            .find(doc! { "_id": { "$in": keys } })
            .projection(doc! { "_id": 1 })
            .await?
            .try_collect()
            .await?;
        let found = found.iter().map(id).collect::<Result<std::collections::HashSet<_>, _>>()?;
        Ok(ids.iter().copied().filter(|id| found.contains(&key(*id))).collect())
    }

    async fn sweep(&self, finished_before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let old = doc! { "finished_us": { "$lt": finished_before.timestamp_micros() } };
        let found: Vec<_> = self
            .deliveries
            .find(old.clone())
            .sort(doc! { "finished_us": 1 })
            .limit(i64::from(limit))
            .projection(doc! { "customer_id": 1 })
            .await?
            .try_collect()
            .await?;
        if found.is_empty() {
            return Ok(0);
        }
        let keys = found.iter().map(id).collect::<Result<Vec<_>, _>>()?;
        let customers = found.iter().map(|row| text(row, "customer_id")).collect::<Result<Vec<_>, _>>()?;
        let mut filter = old;
        filter.insert("customer_id", doc! { "$in": customers });
        filter.insert("_id", doc! { "$in": keys });
        Ok(self.deliveries.delete_many(filter).await?.deleted_count)
    }

    async fn ready(&self) -> Result<(), StoreError> {
        self.database.run_command(doc! { "ping": 1 }).await?;
        Ok(())
    }
}

impl MongoStore {
    /// Sends the writes, and again those that lost the race for the first insert of their delivery.
    async fn send(&self, mut writes: Vec<Document>) -> Result<(), StoreError> {
        for _ in 0..ATTEMPTS {
            let answer = self
                .database
                .run_command(doc! {
                    "update": COLLECTION,
                    "updates": writes.clone(),
                    "ordered": false,
                    "writeConcern": { "w": "majority", "j": true },
                })
                .await?;
            if let Some(failure) = answer.get("writeConcernError") {
                return Err(failed(failure));
            }
            let mut lost = Vec::new();
            for error in answer.get_array("writeErrors").into_iter().flatten() {
                lost.push(loser(error, &writes).ok_or_else(|| failed(error))?);
            }
            if lost.is_empty() {
                return Ok(());
            }
            writes = lost;
        }
        Err(unavailable("a delivery's first insert kept losing its race"))
    }
}

/// The write that a duplicate key stopped; none if it was something else.
fn loser(error: &Bson, writes: &[Document]) -> Option<Document> {
    let error = error.as_document()?;
    if error.get_i32("code").ok()? != DUPLICATE_KEY {
        return None;
    }
    writes.get(usize::try_from(error.get_i32("index").ok()?).ok()?).cloned()
}

/// One statement that keeps the delivery unless it is known in the same or a higher version. The version is compared in
/// the update and not in its filter, so that a duplicate key can only mean a race and never a version that is old.
fn write(delivery: &FinishedDelivery) -> Result<Document, StoreError> {
    let record = &delivery.record;
    let version = i64::try_from(record.version).map_err(unavailable)?;
    let row = doc! {
        "_id": key(record.delivery_id),
        "customer_id": record.customer_id.as_str(),
        "finished_us": delivery.finished_at.timestamp_micros(),
        "version": version,
        "stage": record.stage.as_str(),
        "record": delivery.json.as_str(),
    };
    // A document without a version is the one that this very statement inserts.
    let newer = doc! { "$gt": [version, { "$ifNull": ["$version", -1_i64] }] };
    Ok(doc! {
        "q": { "_id": key(record.delivery_id), "customer_id": record.customer_id.as_str() },
        "u": [{ "$replaceWith": { "$cond": [newer, { "$literal": row }, "$$ROOT"] } }],
        "upsert": true,
    })
}

fn key(id: DeliveryId) -> Uuid {
    Uuid::from_bytes(id.0.into_bytes())
}

fn id(row: &Document) -> Result<Uuid, StoreError> {
    match row.get("_id") {
        Some(Bson::Binary(binary)) => binary.to_uuid().map_err(unavailable),
        other => Err(unavailable(format!("{other:?} is not a delivery's id"))),
    }
}

fn text<'a>(row: &'a Document, field: &str) -> Result<&'a str, StoreError> {
    row.get_str(field).map_err(unavailable)
}

fn record(row: &Document) -> Result<DeliveryRecord, StoreError> {
    serde_json::from_str(text(row, "record")?).map_err(unavailable)
}

fn failed(answer: &Bson) -> StoreError {
    unavailable(format!("the write failed: {answer}"))
}

fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Unavailable(cause.into().into())
}

pub(super) async fn audit_scan(url: &str) -> Result<Vec<AuditLookup>, StoreError> {
    let deliveries = connect(url).await?.collection::<Document>(COLLECTION);
    let mut rows = deliveries.find(doc! {}).sort(doc! { "_id": 1 }).await?;
    let mut audited = Vec::new();
    while let Some(row) = rows.try_next().await? {
        let stage = text(&row, "stage")?;
        audited.push(AuditLookup {
            delivery_id: id(&row)?.to_string().parse().map_err(unavailable)?,
            stage: Stage::parse(stage).ok_or_else(|| unavailable(format!("'{stage}' is not a stage")))?,
            version: u64::try_from(row.get_i64("version").map_err(unavailable)?).map_err(unavailable)?,
            record: record(&row)?,
        });
    }
    Ok(audited)
}

/// Drops the database that a test's URL names.
#[cfg(test)]
pub(super) async fn forget(url: &str) {
    connect(url).await.unwrap().drop().await.unwrap();
}

#[cfg(test)]
mod on_mongodb {
    use super::*;
    use crate::store::{
        contract::{Subject, store_contract},
        samples::{at, finished, row},
    };

    async fn subject() -> Option<Subject> {
        let url = testkit::real::url("TEST_MONGODB_URL")?;
        let (servers, options) = url.split_once("/?").unwrap();
        let url = format!("{servers}/{}?{options}", testkit::real::unique("lookup"));
        Some(Subject::open(|_| url.clone()).await)
    }

    store_contract!(subject);

    #[tokio::test]
    async fn the_audit_reads_every_document() {
        let Some(subject) = subject().await else { return };
        let (first, second) = (finished(1, "alice", at(1)), finished(2, "bob", at(2)));
        subject.store.upsert(&[row(&second), row(&first)]).await.unwrap();
        let audited: Vec<_> = crate::store::audit_scan(&subject.url).await.unwrap();
        let records: Vec<_> = audited.iter().map(|row| row.record.clone()).collect();
        assert_eq!(records, [first, second]);
        assert!(audited.iter().all(|row| row.version == row.record.version && row.stage == row.record.stage));
        forget(&subject.url).await;
    }

    #[tokio::test]
    async fn the_highest_version_survives_a_race_of_first_inserts() {
        let Some(subject) = subject().await else { return };
        let versions = (1..=8).map(|version| row(&DeliveryRecord { version, ..finished(1, "alice", at(1)) }));
        let versions: Vec<_> = versions.map(|row| [row]).collect();
        futures::future::try_join_all(versions.iter().map(|version| subject.store.upsert(version))).await.unwrap();
        let kept = subject.store.find(None, finished(1, "alice", at(1)).delivery_id).await.unwrap().unwrap();
        assert_eq!(kept.version, 8);
        forget(&subject.url).await;
    }
}
