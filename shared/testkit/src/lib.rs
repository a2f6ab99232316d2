//! What tests share: a clock that they drive, a world to start services in, polling with a deadline, real stores.

mod clock;
pub mod mongodb;
pub mod outbox;
pub mod real;
mod wire;
mod world;

use std::{future::Future, time::Duration};

pub use clock::ManualClock;
pub use wire::Wire;
pub use world::{World, serving};

/// How long [`until`] waits: long enough for a loaded machine, short enough to notice.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often [`until`] asks.
const POLL: Duration = Duration::from_millis(20);

/// Polls `question` until it answers `Some`; panics with `what` when that takes longer than half a minute.
#[allow(clippy::panic, clippy::disallowed_methods, reason = "for tests: polls real services in real time")]
pub async fn until<T, F, Fut>(what: &str, mut question: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = question().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "still waiting for: {what}");
        tokio::time::sleep(POLL).await;
    }
}
