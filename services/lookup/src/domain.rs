//! Which deliveries are kept, for how long, and in which order they are listed.

use contracts::{
    DeliveryId, Timestamp,
    events::{CloudEvent, DecodeError, DeliveryEvent, DeliveryEventKind, DeliveryRecord},
};

/// How long a finished delivery can be looked up here; older ones are read from the lake.
pub const RETENTION: chrono::Duration = chrono::Duration::days(30);

/// Why an event can never be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventFault {
    /// Its data cannot be read.
    #[error("the event cannot be decoded")]
    Decode(#[from] DecodeError),
    /// Its type says that the delivery is over, its record does not.
    #[error("a {0} event carries a delivery that has not ended")]
    NotFinished(String),
    /// Its data is not text.
    #[error("the event's data is not UTF-8")]
    NotText(#[from] std::string::FromUtf8Error),
    /// Its version is a number that no store holds.
    #[error("the version is larger than a store holds")]
    VersionTooLarge,
}

/// A finished delivery, as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FinishedDelivery {
    /// The delivery.
    pub(crate) record: DeliveryRecord,
    /// When the owner committed the end.
    pub(crate) finished_at: Timestamp,
    /// The record as it came: fields that this version does not know are kept.
    pub(crate) json: String,
}

impl FinishedDelivery {
    /// The delivery that a terminal event tells; `None` for every other event.
    pub(crate) fn of(event: &CloudEvent) -> Result<Option<Self>, EventFault> {
        let Some(DeliveryEvent { kind, data: record, .. }) = DeliveryEvent::decode(event)? else { return Ok(None) };
        match kind {
            DeliveryEventKind::DeliveryCompleted
            | DeliveryEventKind::DeliveryCancelled
            | DeliveryEventKind::DeliveryRejected
            | DeliveryEventKind::DeliveryFailed => {}
            DeliveryEventKind::DeliveryRequested
            | DeliveryEventKind::DeliveryScheduled
            | DeliveryEventKind::DeliveryRescheduled => return Ok(None),
        }
        let Some(finished_at) = record.finished_at.filter(|_| record.stage.is_terminal()) else {
            return Err(EventFault::NotFinished(event.kind.clone()));
        };
        if i64::try_from(record.version).is_err() {
            return Err(EventFault::VersionTooLarge);
        }
        let json = String::from_utf8(event.data.clone())?;
        Ok(Some(Self { record, finished_at, json }))
    }

    /// Whether it is still to be found here, at `now`.
    pub(crate) fn is_recent(&self, now: Timestamp) -> bool {
        self.finished_at >= now - RETENTION
    }
}

/// A place in a customer's list, newest first: microseconds, as precise as the lake, so that both list alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) finished_us: i64,
    /// `None`: before every delivery that finished at that time.
    pub(crate) delivery_id: Option<DeliveryId>,
}

/// Where a page begins (exclusively): after the last page's last item, or at the end of the asked time.
pub(crate) fn page_start(to: Timestamp, after: Option<(Timestamp, DeliveryId)>) -> Place {
    let end = Place { finished_us: to.timestamp_micros(), delivery_id: None };
    match after {
        Some((at, id)) if at.timestamp_micros() < end.finished_us => {
            Place { finished_us: at.timestamp_micros(), delivery_id: Some(id) }
        }
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use contracts::Stage;

    use super::*;
    use crate::store::samples::{at, event, finished, id};

    #[test]
    fn only_terminal_events_are_kept() {
        let record = finished(1, "alice", at(5));
        for kind in [
            DeliveryEventKind::DeliveryRequested,
            DeliveryEventKind::DeliveryScheduled,
            DeliveryEventKind::DeliveryRescheduled,
        ] {
            assert_eq!(FinishedDelivery::of(&event(kind, &record).encode()).unwrap(), None);
        }
        for kind in [
            DeliveryEventKind::DeliveryCompleted,
            DeliveryEventKind::DeliveryCancelled,
            DeliveryEventKind::DeliveryRejected,
            DeliveryEventKind::DeliveryFailed,
        ] {
            let kept = FinishedDelivery::of(&event(kind, &record).encode()).unwrap().unwrap();
            assert_eq!((kept.record, kept.finished_at), (record.clone(), at(5)));
        }
    }

    #[test]
    fn an_event_that_contradicts_itself_is_at_fault() {
        let mut record = finished(1, "alice", at(5));
        record.finished_at = None;
        let of = |record: &DeliveryRecord| {
            FinishedDelivery::of(&event(DeliveryEventKind::DeliveryCompleted, record).encode()).unwrap_err()
        };
        assert!(matches!(of(&record), EventFault::NotFinished(_)));
        let open = DeliveryRecord { stage: Stage::Scheduled, ..finished(1, "alice", at(5)) };
        assert!(matches!(of(&open), EventFault::NotFinished(_)));
        let vast = DeliveryRecord { version: u64::MAX, ..finished(1, "alice", at(5)) };
        assert!(matches!(of(&vast), EventFault::VersionTooLarge));
    }

    #[test]
    fn what_finished_longer_ago_than_the_retention_is_left_to_the_lake() {
        let kept = crate::store::samples::row(&finished(1, "alice", at(5)));
        assert!(kept.is_recent(at(5) + RETENTION));
        assert!(!kept.is_recent(at(6) + RETENTION));
    }

    #[test]
    fn a_page_begins_at_the_earlier_of_the_end_and_the_last_item() {
        let end = Place { finished_us: at(9).timestamp_micros(), delivery_id: None };
        assert_eq!(page_start(at(9), None), end);
        assert_eq!(page_start(at(9), Some((at(10), id(1)))), end);
        assert_eq!(page_start(at(9), Some((at(9), id(1)))), end);
        let item = Place { finished_us: at(8).timestamp_micros(), delivery_id: Some(id(1)) };
        assert_eq!(page_start(at(9), Some((at(8), id(1)))), item);
    }
}
