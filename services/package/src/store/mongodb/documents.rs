//! How a package, its contents and its events are written as documents, and read back.

use ::mongodb::bson::{Bson, Document, Uuid, doc};
use contracts::{
    DeliveryId, Timestamp,
    api::{PackageSize, PackageSpec},
    events::{CloudEvent, PackageState},
};
use messaging::{keys::part_of, outbox::Bucket};
use serde::Serialize;

use crate::{
    domain::Package,
    store::{self, SIZES, STATES},
};

/// Buckets of the outbox: a few for each of the replicas that one would run. Fixed, since documents carry theirs.
pub(super) const BUCKETS: Bucket = 16;

/// The revision of a package that is not stored yet.
pub(super) const ABSENT: i64 = 0;

/// Why a document cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("a document of the package store is unreadable: {0}")]
pub(super) struct Unreadable(String);

impl Unreadable {
    pub(super) fn new(cause: impl std::fmt::Display) -> Self {
        Self(cause.to_string())
    }
}

/// A package as its document tells it: the contents lie elsewhere.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) package: Package,
    /// Counts the writes of the document, so that a writer knows whether it has seen the last.
    pub(super) revision: i64,
    /// The id of its contents, where it says something.
    pub(super) contents: Option<Uuid>,
}

impl Stored {
    pub(super) fn of(document: &Document) -> Result<Self, Unreadable> {
        let text = |field| document.get_str(field).map_err(Unreadable::new);
        let number = |field| document.get_i64(field).map_err(Unreadable::new);
        let registered_us = match document.get("registered_us") {
            None | Some(Bson::Null) => None,
            Some(_) => Some(number("registered_us")?),
        };
        let package = Package {
            delivery_id: delivery_id(id(document, "_id")?),
            customer_id: text("customer_id")?.parse().map_err(Unreadable::new)?,
            home_region: text("home_region")?.parse().map_err(Unreadable::new)?,
            attempt: u32::try_from(number("attempt")?).map_err(Unreadable::new)?,
            fence: u64::try_from(number("fence")?).map_err(Unreadable::new)?,
            state: state(document)?,
            package: PackageSpec {
                size: store::size_named(text("size")?).ok_or_else(|| Unreadable::new("no such size"))?,
                weight_kg: document.get_f64("weight_kg").map_err(Unreadable::new)?,
                tag: None,
                description: None,
            },
            registered_at: registered_us.map(time).transpose()?,
            updated_at: time(number("updated_us")?)?,
        };
        let contents = document.contains_key("contents").then(|| id(document, "contents")).transpose()?;
        Ok(Self { package, revision: number("revision")?, contents })
    }
}

/// The fields of a package's document that each write of it sets.
#[derive(Debug, Serialize)]
struct Fields<'a> {
    customer_id: &'a str,
    home_region: &'a str,
    attempt: i64,
    fence: i64,
    state: &'static str,
    size: &'static str,
    weight_kg: f64,
    registered_us: Option<i64>,
    updated_us: i64,
    revision: i64,
    bucket: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_us: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    contents: Option<Uuid>,
}

impl<'a> Fields<'a> {
    /// Of a package whose stored revision is that.
    fn of(package: &'a Package, revision: i64, contents: Option<Uuid>) -> Self {
        let updated_us = package.updated_at.timestamp_micros();
        Self {
            customer_id: package.customer_id.as_str(),
            home_region: package.home_region.as_str(),
            attempt: i64::from(package.attempt),
            fence: i64::try_from(package.fence).unwrap_or(i64::MAX),
            state: package.state.as_str(),
            size: package.package.size.as_str(),
            weight_kg: package.package.weight_kg,
            registered_us: package.registered_at.map(|at| at.timestamp_micros()),
            updated_us,
            revision: revision + 1,
            bucket: i32::from(bucket(package.delivery_id)),
            ended_us: (package.state != PackageState::Registered).then_some(updated_us),
            contents,
        }
    }
}

