//! `package.events`: what became of a package.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Event, EventData, Topic, event_kinds, lenient::EventPackageSpec};
use crate::{CustomerId, DeliveryId, Region, api::PackageSpec};

event_kinds!(
    /// What can happen to a package.
    PackageEventKind {
        /// Known, waiting for its drone.
        PackageRegistered,
        /// Its delivery was called off before the pickup: ended.
        PackageWithdrawn,
        /// Handed over: ended.
        PackageDelivered,
        /// Brought back after its delivery failed: ended.
        PackageReturned,
    }
);

/// Where a package stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum PackageState {
    /// Known, and its delivery is open.
    Registered,
    /// Ended before the pickup. Also the tombstone of a package that was withdrawn before it was registered.
    Withdrawn,
    /// Ended by drop-off.
    Delivered,
    /// Ended by failure.
    Returned,
}

impl PackageState {
    /// The state's name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "Registered",
            Self::Withdrawn => "Withdrawn",
            Self::Delivered => "Delivered",
            Self::Returned => "Returned",
        }
    }
}

/// A package, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PackageRecord {
    /// The package's id is its delivery's.
    pub delivery_id: DeliveryId,
    /// The delivery's attempt in which this happened.
    pub attempt: u32,
    /// Whose it is.
    pub customer_id: CustomerId,
    /// The region that owns it.
    pub home_region: Region,
    /// Where it stands.
    pub state: PackageState,
    /// What it is.
    #[serde(deserialize_with = "EventPackageSpec::deserialize")]
    pub package: PackageSpec,
    /// When it was registered.
    pub registered_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

impl EventData for PackageRecord {
    type Kind = PackageEventKind;
    const TOPIC: Topic = Topic::Package;
    const SOURCE: &'static str = "package";
    fn key(&self) -> String {
        self.delivery_id.key()
    }
}

/// An event about a package.
pub type PackageEvent = Event<PackageRecord>;
