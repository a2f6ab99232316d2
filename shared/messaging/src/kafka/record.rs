//! A CloudEvent as a Kafka record, in binary mode: its attributes are headers, its data the payload.

use contracts::{Timestamp, events::CloudEvent};
use rdkafka::{
    Message,
    message::{Header, Headers, OwnedHeaders},
};
use uuid::Uuid;

use super::names::Names;
use crate::UNDECODABLE;

const ID: &str = "ce_id";
const KIND: &str = "ce_type";
const SOURCE: &str = "ce_source";
const TIME: &str = "ce_time";
const TRACEPARENT: &str = "traceparent";

/// The headers of an event.
pub(super) fn headers(event: &CloudEvent) -> OwnedHeaders {
    let (id, time) = (event.id.to_string(), event.time.to_rfc3339());
    let fixed = [
        ("ce_specversion", "1.0"),
        (ID, &id),
        (KIND, &event.kind),
        (SOURCE, &event.source),
        (TIME, &time),
        ("content-type", "application/json"),
    ];
    let trace = event.traceparent.as_deref().map(|value| (TRACEPARENT, value));
    fixed
        .into_iter()
        .chain(trace)
        .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

/// The event of a record. What is no CloudEvent comes as [`UNDECODABLE`], with the data that it has.
pub(super) fn event(record: &impl Message, names: &Names) -> CloudEvent {
    decoded(record, names).unwrap_or_else(|| {
        tracing::error!(
            topic = record.topic(),
            partition = record.partition(),
            offset = record.offset(),
            "a record is no CloudEvent"
        );
        CloudEvent {
            // The same id whenever it is read.
            id: Uuid::from_u64_pair(u64::from(record.partition().unsigned_abs()), record.offset().unsigned_abs()),
            topic: names.short(record.topic()).to_owned(),
            key: String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned(),
            kind: UNDECODABLE.to_owned(),
            source: String::new(),
            time: Timestamp::from_timestamp_millis(record.timestamp().to_millis().unwrap_or(0)).unwrap_or_default(),
            traceparent: None,
            data: record.payload().unwrap_or_default().to_vec(),
        }
    })
}

fn decoded(record: &impl Message, names: &Names) -> Option<CloudEvent> {
    let headers = record.headers()?;
    let text = |name: &str| {
        let header = headers.iter().find(|header| header.key == name)?;
        std::str::from_utf8(header.value?).ok().map(str::to_owned)
    };
    Some(CloudEvent {
        id: text(ID)?.parse().ok()?,
        topic: names.short(record.topic()).to_owned(),
        key: String::from_utf8(record.key()?.to_vec()).ok()?,
        kind: text(KIND)?,
        source: text(SOURCE)?,
        time: text(TIME)?.parse().ok()?,
        traceparent: text(TRACEPARENT),
        data: record.payload().unwrap_or_default().to_vec(),
    })
}
