//! The districts: cells that tile the land, parted by the river and by main roads.

use super::{
    shape::{Point, area, centroid, densify, nearer_half},
    terrain::{HEIGHT_M, LAND_WIDTH_M, RIVER_V, Terrain},
};
use crate::random::Random;

/// Districts on each side of the river.
const PER_BANK: usize = 5;
/// Points of a border are this far apart, in metres: finer than a bend can be seen.
const BORDER_STEP_M: f64 = 55.0;

/// What districts by the sea are called.
const COASTAL: [&str; 4] = ["Old Harbour", "Les Salines", "Pointe Saint-Elme", "La Corniche"];
/// What the others are called.
const INLAND: [&str; 10] = [
    "Belvedere",
    "Les Tanneurs",
    "Mont Clair",
    "Faubourg du Levant",
    "La Rotonde",
    "Les Oliviers",
    "Champ de Mars",
    "Quatre Moulins",
    "Sainte-Agathe",
    "Les Verreries",
];
/// What the island is called.
const ISLAND: &str = "Fort Island";

/// A named part of the city.
#[derive(Debug)]
pub(super) struct District {
    pub(super) name: String,
    pub(super) ring: Vec<Point>,
    /// Where its name is written.
    pub(super) label: Point,
}

/// The districts and the roads between them.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) districts: Vec<District>,
    /// The borders between districts of the same bank.
    pub(super) borders: Vec<Vec<Point>>,
    /// Where a border reaches the river, as `u`: a bridge belongs there.
    pub(super) bridges: Vec<f64>,
}

/// Lays the districts out.
pub(super) fn lay_out(seed: u64, terrain: &Terrain) -> Plan {
    let mut random = Random::of(seed, "districts", 0);
    let mut plan = Plan { districts: Vec::new(), borders: Vec::new(), bridges: Vec::new() };
    let mut cells = Vec::new();
    for (south, north) in [(0.0, RIVER_V), (RIVER_V, 1.0)] {
        let bank = bank(south, north);
        let sites = spread_sites(&mut random, &bank);
        let bank_cells: Vec<_> = (0..sites.len()).map(|own| cell(&bank, &sites, own)).collect();
        add_borders(terrain, &bank_cells, &mut plan);
        cells.extend(bank_cells);
    }
    let mut coastal = COASTAL.to_vec();
    let mut inland = INLAND.to_vec();
    random.shuffle(&mut coastal[1..]);
    random.shuffle(&mut inland);
    // The harbour gives its district the name.
    cells.sort_by(|a, b| harbour_distance(a).total_cmp(&harbour_distance(b)));
    let (mut coastal, mut inland) = (coastal.into_iter(), inland.into_iter());
    for cell in &cells {
        let by_the_sea = cell.iter().any(|p| p.x <= 1.0);
        let name = if by_the_sea { coastal.next().or_else(|| inland.next()) } else { inland.next() };
        let middle = centroid(cell);
        plan.districts.push(District {
            name: name.unwrap_or("New Town").to_owned(),
            ring: bent_ring(terrain, cell),
            label: terrain.place(middle.x / LAND_WIDTH_M, middle.y / HEIGHT_M),
        });
    }
    let island = terrain.island.clone();
    plan.districts.push(District { name: ISLAND.to_owned(), label: centroid(&island), ring: island });
    plan
}

/// One bank of the river in the unbent plan.
fn bank(south: f64, north: f64) -> Vec<Point> {
    let (low, high) = (south * HEIGHT_M, north * HEIGHT_M);
    vec![Point::new(0.0, low), Point::new(LAND_WIDTH_M, low), Point::new(LAND_WIDTH_M, high), Point::new(0.0, high)]
}

