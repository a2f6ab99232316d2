//! The one way to change a flight: steps from requests and events, judged in order for each flight, saved as batches.
//!
//! A flight is loaded, judged and saved if it is still at the version that was loaded; losers are judged anew, so that
//! any number of instances on one store stay correct. Open flights are kept in memory between batches, because a second
//! of telemetry touches them all: what such a memory says is believed only where it is then saved under its version, or
//! where it can only have grown more so (a report that is old for a past state is old for every later one).

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use auth::{Action, Identity, allow};
use contracts::{
    Clock, DeliveryId, Timestamp,
    commands::{CloseFlight, CloseOutcome, FlightReport, OpenFlight, OpenOutcome, ReportOutcome},
    events::{CloudEvent, DeliveryRecord, Event, PositionEventKind, TrackingEventKind},
};
use lru::LruCache;
use messaging::{
    Batcher, abort_point,
    batch::Limits,
    outbox::{OutboxSignal, chain},
};
use tokio::sync::Notify;

use crate::{
    domain::{Draft, Extent, Flight, Note},
    live::Live,
    store::{Change, SaveError, Store, Unavailable},
};

/// Flights saved in one transaction: tens of milliseconds, so that an open-flight never waits long behind telemetry.
pub(crate) const MAX_CHANGES: usize = 4_096;

/// Open flights remembered: the drones of a large system; about a kilobyte each.
const REMEMBERED_FLIGHTS: NonZeroUsize = NonZeroUsize::new(50_000).unwrap();

/// Times a flight is judged anew after another instance was faster. Each time somebody got on, so that only a store
/// that misbehaves gets this far.
const MAX_ROUNDS: usize = 16;

/// Commands and events that wait for one batch to be written. One batch at a time: SQLite has one writer, and what waits
/// meanwhile makes the next batch larger.
const COMMANDS: Limits = Limits { max_batch: 256, queue: 1_024, concurrency: 1, pace: Duration::ZERO };

/// Reports in one place of their queue: a drone alone fills none, and a base's request takes ten.
const REPORTS_PER_PLACE: usize = 1_024;

/// Reports wait in a queue of their own, or a saga's command would wait for whatever telemetry came before it. Both
/// bounds count places: 65,536 reports in a batch, a second of the largest fleet, and twice as many in the queue.
/// Paced, so that a page of positions is written once for all bases and not once for each.
const REPORTS: Limits = Limits { max_batch: 64, queue: 128, concurrency: 1, pace: Duration::from_millis(50) };

/// Single look-ups that become one statement; two at a time leave a reader to the missions.
const READS: Limits = Limits { max_batch: 256, queue: 1_024, concurrency: 2, pace: Duration::ZERO };

/// Something to be done to one flight.
#[derive(Debug)]
enum Step {
    Open(Box<OpenFlight>),
    Close(CloseFlight),
    Report(Arc<Identity>, FlightReport),
    Settle(Box<DeliveryRecord>),
}

/// What became of a step.
#[derive(Debug, Clone)]
enum Outcome {
    Open(OpenOutcome),
    Close(Box<CloseOutcome>),
    Report(ReportOutcome),
    Settled,
    /// Not known to be saved.
    Unavailable,
}

type Steps = Vec<Step>;
type Outcomes = Vec<Outcome>;

/// A handle on the flights; cheap to clone. The workers end once all handles are gone.
#[derive(Clone)]
pub(crate) struct Tracker {
    commands: Batcher<Steps, Outcomes>,
    reports: Batcher<Steps, Outcomes>,
    reads: Batcher<DeliveryId, Result<Option<Flight>, Unavailable>>,
}

/// What a tracker works with.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Woken when the outbox has something.
    pub(crate) outbox: OutboxSignal,
    /// Woken when the mission log has something.
    pub(crate) missions: Arc<Notify>,
    /// Told of every change.
    pub(crate) live: Live,
}

