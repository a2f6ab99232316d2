//! Which event becomes which row of the lake, on which date, and what makes two rows the same.

use std::time::Duration;

use chrono::NaiveDate;
use contracts::{
    DeliveryId, Timestamp,
    events::{
        CloudEvent, DecodeError, DeliveryEvent, DeliveryEventKind, DeliveryRecord, EventKind, PositionEvent,
        PositionSample,
    },
};
use uuid::Uuid;

/// Why an event can never become a row.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowFault {
    /// Its data cannot be read.
    #[error("the event cannot be decoded")]
    Decode(#[from] DecodeError),
    /// Its type says that the delivery is over, its record does not.
    #[error("a {0} event carries a delivery that has not ended")]
    NotFinished(&'static str),
    /// Its data is not text.
    #[error("the event's data is not UTF-8")]
    NotText(#[from] std::string::FromUtf8Error),
    /// A number that the lake's columns cannot hold.
    #[error("{0} is larger than the lake's columns hold")]
    TooLarge(&'static str),
}

/// What makes a row unique in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    /// The delivery.
    pub(crate) delivery: Uuid,
    /// The attempt of a position; 0 for a delivery.
    pub(crate) attempt: u32,
    /// The number of a position's report; 0 for a delivery.
    pub(crate) sequence: u64,
}

/// A finished delivery.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DeliveryRow {
    /// The delivery, as its terminal event told it.
    pub(crate) record: DeliveryRecord,
    /// When the owner committed the end.
    pub(crate) finished_at: Timestamp,
    /// The event's data as it came: fields that this version does not know are kept.
    pub(crate) json: String,
}

impl DeliveryRow {
    /// The row of a terminal event; `None` for an event that the lake does not keep.
    pub(crate) fn from_event(event: &CloudEvent) -> Result<Option<Self>, RowFault> {
        // Most events are not terminal: they are told by their name, without reading the record.
        let name = match DeliveryEventKind::parse(&event.kind) {
            Some(DeliveryEventKind::DeliveryCompleted) => "DeliveryCompleted",
            Some(DeliveryEventKind::DeliveryCancelled) => "DeliveryCancelled",
            Some(DeliveryEventKind::DeliveryRejected) => "DeliveryRejected",
            Some(DeliveryEventKind::DeliveryFailed) => "DeliveryFailed",
            Some(
                DeliveryEventKind::DeliveryRequested
                | DeliveryEventKind::DeliveryScheduled
                | DeliveryEventKind::DeliveryRescheduled,
            ) => return Ok(None),
            // Of a later version, and skipped; or no event at all, and a fault.
            None => return Ok(DeliveryEvent::decode(event)?.and(None)),
        };
        let Some(DeliveryEvent { data: record, .. }) = DeliveryEvent::decode(event)? else { return Ok(None) };
        let Some(finished_at) = record.finished_at.filter(|_| record.stage.is_terminal()) else {
            return Err(RowFault::NotFinished(name));
        };
        if i64::try_from(record.version).is_err() {
            return Err(RowFault::TooLarge("version"));
        }
        let json = String::from_utf8(event.data.clone())?;
        Ok(Some(Self { record, finished_at, json }))
    }

    /// What makes it unique.
    pub(crate) fn key(&self) -> Key {
        Key { delivery: self.record.delivery_id.0, attempt: 0, sequence: 0 }
    }

    /// When its last attempt took the package on board.
    pub(crate) fn picked_up_at(&self) -> Option<Timestamp> {
        self.last_entry(contracts::Stage::HeadedToDropoff)
    }

    /// When its last attempt was scheduled.
    pub(crate) fn scheduled_at(&self) -> Option<Timestamp> {
        self.last_entry(contracts::Stage::Scheduled)
    }

    fn last_entry(&self, stage: contracts::Stage) -> Option<Timestamp> {
        let entries = self.record.stages.iter().filter(|entry| entry.stage == stage);
        entries.max_by_key(|entry| entry.attempt).map(|entry| entry.at)
    }
}

/// A sampled position.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PositionRow(pub(crate) PositionSample);

impl PositionRow {
    /// The row of a position event; `None` for an event that the lake does not keep.
    pub(crate) fn from_event(event: &CloudEvent) -> Result<Option<Self>, RowFault> {
        let Some(PositionEvent { data, .. }) = PositionEvent::decode(event)? else { return Ok(None) };
        if i64::try_from(data.fix.sequence).is_err() {
            return Err(RowFault::TooLarge("sequence"));
        }
        Ok(Some(Self(data)))
    }

    /// What makes it unique.
    pub(crate) fn key(&self) -> Key {
        Key { delivery: self.0.delivery_id.0, attempt: self.0.attempt, sequence: self.0.fix.sequence }
    }
}

/// The partition of a time: its date in UTC.
pub(crate) fn date_of(time: Timestamp) -> NaiveDate {
    time.date_naive()
}

/// The first date on which a delivery can have ended: its id tells when it was requested. There is no last one: an end
/// that nobody could commit for a week, because a store or the broker was away, is still found. `None` for an id without
/// a time.
pub(crate) fn first_possible_date(id: DeliveryId) -> Option<NaiveDate> {
    let (seconds, nanoseconds) = id.0.get_timestamp()?.to_unix();
    let requested = Timestamp::from_timestamp(i64::try_from(seconds).ok()?, nanoseconds)?;
    // The id was drawn by another machine's clock, which may be a little ahead of the one that ended it.
    Some(date_of(requested - chrono::Duration::minutes(contracts::api::MAX_CLOCK_OFF_MINUTES)))
}

/// Whether something that was done `then` and is good for `bound` must be done anew. After a clock was set back nobody
/// knows how old it is: it counts as too old.
pub(crate) fn is_outdated(then: Timestamp, bound: Duration, now: Timestamp) -> bool {
    (now - then).to_std().map_or(true, |age| age >= bound)
}

/// A time in the future that is at most `wait` away, even after a clock was set back.
pub(crate) fn at_most_after(at: Timestamp, wait: Duration, now: Timestamp) -> Timestamp {
    at.min(now + wait)
}

#[cfg(test)]
mod tests {
    use contracts::{Stage, events::DeliveryEventKind};

    use super::*;
    use crate::fixtures::{at, delivery_event, finished, position_event};

    #[test]
    fn only_terminal_events_become_rows() {
        let record = finished(1, "alice", at(1, 0));
        for kind in [DeliveryEventKind::DeliveryRequested, DeliveryEventKind::DeliveryScheduled] {
            let event = DeliveryEvent { kind, ..delivery_event(&record) };
            assert_eq!(DeliveryRow::from_event(&event.encode()).unwrap(), None);
        }
        let row = DeliveryRow::from_event(&delivery_event(&record).encode()).unwrap().unwrap();
        assert_eq!(row.record, record);
        assert_eq!(row.finished_at, at(1, 0));
    }

    #[test]
    fn an_event_that_contradicts_itself_is_at_fault() {
        let mut record = finished(1, "alice", at(1, 0));
        record.stage = Stage::Scheduled;
        assert!(matches!(
            DeliveryRow::from_event(&delivery_event(&record).encode()),
            Err(RowFault::NotFinished("DeliveryCompleted"))
        ));
        let mut event = delivery_event(&record).encode();
        event.data = b"{}".to_vec();
        assert!(matches!(DeliveryRow::from_event(&event), Err(RowFault::Decode(_))));
        event.kind = contracts::events::UNDECODABLE.to_owned();
        assert!(matches!(DeliveryRow::from_event(&event), Err(RowFault::Decode(_))));
        assert!(matches!(PositionRow::from_event(&event), Err(RowFault::Decode(_))));
    }

    #[test]
    fn unknown_fields_of_a_newer_version_are_kept() {
        let mut event = delivery_event(&finished(1, "alice", at(1, 0))).encode();
        let mut value: serde_json::Value = serde_json::from_slice(&event.data).unwrap();
        value["from_the_future"] = 7.into();
        event.data = serde_json::to_vec(&value).unwrap();
        assert!(DeliveryRow::from_event(&event).unwrap().unwrap().json.contains("from_the_future"));
    }

    #[test]
    fn a_position_is_named_by_delivery_attempt_and_sequence() {
        let row = PositionRow::from_event(&position_event(7, 2, 30, at(1, 0)).encode()).unwrap().unwrap();
        assert_eq!((row.key().attempt, row.key().sequence), (2, 30));
    }

    #[test]
    fn an_id_tells_the_first_date_on_which_its_delivery_can_have_ended() {
        let record = finished(1, "alice", at(3, 12));
        assert_eq!(first_possible_date(record.delivery_id), Some(date_of(record.requested_at)));
        let after_midnight = crate::fixtures::id(1, at(3, 0));
        assert_eq!(first_possible_date(after_midnight), Some(date_of(at(2, 0))), "another's clock was ahead");
        assert_eq!(first_possible_date(DeliveryId(Uuid::from_u128(7))), None);
    }

    #[test]
    fn a_clock_that_is_set_back_makes_things_old_and_waits_short() {
        let minute = Duration::from_secs(60);
        assert!(!is_outdated(at(1, 0), minute, at(1, 0)));
        assert!(is_outdated(at(1, 0), minute, at(1, 0) + minute));
        assert!(is_outdated(at(1, 0), minute, at(1, 0) - minute));
        assert_eq!(at_most_after(at(1, 0), minute, at(1, 0) - minute / 2), at(1, 0));
        assert_eq!(at_most_after(at(1, 5), minute, at(1, 0)), at(1, 0) + minute);
    }
}
