//! Time and fresh ids as an argument: production reads the system, tests decide.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::{DeliveryId, Timestamp};

/// Where time and ids come from. Passed to every service in its Node; nothing reads the system clock itself.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;

    /// Returns once `now()` is at or past `deadline`.
    async fn sleep_until(&self, deadline: Timestamp);

    /// Returns once `duration` has passed.
    async fn sleep(&self, duration: Duration) {
        let duration = chrono::Duration::from_std(duration).unwrap_or(chrono::Duration::MAX);
        // Past the end of time is never.
        self.sleep_until(self.now().checked_add_signed(duration).unwrap_or(Timestamp::MAX_UTC)).await;
    }

    /// A fresh UUIDv7: later ids sort after earlier ones.
    fn new_id(&self) -> Uuid;

    /// A fresh delivery id.
    fn new_delivery_id(&self) -> DeliveryId {
        DeliveryId(self.new_id())
    }
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the system clock")]
    fn now(&self) -> Timestamp {
        chrono::Utc::now()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that sleeps")]
    async fn sleep_until(&self, deadline: Timestamp) {
        if let Ok(left) = (deadline - self.now()).to_std() {
            tokio::time::sleep(left).await;
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that makes ids")]
    fn new_id(&self) -> Uuid {
        Uuid::now_v7()
    }
}
