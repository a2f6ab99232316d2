//! Who relays which buckets of the outbox: one document, which whoever saw it last may replace.

use ::mongodb::{
    Database,
    bson::{Document, doc},
};
use contracts::Timestamp;
use messaging::{
    mongodb::{self, UpdateError},
    outbox::{Bucket, Lease, fair_share},
};

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

/// The leases of all buckets, and the relays that asked for some lately.
#[derive(Debug)]
pub(super) struct Leases {
    revision: i64,
    buckets: Vec<Lease>,
    members: Vec<(String, Timestamp)>,
}

impl Leases {
    pub(super) async fn load(database: &Database) -> Result<Self, LeaseError> {
        let found = database.collection::<Document>(COLLECTION).find_one(doc! { "_id": ID }).await?;
        let Some(document) = found else {
            let nobody = |bucket| Lease { bucket, owner: String::new(), until: Timestamp::UNIX_EPOCH };
            return Ok(Self { revision: ABSENT, buckets: (0..BUCKETS).map(nobody).collect(), members: Vec::new() });
        };
        let mut leases = Self {
            revision: document.get_i64("revision").map_err(Unreadable::new)?,
            buckets: Vec::with_capacity(usize::from(BUCKETS)),
            members: Vec::new(),
        };
        for (bucket, (owner, until)) in (0..).zip(holders(&document, "buckets")?) {
            leases.buckets.push(Lease { bucket, owner, until });
        }
        leases.members = holders(&document, "members")?;
        Ok(leases)
    }

    /// Gives `owner` its fair share until then, or takes everything from it where that is over; what it has now.
    pub(super) fn renew(&mut self, owner: &str, now: Timestamp, until: Timestamp) -> Vec<Bucket> {
        self.members.retain(|(member, until)| member != owner && *until >= now);
        let stays = until >= now;
        if stays {
            self.members.push((owner.to_owned(), until));
        }
        let held = if stays { fair_share(&self.buckets, owner, self.members.len(), now) } else { Vec::new() };
        for lease in &mut self.buckets {
            if held.contains(&lease.bucket) {
                (lease.owner, lease.until) = (owner.to_owned(), until);
            } else if lease.owner == owner {
                (lease.owner, lease.until) = (String::new(), Timestamp::UNIX_EPOCH);
            }
        }
        held
    }

    /// Writes them, unless somebody has since they were loaded: whether it was done.
    pub(super) async fn save(&self, database: &Database) -> Result<bool, LeaseError> {
        let holder = |owner: &str, until: Timestamp| doc! { "owner": owner, "until_ms": until.timestamp_millis() };
        let buckets: Vec<_> = self.buckets.iter().map(|lease| holder(&lease.owner, lease.until)).collect();
        let members: Vec<_> = self.members.iter().map(|(owner, until)| holder(owner, *until)).collect();
        let statement = doc! {
            "q": { "_id": ID, "revision": self.revision },
            "u": { "revision": self.revision + 1, "buckets": buckets, "members": members },
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

fn holders(document: &Document, field: &str) -> Result<Vec<(String, Timestamp)>, Unreadable> {
    let mut holders = Vec::new();
    for entry in document.get_array(field).map_err(Unreadable::new)? {
        let entry = entry.as_document().ok_or_else(|| Unreadable::new("a lease is a document"))?;
        let until_ms = entry.get_i64("until_ms").map_err(Unreadable::new)?;
        let until = Timestamp::from_timestamp_millis(until_ms).unwrap_or(Timestamp::UNIX_EPOCH);
        holders.push((entry.get_str("owner").map_err(Unreadable::new)?.to_owned(), until));
    }
    Ok(holders)
}
