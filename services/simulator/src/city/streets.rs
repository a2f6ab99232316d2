//! Parks and streets: main roads, a ring, quays and bridges, and in each district a grid of its own direction.

use std::f64::consts::TAU;

use super::{
    districts::Plan,
    shape::{Point, centroid, contains, distance_to_line, length, nearest_on_line, offset, pieces_inside, simplify},
    terrain::{HEIGHT_M, LAND_WIDTH_M, NORTH_M, RIVER_V, SOUTH_M, Terrain, blob, river_half_width_m, rounded},
};
use crate::random::Random;

/// Lines are sampled this finely, in metres, before they are cut and thinned out.
const SAMPLE_M: f64 = 15.0;
/// A thinned line stays this close to the sampled one, in metres: less than the width of its stroke.
const TOLERANCE_M: f64 = 1.6;
/// A shorter piece of street, in metres, is left out: it would look like a mistake.
const SHORTEST_STREET_M: f64 = 75.0;

/// What parks are called, the largest first.
const PARKS: [(&str, f64); 9] = [
    ("Parc de la Colline", 340.0),
    ("Jardin des Sources", 250.0),
    ("Bois du Phare", 230.0),
    ("Parc Longchamp", 185.0),
    ("Jardin Botanique", 165.0),
    ("Square des Artistes", 120.0),
    ("Parc des Ateliers", 150.0),
    ("Jardin du Levant", 135.0),
    ("Square Neuf", 95.0),
];

/// A green place.
#[derive(Debug)]
pub(super) struct Park {
    pub(super) name: &'static str,
    pub(super) ring: Vec<Point>,
}

/// How wide a street is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// The ring around the centre.
    Ring,
    /// Avenues, quays, borders of districts, bridges.
    Main,
    /// All others.
    Street,
    /// Through a park.
    Path,
}

impl Class {
    /// The class's name in the file.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Main => "main",
            Self::Street => "street",
            Self::Path => "path",
        }
    }
}

/// A line of the street map.
#[derive(Debug)]
pub(super) struct Street {
    pub(super) class: Class,
    pub(super) name: Option<String>,
    pub(super) line: Vec<Point>,
}

/// Parks where there is room: on land, clear of main roads and of each other. The first one holds a lake.
pub(super) fn plant(seed: u64, terrain: &Terrain, roads: &[Street]) -> (Vec<Park>, Vec<Point>) {
    /// Enough for the largest park; a smaller one finds its place sooner.
    const TRIES: usize = 500;
    let mut random = Random::of(seed, "parks", 0);
    let mut parks: Vec<Park> = Vec::new();
    let mut lake = Vec::new();
    for (name, radius) in PARKS {
        for _ in 0..TRIES {
            let centre = terrain.place(random.between(0.05, 0.95), random.between(0.06, 0.94));
            let ring = blob(&mut random, centre, radius, 0.24);
            let dry = ring.iter().all(|&p| terrain.is_land(p) && p.y.abs() < NORTH_M - 30.0);
            let quiet = roads.iter().all(|road| distance_to_line(centre, &road.line) > radius * 1.12);
            let clear = parks.iter().all(|park| centroid(&park.ring).distance(centre) > radius + 560.0);
            if dry && quiet && clear {
                if parks.is_empty() {
                    lake = blob(&mut random, centre.shifted(radius * 0.2, -radius * 0.1), radius * 0.3, 0.16);
                }
                parks.push(Park { name, ring });
                break;
            }
        }
    }
    (parks, lake)
}

/// The small streets and paths; in the file they come before the main roads, which are drawn on top.
pub(super) fn pave(seed: u64, terrain: &Terrain, plan: &Plan, parks: &[Park]) -> Vec<Street> {
    let mut streets = grids(seed, terrain, plan, parks);
    streets.extend(paths(seed, parks));
    streets
}