/// An event in the document that it is about.
#[derive(Debug, Serialize)]
struct Event<'a> {
    id: Uuid,
    topic: &'a str,
    key: &'a str,
    kind: &'a str,
    source: &'a str,
    time_us: i64,
    #[serde(with = "serde_bytes")]
    data: &'a [u8],
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
}

impl<'a> Event<'a> {
    fn all(events: &'a [CloudEvent]) -> Vec<Self> {
        let one = |event: &'a CloudEvent| Self {
            id: Uuid::from_bytes(event.id.into_bytes()),
            topic: &event.topic,
            key: &event.key,
            kind: &event.kind,
            source: &event.source,
            time_us: event.time.timestamp_micros(),
            data: &event.data,
            traceparent: event.traceparent.as_deref(),
        };
        events.iter().map(one).collect()
    }
}

/// The document of a package that is not stored yet.
#[derive(Debug, Serialize)]
pub(super) struct Insert<'a> {
    #[serde(rename = "_id")]
    id: Uuid,
    #[serde(flatten)]
    fields: Fields<'a>,
    outbox: Vec<Event<'a>>,
}

impl<'a> Insert<'a> {
    pub(super) fn of(package: &'a Package, contents: Option<Uuid>, events: &'a [CloudEvent]) -> Self {
        let fields = Fields::of(package, ABSENT, contents);
        Self { id: key(package.delivery_id), fields, outbox: Event::all(events) }
    }
}

/// The statement that writes a package and appends its events, if the stored revision is still that one. Otherwise it
/// is an insert that meets the document's own id, and is refused as such.
#[derive(Debug, Serialize)]
pub(super) struct Update<'a> {
    q: Revision,
    u: Change<'a>,
    upsert: bool,
}

#[derive(Debug, Serialize)]
struct Revision {
    #[serde(rename = "_id")]
    id: Uuid,
    revision: i64,
}

#[derive(Debug, Serialize)]
struct Change<'a> {
    #[serde(rename = "$set")]
    set: Fields<'a>,
    #[serde(rename = "$push")]
    push: Push<'a>,
}

#[derive(Debug, Serialize)]
struct Push<'a> {
    outbox: Each<'a>,
}

#[derive(Debug, Serialize)]
struct Each<'a> {
    #[serde(rename = "$each")]
    events: Vec<Event<'a>>,
}

impl<'a> Update<'a> {
    pub(super) fn of(package: &'a Package, known: &Stored, events: &'a [CloudEvent]) -> Self {
        Self {
            q: Revision { id: key(package.delivery_id), revision: known.revision },
            u: Change {
                set: Fields::of(package, known.revision, known.contents),
                push: Push { outbox: Each { events: Event::all(events) } },
            },
            upsert: true,
        }
    }
}

/// What a package says, as a document of its own.
#[derive(Debug, Serialize)]
pub(super) struct Contents<'a> {
    #[serde(rename = "_id")]
    pub(super) id: Uuid,
    delivery_id: Uuid,
    tag: Option<&'a str>,
    description: Option<&'a str>,
}

impl<'a> Contents<'a> {
    /// None where it says nothing.
    pub(super) fn of(package: &'a Package, id: Uuid) -> Option<Self> {
        let PackageSpec { tag, description, .. } = &package.package;
        if tag.is_none() && description.is_none() {
            return None;
        }
        let delivery_id = key(package.delivery_id);
        Some(Self { id, delivery_id, tag: tag.as_deref(), description: description.as_deref() })
    }
}

/// Gives a package what its contents say.
pub(super) fn fill(package: &mut Package, contents: &Document) {
    let text = |field| contents.get_str(field).ok().map(str::to_owned);
    package.package.tag = text("tag");
    package.package.description = text("description");
}

