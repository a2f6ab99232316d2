//! The participants of the saga as plain structs: what they hold, their tombstones, their fences.

use std::collections::BTreeMap;

use contracts::{
    Stage,
    commands::{CloseOutcome, OpenOutcome, PackageOutcome, Refusal, ReleaseOutcome, ReserveOutcome},
    events::{DeliveryRecord, FlightProgress, PackageState},
};

use super::{Action, FLIGHT, Outcome, drone, progress};

/// A command as it crosses the wire.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    pub(super) action: Action,
    pub(super) attempt: u32,
    pub(super) fence: u64,
}

/// All three of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Participants {
    pub(super) package: Package,
    pub(super) fleet: Fleet,
    pub(super) tracking: Tracking,
}

impl Participants {
    /// Does what the command says, where nothing speaks against it.
    pub(super) fn perform(&mut self, command: Command) -> Outcome {
        let Command { action, attempt, fence } = command;
        match action {
            Action::RegisterPackage => Outcome::Package(self.package.register(fence)),
            Action::WithdrawPackage => Outcome::Package(self.package.withdraw(fence)),
            Action::ReserveDrone => Outcome::Reserve(self.fleet.reserve(attempt, fence)),
            Action::ReleaseDrone => Outcome::Release(self.fleet.release(attempt, fence)),
            Action::OpenFlight => Outcome::Open(self.tracking.open(attempt, fence)),
            Action::CloseFlight { before, .. } => Outcome::Close(self.tracking.close(attempt, fence, before)),
            Action::GiveUp => Outcome::Local,
        }
    }

    /// Listens to a delivery's event.
    pub(super) fn hear(&mut self, record: &DeliveryRecord) {
        self.package.hear(record);
        self.fleet.hear(record);
        self.tracking.hear(record);
    }

    /// Whatever is still held for the delivery.
    pub(super) fn held(&self) -> Vec<&'static str> {
        let package = (self.package.state == Some(PackageState::Registered)).then_some("package");
        let reserved = self.fleet.rows.values().any(|row| matches!(row, Reservation::Waiting | Reservation::Reserved));
        let flight = self.tracking.flight.as_ref().is_some_and(|flight| flight.open).then_some("flight");
        [package, reserved.then_some("reservation"), flight].into_iter().flatten().collect()
    }
}

/// Remembers the highest fence; false for a lower one.
fn current(known: &mut u64, fence: u64) -> bool {
    *known = fence.max(*known);
    fence == *known
}

#[derive(Debug, Clone, Default)]
pub(super) struct Package {
    fence: u64,
    state: Option<PackageState>,
}

impl Package {
    fn register(&mut self, fence: u64) -> PackageOutcome {
        if !current(&mut self.fence, fence) {
            return PackageOutcome::Refused { reason: Refusal::StaleFence };
        }
        match *self.state.get_or_insert(PackageState::Registered) {
            PackageState::Registered => PackageOutcome::Done,
            _ => PackageOutcome::Refused { reason: Refusal::Undone },
        }
    }

    fn withdraw(&mut self, fence: u64) -> PackageOutcome {
        if !current(&mut self.fence, fence) {
            return PackageOutcome::Refused { reason: Refusal::StaleFence };
        }
        self.end(PackageState::Withdrawn);
        PackageOutcome::Done
    }

    fn end(&mut self, state: PackageState) {
        if matches!(self.state, None | Some(PackageState::Registered)) {
            self.state = Some(state);
        }
    }

