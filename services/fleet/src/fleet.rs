//! The fleet at work: the store that decides, the index that guesses, the line that waits.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use contracts::{
    Clock, DroneId,
    commands::{MAX_COMMANDS, ReleaseDrone, ReleaseOutcome, ReportOutcome, ReserveDrone, ReserveOutcome},
    flight::Trip,
};
use messaging::{abort_point, outbox::chain};
use tracing::warn;

use crate::{
    domain::{Drone, Ending, Registration, RegistrationRefusal, trip_of},
    index::Index,
    matcher::Line,
    reports::{REPORTS_PER_TRANSACTION, Report, coalesce, turns},
    store::{Proposal, Removal, Reserved, Store, StoreError},
};

/// How often a command that lost its drone to somebody else is given another before it joins the line: with a few
/// instances each round leaves a small part of the one before.
const ROUNDS: usize = 4;

/// Why a drone was not registered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    /// It may not be.
    #[error("the registration is refused")]
    Refused(#[source] RegistrationRefusal),
    /// Not now.
    #[error("the registration was not stored")]
    Unavailable,
}

/// One instance of the service, without its HTTP.
pub(crate) struct Fleet {
    /// Decides.
    pub(crate) store: Arc<dyn Store>,
    /// Guesses.
    pub(crate) index: Arc<Index>,
    /// Waits.
    pub(crate) line: Arc<Line>,
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
}

