//! Silence: a reserved drone that is not heard for half a minute is failed, unless nobody was heard at all.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use contracts::{Timestamp, commands::DroneStatus};
use messaging::outbox::chain;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    fleet::Fleet,
    store::{Guard, Removal, StoreError},
    upkeep::pause,
};

/// How long a reserved drone may be silent, in milliseconds of hearing.
const SILENCE_MS: i64 = 30_000;

/// How often the fleet is checked: adds a fifteenth to the half minute, and costs a scan of the drones.
const TICK: Duration = Duration::from_secs(2);

/// The most that one check may count as hearing, in milliseconds: where this process itself stood still for longer, it
/// heard nobody in that time.
const LONGEST_TICK_MS: i64 = 5_000;

/// Drones failed in one transaction: a district's worth; the rest follows at once.
const FAILED_AT_ONCE: usize = 512;

/// When this instance could hear drones. Everything before its start is time in which it could not.
#[derive(Debug)]
pub(crate) struct Hearing {
    /// The last check.
    checked_at: Timestamp,
    /// Times in which some drone was heard, oldest first; together a little over the half minute that matters.
    spans: VecDeque<(Timestamp, Timestamp)>,
}

impl Hearing {
    /// Begins to listen.
    pub(crate) fn starting(now: Timestamp) -> Self {
        Self { checked_at: now, spans: VecDeque::new() }
    }

    /// A check: `last_heard` is when any drone was last heard.
    pub(crate) fn check(&mut self, now: Timestamp, last_heard: Option<Timestamp>) {
        let before = std::mem::replace(&mut self.checked_at, now);
        if last_heard.is_none_or(|heard| heard <= before) || now <= before {
            return;
        }
        let from = before.max(now - chrono::Duration::milliseconds(LONGEST_TICK_MS));
        match self.spans.back_mut() {
            Some(span) if span.1 == from => span.1 = now,
            _ => self.spans.push_back((from, now)),
        }
        while self.spans.len() > 1 && self.heard_ms(1) >= SILENCE_MS {
            self.spans.pop_front();
        }
    }

    fn heard_ms(&self, skipped: usize) -> i64 {
        self.spans.iter().skip(skipped).map(|(from, to)| (*to - *from).num_milliseconds()).sum()
    }

    /// A drone of which nothing was heard since that moment has been silent too long; none before half a minute of
    /// hearing.
    pub(crate) fn silent_since(&self) -> Option<Timestamp> {
        let mut left_ms = SILENCE_MS;
        for (from, to) in self.spans.iter().rev() {
            let length_ms = (*to - *from).num_milliseconds();
            if length_ms >= left_ms {
                return Some(*to - chrono::Duration::milliseconds(left_ms));
            }
            left_ms -= length_ms;
        }
        None
    }
}

/// Checks for silent drones until `shutdown`.
pub(crate) async fn run(fleet: Arc<Fleet>, shutdown: CancellationToken) {
    let mut hearing = Hearing::starting(fleet.clock.now());
    while pause(&*fleet.clock, TICK, &shutdown).await {
        if let Err(error) = check(&fleet, &mut hearing).await {
            warn!(error = %chain(&error), "silent drones are looked for again");
        }
    }
}

/// One check; how many drones were failed.
pub(crate) async fn check(fleet: &Fleet, hearing: &mut Hearing) -> Result<usize, StoreError> {
    let last_heard = fleet.store.last_heard().await?;
    hearing.check(fleet.clock.now(), last_heard);
    let Some(since) = hearing.silent_since() else { return Ok(0) };
    let mut failed = 0;
    loop {
        let silent = fleet.store.silent(since, FAILED_AT_ONCE).await?;
        if silent.is_empty() {
            return Ok(failed);
        }
        let mut removals = Vec::with_capacity(silent.len());
        for drone_id in silent {
            removals.push(Removal {
                drone_id,
                to: DroneStatus::Failed,
                reason: "the drone is silent".to_owned(),
                guard: Guard::SilentSince(since.timestamp_millis()),
            });
        }
        failed += fleet.remove(&removals).await?.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + chrono::Duration::days(20_000) + chrono::Duration::seconds(seconds)
    }

    /// Checks every two seconds from `from` to `to`; `heard` says whether somebody was heard by then.
    fn listen(hearing: &mut Hearing, from: i64, to: i64, heard: bool) {
        for second in (from + 2..=to).step_by(2) {
            hearing.check(at(second), heard.then(|| at(second - 1)));
        }
    }

    #[test]
    fn silence_counts_from_the_start_at_the_earliest() {
        let mut hearing = Hearing::starting(at(0));
        listen(&mut hearing, 0, 28, true);
        assert_eq!(hearing.silent_since(), None);
        listen(&mut hearing, 28, 40, true);
        assert_eq!(hearing.silent_since(), Some(at(10)));
    }

    #[test]
    fn time_in_which_nobody_was_heard_does_not_count() {
        let mut hearing = Hearing::starting(at(0));
        listen(&mut hearing, 0, 20, true);
        listen(&mut hearing, 20, 620, false);
        assert_eq!(hearing.silent_since(), None);
        listen(&mut hearing, 620, 640, true);
        assert_eq!(hearing.silent_since(), Some(at(10)), "ten seconds before the outage, twenty after it");
        listen(&mut hearing, 640, 660, true);
        assert_eq!(hearing.silent_since(), Some(at(630)));
        assert!(hearing.spans.len() <= 2);
    }

    #[test]
    fn a_process_that_stood_still_heard_nobody_meanwhile() {
        let mut hearing = Hearing::starting(at(0));
        hearing.check(at(3_600), Some(at(3_599)));
        assert_eq!(hearing.silent_since(), None);
    }

    #[test]
    fn before_the_first_drone_nothing_is_silent() {
        let mut hearing = Hearing::starting(at(0));
        for second in 1..100 {
            hearing.check(at(second), None);
        }
        assert_eq!(hearing.silent_since(), None);
    }
}