/// The lines of each district's own grid.
fn grids(seed: u64, terrain: &Terrain, plan: &Plan, parks: &[Park]) -> Vec<Street> {
    let mut streets = Vec::new();
    for (index, district) in plan.districts.iter().enumerate() {
        let mut random = Random::of(seed, "streets", index as u64);
        let reach = district.ring.iter().map(|p| p.distance(district.label)).fold(0.0, f64::max);
        if reach < 400.0 {
            continue;
        }
        let nearness = (1.0 - district.label.distance(Point::new(-900.0, 0.0)) / 3_600.0).clamp(0.0, 1.0);
        let block = 168.0 - 70.0 * nearness;
        let open = |p: Point| {
            contains(&district.ring, p) && terrain.is_land(p) && !parks.iter().any(|park| contains(&park.ring, p))
        };
        let direction = random.between(0.0, TAU / 4.0);
        let bend = Bend::new(&mut random);
        for (angle, spacing) in [(direction, block), (direction + TAU / 4.0, block * random.between(1.15, 1.6))] {
            let mut across = -reach + random.between(0.0, spacing);
            while across < reach {
                let line = grid_line(district.label, angle, across, reach, &bend);
                for piece in pieces_inside(&line, open) {
                    add_with_gaps(&mut random, &piece, &mut streets);
                }
                across += spacing * random.between(0.82, 1.2);
            }
        }
    }
    streets
}

/// The gentle curve that both directions of one grid share.
struct Bend {
    amplitude: f64,
    wave: f64,
    phase: f64,
}

impl Bend {
    fn new(random: &mut Random) -> Self {
        Self {
            amplitude: random.between(14.0, 46.0),
            wave: TAU / random.between(1_100.0, 1_900.0),
            phase: random.between(0.0, TAU),
        }
    }

    fn apply(&self, point: Point) -> Point {
        let dx = (point.y * self.wave + self.phase).sin();
        let dy = (point.x * self.wave + 1.7 * self.phase).sin();
        point.shifted(self.amplitude * dx, self.amplitude * dy)
    }
}

fn grid_line(middle: Point, angle: f64, across: f64, reach: f64, bend: &Bend) -> Vec<Point> {
    let (cos, sin) = (angle.cos(), angle.sin());
    let count = (2.0 * reach / SAMPLE_M) as usize;
    let mut line = Vec::with_capacity(count + 1);
    for step in 0..=count {
        let along = -reach + step as f64 * SAMPLE_M;
        line.push(bend.apply(middle.shifted(along * cos - across * sin, along * sin + across * cos)));
    }
    line
}

/// Not every street goes all the way through: some stretches are left out, as in a grown city.
fn add_with_gaps(random: &mut Random, piece: &[Point], streets: &mut Vec<Street>) {
    let mut from = 0;
    while from + 1 < piece.len() {
        let stretch = (random.between(300.0, 1_500.0) / SAMPLE_M) as usize;
        let to = (from + stretch).min(piece.len() - 1);
        add_street(Class::Street, None, &piece[from..=to], streets);
        let gap = if random.chance(0.45) { (random.between(90.0, 240.0) / SAMPLE_M) as usize } else { 0 };
        from = to + gap;
    }
}

fn add_street(class: Class, name: Option<&str>, line: &[Point], streets: &mut Vec<Street>) {
    if length(line) < SHORTEST_STREET_M {
        return;
    }
    streets.push(Street { class, name: name.map(str::to_owned), line: simplify(line, TOLERANCE_M) });
}

/// A walk around in every park, and one through the larger ones.
fn paths(seed: u64, parks: &[Park]) -> Vec<Street> {
    let mut streets = Vec::new();
    for (index, park) in parks.iter().enumerate() {
        let mut random = Random::of(seed, "paths", index as u64);
        let middle = centroid(&park.ring);
        let mut round: Vec<_> = park.ring.iter().map(|p| middle.lerp(*p, 0.68)).collect();
        round.push(round[0]);
        add_street(Class::Path, None, &round, &mut streets);
        for _ in 0..2 {
            let start = random.below(park.ring.len());
            let end = (start + park.ring.len() / 2 + random.below(6)) % park.ring.len();
            let side = middle.shifted(random.between(-60.0, 60.0), random.between(-60.0, 60.0));
            let from = middle.lerp(park.ring[start], 0.5).shifted(random.between(-20.0, 20.0), 0.0);
            let line = rounded(&[park.ring[start], from, side, park.ring[end]]);
            add_street(Class::Path, None, &line, &mut streets);
        }
    }
    streets
}

