//! The rules of the fleet: who may reserve, what a delivery's end releases, what a registration may change.

use chrono::DateTime;
use contracts::{
    BaseId, Coordinate, CustomerId, DeliveryId, DroneId, Region, Timestamp,
    api::RegisterDrone,
    commands::{AssignedDrone, DroneStatus, FleetDrone, Refusal, ReserveDrone},
    events::DeliveryRecord,
    flight::{Airframe, RESERVE_BATTERY, Trip},
};

/// The attempt of a delivery: what a reservation is named by. A release never names only a drone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Hold {
    /// The delivery.
    pub(crate) delivery_id: DeliveryId,
    /// Its attempt, from 1.
    pub(crate) attempt: u32,
}

/// A drone as the store keeps it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Drone {
    /// Which.
    pub(crate) id: DroneId,
    /// Its home.
    pub(crate) base_id: BaseId,
    /// Where its home is.
    pub(crate) base_position: Coordinate,
    /// Where it is.
    pub(crate) position: Coordinate,
    /// 0 (empty) to 1 (full).
    pub(crate) battery: f64,
    /// What it can do.
    pub(crate) airframe: Airframe,
    /// What it is free to do.
    pub(crate) status: DroneStatus,
    /// What it is reserved for: set exactly while it is reserved.
    pub(crate) hold: Option<Hold>,
    /// When it was last heard, by the store's clock, in milliseconds since 1970.
    pub(crate) last_seen_ms: Option<i64>,
    /// Its last report's number; 0 before the first.
    pub(crate) last_sequence: u64,
    /// The number of the last change that other instances must hear of.
    pub(crate) changed: i64,
}

impl Drone {
    /// The drone as a delivery keeps it.
    pub(crate) fn assigned(&self) -> AssignedDrone {
        AssignedDrone {
            drone_id: self.id,
            base_id: self.base_id.clone(),
            airframe: self.airframe,
            position: self.position,
            battery: self.battery,
        }
    }

    /// The drone as the fleet's readers see it.
    pub(crate) fn view(&self) -> FleetDrone {
        FleetDrone {
            drone_id: self.id,
            base_id: self.base_id.clone(),
            position: self.position,
            battery: self.battery,
            airframe: self.airframe,
            base_position: self.base_position,
            status: self.status,
            delivery_id: self.hold.map(|hold| hold.delivery_id),
            last_seen_at: self.last_seen_ms.and_then(DateTime::from_timestamp_millis),
        }
    }
}

/// Whose delivery it is: carried by every row and event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parties {
    /// The customer.
    pub(crate) customer_id: CustomerId,
    /// The region that owns the delivery.
    pub(crate) home_region: Region,
}

/// Where a reservation stands. Released and failed are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ReservationState {
    /// In the waiting line.
    Waiting,
    /// A drone is reserved.
    Reserved,
    /// Over. Without a drone: it left the line, or the undo came before the do.
    Released,
    /// Over, because its drone failed.
    Failed,
}

impl ReservationState {
    /// The state's name in stores.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Reserved => "reserved",
            Self::Released => "released",
            Self::Failed => "failed",
        }
    }

    /// The state of that name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        [Self::Waiting, Self::Reserved, Self::Released, Self::Failed].into_iter().find(|state| state.as_str() == name)
    }

    /// True while it counts.
    pub(crate) const fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Reserved)
    }
}

/// What is known of one attempt of a delivery.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Known {
    /// The attempt.
    pub(crate) attempt: u32,
    /// Where it stands.
    pub(crate) state: ReservationState,
    /// The highest fence heard with it.
    pub(crate) fence: u64,
    /// Its drone, as it was when it was reserved.
    pub(crate) drone: Option<AssignedDrone>,
}

/// What to do about a reserve command.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// It will never be.
    Refuse(Refusal),
    /// It is so since an earlier call.
    Held(AssignedDrone),
    /// It waits since an earlier call.
    Waits,
    /// Not heard before: reserve.
    Fresh,
}

