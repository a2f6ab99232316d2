//! The outbox of a MongoDB store by polling: the events lie in the documents of the packages that they are about.

use std::collections::HashMap;

use ::mongodb::{
    Collection, Database,
    bson::{self, Document, Uuid, doc},
};
use async_trait::async_trait;
use contracts::Timestamp;
use futures::TryStreamExt;
use messaging::{
    mongodb::{self, UpdateError},
    outbox::{Bucket, OutboxError, OutboxRow, OutboxSource, Place},
};

use super::{
    BACKLOG, OUTBOX, PACKAGES,
    documents::{self, Unreadable},
    leases::{self, Loaded},
};

/// Lost races for the leases before the relay is told, which tries again by itself: a replica renews every few seconds,
/// so that even dozens rarely meet.
const LEASE_ATTEMPTS: usize = 10;

pub(super) struct MongoOutbox {
    database: Database,
    packages: Collection<Document>,
}

impl MongoOutbox {
    pub(super) fn new(database: Database) -> Self {
        Self { packages: database.collection(PACKAGES), database }
    }

    /// The oldest events of the packages that `filter` finds. Where `after` is given, whoever answers has seen all that
    /// was written until then: a primary that was elected a moment ago may otherwise show less than its predecessor did.
    pub(super) async fn told(
        &self,
        mut filter: Document,
        limit: usize,
        after: Option<bson::Timestamp>,
    ) -> Result<Vec<OutboxRow>, OutboxError> {
        filter.extend(waiting());
        let mut session = self.database.client().start_session().await.map_err(unavailable)?;
        if let Some(after) = after {
            session.advance_operation_time(after);
        }
        let mut found = self
            .packages
            .find(filter)
            .sort(doc! { "updated_us": 1 })
            .limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .projection(doc! { "outbox": 1 })
            .comment(OUTBOX)
            .session(&mut session)
            .await
            .map_err(unavailable)?;
        let mut rows = Vec::new();
        while let Some(package) = found.next(&mut session).await.transpose().map_err(unavailable)? {
            let document = documents::id(&package, "_id").map_err(unavailable)?;
            for event in documents::events(&package).map_err(unavailable)? {
                let document = uuid::Uuid::from_bytes(document.bytes());
                rows.push(OutboxRow { place: Place::Part { document, event: event.id }, event });
            }
            if rows.len() >= limit {
                // The rest of a document comes with the next read: what is before it has left by then.
                rows.truncate(limit);
                break;
            }
        }
        Ok(rows)
    }
}

/// Packages of these buckets.
pub(super) fn of_buckets(buckets: &[Bucket]) -> Document {
    let buckets: Vec<i32> = buckets.iter().copied().map(i32::from).collect();
    doc! { "bucket": { "$in": buckets } }
}

/// Documents with events, as the partial index knows them.
pub(super) fn waiting() -> Document {
    doc! { "outbox.0": { "$exists": true } }
}

#[async_trait]
impl OutboxSource for MongoOutbox {
    async fn lease(&self, owner: &str, now: Timestamp, until: Timestamp) -> Result<Vec<Bucket>, OutboxError> {
        for _ in 0..LEASE_ATTEMPTS {
            let mut loaded = Loaded::from(&self.database).await.map_err(unavailable)?;
            let held = loaded.leases.renew(owner, now, until);
            if loaded.save(&self.database).await.map_err(unavailable)? {
                return Ok(held);
            }
        }
        Err(unavailable(leases::Contended))
    }

    async fn read(&self, buckets: &[Bucket], limit: usize) -> Result<Vec<OutboxRow>, OutboxError> {
        self.told(of_buckets(buckets), limit, None).await
    }

    async fn delete(&self, places: &[Place]) -> Result<(), OutboxError> {
        let mut sent: HashMap<Uuid, Vec<Uuid>> = HashMap::with_capacity(places.len());
        for place in places {
            if let Place::Part { document, event } = place {
                let event = Uuid::from_bytes(event.into_bytes());
                sent.entry(Uuid::from_bytes(document.into_bytes())).or_default().push(event);
            }
        }
        let pull = |(document, events): (Uuid, Vec<Uuid>)| {
            doc! { "q": { "_id": document }, "u": { "$pull": { "outbox": { "id": { "$in": events } } } } }
        };
        let statements: Vec<_> = sent.into_iter().map(pull).collect();
        let refused = mongodb::update(&self.database, PACKAGES, &statements).await.map_err(unavailable)?;
        refused.into_iter().next().map_or(Ok(()), |first| Err(unavailable(UpdateError::Answer(first.message))))
    }

    async fn backlog(&self) -> Result<u64, OutboxError> {
        // Every bucket, so that the index serves.
        let mut filter = doc! { "bucket": { "$gte": 0 } };
        filter.extend(waiting());
        let pipeline = [
            doc! { "$match": filter },
            doc! { "$group": { "_id": null, "events": { "$sum": { "$toLong": { "$size": "$outbox" } } } } },
        ];
        let mut groups = self.packages.aggregate(pipeline).comment(BACKLOG).await.map_err(unavailable)?;
        let Some(all) = groups.try_next().await.map_err(unavailable)? else { return Ok(0) };
        let events = all.get_i64("events").map_err(|error| unavailable(Unreadable::new(error)))?;
        Ok(u64::try_from(events).unwrap_or(0))
    }
}

pub(super) fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> OutboxError {
    OutboxError::Unavailable(error.into())
}
