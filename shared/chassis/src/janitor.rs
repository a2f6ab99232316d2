//! Upkeep that comes round again: forgetting what is old, batch by batch.

use std::{future::Future, time::Duration};

use contracts::Clock;
use messaging::outbox::chain;
use tokio_util::sync::CancellationToken;

/// Calls `round` every `every` until `shutdown`, again at once while it answers true (there is more). A failure is
/// logged as `what`, and the next round tries again.
pub async fn janitor<F, Fut, E>(what: &str, every: Duration, clock: &dyn Clock, shutdown: &CancellationToken, round: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<bool, E>>,
    E: std::error::Error + 'static,
{
    loop {
        tokio::select! {
            () = clock.sleep(every) => {}
            () = shutdown.cancelled() => return,
        }
        while !shutdown.is_cancelled() {
            match round().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "{what}");
                    break;
                }
            }
        }
    }
}
