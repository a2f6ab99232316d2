//! The Delivery aggregate: its stage, its saga, its intents. Pure: time and ids are arguments.

mod decide;
mod outcome;
mod stages;

use chrono::Duration;
use contracts::{
    CustomerId, DeliveryId, Region, Stage, Timestamp,
    api::{CreateDelivery, StepEntry},
    events::{DeliveryEvent, DeliveryEventKind, DeliveryRecord, StageEntry},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use decide::{Action, CloseReason, Next};
pub use outcome::Outcome;
pub use stages::{IllegalTransition, allowed};

/// The saga's definition that new deliveries run under. A change of the steps is a new number; old rows keep theirs.
pub const SAGA_DEFINITION: u32 = 1;

/// The latest drop-off where the customer does not say.
pub const DEFAULT_DEADLINE: Duration = Duration::minutes(30);

/// How long past its deadline a flight may go on before it expires.
pub const EXPIRY: Duration = Duration::minutes(10);

/// How often a delivery in the waiting line asks again: the grant comes as an event, so this only heals.
pub const ASK_AGAIN: Duration = Duration::seconds(30);

/// The pause after a participant did not answer doubles from here ...
pub const FIRST_RETRY: Duration = Duration::milliseconds(200);
/// ... to here.
pub const LONGEST_RETRY: Duration = Duration::seconds(10);

/// Drones that one delivery may use up. An honest fleet loses one or two; a base that reports failures of drones that
/// are well would otherwise keep everybody at work until the deadline.
pub const MAX_ATTEMPTS: u32 = 20;

/// The first drone that is lost is replaced at once. The pause before the next one doubles from here ...
pub const FIRST_REPLACEMENT_PAUSE: Duration = Duration::seconds(1);
/// ... to here: all attempts together wait for less than eight minutes of the half hour that a delivery has.
pub const LONGEST_REPLACEMENT_PAUSE: Duration = Duration::seconds(30);

/// How far one part of the saga is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// Not done as far as we know; perhaps asked for.
    Todo,
    /// Asked for, and in a line.
    Waiting,
    /// Done.
    Done,
    /// Its undo is done: it will never be.
    Undone,
}

/// What the saga is driving at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// Package registered, drone reserved, flight open, delivery scheduled.
    Schedule,
    /// Every step undone, then the end: Rejected, or Failed where it had been scheduled before.
    GiveUp {
        /// Why.
        reason: String,
    },
}

/// The state of the scheduling saga, in the delivery's row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saga {
    /// Which version of the steps this delivery runs under.
    pub definition: u32,
    /// Where it goes.
    pub goal: Goal,
    /// register_package / withdraw_package.
    pub package: Part,
    /// reserve_drone / release_drone, of the current attempt.
    pub drone: Part,
    /// open_flight / close_flight, of the current attempt.
    pub flight: Part,
    /// How often the current step was asked without an answer.
    pub tries: u32,
    /// Not before this is the next step asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
}

/// What somebody wants of a delivery; kept in its row until the lease holder has driven it to its end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Intents {
    /// The customer cancelled, at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<Timestamp>,
    /// The drone of that attempt failed, for that reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drone_failed: Option<(u32, String)>,
}

/// A delivery, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// What everybody sees.
    pub record: DeliveryRecord,
    /// The saga.
    pub saga: Saga,
    /// What is still to be decided.
    #[serde(default)]
    pub intents: Intents,
}

/// A changed delivery: what [`Delivery`]'s methods answer, to be saved as one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// Events of the change, in order.
    pub events: Vec<DeliveryEventKind>,
    /// New lines of the stage log.
    pub stages: Vec<StageEntry>,
    /// New lines of the saga's log.
    pub steps: Vec<StepEntry>,
}

impl Changes {
    fn step(&mut self, step: &str, outcome: &str, delivery: &Delivery, at: Timestamp) {
        self.steps.push(StepEntry {
            step: step.to_owned(),
            attempt: delivery.record.attempt,
            outcome: outcome.to_owned(),
            at,
            tries: delivery.saga.tries + 1,
        });
    }
}

impl Delivery {
    /// A new delivery, as asked for at `now`.
    pub fn request(
        delivery_id: DeliveryId,
        customer_id: CustomerId,
        home_region: Region,
        wish: CreateDelivery,
        now: Timestamp,
    ) -> (Self, Changes) {
        let entry = StageEntry { stage: Stage::Requested, attempt: 1, at: now };
        let record = DeliveryRecord {
            delivery_id,
            customer_id,
            home_region,
            version: 1,
            stage: Stage::Requested,
            attempt: 1,
            pickup: wish.pickup,
            dropoff: wish.dropoff,
            package: wish.package,
            expedited: wish.expedited,
            confirmation: wish.confirmation,
            requested_at: now,
            deadline: wish.deadline.unwrap_or(now + DEFAULT_DEADLINE),
            updated_at: now,
            finished_at: None,
            drone: None,
            stages: vec![entry],
            end_reason: None,
            confirmation_missing: false,
        };
        let saga = Saga {
            definition: SAGA_DEFINITION,
            goal: Goal::Schedule,
            package: Part::Todo,
            drone: Part::Todo,
            flight: Part::Todo,
            tries: 0,
            not_before: None,
        };
        let changes =
            Changes { events: vec![DeliveryEventKind::DeliveryRequested], stages: vec![entry], steps: Vec::new() };
        (Self { record, saga, intents: Intents::default() }, changes)
    }

    /// The record as it was answered to the request that made it.
    pub fn first_answer(&self) -> DeliveryRecord {
        let record = &self.record;
        DeliveryRecord {
            version: 1,
            stage: Stage::Requested,
            attempt: 1,
            updated_at: record.requested_at,
            finished_at: None,
            drone: None,
            stages: record.stages.iter().take(1).copied().collect(),
            end_reason: None,
            confirmation_missing: false,
            ..record.clone()
        }
    }

    /// The customer wants it cancelled; false where it is too late for that already.
    #[must_use]
    pub fn want_cancel(&mut self, now: Timestamp) -> bool {
        if self.record.stage.rank() >= Stage::HeadedToDropoff.rank() {
            return false;
        }
        self.intents.cancel.get_or_insert(now);
        self.saga.not_before = None;
        true
    }

    /// Its drone has failed; false where that is of no interest (any more).
    #[must_use]
    pub fn drone_failed(&mut self, attempt: u32, reason: &str) -> bool {
        if self.record.stage.is_terminal() || attempt != self.record.attempt || self.intents.drone_failed.is_some() {
            return false;
        }
        self.intents.drone_failed = Some((attempt, reason.to_owned()));
        self.saga.not_before = None;
        true
    }

    /// Counts the change: everything that is saved gets a version of its own.
    pub fn stamp(&mut self, now: Timestamp) {
        self.record.version += 1;
        self.record.updated_at = now;
    }

    /// The events of `changes`, each with the whole record as it is now.
    pub fn events(&self, changes: &Changes, new_id: impl Fn() -> Uuid) -> Vec<DeliveryEvent> {
        let event = |kind: &DeliveryEventKind| DeliveryEvent {
            id: new_id(),
            time: self.record.updated_at,
            kind: *kind,
            data: self.record.clone(),
        };
        changes.events.iter().map(event).collect()
    }
}

#[cfg(test)]
mod tests;
