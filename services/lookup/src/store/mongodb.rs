//! Finished deliveries in MongoDB: one document for each, sharded by the hash of its customer.

use std::{collections::HashSet, sync::Arc};

use ::mongodb::{
    Collection, Database, IndexModel,
    bson::{Bson, Document, Uuid, doc},
};
use async_trait::async_trait;
use contracts::{CustomerId, DeliveryId, Stage, Timestamp, events::DeliveryRecord};
use futures::TryStreamExt;
use messaging::mongodb::{self, UpdateError};

use super::{AuditLookup, Store, StoreError};
use crate::domain::{FinishedDelivery, Place};

const COLLECTION: &str = "deliveries";

/// Comments of the commands that ask every shard, as the server's log and profiler show them.
const BY_ID: &str = "by id";
const SWEEP: &str = "sweep";
const AUDIT: &str = "audit";

/// The database of a URL that names none.
const DATABASE: &str = "lookup";

/// How often a write is sent that lost the race for its first insert. The second finds the winner's document; only a
/// sweep in between makes a third useful.
const ATTEMPTS: usize = 3;

pub(super) async fn open(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    opened(mongodb::open(url, DATABASE).await?).await
}

async fn opened(database: Database) -> Result<Arc<dyn Store>, StoreError> {
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

struct MongoStore {
    database: Database,
    deliveries: Collection<Document>,
}

impl From<::mongodb::error::Error> for StoreError {
    fn from(error: ::mongodb::error::Error) -> Self {
        Self::Unavailable(Arc::new(error))
    }
}

impl From<UpdateError> for StoreError {
    fn from(error: UpdateError) -> Self {
        Self::Unavailable(Arc::new(error))
    }
}

#[async_trait]
impl Store for MongoStore {
    async fn upsert(&self, deliveries: &[FinishedDelivery]) -> Result<(), StoreError> {
        let mut writes = deliveries.iter().map(write).collect::<Result<Vec<_>, _>>()?;
        for _ in 0..ATTEMPTS {
            let refused = mongodb::update(&self.database, COLLECTION, &writes).await?;
            if let Some(fault) = refused.iter().find(|one| !one.lost) {
                return Err(unavailable(fault.message.clone()));
            }
            if refused.is_empty() {
                return Ok(());
            }
            writes = refused.iter().filter_map(|one| writes.get(one.index).cloned()).collect();
        }
        Err(unavailable("a delivery's first insert kept losing its race"))
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
        self.deliveries.find_one(filter).comment(BY_ID).await?.as_ref().map(record).transpose()
    }

    async fn contains(&self, ids: &[DeliveryId]) -> Result<Vec<DeliveryId>, StoreError> {
        let keys: Vec<Uuid> = ids.iter().copied().map(key).collect();
        let found: Vec<_> = self
            .deliveries
            .find(doc! { "_id": { "$in": keys } })
            .projection(doc! { "_id": 1 })
            .comment(BY_ID)
            .await?
            .try_collect()
            .await?;
        let found = found.iter().map(id).collect::<Result<HashSet<_>, _>>()?;
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
            .comment(SWEEP)
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

fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Unavailable(cause.into().into())
}

pub(super) async fn audit_scan(url: &str) -> Result<Vec<AuditLookup>, StoreError> {
    let deliveries = mongodb::open(url, DATABASE).await?.collection::<Document>(COLLECTION);
    let mut rows = deliveries.find(doc! {}).sort(doc! { "_id": 1 }).comment(AUDIT).await?;
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

#[cfg(test)]
mod on_mongodb {
    use testkit::mongodb::{Commands, drop_database, scatter, unconfirmed};

    use super::*;
    use crate::store::{
        contract::{Subject, store_contract},
        samples::{at, finished, row},
    };

    async fn subject() -> Option<Subject> {
        let url = testkit::mongodb::database("lookup")?;
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
        drop_database(&subject.url).await;
    }

    #[tokio::test]
    async fn the_highest_version_survives_a_race_of_first_inserts() {
        let Some(subject) = subject().await else { return };
        let versions = (1..=8).map(|version| row(&DeliveryRecord { version, ..finished(1, "alice", at(1)) }));
        let versions: Vec<_> = versions.map(|row| [row]).collect();
        futures::future::try_join_all(versions.iter().map(|version| subject.store.upsert(version))).await.unwrap();
        let kept = subject.store.find(None, finished(1, "alice", at(1)).delivery_id).await.unwrap().unwrap();
        assert_eq!(kept.version, 8);
        drop_database(&subject.url).await;
    }

    #[tokio::test]
    async fn only_what_is_listed_asks_every_shard() {
        let Some(url) = testkit::mongodb::database("lookup") else { return };
        let commands = Commands::default();
        let database = mongodb::connect(commands.of(&url).await, DATABASE).unwrap();
        let store = opened(database).await.unwrap();
        let records: Vec<_> =
            (1..=3).map(|n| finished(n, if n == 1 { "alice" } else { "bob" }, at(n as i64))).collect();
        let rows: Vec<_> = records.iter().map(row).collect();
        commands.take();
        store.upsert(&rows).await.unwrap();
        let (alice, first) = (&records[0].customer_id, records[0].delivery_id);
        let start = Place { finished_us: at(9).timestamp_micros(), delivery_id: Some(first) };
        assert_eq!(store.list(alice, at(0), start, 10).await.unwrap().len(), 1);
        assert!(store.find(Some(alice), first).await.unwrap().is_some());
        assert!(store.find(None, first).await.unwrap().is_some());
        assert_eq!(store.contains(&[first]).await.unwrap(), [first]);
        assert_eq!(store.sweep(at(9), 10).await.unwrap(), 3);
        let sent = commands.take();
        assert_eq!(sent.len(), 7, "{sent:?}");
        assert!(sent.iter().all(|command| command.values().next() == Some(&Bson::from(COLLECTION))), "{sent:?}");
        let scattered: Vec<_> = sent.iter().filter_map(|command| scatter(command, "customer_id")).collect();
        assert_eq!(scattered, ["find: by id", "find: by id", "find: sweep"]);
        assert_eq!(sent.iter().find_map(unconfirmed), None);
        drop_database(&url).await;
    }

    #[tokio::test]
    async fn a_page_is_one_range_of_the_index_without_sorting() {
        let Some(subject) = subject().await else { return };
        let database = mongodb::open(&subject.url, DATABASE).await.unwrap();
        let filter = doc! { "customer_id": "a", "finished_us": { "$gte": 1_i64, "$lte": 3_i64 },
        "$or": [{ "finished_us": { "$lt": 3_i64 } }, { "finished_us": 3_i64, "_id": { "$lt": Uuid::from_bytes([1; 16]) } }] };
        let sort = doc! { "finished_us": -1, "_id": -1 };
        let find = doc! { "find": COLLECTION, "filter": filter, "sort": sort, "limit": 5 };
        let plan = database.run_command(doc! { "explain": find, "verbosity": "queryPlanner" }).await.unwrap();
        let plan = plan.get_document("queryPlanner").unwrap().get_document("winningPlan").unwrap().to_string();
        assert!(plan.contains("customer_id_1_finished_us_-1__id_-1") && !plan.contains("\"SORT\""), "{plan}");
        drop_database(&subject.url).await;
    }
}
