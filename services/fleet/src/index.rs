//! Where idle drones are, in memory: only a hint, the store's conditional update decides.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use contracts::{
    BaseId, Coordinate, DroneId,
    commands::DroneStatus,
    events::PositionFix,
    flight::{Airframe, RESERVE_BATTERY, Trip},
    geo::EARTH_RADIUS_M,
};
use rstar::{RTree, primitives::GeomWithData};

use crate::{
    domain::{Drone, needed_battery},
    matcher::Line,
    store::Pick,
};

/// Drones looked at for one trip, nearest first: more than stand together at one base with empty batteries, and still
/// less than a millisecond.
const MAX_EXAMINED: usize = 1_024;

/// A drone this much farther than the nearest is about as near, in metres: half a minute of flight at most.
const ABOUT_AS_NEAR_M: f64 = 200.0;

/// Drones looked at beyond the nearest able one for a lighter one: a base's stand.
const MAX_LIGHTER: usize = 8;

/// An idle drone that moved this far, in metres, is elsewhere: above the noise of its position, below what matters.
const MOVED_M: f64 = 25.0;

/// A change of battery that others must hear of, as a share of a full one: a charging drone says so twenty times.
const CHARGED: f64 = 0.05;

/// A place as a point in space, in metres: the nearest in space is the nearest on the ground, at the date line too.
type Point = [f64; 3];

fn point(place: Coordinate) -> Point {
    let (lat, lon) = (place.latitude.to_radians(), place.longitude.to_radians());
    [EARTH_RADIUS_M * lat.cos() * lon.cos(), EARTH_RADIUS_M * lat.cos() * lon.sin(), EARTH_RADIUS_M * lat.sin()]
}

type Entry = GeomWithData<Point, DroneId>;

/// A drone as this instance believes it to be.
struct Believed {
    base_id: BaseId,
    base_position: Coordinate,
    airframe: Airframe,
    status: DroneStatus,
    changed: i64,
    position: Coordinate,
    battery: f64,
    last_sequence: u64,
    /// Position and battery as the other instances know them.
    announced: (Coordinate, f64),
    /// Where it stands in the tree; none where it is not in it.
    indexed: Option<Point>,
}

#[derive(Default)]
struct Contents {
    drones: HashMap<DroneId, Believed>,
    tree: RTree<Entry>,
    /// The heaviest package that any drone could carry, in kilograms: never lowered, since it only saves searches.
    most_payload_kg: f64,
    /// The farthest that any drone could fly to a pickup, in metres; never lowered either.
    reach_m: f64,
}

/// What a report changes for others than this instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Notable {
    /// The drone is failed, as far as this instance knows.
    pub(crate) failed: bool,
    /// It is idle, and has moved or charged since the others last heard.
    pub(crate) announce: bool,
    /// Its last known report; 0 where none is known.
    pub(crate) last_sequence: u64,
}

/// The idle drones of the fleet by place, and the base of every drone.
pub(crate) struct Index {
    contents: Mutex<Contents>,
    line: Arc<Line>,
}

impl Index {
    /// An empty index that tells `line` when drones become free.
    pub(crate) fn new(line: Arc<Line>) -> Arc<Self> {
        Arc::new(Self { contents: Mutex::default(), line })
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over rows of the store, in whatever order they come.
    pub(crate) fn apply(&self, drones: &[Drone]) {
        if drones.is_empty() {
            return;
        }
        let mut contents = self.lock();
        let mut freed = false;
        for drone in drones {
            freed |= contents.apply(drone);
        }
        drop(contents);
        if freed {
            self.line.freed();
        }
    }

    /// Takes over positions that were stored.
    pub(crate) fn heard<'a>(&self, reports: impl Iterator<Item = (DroneId, &'a PositionFix, bool)>) {
        let mut contents = self.lock();
        for (drone_id, fix, announced) in reports {
            contents.heard(drone_id, fix, announced);
        }
    }

    /// What reports would change, for each of them.
    pub(crate) fn notable<'a>(&self, reports: impl Iterator<Item = (DroneId, &'a PositionFix)>) -> Vec<Notable> {
        let contents = self.lock();
        reports.map(|(drone_id, fix)| contents.notable(drone_id, fix)).collect()
    }

    /// Asks something of each drone's base; none for a drone that is not known here.
    pub(crate) fn of_bases<T>(
        &self,
        ids: impl Iterator<Item = DroneId>,
        mut question: impl FnMut(DroneId, Option<&BaseId>) -> T,
    ) -> Vec<T> {
        let contents = self.lock();
        ids.map(|id| question(id, contents.drones.get(&id).map(|drone| &drone.base_id))).collect()
    }

    /// Drones that are idle, as far as this instance knows.
    pub(crate) fn available(&self) -> usize {
        self.lock().tree.size()
    }

    /// A drone for each trip, in their order, each drone for one trip only. The drones are off the index until the
    /// answer is dropped: by then the rows of the store must have been applied.
    pub(crate) fn propose<'a>(self: &Arc<Self>, trips: impl Iterator<Item = &'a Trip>) -> Proposed {
        let mut contents = self.lock();
        let mut picks = Vec::new();
        for trip in trips {
            let pick = contents.choose(trip);
            if let Some(pick) = pick {
                contents.take(pick.drone_id);
            }
            picks.push(pick);
        }
        drop(contents);
        Proposed { picks, index: self.clone() }
    }
}