/// Sites that are apart from each other, denser towards the sea, each then moved half-way to its cell's middle.
fn spread_sites(random: &mut Random, bank: &[Point]) -> Vec<Point> {
    /// Of that many random places the one furthest from all others is taken.
    const CANDIDATES: usize = 24;
    let (low, high) = (bank[0].y, bank[2].y);
    let mut sites: Vec<Point> = Vec::new();
    while sites.len() < PER_BANK {
        let mut best = (f64::NEG_INFINITY, Point::new(0.0, 0.0));
        for _ in 0..CANDIDATES {
            let x = LAND_WIDTH_M * random.between(0.08, 0.95).powf(1.25);
            let place = Point::new(x, random.between(low + 300.0, high - 300.0));
            let room = sites.iter().map(|site| site.distance(place)).fold(f64::INFINITY, f64::min);
            // Further inland the same distance counts for less, so that the centre has the small districts.
            let worth = room / (0.55 + place.x / LAND_WIDTH_M);
            if worth > best.0 {
                best = (worth, place);
            }
        }
        sites.push(best.1);
    }
    let cells: Vec<_> = (0..sites.len()).map(|own| cell(bank, &sites, own)).collect();
    sites.iter().zip(&cells).map(|(site, cell)| site.lerp(centroid(cell), 0.5)).collect()
}

/// The places of the bank that are nearest to that site.
fn cell(bank: &[Point], sites: &[Point], own: usize) -> Vec<Point> {
    let mut ring = bank.to_vec();
    for (index, &site) in sites.iter().enumerate() {
        if index != own {
            ring = nearer_half(&ring, sites[own], site);
        }
    }
    debug_assert!(area(&ring) > 0.0);
    ring
}

fn bent_ring(terrain: &Terrain, cell: &[Point]) -> Vec<Point> {
    let mut ring = Vec::new();
    for (index, &from) in cell.iter().enumerate() {
        let mut side = densify(from, cell[(index + 1) % cell.len()], BORDER_STEP_M);
        side.pop();
        ring.extend(side.into_iter().map(|p| terrain.place(p.x / LAND_WIDTH_M, p.y / HEIGHT_M)));
    }
    ring
}

/// Every side that two cells share becomes one border; one that ends at the river gets a bridge.
fn add_borders(terrain: &Terrain, cells: &[Vec<Point>], plan: &mut Plan) {
    let river_y = RIVER_V * HEIGHT_M;
    for (index, cell) in cells.iter().enumerate() {
        for (corner, &from) in cell.iter().enumerate() {
            let to = cell[(corner + 1) % cell.len()];
            let shared = cells[index + 1..].iter().any(|other| has_side(other, from, to));
            if !shared {
                continue;
            }
            plan.borders.push(terrain.bent(from, to, BORDER_STEP_M));
            for end in [from, to] {
                if (end.y - river_y).abs() < 1.0 {
                    plan.bridges.push(end.x / LAND_WIDTH_M);
                }
            }
        }
    }
}

fn has_side(cell: &[Point], from: Point, to: Point) -> bool {
    let mut previous = cell[cell.len() - 1];
    for &current in cell {
        if previous.distance(to) < 1e-3 && current.distance(from) < 1e-3 {
            return true;
        }
        previous = current;
    }
    false
}

fn harbour_distance(cell: &[Point]) -> f64 {
    centroid(cell).distance(Point::new(0.0, 0.35 * HEIGHT_M))
}

#[cfg(test)]
mod tests {
    use super::{super::shape::contains, *};

    #[test]
    fn every_place_on_land_is_in_exactly_one_district() {
        let terrain = Terrain::new(7);
        let plan = lay_out(7, &terrain);
        assert_eq!(plan.districts.len(), 2 * PER_BANK + 1);
        let mut random = Random::new(1);
        let mut on_land = 0;
        for _ in 0..2_000 {
            let place = terrain.place(random.between(0.002, 0.998), random.between(0.002, 0.998));
            if !terrain.is_land(place) {
                continue;
            }
            on_land += 1;
            let owners = plan.districts.iter().filter(|district| contains(&district.ring, place)).count();
            assert_eq!(owners, 1, "{place:?}");
        }
        assert!(on_land > 1_500);
    }

    #[test]
    fn names_are_unique_and_the_river_is_bridged() {
        let terrain = Terrain::new(7);
        let plan = lay_out(7, &terrain);
        let mut names: Vec<_> = plan.districts.iter().map(|district| district.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), plan.districts.len());
        assert!(names.contains(&"Old Harbour"));
        assert!(plan.bridges.len() >= 3);
    }
}
