//! Makes the demo's city from a seed and writes it as GeoJSON, byte for byte the same on every run.

use std::fmt::Write as _;

use super::{
    districts::{self, Plan},
    shape::{Point, contains, distance_to_line},
    streets::{self, Class, Park, Street},
    terrain::{EAST_M, NORTH_M, SOUTH_M, Terrain, WEST_M},
};
use crate::random::Random;

/// The middle of the map, degrees north.
const MIDDLE_LATITUDE: f64 = 43.30;
/// The middle of the map, degrees east.
const MIDDLE_LONGITUDE: f64 = 5.37;
/// Metres in a degree of latitude.
const METRES_PER_DEGREE: f64 = 111_195.0;
/// The cosine of the middle latitude, as a number so that no mathematics library has a say in it.
const COSINE: f64 = 0.727_773;
/// Landing pads on the map.
const PADS: usize = 110;
/// Base stations on the map.
const BASES: usize = 8;

/// Everything that is on the map.
struct Map {
    terrain: Terrain,
    plan: Plan,
    parks: Vec<Park>,
    lake: Vec<Point>,
    streets: Vec<Street>,
    pads: Vec<Point>,
    bases: Vec<Point>,
}

/// The city of that seed, as a GeoJSON FeatureCollection.
pub fn generate(seed: u64) -> String {
    let terrain = Terrain::new(seed);
    let plan = districts::lay_out(seed, &terrain);
    let mut roads = streets::main_roads(&terrain, &plan);
    let (parks, lake) = streets::plant(seed, &terrain, &roads);
    let mut streets = streets::pave(seed, &terrain, &plan, &parks);
    streets.append(&mut roads);
    let mut map = Map { terrain, plan, parks, lake, streets, pads: Vec::new(), bases: Vec::new() };
    map.pads = place_pads(seed, &map);
    map.bases = place_bases(seed, &map);
    write_map(seed, &map)
}

/// Pads lie beside streets, apart from each other.
fn place_pads(seed: u64, map: &Map) -> Vec<Point> {
    let mut random = Random::of(seed, "pads", 0);
    let lines: Vec<_> = map.streets.iter().filter(|street| street.class == Class::Street).collect();
    let mut pads: Vec<Point> = Vec::new();
    let mut room_m = 330.0;
    while pads.len() < PADS && room_m > 20.0 {
        let line = &lines[random.below(lines.len())].line;
        let start = random.below(line.len() - 1);
        let place = line[start].lerp(line[start + 1], random.share());
        let pad = place.shifted(random.between(-16.0, 16.0), random.between(-16.0, 16.0));
        let clear = pads.iter().all(|other| other.distance(pad) > room_m);
        if clear && stands_dry(map, pad) {
            pads.push(pad);
        } else {
            room_m *= 0.9995;
        }
    }
    pads
}

/// Base stations: the best of many candidates each time, so that they cover the city evenly.
fn place_bases(seed: u64, map: &Map) -> Vec<Point> {
    /// Enough that the furthest of them is nearly the furthest place of all.
    const CANDIDATES: usize = 160;
    let mut random = Random::of(seed, "bases", 0);
    let mut bases: Vec<Point> = vec![map.terrain.place(0.17, 0.42)];
    while bases.len() < BASES {
        let mut best = (0.0, bases[0]);
        for _ in 0..CANDIDATES {
            let place = map.terrain.place(random.between(0.09, 0.90), random.between(0.09, 0.91));
            let room = bases.iter().map(|base| base.distance(place)).fold(f64::INFINITY, f64::min);
            let in_park = map.parks.iter().any(|park| contains(&park.ring, place));
            if room > best.0 && !in_park && stands_dry(map, place) {
                best = (room, place);
            }
        }
        bases.push(best.1);
    }
    // Numbered from the harbour to the east, so that the first is in the middle of things.
    bases[1..].sort_by(|a, b| a.x.total_cmp(&b.x));
    bases
}

fn stands_dry(map: &Map, place: Point) -> bool {
    map.terrain.is_land(place)
        && distance_to_line(place, &map.terrain.sea) > 40.0
        && distance_to_line(place, &map.terrain.banks) > 25.0
        && !contains(&map.lake, place)
}

fn district_of(map: &Map, place: Point) -> &str {
    let found = map.plan.districts.iter().find(|district| contains(&district.ring, place));
    found.map_or("Outskirts", |district| district.name.as_str())
}

