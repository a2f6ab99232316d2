//! What the answers of participants change.

use chrono::Duration;
use contracts::{
    Stage, Timestamp,
    commands::{AssignedDrone, CloseOutcome, OpenOutcome, PackageOutcome, Refusal, ReleaseOutcome, ReserveOutcome},
    events::FlightProgress,
};

use super::{
    ASK_AGAIN, Changes, Delivery, FIRST_RETRY, Goal, IllegalTransition, LONGEST_RETRY, MAX_ATTEMPTS, Part, allowed,
    decide::{Action, CloseReason},
};

/// A participant's answer to an action.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Of register or withdraw.
    Package(PackageOutcome),
    /// Of reserve.
    Reserve(ReserveOutcome),
    /// Of release.
    Release(ReleaseOutcome),
    /// Of open-flight.
    Open(OpenOutcome),
    /// Of close-flight.
    Close(CloseOutcome),
    /// Of what needs nobody.
    Local,
}

impl Outcome {
    /// A later holder of the lease has been heard: whoever got this answer must stop.
    pub fn lease_lost(&self) -> bool {
        let refused = match self {
            Self::Package(PackageOutcome::Refused { reason })
            | Self::Reserve(ReserveOutcome::Refused { reason })
            | Self::Release(ReleaseOutcome::Refused { reason })
            | Self::Open(OpenOutcome::Refused { reason })
            | Self::Close(CloseOutcome::Refused { reason }) => *reason,
            _ => return false,
        };
        refused == Refusal::StaleFence
    }
}

impl Delivery {
    /// Takes up the answer to `action`.
    pub fn apply(&mut self, action: Action, outcome: &Outcome, now: Timestamp) -> Result<Changes, IllegalTransition> {
        let mut changes = Changes::default();
        match (action, outcome) {
            (Action::RegisterPackage, Outcome::Package(answer)) => self.registered(answer, now, &mut changes),
            (Action::ReserveDrone, Outcome::Reserve(answer)) => self.reserve_answered(answer, now, &mut changes),
            (Action::OpenFlight, Outcome::Open(answer)) => self.opened(answer, now, &mut changes),
            (Action::CloseFlight { reason, .. }, Outcome::Close(answer)) => {
                self.close_answered(reason, answer, now, &mut changes)?;
            }
            (Action::ReleaseDrone, Outcome::Release(answer)) => self.released(answer, now, &mut changes),
            (Action::WithdrawPackage, Outcome::Package(answer)) => self.withdrawn(answer, now, &mut changes)?,
            (Action::GiveUp, _) => {
                let reason = if self.saga.drone == Part::Done { "no flight" } else { "no drone" };
                self.give_up(&format!("{reason} before the deadline"), now, &mut changes);
            }
            // An answer of another kind than was asked for cannot be used: ask again.
            _ => self.try_later(now),
        }
        Ok(changes)
    }

    /// The grant of a drone, by answer or by event; changes nothing where it is not for the current attempt, or known.
    pub fn grant(&mut self, attempt: u32, drone: &AssignedDrone, now: Timestamp) -> Changes {
        let mut changes = Changes::default();
        let wanted = self.saga.goal == Goal::Schedule && matches!(self.saga.drone, Part::Todo | Part::Waiting);
        if self.record.stage.is_terminal() || attempt != self.record.attempt || !wanted {
            return changes;
        }
        changes.step("reserve_drone", "done", self, now);
        self.record.drone = Some(drone.clone());
        self.saga.drone = Part::Done;
        self.move_on();
        changes
    }

    fn move_on(&mut self) {
        self.saga.tries = 0;
        self.saga.not_before = None;
    }

    /// The outcome is unknown, or not final: the same step is asked again after a pause that doubles.
    fn try_later(&mut self, now: Timestamp) {
        let pause = FIRST_RETRY * 2i32.pow(self.saga.tries.min(10));
        self.saga.tries += 1;
        self.saga.not_before = Some(now + pause.min(LONGEST_RETRY));
    }

