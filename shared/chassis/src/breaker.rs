//! A circuit breaker for one replica of a peer: who cannot be reached is left alone for a while.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::client::CONNECT_DEADLINE;

/// Failures in a row that open a breaker: one is chance, and where there is no other replica a breaker that opens too
/// early is an outage of its own.
pub(crate) const FAILURES_TO_OPEN: u32 = 3;

/// How long an open breaker lets nobody through: a restart takes about as long, and a call a second to who is dead costs
/// nobody anything.
const OPEN: Duration = Duration::from_secs(1);

/// How long a probe keeps others back. Whoever sends it may drop it without a word, so it must expire by itself; who
/// cannot be connected to in this time has failed it anyhow.
const PROBE: Duration = CONNECT_DEADLINE;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Everybody may pass; that many calls in a row have failed.
    Closed { failures: u32 },
    /// Nobody may pass until then.
    Open { until: Instant },
    /// One has been let through to see. Until then nobody else is.
    HalfOpen { until: Instant },
}

/// Counts the failures of one replica. The time is the machine's own and not the service's clock: it is about sockets.
#[derive(Debug)]
pub(crate) struct Breaker(Mutex<State>);

impl Breaker {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State::Closed { failures: 0 }))
    }

    /// Whether a call may go there now. A yes may make it the probe, so that who asks must then call.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Closed { .. } => true,
            State::Open { until } | State::HalfOpen { until } if now < until => false,
            State::Open { .. } | State::HalfOpen { .. } => {
                *state = State::HalfOpen { until: now + PROBE };
                true
            }
        }
    }

    /// Whether nobody would be let through now. Unlike [`Self::admits`] it makes nobody the probe.
    pub(crate) fn holds_back(&self, now: Instant) -> bool {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Closed { .. } => false,
            State::Open { until } | State::HalfOpen { until } => now < until,
        }
    }

    /// An answer came, whatever it says. True where that closed the breaker.
    pub(crate) fn answered(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let was_closed = matches!(*state, State::Closed { .. });
        *state = State::Closed { failures: 0 };
        !was_closed
    }

    /// No answer came. True where that opened the breaker, which was closed until now.
    pub(crate) fn failed(&self, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Closed { failures } if failures + 1 < FAILURES_TO_OPEN => {
                *state = State::Closed { failures: failures + 1 };
                false
            }
            State::Closed { .. } => {
                *state = State::Open { until: now + OPEN };
                true
            }
            // A call from before it opened: nothing new.
            State::Open { .. } => false,
            State::HalfOpen { .. } => {
                *state = State::Open { until: now + OPEN };
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(now: Instant) -> Breaker {
        let breaker = Breaker::new();
        for failure in 1..=FAILURES_TO_OPEN {
            assert!(breaker.admits(now));
            assert_eq!(breaker.failed(now), failure == FAILURES_TO_OPEN);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_for_a_while() {
        let now = Instant::now();
        let breaker = opened(now);
        assert!(!breaker.admits(now) && !breaker.admits(now + OPEN - Duration::from_millis(1)));
        assert!(breaker.holds_back(now) && !breaker.holds_back(now + OPEN));
        assert!(breaker.admits(now + OPEN));
        assert!(breaker.holds_back(now + OPEN), "somebody else is the probe");
    }

    #[test]
    fn an_answer_between_failures_keeps_it_closed() {
        let now = Instant::now();
        let breaker = Breaker::new();
        for _ in 0..10 * FAILURES_TO_OPEN {
            assert!(!breaker.failed(now) && breaker.admits(now));
            assert!(!breaker.answered());
        }
    }

    #[test]
    fn one_probe_at_a_time_decides() {
        let now = Instant::now();
        let breaker = opened(now);
        let later = now + OPEN;
        assert!(breaker.admits(later) && !breaker.admits(later), "only one passes");
        assert!(!breaker.failed(later));
        assert!(!breaker.admits(later + OPEN / 2), "a failed probe opens it again");
        assert!(breaker.admits(later + OPEN));
        assert!(breaker.answered());
        assert!(breaker.admits(later + OPEN) && breaker.admits(later + OPEN), "closed");
    }

    #[test]
    fn a_probe_that_was_dropped_expires() {
        let now = Instant::now();
        let breaker = opened(now);
        let probed = now + OPEN;
        assert!(breaker.admits(probed) && !breaker.admits(probed + PROBE / 2));
        assert!(breaker.admits(probed + PROBE), "the next one probes");
    }

    #[test]
    fn a_late_failure_does_not_keep_it_open_for_longer() {
        let now = Instant::now();
        let breaker = opened(now);
        assert!(!breaker.failed(now + OPEN / 2));
        assert!(breaker.admits(now + OPEN));
    }
}
