//! The city that the drones fly in: read from the checked-in map, which `generate` makes.

mod districts;
mod generate;
mod shape;
mod streets;
mod terrain;

use anyhow::Context as _;
use contracts::{BaseId, Coordinate};
use serde::Deserialize;

pub use generate::generate;

/// The map that the gateway serves as well.
const CHECKED_IN: &str = include_str!("../../../../shared/contracts/city.geojson");

/// A base station of the map.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Base {
    /// Its id, and the subject of its token.
    pub(crate) id: BaseId,
    /// Where it is.
    pub(crate) position: Coordinate,
}

/// What the simulator needs to know of the map.
#[derive(Debug)]
pub(crate) struct City {
    /// Where drones live.
    pub(crate) bases: Vec<Base>,
    /// Where packages come from.
    pub(crate) pads: Vec<Coordinate>,
    /// South-west and north-east corner.
    pub(crate) bounds: (Coordinate, Coordinate),
    districts: Vec<Ring>,
    water: Vec<Ring>,
}

/// An outline, longitude before latitude.
type Ring = Vec<[f64; 2]>;

#[derive(Deserialize)]
struct FeatureCollection {
    bbox: [f64; 4],
    features: Vec<Feature>,
}

#[derive(Deserialize)]
struct Feature {
    properties: Properties,
    geometry: Geometry,
}

#[derive(Deserialize)]
struct Properties {
    kind: String,
    id: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", content = "coordinates")]
enum Geometry {
    Point([f64; 2]),
    /// Streets are only drawn.
    LineString(serde::de::IgnoredAny),
    Polygon(Vec<Ring>),
}

impl City {
    /// The checked-in city.
    pub(crate) fn checked_in() -> anyhow::Result<Self> {
        Self::parse(CHECKED_IN)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let map: FeatureCollection = serde_json::from_str(text).context("the city's map cannot be read")?;
        let [west, south, east, north] = map.bbox;
        let bounds = (coordinate([west, south]), coordinate([east, north]));
        let (mut bases, mut pads, mut districts, mut water) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for feature in map.features {
            match (feature.properties.kind.as_str(), feature.geometry) {
                ("base", Geometry::Point(place)) => {
                    let id = feature.properties.id.context("a base station of the map has no id")?;
                    bases.push(Base { id: id.parse()?, position: coordinate(place) });
                }
                ("pad", Geometry::Point(place)) => pads.push(coordinate(place)),
                ("district", Geometry::Polygon(mut rings)) if !rings.is_empty() => districts.push(rings.swap_remove(0)),
                // A hole in the water is an island: no drone lands there, so the outline is enough.
                ("water" | "river", Geometry::Polygon(mut rings)) if !rings.is_empty() => {
                    water.push(rings.swap_remove(0));
                }
                _ => {}
            }
        }
        anyhow::ensure!(!bases.is_empty() && !pads.is_empty(), "the city's map has no base stations or no pads");
        Ok(Self { bases, pads, bounds, districts, water })
    }

    /// Whether a package can be put down there.
    pub(crate) fn is_land(&self, place: Coordinate) -> bool {
        let inside = |ring: &Ring| contains(ring, place);
        self.districts.iter().any(inside) && !self.water.iter().any(inside)
    }
}

const fn coordinate([longitude, latitude]: [f64; 2]) -> Coordinate {
    Coordinate { latitude, longitude }
}

fn contains(ring: &Ring, place: Coordinate) -> bool {
    let mut inside = false;
    for pair in ring.windows(2) {
        let ([x1, y1], [x2, y2]) = (pair[0], pair[1]);
        let crosses = (y1 > place.latitude) != (y2 > place.latitude);
        if crosses && place.longitude < x1 + (place.latitude - y1) / (y2 - y1) * (x2 - x1) {
            inside = !inside;
        }
    }
    inside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_city_has_all_that_the_simulator_needs() {
        let city = City::checked_in().unwrap();
        let ids: Vec<_> = city.bases.iter().map(|base| base.id.as_str()).collect();
        assert_eq!(ids, ["base-01", "base-02", "base-03", "base-04", "base-05", "base-06", "base-07", "base-08"]);
        assert!(city.pads.len() >= 60);
        for place in city.pads.iter().chain(city.bases.iter().map(|base| &base.position)) {
            assert!(city.is_land(*place), "{place:?}");
        }
    }

    #[test]
    fn the_sea_is_not_land() {
        let city = City::checked_in().unwrap();
        let (south_west, north_east) = city.bounds;
        let far_out = Coordinate { latitude: 43.30, longitude: south_west.longitude + 0.001 };
        assert!(!city.is_land(far_out));
        assert!(!city.is_land(Coordinate { latitude: north_east.latitude + 1.0, ..north_east }));
    }

    #[test]
    fn a_map_without_bases_is_refused() {
        let empty = r#"{"type":"FeatureCollection","bbox":[0,0,1,1],"features":[]}"#;
        assert!(City::parse(empty).is_err());
    }
}
