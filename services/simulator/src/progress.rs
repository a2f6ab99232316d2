//! Counters that a run updates and anyone may read while it goes on.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use std::time::Duration;

/// How a run is going. Every number only grows, except the gauges `in_flight` and `missions`.
#[derive(Debug, Default)]
pub struct Progress {
    /// Orders that were due and sent.
    pub offered: AtomicU64,
    /// Orders that were due while too many had no answer yet.
    pub not_offered: AtomicU64,
    /// Answered with 202.
    pub accepted: AtomicU64,
    /// Answered for good with anything else.
    pub refused: AtomicU64,
    /// Given up without an answer that decides.
    pub errors: AtomicU64,
    /// Tries beyond an order's first.
    pub retries: AtomicU64,
    /// Orders without an answer now.
    pub in_flight: AtomicU64,
    /// Deliveries that their customer cancelled.
    pub cancels: AtomicU64,
    /// Missions that a drone has now.
    pub missions: AtomicU64,
    /// Missions that were recalled after the drone had reported Completed.
    pub flown: AtomicU64,
    /// Missions on which the drone broke down, by choice or with an empty battery.
    pub breakdowns: AtomicU64,
    /// Missions on which the drone fell silent.
    pub silences: AtomicU64,
    /// Telemetry lines that were stored.
    pub reports_accepted: AtomicU64,
    /// Telemetry lines that changed nothing.
    pub reports_stale: AtomicU64,
    /// Telemetry lines that were refused.
    pub reports_rejected: AtomicU64,
    /// Telemetry requests that got no answer or a bad one.
    pub report_errors: AtomicU64,
    /// Missions streams that had to be opened again.
    pub reconnects: AtomicU64,
    /// Accepted deliveries that were seen finished; counted after ordering has stopped.
    pub finished: AtomicU64,
    /// From an order's due time to its 202.
    pub post_latency: Histogram,
}

pub(crate) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Relaxed);
}

pub(crate) fn subtract(gauge: &AtomicU64, count: usize) {
    gauge.fetch_sub(count as u64, Relaxed);
}

pub(crate) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}

/// Each power of two is cut into this many buckets: a quantile is at most 1/32 too high.
const PER_DOUBLING: u64 = 32;
/// Powers of two above the first [`PER_DOUBLING`] exact microseconds: the last bucket is past an hour.
const DOUBLINGS: usize = 28;

/// How long things took, in logarithmic buckets; any number of threads may record at once.
#[derive(Debug)]
pub struct Histogram {
    buckets: Vec<AtomicU64>,
    max_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        let count = PER_DOUBLING as usize * (DOUBLINGS + 1);
        Self { buckets: (0..count).map(|_| AtomicU64::new(0)).collect(), max_us: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, taken: Duration) {
        let micros = u64::try_from(taken.as_micros()).unwrap_or(u64::MAX);
        self.max_us.fetch_max(micros, Relaxed);
        let bucket = bucket_of(micros).min(self.buckets.len() - 1);
        self.buckets[bucket].fetch_add(1, Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(read).sum()
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_micros(read(&self.max_us))
    }

    /// The time within which that share (0 to 1) of all was done; zero where none was counted.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += read(bucket);
            if seen >= wanted {
                return Duration::from_micros(upper_bound_of(index)).min(self.max());
            }
        }
        Duration::ZERO
    }
}

fn bucket_of(micros: u64) -> usize {
    if micros < PER_DOUBLING {
        return micros as usize;
    }
    let doubling = u64::from(micros.ilog2() - PER_DOUBLING.ilog2());
    ((doubling + 1) * PER_DOUBLING + (micros >> doubling) - PER_DOUBLING) as usize
}

fn upper_bound_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < PER_DOUBLING {
        return bucket;
    }
    let doubling = bucket / PER_DOUBLING - 1;
    ((bucket % PER_DOUBLING + PER_DOUBLING + 1) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_its_bound_says() {
        for micros in [0, 1, 31, 32, 33, 63, 64, 1_000, 123_456, 9_999_999] {
            let upper = upper_bound_of(bucket_of(micros));
            assert!(upper >= micros && upper <= micros + micros / PER_DOUBLING, "{micros} {upper}");
        }
    }

    #[test]
    fn quantiles_are_close_to_the_truth() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        for millis in 1..=1_000 {
            histogram.record(Duration::from_millis(millis));
        }
        for (share, truth) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0)] {
            let measured = histogram.quantile(share).as_secs_f64() * 1_000.0;
            assert!(measured >= truth && measured <= truth * 1.04, "{share}: {measured}");
        }
        assert_eq!(histogram.max(), Duration::from_secs(1));
        assert_eq!(histogram.count(), 1_000);
    }
}
