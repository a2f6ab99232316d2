//! A clock that stands still until a test moves it.

use std::time::Duration;

use async_trait::async_trait;
use contracts::{Clock, SystemClock, Timestamp};
use tokio::sync::watch;
use uuid::Uuid;

/// Time as a test says it is. Sleepers wake when the test moves it past their deadline.
#[derive(Debug)]
pub struct ManualClock {
    now: watch::Sender<Timestamp>,
}

impl ManualClock {
    /// A clock that stands at `start`.
    pub fn at(start: Timestamp) -> Self {
        Self { now: watch::channel(start).0 }
    }

    /// A clock that stands at the machine's time of now.
    pub fn starting_now() -> Self {
        Self::at(SystemClock.now())
    }

    /// Moves time on.
    pub fn advance(&self, by: Duration) {
        self.now.send_modify(|now| *now += by);
    }

    /// Sets time back, as an operator or a time server may.
    pub fn set_back(&self, by: Duration) {
        self.now.send_modify(|now| *now -= by);
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.now.borrow()
    }

    async fn sleep_until(&self, deadline: Timestamp) {
        let mut now = self.now.subscribe();
        // The sender lives as long as self, so that this cannot fail while it is borrowed.
        let _ = now.wait_for(|now| *now >= deadline).await;
    }

    fn new_id(&self) -> Uuid {
        SystemClock.new_id()
    }
}