impl Tracker {
    /// A handle, and the worker that the caller must run.
    pub(crate) fn new(parts: Parts) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let store = parts.store.clone();
        let desk = Arc::new(Desk { parts, remembered: Mutex::new(LruCache::new(REMEMBERED_FLIGHTS)) });
        // Two writers on one store, as two instances are: whichever saves a flight first, the other judges it anew.
        let at = desk.clone();
        let (commands, commanding) = Batcher::new(COMMANDS, move |asks| {
            let desk = at.clone();
            async move { desk.work(asks).await }
        });
        let (reports, reporting) = Batcher::new(REPORTS, move |asks| {
            let desk = desk.clone();
            async move { desk.work(asks).await }
        });
        let (reads, reading) = Batcher::new(READS, move |ids| {
            let store = store.clone();
            async move { look_up(&*store, ids).await }
        });
        let worker = async move {
            futures::join!(commanding, reporting, reading);
        };
        (Self { commands, reports, reads }, worker)
    }

    /// Opens flights: one outcome for each command, in order.
    pub(crate) async fn open(&self, commands: Vec<OpenFlight>) -> Vec<OpenOutcome> {
        let outcomes =
            call(&self.commands, commands.into_iter().map(|command| Step::Open(Box::new(command))).collect()).await;
        abort_point("tracking.opened");
        let opened = |outcome| if let Outcome::Open(outcome) = outcome { outcome } else { OpenOutcome::Unavailable };
        outcomes.into_iter().map(opened).collect()
    }

    /// Closes flights: one outcome for each command, in order.
    pub(crate) async fn close(&self, commands: Vec<CloseFlight>) -> Vec<CloseOutcome> {
        let outcomes = call(&self.commands, commands.into_iter().map(Step::Close).collect()).await;
        abort_point("tracking.closed");
        let closed = |outcome| if let Outcome::Close(outcome) = outcome { *outcome } else { CloseOutcome::Unavailable };
        outcomes.into_iter().map(closed).collect()
    }

    /// Takes a caller's reports: one outcome for each, in order.
    pub(crate) async fn report(&self, caller: Identity, reports: Vec<FlightReport>) -> Vec<ReportOutcome> {
        let caller = Arc::new(caller);
        let mut steps = reports.into_iter().map(|report| Step::Report(caller.clone(), report)).peekable();
        let mut calls = Vec::new();
        while steps.peek().is_some() {
            let some = steps.by_ref().take(REPORTS_PER_PLACE).collect();
            calls.push(call(&self.reports, some));
        }
        // Asked in one go and in order: they become one batch where there is room.
        let outcomes = futures::future::join_all(calls).await.concat();
        abort_point("tracking.reported");
        let reported =
            |outcome| if let Outcome::Report(outcome) = outcome { outcome } else { ReportOutcome::Unavailable };
        outcomes.into_iter().map(reported).collect()
    }

    /// Takes over what the owner says of deliveries: for each, in order, whether it is on disk.
    pub(crate) async fn settle(&self, records: Vec<DeliveryRecord>) -> Vec<bool> {
        if records.is_empty() {
            return Vec::new();
        }
        let outcomes =
            call(&self.commands, records.into_iter().map(|record| Step::Settle(Box::new(record))).collect()).await;
        abort_point("tracking.event_applied");
        outcomes.into_iter().map(|outcome| matches!(outcome, Outcome::Settled)).collect()
    }

    /// A flight as it is stored.
    pub(crate) async fn flight(&self, id: DeliveryId) -> Result<Option<Flight>, Unavailable> {
        self.reads.call(id).await.map_err(|closed| Unavailable(Arc::new(closed)))?
    }
}

async fn call(queue: &Batcher<Steps, Outcomes>, steps: Steps) -> Outcomes {
    let count = steps.len();
    if count == 0 {
        return Vec::new();
    }
    queue.call(steps).await.unwrap_or_else(|_| vec![Outcome::Unavailable; count])
}

