//! Events: CloudEvents 1.0 with JSON data, in binary mode (attributes beside the data, never around it).
//!
//! Every event carries the state of its subject, not a change to it, so a consumer's effect is the same whatever the
//! order and however often.

mod delivery;
mod fleet;
pub(crate) mod lenient;
mod package;
mod tracking;

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

pub use delivery::*;
pub use fleet::*;
pub use package::*;
pub use tracking::*;

use crate::Timestamp;

/// Partitions of every topic. Fixed: a key's partition must never change.
pub const PARTITIONS: u32 = 8;

/// A topic that services publish to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Deliveries, keyed by delivery.
    Delivery,
    /// Packages, keyed by delivery.
    Package,
    /// Drones, keyed by drone.
    Fleet,
    /// Flights, keyed by delivery.
    Tracking,
    /// Sampled positions, keyed by delivery.
    Positions,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 5] = [Self::Delivery, Self::Package, Self::Fleet, Self::Tracking, Self::Positions];

    /// The topic's name in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delivery => "delivery.events",
            Self::Package => "package.events",
            Self::Fleet => "fleet.events",
            Self::Tracking => "tracking.events",
            Self::Positions => "tracking.positions",
        }
    }
}

/// The type of an event whose record in the log was no CloudEvent. No topic knows it: it is at fault, and never merely
/// unknown, so that it goes to the dead letters instead of being passed over.
pub const UNDECODABLE: &str = "Undecodable";

/// An event as it crosses the log: the attributes of a CloudEvent and its data, not yet interpreted.
#[derive(Debug, Clone, PartialEq)]
pub struct CloudEvent {
    /// `ce_id`: the same for every copy of the event.
    pub id: Uuid,
    /// The topic's name.
    pub topic: String,
    /// The partition key: the id of the aggregate.
    pub key: String,
    /// `ce_type`: what happened, in the past tense.
    pub kind: String,
    /// `ce_source`: the service that says so.
    pub source: String,
    /// `ce_time`: when it was committed.
    pub time: Timestamp,
    /// W3C trace context of the cause.
    pub traceparent: Option<String>,
    /// JSON.
    pub data: Vec<u8>,
}

/// Why an event cannot be read. The event itself is at fault, so trying again cannot help.
#[derive(Debug, thiserror::Error)]
#[error("the data of a {kind} event does not fit its schema")]
pub struct DecodeError {
    /// The event's type.
    pub kind: String,
    /// Where it does not fit.
    #[source]
    pub source: serde_json::Error,
}

/// The state that one topic's events carry.
pub trait EventData: Serialize + DeserializeOwned + Debug + Clone + Send + Sync + 'static {
    /// What can happen, on that topic.
    type Kind: EventKind;
    /// Where these events go.
    const TOPIC: Topic;
    /// The service that publishes them.
    const SOURCE: &'static str;
    /// The id of the aggregate.
    fn key(&self) -> String;
}

/// The names of one topic's events.
pub trait EventKind: Copy + Debug + PartialEq + Send + Sync + 'static {
    /// Every kind.
    const ALL: &'static [Self];
    /// The name on the wire.
    fn as_str(&self) -> &'static str;
    /// The kind of that name.
    fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == name)
    }
}

/// An event of a known kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Event<D: EventData> {
    /// Unique to this event.
    pub id: Uuid,
    /// When it was committed.
    pub time: Timestamp,
    /// What happened.
    pub kind: D::Kind,
    /// The state after it happened.
    pub data: D,
}

impl<D: EventData> Event<D> {
    /// The event in the form in which it crosses the log.
    pub fn encode(&self) -> CloudEvent {
        CloudEvent {
            id: self.id,
            topic: D::TOPIC.name().to_owned(),
            key: self.data.key(),
            kind: self.kind.as_str().to_owned(),
            source: D::SOURCE.to_owned(),
            time: self.time,
            traceparent: None,
            // Event data are plain structs with text keys: serializing them to memory cannot fail.
            data: serde_json::to_vec(&self.data).unwrap_or_default(),
        }
    }

    /// Reads an event; `None` for a kind that this version does not know, which a reader skips.
    pub fn decode(event: &CloudEvent) -> Result<Option<Self>, DecodeError> {
        if event.kind == UNDECODABLE {
            let source = serde::de::Error::custom("its record is no CloudEvent");
            return Err(DecodeError { kind: event.kind.clone(), source });
        }
        let Some(kind) = D::Kind::parse(&event.kind) else { return Ok(None) };
        let data =
            serde_json::from_slice(&event.data).map_err(|source| DecodeError { kind: event.kind.clone(), source })?;
        Ok(Some(Self { id: event.id, time: event.time, kind, data }))
    }
}

/// Declares the names of a topic's events.
macro_rules! event_kinds {
    ($(#[$doc:meta])* $name:ident { $($(#[$kind_doc:meta])* $kind:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$kind_doc])* $kind),+ }

        impl $crate::events::EventKind for $name {
            const ALL: &'static [Self] = &[$(Self::$kind),+];
            fn as_str(&self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind)),+ }
            }
        }
    };
}
use event_kinds;