/// Drones proposed for trips; dropping it gives back those that nobody got.
pub(crate) struct Proposed {
    /// One for each trip, none where no idle drone can fly it.
    pub(crate) picks: Vec<Option<Pick>>,
    index: Arc<Index>,
}

impl Drop for Proposed {
    fn drop(&mut self) {
        let mut contents = self.index.lock();
        let mut freed = false;
        for pick in self.picks.iter().flatten() {
            freed |= contents.restore(pick.drone_id);
        }
        drop(contents);
        if freed {
            // Whoever looked meanwhile has missed these.
            self.index.line.freed();
        }
    }
}

impl Contents {
    /// True where the drone is free now and was not before.
    fn apply(&mut self, drone: &Drone) -> bool {
        self.most_payload_kg = self.most_payload_kg.max(drone.airframe.payload_kg);
        self.reach_m = self.reach_m.max(drone.airframe.range_m * (1.0 - RESERVE_BATTERY));
        if drone.status == DroneStatus::Retired {
            self.drop_retired(drone);
            return false;
        }
        let known = self.drones.entry(drone.id).or_insert_with(|| Believed {
            base_id: drone.base_id.clone(),
            base_position: drone.base_position,
            airframe: drone.airframe,
            status: DroneStatus::Retired,
            changed: i64::MIN,
            position: drone.position,
            battery: drone.battery,
            last_sequence: 0,
            announced: (drone.position, drone.battery),
            indexed: None,
        });
        if drone.changed < known.changed {
            return false;
        }
        if drone.last_sequence >= known.last_sequence {
            known.position = drone.position;
            known.battery = drone.battery;
            known.last_sequence = drone.last_sequence;
        }
        if known.base_id != drone.base_id {
            known.base_id = drone.base_id.clone();
        }
        known.base_position = drone.base_position;
        known.airframe = drone.airframe;
        known.changed = drone.changed;
        known.status = drone.status;
        known.announced = (drone.position, drone.battery);
        let was_free = known.indexed.is_some();
        self.reindex(drone.id);
        drone.status == DroneStatus::Idle && !was_free
    }

    /// Forgets a drone that is retired, or a fleet that changes its drones would fill the memory. An older row of it that
    /// is read late brings it back as a guess, until the store refuses it or its retirement is read again.
    fn drop_retired(&mut self, drone: &Drone) {
        if self.drones.get(&drone.id).is_none_or(|known| drone.changed < known.changed) {
            return;
        }
        self.take(drone.id);
        self.drones.remove(&drone.id);
    }

    /// Brings the tree in line with what is believed of a drone.
    fn reindex(&mut self, id: DroneId) {
        let Some(drone) = self.drones.get_mut(&id) else { return };
        let wanted = (drone.status == DroneStatus::Idle).then(|| point(drone.position));
        if wanted == drone.indexed {
            return;
        }
        if let Some(old) = drone.indexed {
            self.tree.remove(&Entry::new(old, id));
        }
        if let Some(new) = wanted {
            self.tree.insert(Entry::new(new, id));
        }
        drone.indexed = wanted;
    }

    fn heard(&mut self, id: DroneId, fix: &PositionFix, announced: bool) {
        let Some(drone) = self.drones.get_mut(&id) else { return };
        if fix.sequence <= drone.last_sequence {
            return;
        }
        drone.last_sequence = fix.sequence;
        drone.position = fix.position;
        drone.battery = fix.battery;
        if !announced {
            return;
        }
        drone.announced = (fix.position, fix.battery);
        // One that was taken for a trip meanwhile stays off until that is decided.
        if drone.indexed.is_some() {
            self.reindex(id);
        }
    }

