//! The rules of a flight, pure: what it is, how far it has come, when it will arrive.

mod draft;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use contracts::{
    BaseId, Coordinate, CustomerId, DeliveryId, DroneId, Region, Stage, Timestamp,
    api::Confirmation,
    commands::Mission,
    events::{DeliveryRecord, FlightProgress, PositionFix, PositionSample, StageTime},
};

use serde::{Deserialize, Serialize};

pub(crate) use draft::{Draft, Extent};

/// A position goes to the lake this often in flight, in seconds of the drone's time.
pub(crate) const SAMPLE_EVERY_S: i64 = 5;

/// A terminal event older than this leaves no tombstone, in minutes: steps have deadlines of seconds, so that no late
/// open can still be on its way, and a replayed topic would otherwise write a row for every delivery there ever was.
pub(crate) const LATE_OPEN_MINUTES: i64 = 60;

/// Whether a record can mean anything to a flight: most only say that an attempt goes on, which flights know themselves.
pub(crate) fn ends_flights(record: &DeliveryRecord) -> bool {
    record.stage.is_terminal() || record.attempt > 1
}

/// What an attempt's flight was opened with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) drone_id: DroneId,
    pub(crate) base_id: BaseId,
    pub(crate) customer_id: CustomerId,
    pub(crate) home_region: Region,
    /// Where the drone was when it was reserved.
    pub(crate) start: Coordinate,
    pub(crate) pickup: Coordinate,
    pub(crate) dropoff: Coordinate,
    pub(crate) weight_kg: f64,
    pub(crate) confirmation: Confirmation,
    pub(crate) deadline: Timestamp,
    /// Cruising speed in metres a second.
    pub(crate) speed_mps: f64,
    pub(crate) opened_at: Timestamp,
}

/// A delivery's latest attempt in the air, or the tombstone of one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Flight {
    pub(crate) delivery_id: DeliveryId,
    pub(crate) attempt: u32,
    /// The highest fence that a command for this delivery has carried.
    pub(crate) fence: u64,
    /// None: the close came before the open, which will be refused.
    pub(crate) plan: Option<Arc<Plan>>,
    /// Every stage so far, in order.
    pub(crate) stages: Vec<StageTime>,
    /// The last accepted report.
    pub(crate) last: Option<PositionFix>,
    /// The drone's time of the last sample.
    pub(crate) last_sampled_at: Option<Timestamp>,
    /// When more than the position last changed.
    pub(crate) changed_at: Timestamp,
    /// None while reports count.
    pub(crate) closed_at: Option<Timestamp>,
    /// Which write it is of.
    pub(crate) version: Version,
}

/// Which of a flight's writes a state is of; grows with every write, 0 before the first.
///
/// A write of more than a position begins an era at a number of its own choice, and positions count up from there. A
/// store that fails over may lose the last writes: whoever remembers what was lost differs by the era, or by where it
/// began, from what others have written instead, unless that, too, is nothing but positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
pub(crate) struct Version(u64);

impl Version {
    const ERA: u64 = 1 << 32;

    /// After another position.
    pub(crate) fn next_position(self) -> Self {
        Self(self.0 + 1)
    }

    /// After a write of more than a position. Half of an era is left to its positions, wherever `beginning` has it begin.
    pub(crate) fn next_era(self, beginning: u32) -> Self {
        Self((self.0 / Self::ERA + 1) * Self::ERA + u64::from(beginning / 2))
    }

    /// As stores keep it.
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

impl From<u64> for Version {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl Flight {
    /// Whether reports still count.
    pub(crate) fn is_open(&self) -> bool {
        self.closed_at.is_none()
    }

    /// The furthest stage.
    pub(crate) fn stage(&self) -> Stage {
        self.stages.last().map_or(Stage::Scheduled, |entry| entry.stage)
    }

    /// The progress, whole; none of a tombstone.
    pub(crate) fn progress(&self) -> Option<FlightProgress> {
        let plan = self.plan.as_ref()?;
        Some(FlightProgress {
            delivery_id: self.delivery_id,
            attempt: self.attempt,
            customer_id: plan.customer_id.clone(),
            home_region: plan.home_region.clone(),
            drone_id: plan.drone_id,
            base_id: plan.base_id.clone(),
            stage: self.stage(),
            stages: self.stages.clone(),
            last: self.last,
            eta: self.eta(),
        })
    }

    /// What the drone is to do; none once the flight is closed.
    pub(crate) fn mission(&self) -> Option<Mission> {
        let plan = self.plan.as_ref().filter(|_| self.is_open())?;
        Some(Mission {
            delivery_id: self.delivery_id,
            drone_id: plan.drone_id,
            base_id: plan.base_id.clone(),
            attempt: self.attempt,
            pickup: plan.pickup,
            dropoff: plan.dropoff,
            weight_kg: plan.weight_kg,
            confirmation: plan.confirmation,
            stage: self.stage(),
            last_sequence: self.last.map(|fix| fix.sequence),
            last_position: self.last.map(|fix| fix.position),
        })
    }

    /// When the drone will reach the drop-off, by what is left of the way and its cruising speed; none once it has.
    pub(crate) fn eta(&self) -> Option<Timestamp> {
        let plan = self.plan.as_ref()?;
        let (from, at) = self.last.map_or((plan.start, plan.opened_at), |fix| (fix.position, fix.at));
        let left_m = match self.stage() {
            Stage::Completed => return None,
            Stage::HeadedToDropoff => from.distance_m(&plan.dropoff),
            _ => from.distance_m(&plan.pickup) + plan.pickup.distance_m(&plan.dropoff),
        };
        let left = std::time::Duration::try_from_secs_f64(left_m / plan.speed_mps).ok()?;
        at.checked_add_signed(chrono::Duration::from_std(left).ok()?)
    }

    /// The last report as the lake keeps it.
    fn sample(&self, now: Timestamp) -> Option<PositionSample> {
        let plan = self.plan.as_ref()?;
        Some(PositionSample {
            delivery_id: self.delivery_id,
            attempt: self.attempt,
            customer_id: plan.customer_id.clone(),
            home_region: plan.home_region.clone(),
            drone_id: plan.drone_id,
            stage: self.stage(),
            fix: self.last?,
            recorded_at: now,
        })
    }
}

/// What the world hears of a change to a flight.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Note {
    /// The flight reached a further stage.
    StageChanged(FlightProgress),
    /// A position for the lake.
    Sampled(PositionSample),
}

/// What a drone and its base hear of a change to a flight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MissionNote {
    pub(crate) delivery_id: DeliveryId,
    pub(crate) attempt: u32,
    pub(crate) drone_id: DroneId,
    pub(crate) base_id: BaseId,
    /// True: assigned; false: recalled.
    pub(crate) assigned: bool,
}
