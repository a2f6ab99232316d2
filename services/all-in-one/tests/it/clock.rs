//! The machine's clock, which a test may put forward: half an hour's deadline passes in an instant.

use std::time::Duration;

use async_trait::async_trait;
use contracts::{Clock, SystemClock, Timestamp};
use tokio::sync::watch;
use uuid::Uuid;

/// Runs as the machine's clock does, plus what a test has put it forward by.
pub(crate) struct JumpClock {
    ahead: watch::Sender<chrono::Duration>,
}

impl JumpClock {
    pub(crate) fn new() -> Self {
        Self { ahead: watch::channel(chrono::Duration::zero()).0 }
    }

    /// Puts it forward; whoever sleeps until a time that has come thereby wakes.
    pub(crate) fn jump(&self, by: Duration) {
        self.ahead.send_modify(|ahead| *ahead += chrono::Duration::from_std(by).unwrap());
    }
}

#[async_trait]
impl Clock for JumpClock {
    fn now(&self) -> Timestamp {
        SystemClock.now() + *self.ahead.borrow()
    }

    async fn sleep_until(&self, deadline: Timestamp) {
        let mut ahead = self.ahead.subscribe();
        while self.now() < deadline {
            let on_the_machine = deadline - *ahead.borrow_and_update();
            tokio::select! {
                () = SystemClock.sleep_until(on_the_machine) => {}
                // The sender lives as long as self.
                _ = ahead.changed() => {}
            }
        }
    }

    fn new_id(&self) -> Uuid {
        SystemClock.new_id()
    }
}
