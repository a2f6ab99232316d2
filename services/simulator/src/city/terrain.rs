//! The lie of the land: coast, river, harbour, island, and the bent grid that everything else is laid out on.

use std::f64::consts::{PI, TAU};

use super::shape::{Point, contains, densify, ribbon};
use crate::random::Random;

/// The map's western edge, in metres from its middle.
pub(super) const WEST_M: f64 = -3_000.0;
/// The map's eastern edge.
pub(super) const EAST_M: f64 = 3_000.0;
/// The map's southern edge.
pub(super) const SOUTH_M: f64 = -2_500.0;
/// The map's northern edge.
pub(super) const NORTH_M: f64 = 2_500.0;
/// About how wide the land is: the metres that a whole unit of `u` stands for.
pub(super) const LAND_WIDTH_M: f64 = 4_500.0;
/// How high the map is: the metres that a whole unit of `v` stands for.
pub(super) const HEIGHT_M: f64 = NORTH_M - SOUTH_M;
/// Where the river runs, as `v`.
pub(super) const RIVER_V: f64 = 0.5;
/// Half the river's width upstream, in metres.
const RIVER_HALF_WIDTH_M: f64 = 34.0;
/// How much wider half of its mouth is.
const ESTUARY_HALF_WIDTH_M: f64 = 95.0;

/// One sine of a sum.
#[derive(Debug, Clone, Copy)]
struct Wave {
    amplitude: f64,
    kx: f64,
    ky: f64,
    phase: f64,
}

fn sum(waves: &[Wave], x: f64, y: f64) -> f64 {
    waves.iter().map(|wave| wave.amplitude * (wave.kx * x + wave.ky * y + wave.phase).sin()).sum()
}

/// Waves in all directions: a smooth random field.
fn field(random: &mut Random, amplitude: f64, length: f64, count: usize) -> Vec<Wave> {
    let mut waves = Vec::with_capacity(count);
    for _ in 0..count {
        let angle = random.between(0.0, TAU);
        let k = TAU / (length * random.between(0.75, 1.3));
        let phase = random.between(0.0, TAU);
        waves.push(Wave {
            amplitude: amplitude / (count as f64).sqrt(),
            kx: k * angle.cos(),
            ky: k * angle.sin(),
            phase,
        });
    }
    waves
}

/// The city's ground. `u` runs from the coast (0) to the eastern edge (1), `v` from south (0) to north (1).
#[derive(Debug)]
pub(super) struct Terrain {
    coast: Vec<Wave>,
    river: Vec<Wave>,
    bend_x: Vec<Wave>,
    bend_y: Vec<Wave>,
    /// The sea's outline.
    pub(super) sea: Vec<Point>,
    /// An island in it.
    pub(super) island: Vec<Point>,
    /// A harbour basin cut into the coast.
    pub(super) harbour: Vec<Point>,
    /// The moles in front of the harbour.
    pub(super) moles: Vec<Vec<Point>>,
    /// The river's course from the sea to the eastern edge.
    pub(super) course: Vec<Point>,
    /// Its banks.
    pub(super) banks: Vec<Point>,
}

