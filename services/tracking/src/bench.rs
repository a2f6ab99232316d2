//! What `benches/telemetry.rs` drives: the store's way to keep positions, without the judging before it.

use std::sync::Arc;

use anyhow::{Context, ensure};
use contracts::{Clock, commands::OpenFlight, commands::OpenOutcome, events::PositionFix};

use crate::{
    domain::{Draft, Flight},
    store::{self, Change, Store},
    tracker::MAX_CHANGES,
};

/// Flights that are open in a store.
pub struct Positions {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    flights: Vec<Flight>,
}

impl Positions {
    /// Opens the store that a URL names, and flights in it.
    pub async fn open(url: &str, clock: Arc<dyn Clock>, commands: &[OpenFlight]) -> anyhow::Result<Self> {
        let store = store::open(url).await?.store;
        let mut flights = Vec::with_capacity(commands.len());
        for command in commands {
            let mut draft = Draft::new(None);
            ensure!(draft.open(command, clock.now()) == OpenOutcome::Opened, "a flight does not open");
            flights.push(draft.flight.context("an opened flight is there")?);
        }
        let mut positions = Self { store, clock, flights };
        positions.save(true, |_| {}).await?;
        Ok(positions)
    }

    /// Every flight's next report, kept in batches as the tracker makes them, one after the other.
    pub async fn report(&mut self, fix: PositionFix) -> anyhow::Result<()> {
        self.save(false, |flight| flight.last = Some(fix)).await
    }

    async fn save(&mut self, whole: bool, change: impl Fn(&mut Flight)) -> anyhow::Result<()> {
        for some in self.flights.chunks_mut(MAX_CHANGES) {
            let mut changes = Vec::with_capacity(some.len());
            for flight in some {
                change(flight);
                let written = Change::new(flight.clone(), whole);
                flight.version = written.flight.version;
                changes.push(written);
            }
            self.store.save(&changes, self.clock.now()).await.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(())
    }
}