/// Judges a reserve command by all that is known of its delivery. What was done before its deadline stays done, so
/// that a step of unknown outcome can be asked again after it.
pub(crate) fn judge_reserve(command: &ReserveDrone, known: &[Known], now: Timestamp) -> Verdict {
    if is_stale(command.fence, known) {
        return Verdict::Refuse(Refusal::StaleFence);
    }
    if known.iter().any(|row| row.attempt > command.attempt) {
        return Verdict::Refuse(Refusal::Superseded);
    }
    if let Some(own) = known.iter().find(|row| row.attempt == command.attempt) {
        return match (own.state, &own.drone) {
            (ReservationState::Reserved, Some(drone)) => Verdict::Held(drone.clone()),
            (ReservationState::Waiting, _) => Verdict::Waits,
            _ => Verdict::Refuse(Refusal::Undone),
        };
    }
    if now > command.step_deadline {
        return Verdict::Refuse(Refusal::StepExpired);
    }
    Verdict::Fresh
}

/// Whether somebody with a higher fence has been heard about this delivery.
pub(crate) fn is_stale(fence: u64, known: &[Known]) -> bool {
    known.iter().any(|row| row.fence > fence)
}

/// The trip of a reserve command.
pub(crate) fn trip_of(command: &ReserveDrone) -> Trip {
    Trip { pickup: command.pickup, dropoff: command.dropoff, load_kg: command.weight_kg }
}

/// The battery that `airframe` needs at `from` for `trip` and the way to `base`, the reserve included: it can fly
/// exactly if it has that much and the payload is not too heavy.
pub(crate) fn needed_battery(airframe: &Airframe, from: Coordinate, trip: &Trip, base: Coordinate) -> f64 {
    let empty_m = from.distance_m(&trip.pickup) + trip.dropoff.distance_m(&base);
    let loaded_m = trip.pickup.distance_m(&trip.dropoff);
    airframe.drain(empty_m, 0.0) + airframe.drain(loaded_m, trip.load_kg) + RESERVE_BATTERY
}

/// The end of every reservation of a delivery up to an attempt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ending {
    /// The delivery.
    pub(crate) delivery_id: DeliveryId,
    /// The last attempt that is over.
    pub(crate) up_to: u32,
    /// Keep a tombstone where `up_to` itself was never heard of: its reserve may still come.
    pub(crate) tombstone: bool,
    /// The fence of the command that says so; 0 for an event, which has none.
    pub(crate) fence: u64,
    /// Why.
    pub(crate) reason: String,
}

/// What a delivery's event ends: every attempt of a delivery that is over, every earlier attempt of one that is not.
pub(crate) fn ending_of(record: &DeliveryRecord) -> Option<Ending> {
    if record.stage.is_terminal() {
        return Some(Ending {
            delivery_id: record.delivery_id,
            up_to: record.attempt,
            tombstone: true,
            fence: 0,
            reason: format!("the delivery is {}", record.stage),
        });
    }
    if record.attempt <= 1 {
        return None;
    }
    Some(Ending {
        delivery_id: record.delivery_id,
        up_to: record.attempt - 1,
        tombstone: false,
        fence: 0,
        reason: "replaced by a later attempt".to_owned(),
    })
}

/// A drone to be registered, or changed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Registration {
    /// Which.
    pub(crate) drone_id: DroneId,
    /// What it is.
    pub(crate) facts: RegisterDrone,
    /// Whether the caller may move a drone from one base to another.
    pub(crate) may_move: bool,
}

/// Why a registration changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegistrationRefusal {
    /// The drone is another base's, and the caller may not move it.
    #[error("the drone belongs to another base")]
    Foreign,
    /// A reserved drone stays where it is based: its open flight carries its base.
    #[error("a reserved drone cannot be moved to another base")]
    Reserved,
}