    fn hear(&mut self, record: &DeliveryRecord) {
        match record.stage {
            Stage::Completed => self.end(PackageState::Delivered),
            Stage::Failed => self.end(PackageState::Returned),
            Stage::Cancelled | Stage::Rejected => self.end(PackageState::Withdrawn),
            _ => {}
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reservation {
    Waiting,
    Reserved,
    Released,
    Failed,
}

/// One delivery's reservations, by attempt.
#[derive(Debug, Clone, Default)]
pub(super) struct Fleet {
    fence: u64,
    rows: BTreeMap<u32, Reservation>,
    /// Drones that can be had at once.
    pub(super) idle: u32,
}

impl Fleet {
    fn reserve(&mut self, attempt: u32, fence: u64) -> ReserveOutcome {
        let refused = |reason| ReserveOutcome::Refused { reason };
        if !current(&mut self.fence, fence) {
            return refused(Refusal::StaleFence);
        }
        if self.rows.keys().any(|known| *known > attempt) {
            return refused(Refusal::Superseded);
        }
        match self.rows.get(&attempt) {
            Some(Reservation::Reserved) => return ReserveOutcome::Reserved { drone: drone(attempt) },
            Some(Reservation::Waiting) => return ReserveOutcome::Waiting,
            Some(_) => return refused(Refusal::Undone),
            None => self.end(attempt - 1),
        }
        if self.idle == 0 {
            self.rows.insert(attempt, Reservation::Waiting);
            return ReserveOutcome::Waiting;
        }
        self.idle -= 1;
        self.rows.insert(attempt, Reservation::Reserved);
        ReserveOutcome::Reserved { drone: drone(attempt) }
    }

    fn release(&mut self, attempt: u32, fence: u64) -> ReleaseOutcome {
        if !current(&mut self.fence, fence) {
            return ReleaseOutcome::Refused { reason: Refusal::StaleFence };
        }
        self.bury(attempt);
        ReleaseOutcome::Done
    }

    fn bury(&mut self, attempt: u32) {
        self.end(attempt);
        self.rows.entry(attempt).or_insert(Reservation::Released);
    }

    fn end(&mut self, up_to: u32) {
        for row in self.rows.range_mut(..=up_to).map(|(_, row)| row) {
            if matches!(row, Reservation::Waiting | Reservation::Reserved) {
                *row = Reservation::Released;
            }
        }
    }

    fn hear(&mut self, record: &DeliveryRecord) {
        if record.stage.is_terminal() {
            self.bury(record.attempt);
        } else {
            self.end(record.attempt - 1);
        }
    }

    fn turn(&mut self, from: Reservation, to: Reservation) -> Option<u32> {
        let (attempt, row) = self.rows.iter_mut().find(|(_, row)| **row == from)?;
        *row = to;
        Some(*attempt)
    }

    /// A drone for what waits: the attempt that got it.
    pub(super) fn grant(&mut self) -> Option<u32> {
        self.turn(Reservation::Waiting, Reservation::Reserved)
    }

    /// The reserved drone fails: the attempt that lost it.
    pub(super) fn fail(&mut self) -> Option<u32> {
        self.turn(Reservation::Reserved, Reservation::Failed)
    }
}

/// The flight of the latest attempt, or its tombstone.
#[derive(Debug, Clone)]
pub(super) struct Flight {
    pub(super) attempt: u32,
    /// How many of the stages it has come through; none for a tombstone.
    pub(super) flown: Option<usize>,
    open: bool,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Tracking {
    fence: u64,
    pub(super) flight: Option<Flight>,
}

impl Tracking {
    fn open(&mut self, attempt: u32, fence: u64) -> OpenOutcome {
        let refused = |reason| OpenOutcome::Refused { reason };
        if !current(&mut self.fence, fence) {
            return refused(Refusal::StaleFence);
        }
        match &self.flight {
            Some(flight) if flight.attempt > attempt => return refused(Refusal::Superseded),
            Some(flight) if flight.attempt == attempt && flight.open => return OpenOutcome::Opened,
            Some(flight) if flight.attempt == attempt => return refused(Refusal::Undone),
            _ => {}
        }
        self.flight = Some(Flight { attempt, flown: Some(0), open: true });
        OpenOutcome::Opened
    }

    fn close(&mut self, attempt: u32, fence: u64, before: Stage) -> CloseOutcome {
        if !current(&mut self.fence, fence) {
            return CloseOutcome::Refused { reason: Refusal::StaleFence };
        }
        let Some(flight) = self.flight.as_mut().filter(|flight| flight.attempt >= attempt) else {
            self.flight = Some(Flight { attempt, flown: None, open: false });
            return CloseOutcome::Closed { progress: None };
        };
        if flight.attempt > attempt {
            return CloseOutcome::Closed { progress: None };
        }
        match flight.progress() {
            Some(progress) if flight.open && progress.stage.rank() >= before.rank() => {
                CloseOutcome::TooLate { progress }
            }
            progress => {
                flight.open = false;
                CloseOutcome::Closed { progress }
            }
        }
    }

    fn hear(&mut self, record: &DeliveryRecord) {
        let over = record.stage.is_terminal();
        match &mut self.flight {
            Some(flight) if flight.attempt > record.attempt => {}
            Some(flight) if flight.attempt == record.attempt => flight.open &= !over,
            Some(flight) if !over => flight.open = false,
            _ if over => self.flight = Some(Flight { attempt: record.attempt, flown: None, open: false }),
            _ => {}
        }
    }

    /// The drone of the open flight comes a stage further, at most to the `limit`-th: the progress that it reports.
    pub(super) fn fly(&mut self, limit: usize) -> Option<FlightProgress> {
        let flight = self.flight.as_mut().filter(|flight| flight.open)?;
        let flown = flight.flown.filter(|flown| *flown < limit)?;
        flight.flown = Some(flown + 1);
        flight.progress()
    }
}

impl Flight {
    /// How far it has come; none of a tombstone.
    pub(super) fn progress(&self) -> Option<FlightProgress> {
        Some(progress(self.attempt, &FLIGHT[..self.flown?]))
    }
}
