//! What a drone can fly: the one model of range and energy that fleet plans by and the simulator flies by.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Coordinate;

/// Extra drain of a drone at its full payload, as a share of the drain when empty.
pub const FULL_PAYLOAD_EXTRA_DRAIN: f64 = 0.5;

/// Battery that a plan never touches, as a share of a full one: wind, detours, a base that is taken.
pub const RESERVE_BATTERY: f64 = 0.1;

/// What a drone is able to do, as registered.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Airframe {
    /// The heaviest package, in kilograms.
    pub payload_kg: f64,
    /// How far a full battery carries it empty, in metres.
    pub range_m: f64,
    /// Cruising speed in metres a second.
    pub speed_mps: f64,
}

impl Airframe {
    /// The share of a full battery that `distance_m` metres cost with `load_kg` on board.
    pub fn drain(&self, distance_m: f64, load_kg: f64) -> f64 {
        let load_share = if self.payload_kg > 0.0 { load_kg / self.payload_kg } else { 0.0 };
        distance_m / self.range_m * (1.0 + FULL_PAYLOAD_EXTRA_DRAIN * load_share)
    }

    /// Whether a drone at `from` with `battery` (0 to 1) can carry `load_kg` from pickup to drop-off and still reach
    /// `base` with the reserve untouched.
    pub fn can_fly(&self, from: Coordinate, battery: f64, trip: &Trip, base: Coordinate) -> bool {
        if trip.load_kg > self.payload_kg {
            return false;
        }
        let empty_m = from.distance_m(&trip.pickup) + trip.dropoff.distance_m(&base);
        let loaded_m = trip.pickup.distance_m(&trip.dropoff);
        let needed = self.drain(empty_m, 0.0) + self.drain(loaded_m, trip.load_kg);
        battery - needed >= RESERVE_BATTERY
    }

    /// Seconds in the air for `distance_m` metres.
    pub fn seconds(&self, distance_m: f64) -> f64 {
        distance_m / self.speed_mps
    }
}

/// One delivery's flight plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trip {
    /// Where the package waits.
    pub pickup: Coordinate,
    /// Where it goes.
    pub dropoff: Coordinate,
    /// Its weight in kilograms.
    pub load_kg: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Airframe = Airframe { payload_kg: 4.0, range_m: 20_000.0, speed_mps: 20.0 };

    fn at(longitude: f64) -> Coordinate {
        Coordinate { latitude: 0.0, longitude }
    }

    #[test]
    fn load_drains_more() {
        assert!((FRAME.drain(2_000.0, 0.0) - 0.1).abs() < 1e-9);
        assert!((FRAME.drain(2_000.0, 4.0) - 0.15).abs() < 1e-9);
    }

    #[test]
    fn a_trip_needs_the_way_back_to_a_base_and_the_reserve() {
        let trip = Trip { pickup: at(0.01), dropoff: at(0.02), load_kg: 1.0 };
        assert!(FRAME.can_fly(at(0.0), 1.0, &trip, at(0.02)));
        assert!(!FRAME.can_fly(at(0.0), 0.2, &trip, at(0.02)));
        assert!(!FRAME.can_fly(at(0.0), 1.0, &Trip { load_kg: 4.1, ..trip }, at(0.02)));
        assert!(!FRAME.can_fly(at(0.0), 0.5, &trip, at(0.1)));
    }
}
