//! Runs a service's tasks until shutdown, or until one of them ends before its time.

use std::{pin::pin, time::Duration};

use anyhow::{Context, bail};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long tasks may take to end after the shutdown was asked for.
pub const DRAIN: Duration = Duration::from_secs(10);

/// A task's result: anyhow's for those that can fail, () for the others.
pub type Tasks = JoinSet<anyhow::Result<()>>;

/// Waits for `shutdown`, then for all tasks, at most [`DRAIN`]. A task that fails, panics or ends early ends the
/// service: half a service is worse than none.
pub async fn supervise(service: &str, mut tasks: Tasks, shutdown: CancellationToken) -> anyhow::Result<()> {
    let outcome = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        Some(ended) = tasks.join_next() => {
            if shutdown.is_cancelled() { ended? } else { early(service, ended) }
        }
    };
    shutdown.cancel();
    let drained = tokio::time::timeout(DRAIN, async {
        while let Some(ended) = tasks.join_next().await {
            ended.context("a task panicked")??;
        }
        anyhow::Ok(())
    });
    match drained.await {
        Ok(result) => outcome.and(result),
        Err(_) => {
            tracing::warn!(service, "some tasks did not end in time and are cut off");
            outcome
        }
    }
}

/// Runs to the end, and tells once `opened` has come, unless the end came first.
pub async fn telling(
    run: impl Future<Output = anyhow::Result<()>>,
    opened: impl Future<Output = ()>,
    tell: impl FnOnce(),
) -> anyhow::Result<()> {
    let mut run = pin!(run);
    tokio::select! {
        result = &mut run => return result,
        () = opened => tell(),
    }
    run.await
}

fn early(service: &str, ended: Result<anyhow::Result<()>, tokio::task::JoinError>) -> anyhow::Result<()> {
    ended.with_context(|| format!("a task of {service} panicked"))?.with_context(|| format!("{service} failed"))?;
    bail!("a task of {service} ended before its time")
}