impl Fleet {
    /// An instance whose index is still empty.
    pub(crate) fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let line = Arc::new(Line::default());
        Arc::new(Self { store, index: Index::new(line.clone()), line, clock })
    }

    /// Reserves a drone for each command, or puts it into the line.
    pub(crate) async fn reserve(&self, commands: &[ReserveDrone]) -> Vec<ReserveOutcome> {
        let mut outcomes = vec![ReserveOutcome::Unavailable; commands.len()];
        for pass in passes(commands, |command| command.delivery_id) {
            for places in pass.chunks(MAX_COMMANDS) {
                if let Err(error) = self.reserve_some(commands, places, &mut outcomes).await {
                    warn!(error = %chain(&error), "reservations were not stored");
                }
            }
        }
        abort_point("fleet.reserved");
        outcomes
    }

    async fn reserve_some(
        &self,
        commands: &[ReserveDrone],
        places: &[usize],
        outcomes: &mut [ReserveOutcome],
    ) -> Result<(), StoreError> {
        let mut open = places.to_vec();
        for round in 0..=ROUNDS {
            let generation = self.line.generation();
            let tries = round < ROUNDS && self.line.lets_pass();
            let trips: Vec<Trip> =
                if tries { open.iter().map(|place| trip_of(&commands[*place])).collect() } else { Vec::new() };
            let proposed = self.index.propose(trips.iter());
            let mut batch = Vec::with_capacity(open.len());
            for (number, place) in open.iter().enumerate() {
                let pick = proposed.picks.get(number).copied().flatten();
                batch.push(Proposal { command: &commands[*place], pick });
            }
            let written = self.store.reserve(&batch).await?;
            self.index.apply(&written.drones);
            drop(proposed);
            let mut lost = Vec::new();
            for (place, outcome) in open.iter().zip(written.outcomes) {
                match outcome {
                    Reserved::Outcome(outcome) => outcomes[*place] = outcome,
                    Reserved::Lost => lost.push(*place),
                }
            }
            if open.iter().any(|place| outcomes[*place] == ReserveOutcome::Waiting) {
                self.line.joined(tries.then_some(generation));
            }
            if lost.is_empty() {
                break;
            }
            open = lost;
        }
        Ok(())
    }

    /// Releases what each command names.
    pub(crate) async fn release(&self, commands: &[ReleaseDrone]) -> Vec<ReleaseOutcome> {
        let mut outcomes = Vec::with_capacity(commands.len());
        for chunk in commands.chunks(MAX_COMMANDS) {
            match self.store.release(chunk).await {
                Ok(written) => {
                    self.index.apply(&written.drones);
                    outcomes.extend(written.outcomes);
                }
                Err(error) => {
                    warn!(error = %chain(&error), "releases were not stored");
                    outcomes.extend(vec![ReleaseOutcome::Unavailable; chunk.len()]);
                }
            }
        }
        outcomes
    }

    /// Ends what events say is over.
    pub(crate) async fn end(&self, endings: &[Ending]) -> Result<(), StoreError> {
        if !endings.is_empty() {
            let written = self.store.end(endings).await?;
            self.index.apply(&written.drones);
        }
        Ok(())
    }

    /// Stores reports of drones.
    pub(crate) async fn report(&self, reports: &[Report]) -> Vec<ReportOutcome> {
        let mut outcomes = vec![ReportOutcome::Unavailable; reports.len()];
        for turn in turns(reports) {
            for places in turn.chunks(REPORTS_PER_TRANSACTION) {
                let some: Vec<&Report> = places.iter().map(|place| &reports[*place]).collect();
                match self.report_some(&some).await {
                    Ok(stored) => {
                        for (place, outcome) in places.iter().zip(stored) {
                            outcomes[*place] = outcome;
                        }
                    }
                    Err(error) => warn!(error = %chain(&error), "reports were not stored"),
                }
            }
        }
        outcomes
    }

    async fn report_some(&self, reports: &[&Report]) -> Result<Vec<ReportOutcome>, StoreError> {
        let notable = self.index.notable(reports.iter().map(|report| (report.said.drone_id, &report.said.fix)));
        let coalesced = coalesce(reports, &notable, self.clock.now());
        if coalesced.latest.is_empty() {
            return Ok(coalesced.outcomes(&[]));
        }
        let written = self.store.report(&coalesced.latest).await?;
        self.index.apply(&written.drones);
        self.index.heard(coalesced.stored(reports, &written.outcomes));
        Ok(coalesced.outcomes(&written.outcomes))
    }

    /// Registers or changes drones.
    pub(crate) async fn register(&self, batch: &[Registration]) -> Vec<Result<Drone, RegisterError>> {
        let mut outcomes: Vec<_> = batch.iter().map(|_| Err(RegisterError::Unavailable)).collect();
        for pass in passes(batch, |registration| registration.drone_id) {
            for places in pass.chunks(MAX_COMMANDS) {
                let some: Vec<_> = places.iter().map(|place| batch[*place].clone()).collect();
                match self.store.register(&some).await {
                    Ok(written) => {
                        self.index.apply(&written.drones);
                        for (place, outcome) in places.iter().zip(written.outcomes) {
                            outcomes[*place] = outcome.map_err(RegisterError::Refused);
                        }
                    }
                    Err(error) => warn!(error = %chain(&error), "registrations were not stored"),
                }
            }
        }
        outcomes
    }

    /// Takes drones out of service; each as it stands then.
    pub(crate) async fn remove(&self, batch: &[Removal]) -> Result<Vec<Option<Drone>>, StoreError> {
        let written = self.store.remove(batch).await?;
        self.index.apply(&written.drones);
        Ok(written.outcomes)
    }

    /// Brings drones into the index that it does not know yet.
    pub(crate) async fn learn(&self, ids: impl Iterator<Item = DroneId>) -> Result<(), StoreError> {
        let missing = crate::index::unknown(&self.index, ids);
        if !missing.is_empty() {
            self.index.apply(&self.store.drones(&missing).await?);
        }
        Ok(())
    }
}

/// The places of items, so that no two of the same key are in one pass: the n-th of a key is in the n-th pass.
fn passes<T, K: Eq + Hash>(items: &[T], key: impl Fn(&T) -> K) -> Vec<Vec<usize>> {
    let mut seen: HashMap<K, usize> = HashMap::with_capacity(items.len());
    let mut passes: Vec<Vec<usize>> = Vec::new();
    for (place, item) in items.iter().enumerate() {
        let turn = seen.entry(key(item)).or_default();
        if *turn == passes.len() {
            passes.push(Vec::new());
        }
        passes[*turn].push(place);
        *turn += 1;
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::passes;

    #[test]
    fn what_comes_twice_is_done_one_after_the_other() {
        assert_eq!(passes(&['a', 'b', 'a', 'c', 'a', 'b'], |item| *item), [vec![0, 1, 3], vec![2, 5], vec![4]]);
        assert!(passes(&[], |item: &u8| *item).is_empty());
    }
}