/// Whether a registration may change a drone of `base` with that status.
pub(crate) fn judge_registration(
    registration: &Registration,
    base: &BaseId,
    status: DroneStatus,
) -> Result<(), RegistrationRefusal> {
    if *base == registration.facts.base_id {
        return Ok(());
    }
    if !registration.may_move {
        return Err(RegistrationRefusal::Foreign);
    }
    if status == DroneStatus::Reserved { Err(RegistrationRefusal::Reserved) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::make;

    fn row(attempt: u32, state: ReservationState, fence: u64) -> Known {
        let drone = (state == ReservationState::Reserved).then(|| make::drone(1).assigned());
        Known { attempt, state, fence, drone }
    }

    #[test]
    fn a_reserve_is_judged_by_fence_then_attempt_then_its_own_row_then_the_deadline() {
        use ReservationState::{Failed, Released, Reserved, Waiting};
        let mut command = make::reserve(make::delivery(1), 2);
        command.fence = 5;
        let before = command.step_deadline - chrono::Duration::seconds(1);
        let after = command.step_deadline + chrono::Duration::seconds(1);
        let judge = |known: &[Known], now| judge_reserve(&command, known, now);

        assert_eq!(judge(&[], before), Verdict::Fresh);
        assert_eq!(judge(&[], after), Verdict::Refuse(Refusal::StepExpired));
        assert_eq!(judge(&[row(1, Failed, 5)], before), Verdict::Fresh);
        assert_eq!(judge(&[row(1, Failed, 6)], before), Verdict::Refuse(Refusal::StaleFence));
        assert_eq!(judge(&[row(3, Waiting, 5)], before), Verdict::Refuse(Refusal::Superseded));
        assert_eq!(judge(&[row(3, Waiting, 6)], before), Verdict::Refuse(Refusal::StaleFence));
        assert_eq!(judge(&[row(2, Reserved, 5)], after), Verdict::Held(make::drone(1).assigned()));
        assert_eq!(judge(&[row(2, Waiting, 4)], after), Verdict::Waits);
        for over in [Released, Failed] {
            assert_eq!(judge(&[row(2, over, 5)], before), Verdict::Refuse(Refusal::Undone));
        }
    }

    #[test]
    fn an_end_takes_its_attempt_with_it_and_a_new_attempt_only_those_before() {
        use contracts::Stage;
        let ending = |stage, attempt| ending_of(&make::record(make::delivery(1), stage, attempt));
        for stage in [Stage::Completed, Stage::Cancelled, Stage::Rejected, Stage::Failed] {
            let over = ending(stage, 2).unwrap();
            assert_eq!((over.up_to, over.tombstone), (2, true));
        }
        for stage in [Stage::Requested, Stage::Scheduled, Stage::HeadedToPickup] {
            assert_eq!(ending(stage, 1), None);
            let replaced = ending(stage, 3).unwrap();
            assert_eq!((replaced.up_to, replaced.tombstone), (2, false));
        }
    }

    #[test]
    fn only_who_may_move_drones_moves_one_and_never_a_reserved_one() {
        let (north, south): (BaseId, BaseId) = ("north".parse().unwrap(), "south".parse().unwrap());
        let mut registration = make::registration(1, "north");
        assert_eq!(judge_registration(&registration, &north, DroneStatus::Reserved), Ok(()));
        let foreign = judge_registration(&registration, &south, DroneStatus::Idle);
        assert_eq!(foreign, Err(RegistrationRefusal::Foreign));
        registration.may_move = true;
        assert_eq!(judge_registration(&registration, &south, DroneStatus::Idle), Ok(()));
        let reserved = judge_registration(&registration, &south, DroneStatus::Reserved);
        assert_eq!(reserved, Err(RegistrationRefusal::Reserved));
    }

    proptest! {
        #[test]
        fn the_needed_battery_says_the_same_as_the_flight_model(
            x in 0.0..0.2f64, y in 0.0..0.2f64, battery in 0.0..1.0f64, load_kg in 0.1..4.0f64,
        ) {
            let at = |longitude| Coordinate { latitude: 50.0, longitude };
            let drone = make::drone(1);
            let trip = Trip { pickup: at(x), dropoff: at(y), load_kg };
            let needed = needed_battery(&drone.airframe, at(0.1), &trip, at(0.05));
            prop_assume!((needed - battery).abs() > 1e-9);
            let can = drone.airframe.can_fly(at(0.1), battery, &trip, at(0.05));
            prop_assert_eq!(can, battery >= needed);
        }
    }
}