/// The roads that the city is built around.
pub(super) fn main_roads(terrain: &Terrain, plan: &Plan) -> Vec<Street> {
    let dry = |p: Point| terrain.is_land(p);
    let mut streets = Vec::new();
    let corniche = terrain.along_v(0.022, 0.0, 1.0);
    for piece in pieces_inside(&corniche, |p| dry(p) && distance_to_line(p, &terrain.harbour) > 25.0) {
        add_street(Class::Main, Some("Corniche"), &piece, &mut streets);
    }
    for (name, side) in [("Quai Nord", 1.0), ("Quai Sud", -1.0)] {
        let quay = offset(&terrain.course, |share| side * (river_half_width_m(share) + 30.0));
        for piece in pieces_inside(&quay, |p| dry(p) && p.x < 2_999.0) {
            add_street(Class::Main, Some(name), &piece, &mut streets);
        }
    }
    for &u in &plan.bridges {
        if u > 0.06 {
            let reach = 72.0 / HEIGHT_M;
            add_street(Class::Main, None, &terrain.along_v(u, RIVER_V - reach, RIVER_V + reach), &mut streets);
        }
    }
    avenues(terrain, &mut streets);
    let ring = ring_road(terrain);
    for piece in pieces_inside(&ring, |p| dry(p) || distance_to_line(p, &terrain.course) < 60.0) {
        add_street(Class::Ring, Some("Ring"), &piece, &mut streets);
    }
    let mut borders = Vec::new();
    for border in &plan.borders {
        let doubled = doubled_stretches(border, &streets);
        let own = |p: Point| dry(p) && !doubled.iter().any(|stretch| distance_to_line(p, stretch) < 1.0);
        for mut piece in pieces_inside(border, own) {
            if !doubled.is_empty() {
                tie_ends(&mut piece, &streets);
            }
            add_street(Class::Main, None, &piece, &mut borders);
        }
    }
    // The ring lies on top of everything.
    borders.append(&mut streets);
    borders
}

/// Where a road would run right beside another for long.
fn doubled_stretches(road: &[Point], others: &[Street]) -> Vec<Vec<Point>> {
    /// Nearer than this, in metres, two roads look like one drawn twice.
    const BESIDE_M: f64 = 95.0;
    /// A shorter stretch, in metres, is a crossing.
    const LONG_M: f64 = 330.0;
    let mut stretches = pieces_inside(road, |p| others.iter().any(|o| distance_to_line(p, &o.line) < BESIDE_M));
    stretches.retain(|stretch| length(stretch) > LONG_M);
    stretches
}

/// Leads the ends of a cut road into the road that it ran beside.
fn tie_ends(piece: &mut Vec<Point>, others: &[Street]) {
    /// A little more than where a doubled stretch begins.
    const REACH_M: f64 = 125.0;
    for _ in 0..2 {
        piece.reverse();
        let Some(&end) = piece.last() else { return };
        let mut nearest = (REACH_M, end);
        for other in others {
            let place = nearest_on_line(end, &other.line);
            if place.distance(end) < nearest.0 {
                nearest = (place.distance(end), place);
            }
        }
        piece.push(nearest.1);
    }
}

/// Where the ring runs, as a share of the way around.
fn ring_point(terrain: &Terrain, turn: f64) -> Point {
    let angle = turn * TAU;
    // A rounded square rather than an ellipse: it follows the grid.
    let soft = |value: f64| value.signum() * value.abs().powf(0.72);
    terrain.place(0.40 + 0.30 * soft(angle.cos()), 0.5 + 0.31 * soft(angle.sin()))
}

fn ring_road(terrain: &Terrain) -> Vec<Point> {
    let rough: Vec<_> = (0..=120).map(|i| ring_point(terrain, f64::from(i) / 120.0)).collect();
    rounded(&rough)
}

/// Roads from the ring out to the edges of the map, and two through the centre.
fn avenues(terrain: &Terrain, streets: &mut Vec<Street>) {
    let plan = |u: f64, v: f64| Point::new(u * LAND_WIDTH_M, v * HEIGHT_M);
    let ways = [
        ("Avenue du Levant", plan(0.70, 0.60), plan(1.0, 0.66)),
        ("Route de l'Est", plan(0.70, 0.36), plan(1.0, 0.26)),
        ("Avenue du Nord", plan(0.46, 0.81), plan(0.54, 1.0)),
        ("Route des Collines", plan(0.42, 0.19), plan(0.36, 0.0)),
        ("Rue Royale", plan(0.12, 0.36), plan(0.70, 0.40)),
        ("Grand Boulevard", plan(0.36, 0.19), plan(0.40, 0.81)),
    ];
    for (name, from, to) in ways {
        let line = terrain.bent(from, to, SAMPLE_M);
        let passable = |p: Point| {
            terrain.is_land(p) || distance_to_line(p, &terrain.course) < 90.0 || p.y <= SOUTH_M || p.y >= NORTH_M
        };
        for piece in pieces_inside(&line, passable) {
            add_street(Class::Main, Some(name), &piece, streets);
        }
    }
}
