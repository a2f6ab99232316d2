//! The names of the keys: all that belongs to a delivery lies in its bucket, and a bucket's keys share one hash tag.

use contracts::DeliveryId;
use messaging::{keys::part_of, outbox::Bucket};

use crate::store::Audience;

/// Buckets. Fixed for ever: which one a delivery is in follows from its id.
pub(super) const BUCKETS: Bucket = 256;

/// The bucket of a delivery.
pub(super) fn bucket_of(id: DeliveryId) -> Bucket {
    // Below BUCKETS, which is a Bucket.
    part_of(&id.key(), u32::from(BUCKETS)) as Bucket
}

/// Names keys.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: format!("{prefix}tracking:") }
    }

    fn of(&self, bucket: Bucket, name: &str) -> String {
        format!("{}{{{bucket}}}:{name}", self.prefix)
    }

    /// A hash: `version`, `fix` (what changes with every report) and `flight` (the rest).
    pub(super) fn flight(&self, id: DeliveryId) -> String {
        self.of(bucket_of(id), &format!("flight:{id}"))
    }

    /// A set: the deliveries that are on an audience's list.
    pub(super) fn audience(&self, bucket: Bucket, audience: &Audience) -> String {
        match audience {
            Audience::Base(base) => self.of(bucket, &format!("base:{}", base.as_str())),
            Audience::Drone(drone) => self.of(bucket, &format!("drone:{drone}")),
        }
    }

    /// A stream: events that are not relayed yet.
    pub(super) fn outbox(&self, bucket: Bucket) -> String {
        self.of(bucket, "outbox")
    }

    /// A stream: the mission log, numbered without gaps.
    pub(super) fn missions(&self, bucket: Bucket) -> String {
        self.of(bucket, "missions")
    }

    /// A hash: `missions`, the number of the mission log's last line.
    pub(super) fn counts(&self, bucket: Bucket) -> String {
        self.of(bucket, "counts")
    }

    /// A geo index: where the open flights are.
    pub(super) fn positions(&self, bucket: Bucket) -> String {
        self.of(bucket, "positions")
    }

    /// A sorted set: open flights by the instant, in microseconds, when more than their position changed.
    pub(super) fn open(&self, bucket: Bucket) -> String {
        self.of(bucket, "open")
    }

    /// A sorted set: closed flights by the instant of their close, in microseconds.
    pub(super) fn closed(&self, bucket: Bucket) -> String {
        self.of(bucket, "closed")
    }

    /// A channel: what changes in the bucket.
    pub(super) fn channel(&self, bucket: Bucket) -> String {
        self.of(bucket, "changes")
    }

    /// A hash: who relays which bucket.
    pub(super) fn leases(&self) -> String {
        format!("{}leases", self.prefix)
    }
}