async fn look_up(store: &dyn Store, ids: Vec<DeliveryId>) -> Vec<Result<Option<Flight>, Unavailable>> {
    let asked: Vec<_> = ids.iter().copied().collect::<HashSet<_>>().into_iter().collect();
    match store.load(&asked).await {
        Ok(flights) => {
            let flights: HashMap<_, _> = flights.into_iter().map(|flight| (flight.delivery_id, flight)).collect();
            ids.iter().map(|id| Ok(flights.get(id).cloned())).collect()
        }
        Err(error) => ids.iter().map(|_| Err(error.clone())).collect(),
    }
}

/// Where a step stands in a batch: sorting brings those of a flight together and keeps their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    delivery_id: DeliveryId,
    ask: usize,
    step: usize,
}

/// Works through the batches.
struct Desk {
    parts: Parts,
    /// Open flights as they were last saved.
    remembered: Mutex<LruCache<DeliveryId, Flight>>,
}

impl Desk {
    async fn work(&self, asks: Vec<Steps>) -> Vec<Outcomes> {
        let mut outcomes: Vec<Outcomes> = asks.iter().map(|steps| vec![Outcome::Unavailable; steps.len()]).collect();
        let mut places = Vec::with_capacity(asks.iter().map(Vec::len).sum());
        for (ask, steps) in asks.iter().enumerate() {
            for (step, wanted) in steps.iter().enumerate() {
                places.push(Place { delivery_id: wanted.delivery_id(), ask, step });
            }
        }
        places.sort_unstable();
        let flights: Vec<&[Place]> = places.chunk_by(|a, b| a.delivery_id == b.delivery_id).collect();
        for some in flights.chunks(MAX_CHANGES) {
            self.settle_flights(&asks, some, &mut outcomes).await;
        }
        outcomes
    }

