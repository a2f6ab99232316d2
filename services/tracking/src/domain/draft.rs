//! One flight under change: commands, reports and events are judged against it and alter it, in order.

use std::sync::Arc;

use chrono::Duration;
use contracts::{
    BaseId, Stage, Timestamp,
    api::MAX_CLOCK_OFF_MINUTES,
    commands::{CloseFlight, CloseOutcome, FlightReport, OpenFlight, OpenOutcome, Refusal, ReportFault, ReportOutcome},
    events::{DeliveryRecord, StageTime},
};

use super::{Flight, LATE_OPEN_MINUTES, MissionNote, Note, Plan, SAMPLE_EVERY_S, Version};

/// The stages of a flight, in order.
const FLIGHT_STAGES: [Stage; 3] = [Stage::HeadedToPickup, Stage::HeadedToDropoff, Stage::Completed];

/// How much of a flight a change touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Extent {
    /// None of it.
    Nothing,
    /// The last position and what goes with it.
    Fix,
    /// More than that.
    Whole,
}

impl Extent {
    /// Of a command that is answered as carried out, now or before: the first answer may have been that nobody knows,
    /// since the store had it in one place only. Written again it is as sure as what an answer stands for. What
    /// [`Draft::settle`] finds done is not: the owner's deliveries are compared with the flights every minute.
    const CARRIED_OUT: Self = Self::Whole;
}

/// A flight and what is about to change in it.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) flight: Option<Flight>,
    pub(crate) extent: Extent,
    pub(crate) notes: Vec<Note>,
    pub(crate) missions: Vec<MissionNote>,
}

impl Draft {
    /// Nothing has changed yet.
    pub(crate) fn new(flight: Option<Flight>) -> Self {
        Self { flight, extent: Extent::Nothing, notes: Vec::new(), missions: Vec::new() }
    }

    /// Opens the flight of an attempt, where nothing speaks against it.
    pub(crate) fn open(&mut self, command: &OpenFlight, now: Timestamp) -> OpenOutcome {
        let refused = |reason| OpenOutcome::Refused { reason };
        if let Some(flight) = &mut self.flight {
            if !raise_fence(flight, command.fence, &mut self.extent) {
                return refused(Refusal::StaleFence);
            }
            if flight.attempt > command.attempt {
                return refused(Refusal::Superseded);
            }
            if flight.attempt == command.attempt {
                if !flight.is_open() {
                    return refused(Refusal::Undone);
                }
                self.extent = Extent::CARRIED_OUT;
                return OpenOutcome::Opened;
            }
        }
        if now > command.step_deadline {
            return refused(Refusal::StepExpired);
        }
        self.recall();
        let plan = Plan {
            drone_id: command.drone.drone_id,
            base_id: command.drone.base_id.clone(),
            customer_id: command.customer_id.clone(),
            home_region: command.home_region.clone(),
            start: command.drone.position,
            pickup: command.pickup,
            dropoff: command.dropoff,
            weight_kg: command.weight_kg,
            confirmation: command.confirmation,
            deadline: command.deadline,
            speed_mps: command.drone.airframe.speed_mps,
            opened_at: now,
        };
        self.missions.push(MissionNote {
            delivery_id: command.delivery_id,
            attempt: command.attempt,
            drone_id: plan.drone_id,
            base_id: plan.base_id.clone(),
            assigned: true,
        });
        self.replace(Flight {
            delivery_id: command.delivery_id,
            attempt: command.attempt,
            fence: command.fence,
            plan: Some(Arc::new(plan)),
            stages: Vec::new(),
            last: None,
            last_sampled_at: None,
            changed_at: now,
            closed_at: None,
            version: Version::default(),
        });
        OpenOutcome::Opened
    }

    /// Closes the flight of an attempt and of all before it, unless it has come to the stage that this is to forestall.
    pub(crate) fn close(&mut self, command: &CloseFlight, now: Timestamp) -> CloseOutcome {
        let Some(flight) = &mut self.flight else {
            self.bury(tombstone(command, now));
            return CloseOutcome::Closed { progress: None };
        };
        if !raise_fence(flight, command.fence, &mut self.extent) {
            return CloseOutcome::Refused { reason: Refusal::StaleFence };
        }
        // The asked attempt is over and a later one took its row. Whatever the later one does is not asked here.
        if flight.attempt > command.attempt {
            return CloseOutcome::Closed { progress: None };
        }
        // The asked attempt never opened here: its open, should it still come, is refused by the tombstone. An attempt
        // before it was given up by the owner, however far it had come.
        if flight.attempt < command.attempt {
            self.bury(tombstone(command, now));
            return CloseOutcome::Closed { progress: None };
        }
        match flight.progress() {
            Some(progress) if flight.is_open() && flight.stage().rank() >= command.before.rank() => {
                CloseOutcome::TooLate { progress }
            }
            progress => {
                self.end(now);
                self.extent = Extent::CARRIED_OUT;
                CloseOutcome::Closed { progress }
            }
        }
    }

