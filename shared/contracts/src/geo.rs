//! Places on the earth's surface and the distances between them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Mean earth radius in metres (IUGG R1).
pub const EARTH_RADIUS_M: f64 = 6_371_008.8;

/// A place, in degrees (WGS 84).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Coordinate {
    /// Degrees north, -90 to 90.
    #[schema(minimum = -90, maximum = 90)]
    pub latitude: f64,
    /// Degrees east, -180 to 180.
    #[schema(minimum = -180, maximum = 180)]
    pub longitude: f64,
}

impl Coordinate {
    /// The first field that is no place on earth, with what is wrong; `None` for a legal coordinate.
    pub fn fault(&self) -> Option<(&'static str, &'static str)> {
        if !(-90.0..=90.0).contains(&self.latitude) {
            return Some(("latitude", "must be between -90 and 90 degrees"));
        }
        if !(-180.0..=180.0).contains(&self.longitude) {
            return Some(("longitude", "must be between -180 and 180 degrees"));
        }
        None
    }

    /// Great-circle distance in metres, by the haversine formula.
    pub fn distance_m(&self, other: &Self) -> f64 {
        let (lat1, lat2) = (self.latitude.to_radians(), other.latitude.to_radians());
        let half_dlat = (lat2 - lat1) / 2.0;
        let half_dlon = (other.longitude - self.longitude).to_radians() / 2.0;
        let h = half_dlat.sin().powi(2) + lat1.cos() * lat2.cos() * half_dlon.sin().powi(2);
        2.0 * EARTH_RADIUS_M * h.sqrt().min(1.0).asin()
    }

    /// The place `distance_m` metres on the way to `target`, or `target` where that is nearer. Straight in degrees,
    /// which over a city differs from the great circle by less than a metre.
    #[must_use]
    pub fn towards(&self, target: &Self, distance_m: f64) -> Self {
        let total_m = self.distance_m(target);
        if total_m <= distance_m || total_m <= f64::EPSILON {
            return *target;
        }
        let share = distance_m / total_m;
        Self {
            latitude: self.latitude + (target.latitude - self.latitude) * share,
            longitude: self.longitude + (target.longitude - self.longitude) * share,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARIS: Coordinate = Coordinate { latitude: 48.8566, longitude: 2.3522 };
    const LONDON: Coordinate = Coordinate { latitude: 51.5074, longitude: -0.1278 };

    #[test]
    fn paris_to_london_is_about_344_km() {
        let distance_m = PARIS.distance_m(&LONDON);
        assert!((distance_m - 343_556.0).abs() < 500.0, "{distance_m}");
    }

    #[test]
    fn a_step_never_overshoots() {
        let suburb = Coordinate { latitude: 48.9, longitude: 2.45 };
        let step = PARIS.towards(&suburb, 1_000.0);
        assert!((PARIS.distance_m(&step) - 1_000.0).abs() < 1.0);
        assert_eq!(PARIS.towards(&LONDON, 1e9), LONDON);
        assert_eq!(PARIS.towards(&PARIS, 5.0), PARIS);
    }

    #[test]
    fn a_fault_names_the_field() {
        assert_eq!(PARIS.fault(), None);
        assert_eq!(Coordinate { latitude: f64::NAN, longitude: 0.0 }.fault().map(|f| f.0), Some("latitude"));
        assert_eq!(Coordinate { latitude: 0.0, longitude: 180.1 }.fault().map(|f| f.0), Some("longitude"));
    }
}
