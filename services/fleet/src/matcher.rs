//! The waiting line's matcher: gives drones that become free to whoever waits, expedited first, then by age.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use contracts::Clock;
use messaging::outbox::chain;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    index::Index,
    store::{Grant, Place, Store, StoreError, Waiting},
    upkeep::pause,
};

/// How often the line is looked at, though nothing woke the matcher: another instance may have filled it, or a drone
/// may have charged.
const INTERVAL: Duration = Duration::from_millis(500);

/// Entries looked at in one go: a query of about a millisecond, and one transaction for all their grants.
const CHUNK: usize = 256;

/// Chunks in one turn: a line of ten thousand that no drone can serve costs some ten milliseconds a turn, not seconds.
const CHUNKS_PER_TURN: usize = 4;

/// The least time between turns that granted nothing: a line that no drone can serve must not take a core to itself.
const REST: Duration = Duration::from_millis(50);

/// What is known of the line in memory: whether anybody waits, and whether drones that became free since have been
/// offered to everybody who does.
#[derive(Debug, Default)]
pub(crate) struct Line {
    occupied: AtomicBool,
    freed: AtomicU64,
    offered: AtomicU64,
    wake: Notify,
}

impl Line {
    /// A drone became free: whoever waits comes before whoever asks next.
    pub(crate) fn freed(&self) {
        self.freed.fetch_add(1, Ordering::SeqCst);
        self.wake.notify_one();
    }

    /// How often drones became free.
    pub(crate) fn generation(&self) -> u64 {
        self.freed.load(Ordering::SeqCst)
    }

    /// True where nobody in the line wants the drones that are idle now, so that a new command may have them.
    pub(crate) fn lets_pass(&self) -> bool {
        !self.occupied.load(Ordering::SeqCst) || self.offered.load(Ordering::SeqCst) >= self.generation()
    }

    /// Somebody has joined the line. `declined` is the generation at which no idle drone would do for them; none where
    /// none was tried. The matcher may have looked at the drones since, but before they were in the line.
    pub(crate) fn joined(&self, declined: Option<u64>) {
        self.occupied.store(true, Ordering::SeqCst);
        if declined != Some(self.generation()) {
            self.freed();
        }
    }

    fn offered(&self, generation: u64) {
        self.offered.fetch_max(generation, Ordering::SeqCst);
    }
}

/// Grants drones to the line.
pub(crate) struct Matcher {
    store: Arc<dyn Store>,
    index: Arc<Index>,
    line: Arc<Line>,
    /// Where the next turn goes on, behind the head, with the generation at which this way through the line began.
    cursor: Option<(Place, u64)>,
}

impl Matcher {
    /// A matcher that begins at the line's head.
    pub(crate) fn new(store: Arc<dyn Store>, index: Arc<Index>, line: Arc<Line>) -> Self {
        Self { store, index, line, cursor: None }
    }

    /// Takes turns until `shutdown`.
    pub(crate) async fn run(mut self, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
        loop {
            let rest = match self.expire_and_match().await {
                Ok(0) => REST,
                Ok(_) => Duration::ZERO,
                Err(error) => {
                    warn!(error = %chain(&error), "the waiting line is tried again");
                    INTERVAL
                }
            };
            if !pause(&*clock, rest, &shutdown).await {
                return;
            }
            tokio::select! {
                () = self.line.wake.notified() => {}
                () = clock.sleep(INTERVAL) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn expire_and_match(&mut self) -> Result<usize, StoreError> {
        self.store.expire().await?;
        self.turn().await
    }

    /// Offers the idle drones to the head of the line, then to a further part of it; how many were granted. The head is
    /// looked at in every turn, the rest in turns, so that entries that no drone can serve do not starve the others.
    pub(crate) async fn turn(&mut self) -> Result<usize, StoreError> {
        let mut granted = 0;
        let mut generation = self.line.generation();
        let mut after = None;
        for number in 0..CHUNKS_PER_TURN {
            let entries = self.store.line(after, CHUNK).await?;
            if number == 0 {
                self.line.occupied.store(!entries.is_empty(), Ordering::SeqCst);
            }
            let Some(last) = entries.last().map(|entry| entry.place) else {
                return Ok(self.went_through(generation, granted));
            };
            granted += self.offer(&entries).await?;
            if self.index.available() == 0 || entries.len() < CHUNK {
                return Ok(self.went_through(generation, granted));
            }
            after = match self.cursor {
                Some((place, since)) if number == 0 && place > last => {
                    generation = since;
                    Some(place)
                }
                _ => Some(last),
            };
        }
        self.cursor = after.map(|place| (place, generation));
        Ok(granted)
    }

    fn went_through(&mut self, generation: u64, granted: usize) -> usize {
        self.cursor = None;
        self.line.offered(generation);
        granted
    }

    async fn offer(&self, entries: &[Waiting]) -> Result<usize, StoreError> {
        if self.index.available() == 0 {
            return Ok(0);
        }
        let proposed = self.index.propose(entries.iter().map(|entry| &entry.trip));
        let mut grants = Vec::new();
        for (entry, pick) in entries.iter().zip(&proposed.picks) {
            if let Some(pick) = pick {
                grants.push(Grant { hold: entry.hold, pick: *pick });
            }
        }
        if grants.is_empty() {
            return Ok(0);
        }
        let written = self.store.grant(&grants).await?;
        self.index.apply(&written.drones);
        drop(proposed);
        let granted = written.outcomes.iter().filter(|granted| **granted).count();
        if granted < grants.len() {
            // Somebody else was faster: those entries want another drone.
            self.line.freed();
        }
        Ok(granted)
    }
}
