//! The walk through finished deliveries: lookup's days first, then the lake's, newest first, page by page.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Duration, Utc};
use contracts::{CustomerId, DeliveryId, Timestamp, api::HistoryQuery};
use serde::{Deserialize, Serialize};

/// How far back lookup is asked: its 30 days less one, so that what is asked of it has not expired yet.
const LOOKUP_DAYS: i64 = 29;

/// How far back the list goes where the caller does not say.
const DEFAULT_DAYS: i64 = 30;

/// The longest cursor: a legal one has about 200 characters.
const MAX_CURSOR_CHARS: usize = 1_000;

/// The text is not a cursor that this API gave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a cursor of this list")]
pub(crate) struct BadCursor;

/// `from` is not before `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be before `to`")]
pub(crate) struct EmptyRange;

/// Where a list of finished deliveries stands. It is its own cursor: the range is that of the first page, so that the
/// pages fit together however late the next one is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Walk {
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    /// The finish and the id behind which it goes on.
    after: Option<(DateTime<Utc>, DeliveryId)>,
}

impl Walk {
    /// The start of a list; without limits the last 30 days.
    pub(crate) fn start(from: Option<Timestamp>, to: Option<Timestamp>, now: Timestamp) -> Result<Self, EmptyRange> {
        let from = from.unwrap_or(now - Duration::days(DEFAULT_DAYS));
        let to = to.unwrap_or(now);
        if from >= to {
            return Err(EmptyRange);
        }
        // Nothing ended before there were computers or will have ended tomorrow: the owners need not look there.
        let (first, last) = (Timestamp::UNIX_EPOCH, now + Duration::days(1));
        Ok(Self { from: from.clamp(first, last), to: to.clamp(first, last), after: None })
    }

    /// The walk that [`Self::cursor`] wrote down.
    pub(crate) fn parse(cursor: &str) -> Result<Self, BadCursor> {
        if cursor.len() > MAX_CURSOR_CHARS {
            return Err(BadCursor);
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).map_err(|_| BadCursor)?;
        let walk: Self = serde_json::from_slice(&bytes).map_err(|_| BadCursor)?;
        let inside = walk.after.is_some_and(|(finished_at, _)| (walk.from..walk.to).contains(&finished_at));
        if inside && walk.from >= Timestamp::UNIX_EPOCH { Ok(walk) } else { Err(BadCursor) }
    }

    /// The walk as a cursor.
    pub(crate) fn cursor(&self) -> String {
        // A struct with text keys: serializing it to memory cannot fail.
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// The walk behind a place.
    pub(crate) fn after(&self, place: (Timestamp, DeliveryId)) -> Self {
        Self { after: Some(place), ..self.clone() }
    }

    /// The question for lookup; `None` where the rest of the list is older than what it keeps.
    pub(crate) fn of_lookup(&self, customer_id: &CustomerId, limit: usize, now: Timestamp) -> Option<HistoryQuery> {
        let boundary = boundary(now);
        let newest = self.after.map_or(self.to, |(finished_at, _)| finished_at.min(self.to));
        if newest < boundary {
            return None;
        }
        let (from, to) = (self.from.max(boundary), self.to);
        if from >= to {
            return None;
        }
        Some(HistoryQuery { customer_id: customer_id.clone(), from, to, after: self.after, limit })
    }

    /// The question for the lake; `None` where lookup keeps the whole list.
    pub(crate) fn of_lake(&self, customer_id: &CustomerId, limit: usize, now: Timestamp) -> Option<HistoryQuery> {
        let to = self.to.min(boundary(now));
        if self.from >= to {
            return None;
        }
        let after = self.after.filter(|(finished_at, _)| *finished_at < to);
        Some(HistoryQuery { customer_id: customer_id.clone(), from: self.from, to, after, limit })
    }
}

fn boundary(now: Timestamp) -> Timestamp {
    now - Duration::days(LOOKUP_DAYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(day: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + Duration::days(20_000 + day)
    }

    fn alice() -> CustomerId {
        "alice".parse().unwrap()
    }

    fn walk(from: i64, to: i64, after: Option<i64>) -> Walk {
        let after = after.map(|after| (day(after), DeliveryId(uuid::Uuid::nil())));
        Walk { from: day(from), to: day(to), after }
    }

    /// The days that lookup and the lake are asked for on day 100: lookup keeps those from day 71 on.
    fn asked(walk: &Walk) -> [Option<(i64, i64, bool)>; 2] {
        let days = |query: HistoryQuery| {
            let number = |at: Timestamp| (at - day(0)).num_days();
            (number(query.from), number(query.to), query.after.is_some())
        };
        [walk.of_lookup(&alice(), 5, day(100)).map(days), walk.of_lake(&alice(), 5, day(100)).map(days)]
    }

    #[test]
    fn the_two_sources_share_the_range_without_overlap() {
        assert_eq!(asked(&walk(90, 100, None)), [Some((90, 100, false)), None]);
        assert_eq!(asked(&walk(71, 100, None)), [Some((71, 100, false)), None]);
        assert_eq!(asked(&walk(50, 100, None)), [Some((71, 100, false)), Some((50, 71, false))]);
        assert_eq!(asked(&walk(50, 71, None)), [None, Some((50, 71, false))]);
        assert_eq!(asked(&walk(20, 40, None)), [None, Some((20, 40, false))]);
    }

    #[test]
    fn the_walk_goes_on_where_it_was() {
        assert_eq!(asked(&walk(50, 100, Some(80))), [Some((71, 100, true)), Some((50, 71, false))]);
        assert_eq!(asked(&walk(50, 100, Some(60))), [None, Some((50, 71, true))]);
    }

    #[test]
    fn a_cursor_is_read_back_as_it_was_written() {
        let walk = walk(50, 100, Some(80));
        let cursor = walk.cursor();
        assert_eq!(Walk::parse(&cursor), Ok(walk));
        assert!(cursor.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{cursor}");
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let outside = walk(50, 100, Some(40)).cursor();
        let upside_down = walk(100, 50, Some(80)).cursor();
        let beginning = walk(50, 100, None).cursor();
        let long = "A".repeat(MAX_CURSOR_CHARS + 1);
        for bad in ["", "?", "AAAA", &encode("{}"), &encode("[]"), &outside, &upside_down, &beginning, &long] {
            assert_eq!(Walk::parse(bad), Err(BadCursor), "{bad}");
        }
    }

    #[test]
    fn the_range_is_the_last_thirty_days_unless_given() {
        let start = Walk::start(None, None, day(100)).unwrap();
        assert_eq!(start, walk(70, 100, None));
        assert_eq!(Walk::start(Some(day(5)), Some(day(5)), day(100)), Err(EmptyRange));
        assert_eq!(Walk::start(Some(day(6)), Some(day(5)), day(100)), Err(EmptyRange));
        let widest = Walk::start(Some(Timestamp::MIN_UTC), Some(Timestamp::MAX_UTC), day(100)).unwrap();
        assert_eq!((widest.from, widest.to), (Timestamp::UNIX_EPOCH, day(101)));
    }
}