    fn unanswered(&mut self, step: &str, now: Timestamp, changes: &mut Changes) {
        if self.saga.tries == 0 {
            // Once in the log: the next line of the step says how often it was tried.
            changes.step(step, "unavailable", self, now);
        }
        self.try_later(now);
    }

    fn registered(&mut self, answer: &PackageOutcome, now: Timestamp, changes: &mut Changes) {
        match answer {
            PackageOutcome::Done => {
                changes.step("register_package", "done", self, now);
                self.saga.package = Part::Done;
                self.move_on();
            }
            PackageOutcome::Refused { reason: Refusal::Undone | Refusal::Superseded } => {
                changes.step("register_package", "refused", self, now);
                self.give_up("the package was withdrawn", now, changes);
            }
            _ => self.unanswered("register_package", now, changes),
        }
    }

    fn reserve_answered(&mut self, answer: &ReserveOutcome, now: Timestamp, changes: &mut Changes) {
        match answer {
            ReserveOutcome::Reserved { drone } => {
                let granted = self.grant(self.record.attempt, drone, now);
                changes.steps.extend(granted.steps);
            }
            ReserveOutcome::Waiting => {
                if self.saga.drone != Part::Waiting {
                    changes.step("reserve_drone", "waiting", self, now);
                }
                self.saga.drone = Part::Waiting;
                self.saga.tries = 0;
                self.saga.not_before = Some(now + jittered(ASK_AGAIN, self));
            }
            ReserveOutcome::Refused { reason: Refusal::Undone | Refusal::Superseded } => {
                // The drone failed before its grant was seen: this attempt is over.
                changes.step("reserve_drone", "refused", self, now);
                self.move_on();
                self.intents.drone_failed.get_or_insert((self.record.attempt, "reservation lost".to_owned()));
            }
            _ => self.unanswered("reserve_drone", now, changes),
        }
    }

    fn opened(&mut self, answer: &OpenOutcome, now: Timestamp, changes: &mut Changes) {
        match answer {
            OpenOutcome::Opened => {
                changes.step("open_flight", "done", self, now);
                self.move_on();
                self.schedule(now, changes);
            }
            OpenOutcome::Refused { reason: Refusal::Undone | Refusal::Superseded } => {
                changes.step("open_flight", "refused", self, now);
                self.move_on();
                self.intents.drone_failed.get_or_insert((self.record.attempt, "flight closed".to_owned()));
            }
            _ => self.unanswered("open_flight", now, changes),
        }
    }

    fn close_answered(
        &mut self,
        reason: CloseReason,
        answer: &CloseOutcome,
        now: Timestamp,
        changes: &mut Changes,
    ) -> Result<(), IllegalTransition> {
        match answer {
            CloseOutcome::Closed { progress } => {
                changes.step("close_flight", "done", self, now);
                self.move_on();
                self.take_up(progress.as_ref(), now, changes);
                if self.record.stage.is_terminal() {
                    return Ok(());
                }
                self.closed(reason, now, changes)
            }
            CloseOutcome::TooLate { progress } => {
                changes.step("close_flight", "too_late", self, now);
                self.move_on();
                let known = self.record.stage;
                self.take_up(Some(progress), now, changes);
                self.too_late(reason);
                let asks_again = matches!(reason, CloseReason::DroneFailed | CloseReason::Expire);
                if asks_again && self.record.stage == known {
                    // Too late for what, it does not say: asked again at once, it would answer the same.
                    self.try_later(now);
                }
                Ok(())
            }
            _ => {
                self.unanswered("close_flight", now, changes);
                Ok(())
            }
        }
    }

    fn take_up(&mut self, progress: Option<&FlightProgress>, now: Timestamp, changes: &mut Changes) {
        let Some(progress) = progress else { return };
        let applied = self.apply_progress(progress, now);
        changes.events.extend(applied.events);
        changes.stages.extend(applied.stages);
        changes.steps.extend(applied.steps);
    }