fn write_map(seed: u64, map: &Map) -> String {
    let mut out = Writer { text: String::new(), first: true };
    let (south_west, north_east) = (position(Point::new(WEST_M, SOUTH_M)), position(Point::new(EAST_M, NORTH_M)));
    let _ = write!(
        out.text,
        "{{\"type\":\"FeatureCollection\",\"name\":\"Port-Azur\",\"seed\":{seed},\"bbox\":[{south_west},{north_east}],\
         \"features\":["
    );
    out.text.push('\n');
    for (index, district) in map.plan.districts.iter().enumerate() {
        let label = position(district.label);
        let more = format!(",\"id\":\"zone-{:02}\",\"label\":[{label}]", index + 1);
        out.polygon("district", Some(&district.name), &more, &[&district.ring]);
    }
    for park in &map.parks {
        out.polygon("park", Some(park.name), "", &[&park.ring]);
    }
    out.polygon("water", Some("Baie d'Azur"), ",\"class\":\"sea\"", &[&map.terrain.sea, &map.terrain.island]);
    out.polygon("water", Some("Vieux Bassin"), ",\"class\":\"harbour\"", &[&map.terrain.harbour]);
    if !map.lake.is_empty() {
        out.polygon("water", Some("Lac des Cygnes"), ",\"class\":\"lake\"", &[&map.lake]);
    }
    out.polygon("river", Some("La Serre"), "", &[&map.terrain.banks]);
    for mole in &map.terrain.moles {
        out.polygon("pier", None, "", &[mole]);
    }
    for street in &map.streets {
        let more = format!(",\"class\":\"{}\"", street.class.as_str());
        out.line("street", street.name.as_deref(), &more, &street.line);
    }
    for (index, &pad) in map.pads.iter().enumerate() {
        let more = format!(",\"id\":\"pad-{:03}\"", index + 1);
        out.point("pad", None, &more, pad);
    }
    let mut named: Vec<(&str, usize)> = Vec::new();
    for (index, &base) in map.bases.iter().enumerate() {
        let district = district_of(map, base);
        let earlier = named.iter().filter(|(name, _)| *name == district).count();
        named.push((district, index));
        let name = if earlier == 0 { format!("{district} Base") } else { format!("{district} Base {}", earlier + 1) };
        out.point("base", Some(&name), &format!(",\"id\":\"base-{:02}\"", index + 1), base);
    }
    out.text.push_str("\n]}\n");
    out.text
}

/// Features, one on a line.
struct Writer {
    text: String,
    first: bool,
}

impl Writer {
    fn open(&mut self, kind: &str, name: Option<&str>, more: &str, geometry: &str) {
        if !self.first {
            self.text.push_str(",\n");
        }
        self.first = false;
        let name = name.map_or_else(String::new, |name| format!(",\"name\":\"{name}\""));
        let _ = write!(
            self.text,
            "{{\"type\":\"Feature\",\"properties\":{{\"kind\":\"{kind}\"{name}{more}}},\
             \"geometry\":{{\"type\":\"{geometry}\",\"coordinates\":"
        );
    }

    fn polygon(&mut self, kind: &str, name: Option<&str>, more: &str, rings: &[&[Point]]) {
        self.open(kind, name, more, "Polygon");
        let mut separator = '[';
        for (index, ring) in rings.iter().enumerate() {
            self.text.push(separator);
            separator = ',';
            // RFC 7946: the outer ring counter-clockwise, holes clockwise, the first position again at the end.
            let mut closed = ring.to_vec();
            if (super::shape::area(&closed) > 0.0) != (index == 0) {
                closed.reverse();
            }
            closed.push(closed[0]);
            self.positions(&closed);
        }
        self.text.push_str("]}}");
    }

    fn line(&mut self, kind: &str, name: Option<&str>, more: &str, line: &[Point]) {
        self.open(kind, name, more, "LineString");
        self.positions(line);
        self.text.push_str("}}");
    }

    fn point(&mut self, kind: &str, name: Option<&str>, more: &str, point: Point) {
        self.open(kind, name, more, "Point");
        let _ = write!(self.text, "[{}]}}}}", position(point));
    }

    fn positions(&mut self, points: &[Point]) {
        let mut separator = '[';
        for &point in points {
            let _ = write!(self.text, "{separator}[{}]", position(point));
            separator = ',';
        }
        self.text.push(']');
    }
}

/// Longitude and latitude to five decimals: a metre.
fn position(point: Point) -> String {
    let longitude = MIDDLE_LONGITUDE + point.x / (METRES_PER_DEGREE * COSINE);
    let latitude = MIDDLE_LATITUDE + point.y / METRES_PER_DEGREE;
    format!("{longitude:.5},{latitude:.5}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_city_is_that_of_seed_7() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/contracts/city.geojson");
        let checked_in = std::fs::read_to_string(path).unwrap();
        let generated = generate(7);
        assert!(checked_in == generated, "run `simulator city --seed 7 --out shared/contracts/city.geojson`");
        assert!((100_000..400_000).contains(&generated.len()), "{} bytes", generated.len());
    }

    #[test]
    fn every_seed_makes_valid_json() {
        for seed in 0..12 {
            let city: serde_json::Value = serde_json::from_str(&generate(seed)).unwrap();
            let features = city["features"].as_array().unwrap();
            let count = |kind: &str| features.iter().filter(|f| f["properties"]["kind"] == kind).count();
            assert_eq!(count("base"), BASES, "seed {seed}");
            assert_eq!(count("pad"), PADS, "seed {seed}");
            assert_eq!(count("district"), 11, "seed {seed}");
            assert!(count("park") >= 5, "seed {seed}");
            assert!(count("street") > 200, "seed {seed}");
        }
    }
}
