//! The stages of a delivery: which may follow which, and how a flight's progress moves them.

use chrono::Duration;
use contracts::{
    Stage, Timestamp,
    events::{DeliveryEventKind, FlightProgress, StageEntry},
};

use super::{Changes, Delivery, FIRST_REPLACEMENT_PAUSE, Goal, LONGEST_REPLACEMENT_PAUSE, Part};

/// A transition that the lifecycle does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a delivery does not go from {from} to {to}")]
pub struct IllegalTransition {
    /// Where it is.
    pub from: Stage,
    /// Where it should have gone.
    pub to: Stage,
}

/// Whether a delivery may go from one stage to another. The arrow back, from HeadedToPickup to Scheduled, belongs to a
/// new attempt alone: see [`Delivery::next_attempt`].
pub const fn allowed(from: Stage, to: Stage) -> bool {
    use Stage::{Cancelled, Completed, Failed, HeadedToDropoff, HeadedToPickup, Rejected, Requested, Scheduled};
    match from {
        Requested => matches!(to, Scheduled | Cancelled | Rejected | Failed),
        Scheduled => matches!(to, HeadedToPickup | Cancelled | Failed),
        HeadedToPickup => matches!(to, HeadedToDropoff | Cancelled | Failed),
        HeadedToDropoff => matches!(to, Completed | Failed),
        Completed | Cancelled | Rejected | Failed => false,
    }
}

impl Delivery {
    /// Moves on to `stage`, reached at `at`; a terminal stage ends the delivery at `now`.
    pub(super) fn enter(
        &mut self,
        stage: Stage,
        at: Timestamp,
        now: Timestamp,
        changes: &mut Changes,
    ) -> Result<(), IllegalTransition> {
        let from = self.record.stage;
        if !allowed(from, stage) {
            return Err(IllegalTransition { from, to: stage });
        }
        self.log_stage(stage, at, changes);
        let event = match stage {
            Stage::Scheduled => Some(DeliveryEventKind::DeliveryScheduled),
            Stage::Completed => Some(DeliveryEventKind::DeliveryCompleted),
            Stage::Cancelled => Some(DeliveryEventKind::DeliveryCancelled),
            Stage::Rejected => Some(DeliveryEventKind::DeliveryRejected),
            Stage::Failed => Some(DeliveryEventKind::DeliveryFailed),
            Stage::Requested | Stage::HeadedToPickup | Stage::HeadedToDropoff => None,
        };
        changes.events.extend(event);
        if stage.is_terminal() {
            self.record.finished_at = Some(now);
            self.intents = super::Intents::default();
            self.saga.not_before = None;
        }
        Ok(())
    }

    fn log_stage(&mut self, stage: Stage, at: Timestamp, changes: &mut Changes) {
        let entry = StageEntry { stage, attempt: self.record.attempt, at };
        self.record.stage = stage;
        self.record.stages.push(entry);
        changes.stages.push(entry);
    }

    /// Ends the delivery.
    pub(super) fn end(
        &mut self,
        stage: Stage,
        reason: &str,
        now: Timestamp,
        changes: &mut Changes,
    ) -> Result<(), IllegalTransition> {
        self.enter(stage, now, now, changes)?;
        self.record.end_reason = Some(reason.to_owned());
        Ok(())
    }

    /// Gives up the current drone before the pickup and reserves anew, after a pause where drones are lost again and
    /// again: the only arrow back. A cancel waits for no such pause, and a grant comes only once a drone was asked for.
    pub(super) fn next_attempt(&mut self, now: Timestamp, changes: &mut Changes) {
        let back = self.record.stage != Stage::Requested;
        self.record.attempt += 1;
        self.record.drone = None;
        self.saga.drone = Part::Todo;
        self.saga.flight = Part::Todo;
        self.saga.tries = 0;
        let paused = self.intents.cancel.is_none();
        self.saga.not_before = replacement_pause(self.record.attempt).filter(|_| paused).map(|pause| now + pause);
        self.intents.drone_failed = None;
        if back {
            self.log_stage(Stage::Scheduled, now, changes);
        }
    }

    /// Takes up what a flight has reached, stage by stage, each with its own time. Another attempt's progress, and
    /// what is known already, changes nothing.
    pub fn apply_progress(&mut self, progress: &FlightProgress, now: Timestamp) -> Changes {
        let mut changes = Changes::default();
        if progress.attempt != self.record.attempt || self.record.stage.is_terminal() {
            return changes;
        }
        for reached in &progress.stages {
            if !reached.stage.is_flight() || reached.stage.rank() <= self.record.stage.rank() {
                continue;
            }
            let opening = self.saga.goal == Goal::Schedule && self.saga.flight != Part::Done;
            if self.record.stage == Stage::Requested || (self.record.stage == Stage::Scheduled && opening) {
                // The flight was opened and the drone reports, but the commit of Scheduled is still to come.
                self.schedule(now, &mut changes);
            }
            if self.enter(reached.stage, reached.at, now, &mut changes).is_err() {
                // A gap in the flight's stages: tracking fills them, so the next report of it is whole.
                break;
            }
        }
        if !changes.stages.is_empty() {
            self.saga.flight = Part::Done;
        }
        changes
    }

    /// The flight is open: the saga has reached its goal.
    pub(super) fn schedule(&mut self, now: Timestamp, changes: &mut Changes) {
        self.saga.flight = Part::Done;
        changes.step("schedule", "done", self, now);
        if self.record.stage == Stage::Requested {
            // Legal by the table: Requested -> Scheduled.
            let _ = self.enter(Stage::Scheduled, now, now, changes);
        } else {
            // A later attempt stays in Scheduled; everybody hears of its new drone.
            changes.events.push(DeliveryEventKind::DeliveryScheduled);
        }
    }
}

/// How long the reservation of an attempt waits after the loss of the one before; none for the first replacement.
fn replacement_pause(attempt: u32) -> Option<Duration> {
    let doublings = attempt.checked_sub(3)?;
    // Beyond that it is the longest anyway, and the product would not fit.
    Some((FIRST_REPLACEMENT_PAUSE * 2i32.pow(doublings.min(10))).min(LONGEST_REPLACEMENT_PAUSE))
}