    fn notable(&self, id: DroneId, fix: &PositionFix) -> Notable {
        let Some(drone) = self.drones.get(&id) else { return Notable::default() };
        let (position, battery) = drone.announced;
        let announce = drone.status == DroneStatus::Idle
            && ((fix.battery - battery).abs() >= CHARGED || fix.position.distance_m(&position) > MOVED_M);
        Notable { failed: drone.status == DroneStatus::Failed, announce, last_sequence: drone.last_sequence }
    }

    /// The nearest idle drone that can fly the trip, or a lighter one that is about as near: a heavy drone is kept for
    /// what only it can carry.
    fn choose(&self, trip: &Trip) -> Option<Pick> {
        if trip.load_kg > self.most_payload_kg {
            return None;
        }
        let mut best: Option<(f64, Pick)> = None;
        let mut nearest_m = f64::INFINITY;
        let mut beyond = 0;
        let loaded_m = trip.pickup.distance_m(&trip.dropoff);
        let by_distance = self.tree.nearest_neighbor_iter_with_distance_2(&point(trip.pickup));
        for (entry, distance_2) in by_distance.take(MAX_EXAMINED) {
            let Some(drone) = self.drones.get(&entry.data) else { continue };
            // Through the earth, which over a city is the way on the ground.
            let distance_m = distance_2.sqrt();
            if distance_m > self.reach_m + MOVED_M || distance_m > nearest_m + ABOUT_AS_NEAR_M || beyond > MAX_LIGHTER {
                break;
            }
            beyond += usize::from(best.is_some());
            let payload_kg = drone.airframe.payload_kg;
            if trip.load_kg > payload_kg || best.is_some_and(|(lightest_kg, _)| payload_kg >= lightest_kg) {
                continue;
            }
            // Most drones that cannot fly it are told by this alone, for a tenth of the sum's cost.
            let at_least = drone.airframe.drain(distance_m - MOVED_M + loaded_m, 0.0) + RESERVE_BATTERY;
            if drone.battery < at_least {
                continue;
            }
            let needed = needed_battery(&drone.airframe, drone.position, trip, drone.base_position);
            if drone.battery < needed {
                continue;
            }
            nearest_m = nearest_m.min(distance_m);
            best = Some((payload_kg, Pick { drone_id: entry.data, needed_battery: needed }));
        }
        best.map(|(_, pick)| pick)
    }

    fn take(&mut self, id: DroneId) {
        let Some(drone) = self.drones.get_mut(&id) else { return };
        if let Some(old) = drone.indexed.take() {
            self.tree.remove(&Entry::new(old, id));
        }
    }

    /// True where the drone was off the index, and is free.
    fn restore(&mut self, id: DroneId) -> bool {
        let off = self.drones.get(&id).is_some_and(|drone| drone.indexed.is_none());
        self.reindex(id);
        off && self.drones.get(&id).is_some_and(|drone| drone.indexed.is_some())
    }
}

/// The highest change among rows: where the next poll goes on.
pub(crate) fn last_change(drones: &[Drone], before: i64) -> i64 {
    drones.iter().map(|drone| drone.changed).max().unwrap_or(before).max(before)
}

