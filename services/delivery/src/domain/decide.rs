//! What a delivery needs next. The saga, top-down:
//!
//! | step             | do                       | undo                                  |
//! |------------------|--------------------------|---------------------------------------|
//! | register_package | package: register        | withdraw_package: package: withdraw   |
//! | reserve_drone    | fleet: reserve           | release_drone: fleet: release         |
//! | open_flight      | tracking: open-flight    | close_flight: tracking: close-flight  |
//! | schedule         | commit of Scheduled      | - (nothing follows it)                |
//!
//! Each step carries its deadline, the lease's fence and its key (delivery, attempt), and is asked again with the same
//! key while its outcome is unknown. Undoing goes backwards through all steps, done or not: the undo of a step that
//! was never seen leaves a tombstone.

use contracts::{Stage, Timestamp};

use super::{Delivery, EXPIRY, Goal, Part};

/// Why a flight is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The customer cancelled.
    Cancel,
    /// The drone failed.
    DroneFailed,
    /// It is long past its deadline.
    Expire,
    /// The saga undoes open_flight.
    Undo,
}

/// Something to do for a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask package to register.
    RegisterPackage,
    /// Ask fleet for a drone.
    ReserveDrone,
    /// Ask tracking to open the flight.
    OpenFlight,
    /// Ask tracking to close the flight, if it is still before that stage.
    CloseFlight {
        /// The stage that it must not have reached.
        before: Stage,
        /// Why.
        reason: CloseReason,
    },
    /// Tell fleet to release the drone, or the place in the line.
    ReleaseDrone,
    /// Tell package to withdraw.
    WithdrawPackage,
    /// Turn round: the deadline has passed without a flight.
    GiveUp,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Do this, now.
    Do(Action),
    /// Nothing before that time, unless an event comes.
    Wait(Timestamp),
    /// Nothing ever.
    Over,
}

impl Delivery {
    /// What comes next, at `now`.
    pub fn next(&self, now: Timestamp) -> Next {
        if self.record.stage.is_terminal() {
            return Next::Over;
        }
        // The deadline waits for no retry. An intent loses nothing by it: giving up undoes everything, too.
        if self.gives_up_at(now) {
            return Next::Do(Action::GiveUp);
        }
        if let Some(not_before) = self.saga.not_before
            && not_before > now
        {
            // A timer that is past does not count: what it asked for is what is being retried.
            let timer = self.timer();
            return Next::Wait(if timer > now { not_before.min(timer) } else { not_before });
        }
        match &self.saga.goal {
            Goal::GiveUp { .. } => self.next_undo(),
            Goal::Schedule => self.next_forward(now),
        }
    }

    /// The undo table, backwards.
    fn next_undo(&self) -> Next {
        if self.saga.flight != Part::Undone {
            return Next::Do(Action::CloseFlight { before: Stage::HeadedToDropoff, reason: CloseReason::Undo });
        }
        if self.saga.drone != Part::Undone {
            return Next::Do(Action::ReleaseDrone);
        }
        Next::Do(Action::WithdrawPackage)
    }

    /// Intents and timers first, then the do table.
    fn next_forward(&self, now: Timestamp) -> Next {
        if self.intents.cancel.is_some() {
            return Next::Do(Action::CloseFlight { before: Stage::HeadedToDropoff, reason: CloseReason::Cancel });
        }
        if self.intents.drone_failed.is_some() {
            let picked_up = self.record.stage.rank() >= Stage::HeadedToDropoff.rank();
            let before = if picked_up { Stage::Completed } else { Stage::HeadedToDropoff };
            return Next::Do(Action::CloseFlight { before, reason: CloseReason::DroneFailed });
        }
        if now >= self.record.deadline + EXPIRY {
            return Next::Do(Action::CloseFlight { before: Stage::Completed, reason: CloseReason::Expire });
        }
        if self.saga.package != Part::Done {
            return Next::Do(Action::RegisterPackage);
        }
        if self.saga.drone != Part::Done {
            return Next::Do(Action::ReserveDrone);
        }
        if self.saga.flight != Part::Done {
            return Next::Do(Action::OpenFlight);
        }
        Next::Wait(self.timer())
    }

    /// Whether the deadline has passed and no flight is open.
    fn gives_up_at(&self, now: Timestamp) -> bool {
        self.saga.goal == Goal::Schedule && self.saga.flight != Part::Done && now >= self.record.deadline
    }

    /// When this delivery needs a look though nothing happens.
    fn timer(&self) -> Timestamp {
        match (&self.saga.goal, self.saga.flight) {
            (Goal::Schedule, Part::Done) => self.record.deadline + EXPIRY,
            (Goal::Schedule, _) => self.record.deadline,
            (Goal::GiveUp { .. }, _) => Timestamp::MAX_UTC,
        }
    }
}
