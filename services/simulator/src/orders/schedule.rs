//! When orders are due: fixed by rate and seed, whatever becomes of the orders.

use contracts::Timestamp;

use crate::random::Random;

/// The due times of all orders, one after the other.
#[derive(Debug)]
pub(super) struct Schedule {
    start: Timestamp,
    rate: f64,
    random: Option<Random>,
    taken: u64,
    /// Seconds since the start; only with random gaps.
    elapsed_seconds: f64,
}

impl Schedule {
    /// `rate` orders a second from `start`; none at all where the rate is 0.
    pub(super) fn new(start: Timestamp, rate: f64, random_gaps: bool, seed: u64) -> Self {
        let random = random_gaps.then(|| Random::of(seed, "schedule", 0));
        Self { start, rate, random, taken: 0, elapsed_seconds: 0.0 }
    }
}

impl Iterator for Schedule {
    type Item = Timestamp;

    fn next(&mut self) -> Option<Timestamp> {
        if self.rate <= 0.0 {
            return None;
        }
        let seconds = match &mut self.random {
            Some(random) => {
                self.elapsed_seconds -= (1.0 - random.share()).ln() / self.rate;
                self.elapsed_seconds
            }
            // From the count, not from the last one: nothing adds up over a day.
            None => self.taken as f64 / self.rate,
        };
        self.taken += 1;
        self.start.checked_add_signed(chrono::Duration::microseconds((seconds * 1e6) as i64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets_ms(rate: f64, random_gaps: bool, seed: u64, count: usize) -> Vec<i64> {
        let start = Timestamp::UNIX_EPOCH;
        let schedule = Schedule::new(start, rate, random_gaps, seed);
        schedule.take(count).map(|due| (due - start).num_milliseconds()).collect()
    }

    #[test]
    fn the_nth_order_is_due_n_periods_after_the_start() {
        assert_eq!(offsets_ms(4.0, false, 7, 5), [0, 250, 500, 750, 1_000]);
        assert_eq!(offsets_ms(2_000.0, false, 7, 200_001).last(), Some(&100_000), "no drift");
    }

    #[test]
    fn random_gaps_keep_the_rate_and_follow_from_the_seed() {
        let gaps = offsets_ms(100.0, true, 7, 10_000);
        assert!(gaps.is_sorted());
        let last = *gaps.last().unwrap();
        assert!((95_000..105_000).contains(&last), "{last}");
        assert_eq!(gaps, offsets_ms(100.0, true, 7, 10_000));
        assert_ne!(gaps, offsets_ms(100.0, true, 8, 10_000));
    }

    #[test]
    fn no_rate_no_orders() {
        assert!(offsets_ms(0.0, false, 7, 5).is_empty());
    }
}
