//! Hears a base station's missions: one stream of server-sent events, opened again whenever it ends.

use std::sync::atomic::Ordering::Relaxed;

use contracts::commands::MissionUpdate;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::{backoff::Backoff, gateway::Identity, random::Random, sse::EventReader};

/// Updates on their way from the stream to the drones: a burst of assignments, not a store of them.
pub(crate) const UPDATES_QUEUED: usize = 1_024;

/// Reads the stream until it is told to stop, or until nobody listens.
pub(crate) async fn listen(
    shared: Shared,
    identity: std::sync::Arc<Identity>,
    updates: mpsc::Sender<MissionUpdate>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new(Random::of(shared.seed, identity.subject(), 0));
    loop {
        let heard = tokio::select! {
            () = stop.cancelled() => return,
            heard = read_stream(&shared, &identity, &updates) => heard,
        };
        match heard {
            Ok(0) => tracing::debug!(base = identity.subject(), "the missions stream said nothing"),
            Ok(_) => backoff.reset(),
            Err(error) => tracing::debug!(base = identity.subject(), %error, "the missions stream broke"),
        }
        if updates.is_closed() {
            return;
        }
        shared.progress.reconnects.fetch_add(1, Relaxed);
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.clock.sleep(backoff.pause()) => {}
        }
    }
}

/// Reads one stream to its end; how many updates it brought.
async fn read_stream(
    shared: &Shared,
    identity: &Identity,
    updates: &mpsc::Sender<MissionUpdate>,
) -> anyhow::Result<usize> {
    let mut response = shared.gateway.open_stream(identity, "/api/missions").await?;
    anyhow::ensure!(response.status().is_success(), "the missions stream answers {}", response.status());
    let mut reader = EventReader::default();
    let mut parsed = Vec::new();
    let mut count = 0;
    loop {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Ok(count),
            // What was heard before the break counts: the next pause is short again.
            Err(_) if count > 0 => return Ok(count),
            Err(error) => return Err(error.into()),
        };
        reader.push(&chunk, |event| match serde_json::from_str::<MissionUpdate>(event) {
            Ok(update) => parsed.push(update),
            Err(error) => tracing::warn!(%error, "an event of the missions stream is no mission update"),
        })?;
        for update in parsed.drain(..) {
            count += 1;
            if updates.send(update).await.is_err() {
                return Ok(count);
            }
        }
    }
}
