//! A least time between two rounds of work: none is added after a quiet spell, and in a busy one rounds are fewer and
//! larger.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

/// Keeps rounds of work apart. In real time, whatever a test's clock says: it is about cost, not about meaning.
#[derive(Debug)]
pub struct Pace(Option<Interval>);

impl Pace {
    /// Rounds at least `period` apart; zero for no pace at all.
    pub fn new(period: Duration) -> Self {
        if period.is_zero() {
            return Self(None);
        }
        let mut interval = interval(period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once and stands for the first round, which need not wait.
        interval.reset();
        Self(Some(interval))
    }

    /// Returns when the next round may start. Cancel-safe.
    pub async fn next(&mut self) {
        if let Some(interval) = &mut self.0 {
            interval.tick().await;
        }
    }
}