    /// No report changes the flight any more: the decision can be committed.
    fn closed(&mut self, reason: CloseReason, now: Timestamp, changes: &mut Changes) -> Result<(), IllegalTransition> {
        match reason {
            CloseReason::Cancel if !allowed(self.record.stage, Stage::Cancelled) => {
                // It was closed after the pickup, for another reason, by a decision that was not committed: that reason
                // is still there and decides.
                self.intents.cancel = None;
                Ok(())
            }
            CloseReason::Cancel => self.end(Stage::Cancelled, "cancelled by the customer", now, changes),
            CloseReason::Expire => self.end(Stage::Failed, "the deadline has passed", now, changes),
            CloseReason::DroneFailed if self.record.stage == Stage::HeadedToDropoff => {
                let failed = self.intents.drone_failed.as_ref().map(|(_, reason)| reason.clone());
                let reason = format!("the drone failed with the package: {}", failed.unwrap_or_default());
                self.end(Stage::Failed, &reason, now, changes)
            }
            CloseReason::DroneFailed if self.record.attempt >= MAX_ATTEMPTS => {
                // The flight is closed already; what is left to undo are the reservation and the package.
                self.saga.flight = Part::Undone;
                self.intents.drone_failed = None;
                self.give_up(&format!("{MAX_ATTEMPTS} drones failed before the pickup"), now, changes);
                Ok(())
            }
            CloseReason::DroneFailed => {
                self.next_attempt(now, changes);
                Ok(())
            }
            CloseReason::Undo => {
                self.saga.flight = Part::Undone;
                Ok(())
            }
        }
    }

    /// The flight is already past the point: what was wanted is not to be had.
    fn too_late(&mut self, reason: CloseReason) {
        match reason {
            CloseReason::Cancel => self.intents.cancel = None,
            // Asked again with what is known now: past the pickup, only Completed is too late.
            CloseReason::DroneFailed | CloseReason::Expire => {}
            CloseReason::Undo => {
                // The flight is in the air after all, so the saga had reached its goal.
                self.saga.goal = Goal::Schedule;
                self.saga.package = Part::Done;
                self.saga.drone = Part::Done;
                self.saga.flight = Part::Done;
            }
        }
    }

    fn give_up(&mut self, reason: &str, now: Timestamp, changes: &mut Changes) {
        changes.step("schedule", "given_up", self, now);
        self.saga.goal = Goal::GiveUp { reason: reason.to_owned() };
        self.move_on();
    }

    fn released(&mut self, answer: &ReleaseOutcome, now: Timestamp, changes: &mut Changes) {
        match answer {
            ReleaseOutcome::Done => {
                changes.step("release_drone", "done", self, now);
                self.saga.drone = Part::Undone;
                self.move_on();
            }
            _ => self.unanswered("release_drone", now, changes),
        }
    }

    fn withdrawn(
        &mut self,
        answer: &PackageOutcome,
        now: Timestamp,
        changes: &mut Changes,
    ) -> Result<(), IllegalTransition> {
        if *answer != PackageOutcome::Done {
            self.unanswered("withdraw_package", now, changes);
            return Ok(());
        }
        changes.step("withdraw_package", "done", self, now);
        self.saga.package = Part::Undone;
        self.move_on();
        let Goal::GiveUp { reason } = self.saga.goal.clone() else { return Ok(()) };
        if self.intents.cancel.is_some() && allowed(self.record.stage, Stage::Cancelled) {
            return self.end(Stage::Cancelled, "cancelled by the customer", now, changes);
        }
        let stage = if self.record.stage == Stage::Requested { Stage::Rejected } else { Stage::Failed };
        self.end(stage, &reason, now, changes)
    }
}

/// Spreads what many deliveries would do at the same time, by their ids.
fn jittered(pause: Duration, delivery: &Delivery) -> Duration {
    let share = i32::from(delivery.record.delivery_id.0.as_bytes()[15]);
    pause + pause * share / 512
}