impl Terrain {
    /// The ground of that seed.
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::of(seed, "terrain", 0);
        let mut coast = Vec::new();
        for (amplitude, length) in [(330.0, 5_600.0), (150.0, 2_300.0), (55.0, 950.0), (20.0, 420.0)] {
            coast.push(Wave { amplitude, kx: 0.0, ky: TAU / length, phase: random.between(0.0, TAU) });
        }
        let mut river = Vec::new();
        for (amplitude, turns) in [(0.055, 0.85), (0.028, 1.9), (0.008, 4.3)] {
            river.push(Wave { amplitude, kx: TAU * turns, ky: 0.0, phase: random.between(0.0, TAU) });
        }
        let mut bend_x = field(&mut random, 150.0, 2_600.0, 4);
        bend_x.extend(field(&mut random, 42.0, 800.0, 5));
        let mut bend_y = field(&mut random, 150.0, 2_600.0, 4);
        bend_y.extend(field(&mut random, 42.0, 800.0, 5));
        let nothing = Vec::new;
        let mut terrain = Self {
            coast,
            river,
            bend_x,
            bend_y,
            sea: nothing(),
            island: nothing(),
            harbour: nothing(),
            moles: Vec::new(),
            course: nothing(),
            banks: nothing(),
        };
        terrain.flood(&mut random);
        terrain
    }

    fn flood(&mut self, random: &mut Random) {
        let mut sea = self.along_v(0.0, 0.0, 1.0);
        sea.push(Point::new(WEST_M, NORTH_M));
        sea.push(Point::new(WEST_M, SOUTH_M));
        self.sea = sea;
        let mut course = self.along_u(RIVER_V, 0.0, 1.0);
        let mouth = course[0];
        course.insert(0, mouth.shifted(-260.0, 0.0));
        self.banks = ribbon(&course, river_half_width_m);
        self.course = course;
        self.dig_harbour(random);
        // Off the coast where the sea is wide, between the harbour and a corner of the map.
        let v = if random.chance(0.5) { 0.8 } else { 0.72 };
        let shore = self.place(0.0, v);
        let centre = Point::new((WEST_M + 340.0).max(shore.x - 620.0), shore.y);
        self.island = blob(random, centre, 165.0, 0.22);
    }

    fn dig_harbour(&mut self, random: &mut Random) {
        let v = random.between(0.33, 0.37);
        let shore = self.place(0.0, v);
        let (half_width, inland, seaward) = (88.0, 430.0, 160.0);
        let corner = 46.0;
        // From the sea in along the north quay, around the soft inner corners, and out again.
        let mut basin = vec![shore.shifted(-seaward, half_width + 60.0), shore.shifted(20.0, half_width)];
        for (centre_y, from) in [(half_width - corner, 90.0_f64), (corner - half_width, 0.0)] {
            for step in 0..=6 {
                let angle = (from - 15.0 * f64::from(step)).to_radians();
                let (dx, dy) = (inland - corner + corner * angle.cos(), centre_y + corner * angle.sin());
                basin.push(shore.shifted(dx, dy));
            }
        }
        basin.push(shore.shifted(20.0, -half_width));
        basin.push(shore.shifted(-seaward, -half_width - 60.0));
        self.harbour = basin;
        let north = [(-60.0, 330.0), (-190.0, 300.0), (-300.0, 200.0), (-345.0, 60.0)];
        let south = [(-20.0, -260.0), (-150.0, -235.0), (-225.0, -150.0)];
        for mole in [&north[..], &south[..]] {
            let line: Vec<_> = mole.iter().map(|&(dx, dy)| shore.shifted(dx, dy)).collect();
            // It starts on dry land, wherever the coast is there.
            let root = self.shore_at(line[0].y).shifted(30.0, 0.0);
            let mut whole = vec![root];
            whole.extend(line);
            self.moles.push(ribbon(&rounded(&whole), |_| 13.0));
        }
    }

    /// The coast at that height.
    fn shore_at(&self, y: f64) -> Point {
        Point::new(self.coast_x(y), y)
    }

    fn coast_x(&self, y: f64) -> f64 {
        -1_720.0 + sum(&self.coast, 0.0, y)
    }

    /// Where (`u`, `v`) lies: the straight grid bent along coast and river, and then a little more.
    pub(super) fn place(&self, u: f64, v: f64) -> Point {
        let pull = 4.0 * v * (1.0 - v);
        let fade = edge_fade(u) * edge_fade(v);
        let (s, t) = (u * LAND_WIDTH_M, v * HEIGHT_M);
        let y = SOUTH_M + HEIGHT_M * (v + pull * sum(&self.river, u, 0.0)) + fade * sum(&self.bend_y, s, t);
        let shore = self.coast_x(y);
        Point::new(shore + u * (EAST_M - shore) + fade * sum(&self.bend_x, s, t), y)
    }

    /// The line of constant `u`.
    pub(super) fn along_v(&self, u: f64, from: f64, to: f64) -> Vec<Point> {
        self.bent(Point::new(u * LAND_WIDTH_M, from * HEIGHT_M), Point::new(u * LAND_WIDTH_M, to * HEIGHT_M), 28.0)
    }

    /// The line of constant `v`.
    pub(super) fn along_u(&self, v: f64, from: f64, to: f64) -> Vec<Point> {
        self.bent(Point::new(from * LAND_WIDTH_M, v * HEIGHT_M), Point::new(to * LAND_WIDTH_M, v * HEIGHT_M), 28.0)
    }

    /// A straight line of the unbent plan, given in its metres, as it lies on the ground.
    pub(super) fn bent(&self, a: Point, b: Point, step: f64) -> Vec<Point> {
        densify(a, b, step).into_iter().map(|p| self.place(p.x / LAND_WIDTH_M, p.y / HEIGHT_M)).collect()
    }

    /// Whether there is ground under that place.
    pub(super) fn is_land(&self, point: Point) -> bool {
        let wet = contains(&self.sea, point) || contains(&self.banks, point) || contains(&self.harbour, point);
        !wet && point.x < EAST_M && point.y > SOUTH_M && point.y < NORTH_M
    }
}

