//! Hears notifications of one channel, and says when it may have missed some.

use std::{io, time::Duration};

use futures::FutureExt;
use sqlx::{Executor, PgPool, postgres::PgListener};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout, timeout_at},
};

use super::answered;

/// How long a channel may be silent before its connection is tried: one whose other end is gone without a word, behind a
/// lost route, is silent for ever.
const SILENCE: Duration = Duration::from_secs(15);

/// How long the database may take to answer that trial.
const TRIAL: Duration = Duration::from_secs(3);

/// Words answered in one go, so that a flood of them is no unbounded queue here: the rest waits in the connection.
const MAX_WORDS: usize = 256;

/// What a [`Hearing`] heard.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The connection is new: what is said from now on will be heard, what was said before it may have been missed.
    Anew,
    /// These words, in the order of the commits.
    Said(Vec<String>),
}

/// Notifications of one channel; one connection of the pool.
#[derive(Debug)]
pub struct Hearing {
    pool: PgPool,
    channel: String,
    /// Connected at the first wait, and anew after it was lost. Held while somebody waits: there is one waiting at a time.
    ear: Mutex<Option<Ear>>,
}

#[derive(Debug)]
struct Ear {
    listener: PgListener,
    /// When the connection was last known to be there.
    alive_at: Instant,
    /// Lost after the last words: the listener would connect again and say nothing of it.
    lost: bool,
}

impl Hearing {
    pub(super) fn new(pool: PgPool, channel: String) -> Self {
        Self { pool, channel, ear: Mutex::new(None) }
    }

    /// The next words, all that are there. After an error the next call connects anew. Cancel-safe.
    pub async fn next(&self) -> Result<Heard, sqlx::Error> {
        let mut slot = self.ear.lock().await;
        loop {
            let Some(ear) = slot.as_mut() else {
                *slot = Some(Ear::open(&self.pool, &self.channel).await?);
                return Ok(Heard::Anew);
            };
            match ear.words().await {
                Ok(Some(words)) => return Ok(Heard::Said(words)),
                Ok(None) => *slot = None,
                Err(error) => {
                    *slot = None;
                    return Err(error);
                }
            }
        }
    }
}

impl Ear {
    async fn open(pool: &PgPool, channel: &str) -> Result<Self, sqlx::Error> {
        let mut listener = PgListener::connect_with(pool).await?;
        // The loss of the connection must be heard of: so it is not made again unasked.
        listener.eager_reconnect(false);
        answered(listener.listen(channel)).await?;
        Ok(Self { listener, alive_at: Instant::now(), lost: false })
    }

    /// The words that are there, at least one; none where the connection was lost.
    async fn words(&mut self) -> Result<Option<Vec<String>>, sqlx::Error> {
        if self.lost {
            return Ok(None);
        }
        let first = loop {
            match timeout_at(self.alive_at + SILENCE, self.listener.try_recv()).await {
                Ok(received) => break received?,
                Err(_) => self.try_out().await?,
            }
        };
        let Some(first) = first else { return Ok(None) };
        self.alive_at = Instant::now();
        let mut words = vec![first.payload().to_owned()];
        while words.len() < MAX_WORDS {
            match self.listener.try_recv().now_or_never() {
                Some(Ok(Some(more))) => words.push(more.payload().to_owned()),
                Some(Ok(None) | Err(_)) => {
                    self.lost = true;
                    break;
                }
                None => break,
            }
        }
        Ok(Some(words))
    }

    async fn try_out(&mut self) -> Result<(), sqlx::Error> {
        let silent = || io::Error::new(io::ErrorKind::TimedOut, "the connection that hears notifications is silent");
        timeout(TRIAL, self.listener.execute("select 1")).await.map_err(|_| silent())??;
        self.alive_at = Instant::now();
        Ok(())
    }
}
