//! Who relays which buckets of the outbox: one document, which whoever saw it last may replace.

use ::mongodb::{
    Database,
    bson::{self, Document, doc},
};
use messaging::{
    mongodb::{self, UpdateError},
    outbox::Leases,
};
use serde::{Deserialize, Serialize};

use super::documents::{ABSENT, BUCKETS, Unreadable};

pub(super) const COLLECTION: &str = "relay_leases";

/// The id of the only document.
const ID: &str = "packages";

/// Others kept changing the leases.
#[derive(Debug, thiserror::Error)]
#[error("the leases were changed by others each time")]
pub(super) struct Contended;

/// Why leases could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeaseError {
    #[error("the leases cannot be read")]
    Driver(#[from] ::mongodb::error::Error),
    #[error("the leases cannot be written")]
    Update(#[from] UpdateError),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// The leases as they were when they were loaded.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Loaded {
    revision: i64,
    pub(super) leases: Leases,
}

impl Loaded {
    pub(super) async fn from(database: &Database) -> Result<Self, LeaseError> {
        let found = database.collection::<Self>(COLLECTION).find_one(doc! { "_id": ID }).await?;
        Ok(found.unwrap_or_else(|| Self { revision: ABSENT, leases: Leases::free(BUCKETS) }))
    }

    /// Writes them, unless somebody has since they were loaded: whether it was done.
    pub(super) async fn save(self, database: &Database) -> Result<bool, LeaseError> {
        let statement = doc! {
            "q": { "_id": ID, "revision": self.revision },
            "u": document(&Self { revision: self.revision + 1, ..self })?,
            "upsert": true,
        };
        let refused = mongodb::update(database, COLLECTION, &[statement]).await?;
        match refused.into_iter().next() {
            None => Ok(true),
            Some(refused) if refused.lost => Ok(false),
            Some(refused) => Err(UpdateError::Answer(refused.message).into()),
        }
    }
}

fn document(loaded: &Loaded) -> Result<Document, Unreadable> {
    bson::serialize_to_document(loaded).map_err(Unreadable::new)
}