/// The ids that are not in the index yet.
pub(crate) fn unknown(index: &Index, ids: impl Iterator<Item = DroneId>) -> Vec<DroneId> {
    let missing = index.of_bases(ids, |id, base| base.is_none().then_some(id));
    let distinct: HashSet<_> = missing.into_iter().flatten().collect();
    distinct.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::make;

    fn index_of(drones: &[Drone]) -> Arc<Index> {
        let index = Index::new(Arc::default());
        index.apply(drones);
        index
    }

    fn choose(index: &Arc<Index>, trip: &Trip) -> Option<DroneId> {
        index.propose([trip].into_iter()).picks[0].map(|pick| pick.drone_id)
    }

    #[test]
    fn a_drone_is_proposed_for_one_trip_only_and_given_back_when_nobody_got_it() {
        let index = index_of(&[make::drone(1)]);
        let trip = make::trip();
        let both = index.propose([&trip, &trip].into_iter());
        assert_eq!(both.picks.iter().flatten().count(), 1);
        assert_eq!(index.available(), 0);
        drop(both);
        assert_eq!(index.available(), 1);
    }

    #[test]
    fn a_drone_that_somebody_got_does_not_come_back() {
        let mut drone = make::drone(1);
        let index = index_of(std::slice::from_ref(&drone));
        let proposed = index.propose([&make::trip()].into_iter());
        drone.status = DroneStatus::Reserved;
        drone.changed += 1;
        index.apply(&[drone.clone()]);
        drop(proposed);
        assert_eq!(index.available(), 0);
        drone.status = DroneStatus::Idle;
        index.apply(&[drone.clone()]);
        assert_eq!(index.available(), 1);
        drone.status = DroneStatus::Reserved;
        drone.changed -= 1;
        index.apply(&[drone]);
        assert_eq!(index.available(), 1, "an older row changes nothing");
    }

    #[test]
    fn a_retired_drone_is_forgotten_until_it_is_registered_again() {
        let mut drone = make::drone(1);
        let index = index_of(std::slice::from_ref(&drone));
        let gone = |index: &Index| !unknown(index, [make::drone_id(1)].into_iter()).is_empty();
        let proposed = index.propose([&make::trip()].into_iter());
        drone.status = DroneStatus::Retired;
        drone.changed -= 1;
        index.apply(std::slice::from_ref(&drone));
        assert!(!gone(&index), "an older row changes nothing");
        drone.changed += 2;
        index.apply(std::slice::from_ref(&drone));
        drop(proposed);
        assert!(gone(&index));
        assert_eq!((index.available(), index.lock().drones.len()), (0, 0));
        index.apply(std::slice::from_ref(&drone));
        assert_eq!(index.lock().drones.len(), 0, "nor does one that was never known come in");
        drone.status = DroneStatus::Idle;
        drone.changed += 1;
        index.apply(&[drone]);
        assert_eq!(index.available(), 1);
    }

    #[test]
    fn a_light_drone_goes_first_where_it_is_about_as_near() {
        let mut light = make::drone(1);
        light.position.latitude += 0.001;
        let mut heavy = make::drone(2);
        heavy.airframe.payload_kg = 20.0;
        let index = index_of(&[light.clone(), heavy.clone()]);
        assert_eq!(choose(&index, &make::trip()), Some(light.id));
        let load_kg = light.airframe.payload_kg + 1.0;
        assert_eq!(choose(&index, &Trip { load_kg, ..make::trip() }), Some(heavy.id));
        assert_eq!(choose(&index, &Trip { load_kg: 100.0, ..make::trip() }), None);
        light.position.latitude += 0.01;
        light.changed += 1;
        index.apply(&[light]);
        assert_eq!(choose(&index, &make::trip()), Some(heavy.id));
    }

    #[test]
    fn an_idle_drone_that_moves_or_charges_is_announced_and_found_where_it_is() {
        let drone = make::drone(1);
        let index = index_of(std::slice::from_ref(&drone));
        let mut fix = make::fix(&drone, 1);
        let announce = |fix: &PositionFix| index.notable([(drone.id, fix)].into_iter())[0].announce;
        fix.battery -= CHARGED / 2.0;
        assert!(!announce(&fix));
        fix.battery -= CHARGED;
        assert!(announce(&fix));
        fix.position.latitude += 1.0;
        index.heard([(drone.id, &fix, true)].into_iter());
        assert!(!announce(&fix));
        assert_eq!(choose(&index, &make::trip()), None, "too far away now");
    }

    proptest! {
        #[test]
        fn what_is_chosen_can_fly_and_nothing_able_is_much_nearer(
            places in prop::collection::vec((0.0..0.3f64, 0.0..0.3f64, 0.0..1.0f64, 1.0..9.0f64), 1..60),
            trip in (0.0..0.3f64, 0.0..0.3f64, 0.1..8.0f64),
        ) {
            let mut drones = Vec::new();
            for (number, (latitude, longitude, battery, payload_kg)) in (1..).zip(places) {
                let mut drone = make::drone(number);
                drone.position = Coordinate { latitude, longitude };
                drone.battery = battery;
                drone.airframe.payload_kg = payload_kg;
                drones.push(drone);
            }
            let pickup = Coordinate { latitude: trip.0, longitude: trip.1 };
            let dropoff = Coordinate { latitude: 0.15, longitude: 0.15 };
            let trip = Trip { pickup, dropoff, load_kg: trip.2 };
            let able = |drone: &&Drone| {
                drone.airframe.can_fly(drone.position, drone.battery, &trip, drone.base_position)
            };
            let nearest_m =
                drones.iter().filter(able).map(|drone| drone.position.distance_m(&pickup)).min_by(f64::total_cmp);
            match (choose(&index_of(&drones), &trip), nearest_m) {
                (None, None) => {}
                (Some(id), Some(nearest_m)) => {
                    let chosen = drones.iter().find(|drone| drone.id == id).unwrap();
                    prop_assert!(able(&chosen));
                    prop_assert!(chosen.position.distance_m(&pickup) <= nearest_m + ABOUT_AS_NEAR_M + 1.0);
                }
                (chosen, nearest) => prop_assert!(false, "chose {:?}, nearest able {:?}", chosen, nearest),
            }
        }
    }
}