/// Half the river's width at that share of its course from the sea.
pub(super) fn river_half_width_m(share: f64) -> f64 {
    RIVER_HALF_WIDTH_M + ESTUARY_HALF_WIDTH_M * (-(share - 0.03).max(0.0) * 22.0).exp()
}

/// 0 at the ends of 0 to 1, and soon 1.
fn edge_fade(share: f64) -> f64 {
    1.0 - (2.0 * share - 1.0).abs().min(1.0).powi(6)
}

/// A soft round outline.
pub(super) fn blob(random: &mut Random, centre: Point, radius: f64, roughness: f64) -> Vec<Point> {
    let stretch = random.between(0.75, 1.3);
    let turn = random.between(0.0, PI);
    let mut harmonics = Vec::new();
    for order in 2..=5 {
        harmonics.push((f64::from(order), roughness / f64::from(order).powf(0.9), random.between(0.0, TAU)));
    }
    let count = ((radius * TAU / 22.0) as usize).clamp(24, 90);
    let mut ring = Vec::with_capacity(count);
    for index in 0..count {
        let angle = index as f64 / count as f64 * TAU;
        let mut r = radius;
        for (order, amplitude, phase) in &harmonics {
            r += radius * amplitude * (order * angle + phase).sin();
        }
        let (x, y) = (r * angle.cos() * stretch, r * angle.sin() / stretch);
        ring.push(centre.shifted(x * turn.cos() - y * turn.sin(), x * turn.sin() + y * turn.cos()));
    }
    ring
}

/// The same line with its corners cut twice (Chaikin), so that it bends softly.
pub(super) fn rounded(line: &[Point]) -> Vec<Point> {
    let mut soft = line.to_vec();
    for _ in 0..2 {
        let (Some(&first), Some(&last)) = (soft.first(), soft.last()) else { return soft };
        let mut next = vec![first];
        for pair in soft.windows(2) {
            next.push(pair[0].lerp(pair[1], 0.25));
            next.push(pair[0].lerp(pair[1], 0.75));
        }
        next.push(last);
        soft = next;
    }
    soft
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_covers_the_land_from_coast_to_edge() {
        let terrain = Terrain::new(7);
        for step in 0..=20 {
            let v = f64::from(step) / 20.0;
            assert!((terrain.place(1.0, v).x - EAST_M).abs() < 1e-6);
            let shore = terrain.place(0.0, v);
            assert!((WEST_M + 300.0..0.0).contains(&shore.x), "{shore:?}");
        }
        assert!((terrain.place(0.4, 0.0).y - SOUTH_M).abs() < 1e-6);
        assert!((terrain.place(0.4, 1.0).y - NORTH_M).abs() < 1e-6);
    }

    #[test]
    fn water_is_not_land() {
        let terrain = Terrain::new(7);
        assert!(!terrain.is_land(Point::new(WEST_M + 10.0, 0.0)));
        assert!(!terrain.is_land(terrain.place(0.5, RIVER_V)));
        assert!(terrain.is_land(terrain.place(0.5, 0.7)));
    }
}
