//! A connection to a cluster that is made anew when it has answered nothing for a while.
//!
//! The driver (redis 1.4 to 1.8) can wait for itself for ever when many requests are under way as a primary goes: it then
//! answers none, although every node is well. What is lost with the old connection has timed out already.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use redis::{RedisError, RedisResult, cluster::ClusterClient, cluster_async::ClusterConnection};

/// How long a connection may let requests time out and answer nothing: more than an answer may take, so that one slow
/// node is not enough, and about as long as an election.
const SILENCE: Duration = Duration::from_secs(3);

struct Current {
    link: ClusterConnection,
    /// When any node last answered anything.
    answered: Instant,
}

pub(super) struct Cluster {
    client: ClusterClient,
    current: Mutex<Current>,
    /// What the connection listens on. Held by who makes it anew, so that only one does.
    channels: tokio::sync::Mutex<Vec<String>>,
}

impl Cluster {
    pub(super) async fn open(client: ClusterClient) -> RedisResult<Self> {
        let link = client.get_async_connection().await?;
        let current = Mutex::new(Current { link, answered: Instant::now() });
        Ok(Self { client, current, channels: tokio::sync::Mutex::default() })
    }

    /// Listens on these channels for ever.
    pub(super) async fn listen(&self, channels: &[String]) -> RedisResult<()> {
        let mut kept = self.channels.lock().await;
        subscribe(self.link(), channels).await?;
        *kept = channels.to_vec();
        Ok(())
    }

    /// Does something with the connection, and makes it anew where it seems to be dead.
    pub(super) async fn with<T>(&self, work: impl AsyncFnOnce(ClusterConnection) -> RedisResult<T>) -> RedisResult<T> {
        let result = work(self.link()).await;
        match &result {
            Err(error) if error.is_timeout() => self.renew_if_silent().await,
            _ => self.current().answered = Instant::now(),
        }
        result
    }

    async fn renew_if_silent(&self) {
        // Somebody else does it already: its outcome is seen by the next request.
        let Ok(channels) = self.channels.try_lock() else { return };
        if self.current().answered.elapsed() < SILENCE {
            return;
        }
        tracing::warn!("the cluster's connection answers nothing and is made anew");
        if let Err(error) = self.renew(&channels).await {
            tracing::warn!(%error, "the cluster cannot be connected to");
        }
    }

    async fn renew(&self, channels: &[String]) -> Result<(), RedisError> {
        let link = self.client.get_async_connection().await?;
        *self.current() = Current { link: link.clone(), answered: Instant::now() };
        subscribe(link, channels).await
    }

    fn link(&self) -> ClusterConnection {
        self.current().link.clone()
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One channel after the other: they are on different nodes.
async fn subscribe(mut link: ClusterConnection, channels: &[String]) -> RedisResult<()> {
    for channel in channels {
        link.ssubscribe(channel).await?;
    }
    Ok(())
}