/// The events that wait in a package's document, in order.
pub(super) fn events(document: &Document) -> Result<Vec<CloudEvent>, Unreadable> {
    let mut events = Vec::new();
    for entry in document.get_array("outbox").map_err(Unreadable::new)? {
        let entry = entry.as_document().ok_or_else(|| Unreadable::new("an event is a document"))?;
        let text = |field| entry.get_str(field).map(str::to_owned).map_err(Unreadable::new);
        events.push(CloudEvent {
            id: uuid::Uuid::from_bytes(id(entry, "id")?.bytes()),
            topic: text("topic")?,
            key: text("key")?,
            kind: text("kind")?,
            source: text("source")?,
            time: time(entry.get_i64("time_us").map_err(Unreadable::new)?)?,
            traceparent: entry.get_str("traceparent").ok().map(str::to_owned),
            data: entry.get_binary_generic("data").map_err(Unreadable::new)?.clone(),
        });
    }
    Ok(events)
}

/// What the server refuses to store otherwise. Fields that it does not name are let through, so that replicas of two
/// versions can write side by side.
pub(super) fn schema() -> Document {
    let (text, long, id) = (doc! { "bsonType": "string" }, doc! { "bsonType": "long" }, doc! { "bsonType": "binData" });
    let event = doc! {
        "bsonType": "object",
        "required": ["id", "topic", "key", "kind", "source", "time_us", "data"],
        "properties": {
            "id": &id, "topic": &text, "key": &text, "kind": &text, "source": &text, "time_us": &long,
            "traceparent": &text, "data": { "bsonType": "binData" },
        },
    };
    doc! { "$jsonSchema": {
        "bsonType": "object",
        "required": ["_id", "customer_id", "home_region", "attempt", "fence", "state", "size", "weight_kg", "updated_us",
            "revision", "bucket", "outbox"],
        "properties": {
            "_id": &id,
            "customer_id": &text,
            "home_region": &text,
            "attempt": { "bsonType": "long", "minimum": 0 },
            "fence": { "bsonType": "long", "minimum": 0 },
            "state": { "enum": STATES.map(PackageState::as_str).to_vec() },
            "size": { "enum": SIZES.map(PackageSize::as_str).to_vec() },
            "weight_kg": { "bsonType": "double", "minimum": 0 },
            "registered_us": { "bsonType": ["long", "null"] },
            "updated_us": &long,
            "ended_us": &long,
            "revision": { "bsonType": "long", "minimum": 1 },
            "bucket": { "bsonType": "int", "minimum": 0, "maximum": i32::from(BUCKETS) - 1 },
            "contents": &id,
            "outbox": { "bsonType": "array", "items": event },
        },
    } }
}

/// The bucket of a package's events.
pub(super) fn bucket(id: DeliveryId) -> Bucket {
    // Below `BUCKETS`, which is one.
    part_of(&id.to_string(), u32::from(BUCKETS)) as Bucket
}

pub(super) fn key(id: DeliveryId) -> Uuid {
    Uuid::from_bytes(id.0.into_bytes())
}

pub(super) fn delivery_id(key: Uuid) -> DeliveryId {
    DeliveryId(uuid::Uuid::from_bytes(key.bytes()))
}

pub(super) fn id(document: &Document, field: &str) -> Result<Uuid, Unreadable> {
    match document.get(field) {
        Some(Bson::Binary(binary)) => binary.to_uuid().map_err(Unreadable::new),
        other => Err(Unreadable::new(format!("{field} is {other:?}"))),
    }
}

pub(super) fn state(document: &Document) -> Result<PackageState, Unreadable> {
    let name = document.get_str("state").map_err(Unreadable::new)?;
    store::state_named(name).ok_or_else(|| Unreadable::new(format!("'{name}' is not a state of a package")))
}

fn time(micros: i64) -> Result<Timestamp, Unreadable> {
    Timestamp::from_timestamp_micros(micros).ok_or_else(|| Unreadable::new(format!("{micros} is not a time")))
}