    /// Judges and saves, until every flight is saved or the store is away.
    async fn settle_flights(&self, asks: &[Steps], flights: &[&[Place]], outcomes: &mut [Outcomes]) {
        let mut pending = flights.to_vec();
        for _ in 0..MAX_ROUNDS {
            if pending.is_empty() {
                return;
            }
            let mut known = match self.gather(asks, &pending).await {
                Ok(known) => known,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "flights cannot be loaded");
                    break;
                }
            };
            let now = self.parts.clock.now();
            let mut changes = Vec::new();
            let mut changed = Vec::new();
            for places in pending {
                let draft = judge(asks, places, known.remove(&places[0].delivery_id), now, outcomes);
                if let Some(change) = self.change(draft, now) {
                    changes.push(change);
                    changed.push(places);
                }
            }
            pending = self.save(changes, &changed, now, outcomes).await;
        }
        for places in pending {
            forget_outcomes(places, outcomes);
        }
    }

    /// The flights as remembered, where that is enough to judge the steps, otherwise as stored.
    async fn gather(&self, asks: &[Steps], pending: &[&[Place]]) -> Result<HashMap<DeliveryId, Flight>, Unavailable> {
        let mut known = HashMap::with_capacity(pending.len());
        let mut missing = Vec::new();
        {
            let mut remembered = self.remembered();
            for places in pending {
                let id = places[0].delivery_id;
                // Taken out: should this batch fail, nothing doubtful stays behind.
                match remembered.pop(&id) {
                    Some(flight) if places.iter().all(|at| asks[at.ask][at.step].is_about(&flight)) => {
                        known.insert(id, flight);
                    }
                    _ => missing.push(id),
                }
            }
        }
        if !missing.is_empty() {
            let stored = self.parts.store.load(&missing).await?;
            known.extend(stored.into_iter().map(|flight| (flight.delivery_id, flight)));
        }
        Ok(known)
    }

    /// What is to be saved of a draft, if anything.
    fn change(&self, draft: Draft, now: Timestamp) -> Option<Change> {
        let flight = draft.flight?;
        if draft.extent == Extent::Nothing {
            self.remember(flight);
            return None;
        }
        let events = draft.notes.into_iter().map(|note| self.event(note, now)).collect();
        let change = Change::new(flight, draft.extent == Extent::Whole);
        Some(Change { events, missions: draft.missions, ..change })
    }

    fn event(&self, note: Note, time: Timestamp) -> CloudEvent {
        let id = self.parts.clock.new_id();
        match note {
            Note::StageChanged(data) => Event { id, time, kind: TrackingEventKind::StageChanged, data }.encode(),
            Note::Sampled(data) => Event { id, time, kind: PositionEventKind::PositionSampled, data }.encode(),
        }
    }

    /// Saves, and tells those who wait for it; the flights that another instance has changed meanwhile are left over.
    async fn save<'a>(
        &self,
        changes: Vec<Change>,
        changed: &[&'a [Place]],
        now: Timestamp,
        outcomes: &mut [Outcomes],
    ) -> Vec<&'a [Place]> {
        let results = self.parts.store.save(&changes, now).await;
        let mut left = Vec::new();
        let mut saved = Vec::with_capacity(changes.len());
        let (mut any_events, mut any_missions) = (false, false);
        let mut fault = None;
        for ((change, places), result) in changes.into_iter().zip(changed).zip(results) {
            match result {
                Ok(()) => {
                    any_events |= !change.events.is_empty();
                    any_missions |= !change.missions.is_empty();
                    saved.push(change.flight);
                }
                Err(SaveError::Conflict) => left.push(*places),
                Err(SaveError::Unavailable(error)) => {
                    forget_outcomes(places, outcomes);
                    fault = Some(error);
                }
            }
        }
        if let Some(error) = fault {
            tracing::warn!(error = %chain(&error), "flights cannot be saved");
        }
        if any_events {
            self.parts.outbox.wake();
        }
        if any_missions {
            self.parts.missions.notify_one();
        }
        self.parts.live.publish(&saved);
        for flight in saved {
            self.remember(flight);
        }
        left
    }

    fn remember(&self, flight: Flight) {
        if flight.is_open() {
            self.remembered().put(flight.delivery_id, flight);
        }
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, LruCache<DeliveryId, Flight>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Step {
    fn delivery_id(&self) -> DeliveryId {
        match self {
            Self::Open(command) => command.delivery_id,
            Self::Close(command) => command.delivery_id,
            Self::Report(_, report) => report.delivery_id,
            Self::Settle(record) => record.delivery_id,
        }
    }

    /// Whether a remembered open flight is enough to judge this: only for reports of the same attempt, the rest may
    /// rest on what another instance has done since.
    fn is_about(&self, flight: &Flight) -> bool {
        matches!(self, Self::Report(_, report) if report.attempt == flight.attempt)
    }
}

/// Applies the steps of one flight, in order, and notes what becomes of each if the draft is saved.
fn judge(asks: &[Steps], places: &[Place], flight: Option<Flight>, now: Timestamp, outcomes: &mut [Outcomes]) -> Draft {
    let mut draft = Draft::new(flight);
    for at in places {
        outcomes[at.ask][at.step] = match &asks[at.ask][at.step] {
            Step::Open(command) => Outcome::Open(draft.open(command, now)),
            Step::Close(command) => Outcome::Close(Box::new(draft.close(command, now))),
            Step::Report(caller, report) => {
                let drone = report.drone_id;
                let speaks = |base: &_| allow(caller, &Action::SpeakForDrone { drone, base }).is_ok();
                Outcome::Report(draft.report(report, speaks, now))
            }
            Step::Settle(record) => {
                draft.settle(record, now);
                Outcome::Settled
            }
        };
    }
    draft
}

fn forget_outcomes(places: &[Place], outcomes: &mut [Outcomes]) {
    for at in places {
        outcomes[at.ask][at.step] = Outcome::Unavailable;
    }
}

#[cfg(test)]
mod tests;