    /// Takes over what the delivery's owner says of it: the flights of a delivery that is over, and those of attempts
    /// before its current one, end. Says nothing about attempts that are later than the record.
    pub(crate) fn settle(&mut self, record: &DeliveryRecord, now: Timestamp) {
        let over = record.stage.is_terminal();
        let ended_at = record.finished_at.unwrap_or(record.updated_at);
        let late_open_possible = now - ended_at < Duration::minutes(LATE_OPEN_MINUTES);
        match &self.flight {
            None if over && late_open_possible => self.bury(ended(record, 0, now)),
            Some(flight) if flight.attempt < record.attempt && over && late_open_possible => {
                let fence = flight.fence;
                self.bury(ended(record, fence, now));
            }
            Some(flight) if flight.attempt < record.attempt || (flight.attempt == record.attempt && over) => {
                self.end(now);
            }
            _ => {}
        }
    }

    /// Takes a drone's report. `speaks` says whether the caller may speak for a drone of that base.
    pub(crate) fn report(
        &mut self,
        report: &FlightReport,
        speaks: impl FnOnce(&BaseId) -> bool,
        now: Timestamp,
    ) -> ReportOutcome {
        let rejected = |reason| ReportOutcome::Rejected { reason };
        let Some(flight) = self.flight.as_mut().filter(|flight| flight.is_open()) else { return ReportOutcome::Stale };
        let Some(plan) = flight.plan.as_ref().filter(|_| flight.attempt == report.attempt) else {
            return ReportOutcome::Stale;
        };
        // Another drone's flight, and one of a drone that the caller may not speak for, is answered as one that is not
        // there: whoever tries ids does not learn which deliveries are in the air.
        if plan.drone_id != report.drone_id || !speaks(&plan.base_id) {
            return ReportOutcome::Stale;
        }
        if flight.last.is_some_and(|last| report.fix.sequence <= last.sequence) {
            return ReportOutcome::Stale;
        }
        if (report.fix.at - now).abs() > Duration::minutes(MAX_CLOCK_OFF_MINUTES) {
            return rejected(ReportFault::ClockOff);
        }
        flight.last = Some(report.fix);
        let moved_on = report.stage.is_some_and(|stage| move_on(flight, stage, report.fix.at));
        let due = flight.last_sampled_at.is_none_or(|sampled_at| {
            // Either way: a drone whose clock was set back is sampled on.
            (report.fix.at - sampled_at).abs() >= Duration::seconds(SAMPLE_EVERY_S)
        });
        if moved_on {
            flight.changed_at = now;
            self.extent = Extent::Whole;
            self.notes.extend(flight.progress().map(Note::StageChanged));
        }
        if moved_on || due {
            flight.last_sampled_at = Some(report.fix.at);
            self.notes.extend(flight.sample(now).map(Note::Sampled));
        }
        self.extent = self.extent.max(Extent::Fix);
        ReportOutcome::Accepted
    }

    /// Closes the flight as it stands.
    fn end(&mut self, now: Timestamp) {
        self.recall();
        if let Some(flight) = self.flight.as_mut().filter(|flight| flight.is_open()) {
            flight.closed_at = Some(now);
            flight.changed_at = now;
            self.extent = Extent::Whole;
        }
    }

    /// Puts a tombstone in the flight's place.
    fn bury(&mut self, tombstone: Flight) {
        self.recall();
        self.replace(tombstone);
    }

    /// Calls the drone of the open flight back.
    fn recall(&mut self) {
        let Some(flight) = self.flight.as_ref().filter(|flight| flight.is_open()) else { return };
        self.missions.extend(flight.plan.as_ref().map(|plan| MissionNote {
            delivery_id: flight.delivery_id,
            attempt: flight.attempt,
            drone_id: plan.drone_id,
            base_id: plan.base_id.clone(),
            assigned: false,
        }));
    }

    fn replace(&mut self, mut by: Flight) {
        by.version = self.flight.as_ref().map(|flight| flight.version).unwrap_or_default();
        self.flight = Some(by);
        self.extent = Extent::Whole;
    }
}

/// Remembers the highest fence; false for a lower one.
fn raise_fence(flight: &mut Flight, fence: u64, extent: &mut Extent) -> bool {
    if fence > flight.fence {
        flight.fence = fence;
        *extent = Extent::Whole;
    }
    fence == flight.fence
}

/// Passes through every stage up to `stage`; false where the flight is already there or further.
fn move_on(flight: &mut Flight, stage: Stage, at: Timestamp) -> bool {
    if !stage.is_flight() || stage.rank() <= flight.stage().rank() {
        return false;
    }
    let known = flight.stage().rank();
    for passed in FLIGHT_STAGES {
        if passed.rank() > known && passed.rank() <= stage.rank() {
            flight.stages.push(StageTime { stage: passed, at });
        }
    }
    true
}

fn tombstone(command: &CloseFlight, now: Timestamp) -> Flight {
    Flight {
        delivery_id: command.delivery_id,
        attempt: command.attempt,
        fence: command.fence,
        plan: None,
        stages: Vec::new(),
        last: None,
        last_sampled_at: None,
        changed_at: now,
        closed_at: Some(now),
        version: Version::default(),
    }
}

/// The tombstone of a delivery that is over.
fn ended(record: &DeliveryRecord, fence: u64, now: Timestamp) -> Flight {
    let command =
        CloseFlight { delivery_id: record.delivery_id, attempt: record.attempt, fence, before: Stage::Completed };
    tombstone(&command, now)
}
