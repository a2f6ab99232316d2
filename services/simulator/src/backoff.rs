//! Pauses between tries: doubling, bounded, jittered so that many callers do not come back together.

use std::time::Duration;

use crate::random::Random;

/// The first pause: long enough for a restarted connection, too short to be noticed.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause: a gateway that is back is found within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The pauses of one caller.
#[derive(Debug)]
pub(crate) struct Backoff {
    random: Random,
    next: Duration,
}

impl Backoff {
    /// Starts with the shortest pause.
    pub(crate) const fn new(random: Random) -> Self {
        Self { random, next: FIRST_PAUSE }
    }

    /// How long to wait now; the next time about twice as long.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(self.random.between(0.5, 1.0));
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        pause
    }

    /// It went well: the next pause is the shortest again.
    pub(crate) const fn reset(&mut self) {
        self.next = FIRST_PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_start_again_after_a_success() {
        let mut backoff = Backoff::new(Random::new(1));
        let first = backoff.pause();
        assert!(first >= FIRST_PAUSE / 2 && first <= FIRST_PAUSE);
        let last = (0..20).map(|_| backoff.pause()).last().unwrap();
        assert!(last >= LONGEST_PAUSE / 2 && last <= LONGEST_PAUSE);
        backoff.reset();
        assert!(backoff.pause() <= FIRST_PAUSE);
    }
}
