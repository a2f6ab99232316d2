//! Where packages come from and go to: landing pads and other places on land, a trip's length apart.

use contracts::Coordinate;

use crate::{Config, city::City, random::Random};

/// Places on land that are drawn once, so that an order costs no search of the map.
const PLACES: usize = 4_096;
/// Draws of a drop-off before the nearest miss is taken: trips of the usual length need two or three.
const DRAWS: usize = 64;
/// The share of packages that wait at a landing pad.
const FROM_PAD_SHARE: f64 = 0.6;

/// Where to draw trips from.
#[derive(Debug)]
pub(super) struct Places {
    anywhere: Vec<Coordinate>,
    pads: Vec<Coordinate>,
    min_m: f64,
    max_m: f64,
}

impl Places {
    /// The city's places.
    pub(super) fn new(city: &City, config: &Config) -> Self {
        let mut random = Random::of(config.seed, "places", 0);
        let (south_west, north_east) = city.bounds;
        let mut anywhere = Vec::with_capacity(PLACES);
        // More than half of the map is land, so this ends; the bound is for a map that is not.
        for _ in 0..PLACES * 20 {
            let place = Coordinate {
                latitude: round(random.between(south_west.latitude, north_east.latitude)),
                longitude: round(random.between(south_west.longitude, north_east.longitude)),
            };
            if city.is_land(place) {
                anywhere.push(place);
            }
            if anywhere.len() == PLACES {
                break;
            }
        }
        if anywhere.is_empty() {
            anywhere.clone_from(&city.pads);
        }
        Self { anywhere, pads: city.pads.clone(), min_m: config.trip_min_m, max_m: config.trip_max_m }
    }

    /// A pickup, and a drop-off within the configured distance of it.
    pub(super) fn trip(&self, random: &mut Random) -> (Coordinate, Coordinate) {
        let from = if random.chance(FROM_PAD_SHARE) { &self.pads } else { &self.anywhere };
        let pickup = from[random.below(from.len())];
        let mut best = (f64::INFINITY, pickup);
        for _ in 0..DRAWS {
            let dropoff = self.anywhere[random.below(self.anywhere.len())];
            let distance_m = pickup.distance_m(&dropoff);
            let miss_m = (self.min_m - distance_m).max(distance_m - self.max_m).max(0.0);
            if miss_m < best.0 && distance_m > 0.0 {
                best = (miss_m, dropoff);
            }
            if miss_m <= 0.0 {
                break;
            }
        }
        (pickup, best.1)
    }
}

/// Five decimals, a metre: what a person would type.
fn round(degrees: f64) -> f64 {
    (degrees * 1e5).round() / 1e5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trips_are_on_land_and_as_long_as_configured() {
        let city = City::checked_in().unwrap();
        let config = Config { trip_min_m: 400.0, trip_max_m: 2_500.0, ..Config::default() };
        let places = Places::new(&city, &config);
        let mut random = Random::new(1);
        for _ in 0..500 {
            let (pickup, dropoff) = places.trip(&mut random);
            assert!(city.is_land(pickup) && city.is_land(dropoff));
            let distance_m = pickup.distance_m(&dropoff);
            assert!((400.0..=2_500.0).contains(&distance_m), "{distance_m}");
        }
    }

    #[test]
    fn a_usual_delivery_takes_half_a_minute_to_a_minute() {
        let city = City::checked_in().unwrap();
        let config = Config::default();
        let places = Places::new(&city, &config);
        let mut random = Random::new(1);
        let mut seconds = Vec::new();
        for _ in 0..1_000 {
            let (pickup, dropoff) = places.trip(&mut random);
            let base = &city.bases[random.below(city.bases.len())].position;
            let way_m = base.distance_m(&pickup).min(1_000.0) + pickup.distance_m(&dropoff);
            let speed_mps = 17.0 * config.time_scale;
            seconds.push(way_m / speed_mps + 2.0 * config.handover_seconds / config.time_scale);
        }
        seconds.sort_by(f64::total_cmp);
        assert!((30.0..60.0).contains(&seconds[500]), "{}", seconds[500]);
    }
}
