//! Makes a base station's drones known to the fleet, or goes on from where the fleet knows them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use contracts::{
    Coordinate, DroneId,
    api::{MAX_PAGE, Page, RegisterDrone},
    commands::{DroneStatus, FleetDrone},
    flight::Airframe,
};
use reqwest::Method;
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Shared, drone::Drone};
use crate::{
    Config,
    backoff::Backoff,
    city::Base,
    gateway::{Answer, Call, Gateway, Identity, NoAnswer},
    random::Random,
};

/// How long a base tries to make its drones known: a system that is starting needs a while for its first writes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pages of one base's fleet: a million drones. More is an endless list.
const MOST_PAGES: usize = 10_000;
/// Drones stand around their base within this distance, in metres, so that a map shows more than one.
const APRON_M: f64 = 45.0;

/// The drones of base number `index`: the same ids, airframes and pads for the same seed.
pub(crate) fn planned_drones(config: &Config, index: usize, bases: usize, base: &Base) -> Vec<Drone> {
    let mut drones = Vec::new();
    for number in (index..config.drones).step_by(bases.max(1)) {
        let mut random = Random::of(config.seed, "drone", number as u64);
        let bits = (u128::from(random.next()) << 64) | u128::from(random.next());
        let id = DroneId(uuid::Builder::from_custom_bytes(bits.to_be_bytes()).into_uuid());
        let pad = Coordinate {
            latitude: base.position.latitude + random.between(-APRON_M, APRON_M) / 111_195.0,
            longitude: base.position.longitude + random.between(-APRON_M, APRON_M) / 80_900.0,
        };
        let airframe = airframe(&mut random, config.time_scale);
        drones.push(Drone::new(id, airframe, pad, pad, random.between(0.75, 1.0)));
    }
    drones
}

/// Small, middle and large ones; the time scale makes them faster, not stronger.
fn airframe(random: &mut Random, time_scale: f64) -> Airframe {
    let (payload_kg, range_m, speed_mps) = match random.below(10) {
        0..3 => (1.5, random.between(14_000.0, 16_000.0), random.between(18.0, 20.0)),
        3..7 => (4.0, random.between(16_000.0, 20_000.0), random.between(16.0, 18.5)),
        _ => (9.0, random.between(20_000.0, 25_000.0), random.between(15.0, 17.0)),
    };
    let whole = |value: f64| value.round();
    Airframe { payload_kg, range_m: whole(range_m), speed_mps: whole(speed_mps * time_scale * 100.0) / 100.0 }
}

/// One base's registration.
pub(crate) struct Muster {
    pub(crate) shared: Shared,
    pub(crate) identity: Arc<Identity>,
    pub(crate) base: Base,
    /// Bounds the requests of all bases together.
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) shutdown: CancellationToken,
}

impl Muster {
    /// The drones that may fly: all but those that the fleet refuses or has retired.
    pub(crate) async fn run(self, plan: Vec<Drone>) -> anyhow::Result<Vec<Drone>> {
        let known = self.known_drones().await?;
        let give_up_at = self.shared.clock.now() + PATIENCE;
        let muster = Arc::new(self);
        let mut ready = Vec::with_capacity(plan.len());
        let mut registrations = JoinSet::new();
        for mut drone in plan {
            match known.get(&drone.id) {
                Some(fleet) if fleet.status == DroneStatus::Retired => continue,
                Some(fleet) => {
                    drone.position = fleet.position;
                    drone.battery = fleet.battery.clamp(0.0, 1.0);
                    if fleet.airframe == drone.airframe && fleet.base_position == muster.base.position {
                        ready.push(drone);
                        continue;
                    }
                }
                None => {}
            }
            let Ok(slot) = Arc::clone(&muster.slots).acquire_owned().await else { break };
            let muster = Arc::clone(&muster);
            registrations.spawn(async move {
                let registered = muster.register(&drone, give_up_at).await;
                drop(slot);
                registered.map(|may_fly| may_fly.then_some(drone))
            });
        }
        while let Some(registered) = registrations.join_next().await {
            ready.extend(registered??);
        }
        Ok(ready)
    }

    /// Whether the fleet lets that drone fly; tried again until it answers.
    async fn register(&self, drone: &Drone, give_up_at: contracts::Timestamp) -> anyhow::Result<bool> {
        let mut backoff = Backoff::new(Random::of(self.shared.seed, "register", drone.id.0.as_u64_pair().0));
        loop {
            let answer = register_drone(&self.shared.gateway, &self.identity, &self.base, drone).await;
            match answer {
                Ok(answer) if answer.status.is_success() => return Ok(true),
                Ok(answer) if !answer.is_passing() => {
                    let body = String::from_utf8_lossy(&answer.body).into_owned();
                    tracing::warn!(drone = %drone.id, status = %answer.status, body, "the fleet refuses a drone");
                    return Ok(false);
                }
                _ => {}
            }
            anyhow::ensure!(self.shared.clock.now() < give_up_at, "the fleet takes no drones: {}", describe(&answer));
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(false),
                () = self.shared.clock.sleep(backoff.pause()) => {}
            }
        }
    }

    /// Where the fleet has this base's drones.
    async fn known_drones(&self) -> anyhow::Result<HashMap<DroneId, FleetDrone>> {
        let give_up_at = self.shared.clock.now() + PATIENCE;
        let mut backoff = Backoff::new(Random::of(self.shared.seed, "fleet", 0));
        let mut known = HashMap::new();
        let mut cursor: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let path = match &cursor {
                Some(cursor) => format!("/api/fleet?limit={MAX_PAGE}&cursor={}", escape(cursor)),
                None => format!("/api/fleet?limit={MAX_PAGE}"),
            };
            let page = loop {
                let answer = self.shared.gateway.send(&self.identity, Call::new(Method::GET, &path)).await;
                match answer {
                    Ok(answer) if answer.status.is_success() => break answer.body,
                    Ok(answer) if !answer.is_passing() => {
                        anyhow::bail!("GET /api/fleet answers {}", answer.status);
                    }
                    _ => {}
                }
                anyhow::ensure!(self.shared.clock.now() < give_up_at, "no fleet: {}", describe(&answer));
                tokio::select! {
                    () = self.shutdown.cancelled() => return Ok(known),
                    () = self.shared.clock.sleep(backoff.pause()) => {}
                }
            };
            let page: Page<FleetDrone> = serde_json::from_slice(&page).context("a page of the fleet cannot be read")?;
            known.extend(page.items.into_iter().map(|drone| (drone.drone_id, drone)));
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(known);
            }
        }
        anyhow::bail!("the fleet's list has no end")
    }
}

/// Tells the fleet of a drone, as it stands now.
pub(crate) async fn register_drone(
    gateway: &Gateway,
    identity: &Identity,
    base: &Base,
    drone: &Drone,
) -> Result<Answer, NoAnswer> {
    let registration = registration(base, drone);
    let path = format!("/api/fleet/{}", drone.id);
    gateway.send(identity, registration_call(&path, &registration)).await
}

/// What the fleet is told.
pub(crate) fn registration(base: &Base, drone: &Drone) -> RegisterDrone {
    RegisterDrone {
        base_id: base.id.clone(),
        base_position: base.position,
        position: drone.position,
        battery: drone.battery,
        payload_kg: drone.airframe.payload_kg,
        range_m: drone.airframe.range_m,
        speed_mps: drone.airframe.speed_mps,
    }
}

/// The request that tells it.
pub(crate) fn registration_call<'a>(path: &'a str, registration: &RegisterDrone) -> Call<'a> {
    Call::new(Method::PUT, path).json(serde_json::to_vec(registration).unwrap_or_default())
}

fn describe(answer: &Result<Answer, NoAnswer>) -> String {
    match answer {
        Ok(answer) => answer.status.to_string(),
        Err(error) => error.to_string(),
    }
}

/// A cursor as part of a query.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::city::City;

    fn all(config: &Config) -> Vec<Drone> {
        let city = City::checked_in().unwrap();
        let bases = city.bases.len();
        let each = city.bases.iter().enumerate();
        each.flat_map(|(index, base)| planned_drones(config, index, bases, base)).collect()
    }

    #[test]
    fn a_restarted_simulator_has_the_same_drones() {
        let config = Config { drones: 50, ..Config::default() };
        let ids = |drones: Vec<Drone>| drones.into_iter().map(|drone| drone.id).collect::<Vec<_>>();
        let first = ids(all(&config));
        assert_eq!(first.len(), 50);
        assert_eq!(first, ids(all(&config)));
        let more = ids(all(&Config { drones: 60, ..config.clone() }));
        assert!(first.iter().all(|id| more.contains(id)), "more drones are added, none replaced");
        assert_ne!(first, ids(all(&Config { seed: 8, ..config })));
    }

    #[test]
    fn registrations_are_legal_and_every_package_finds_a_drone() {
        let city = City::checked_in().unwrap();
        for time_scale in [1.0, 10.0, 400.0] {
            let drones = all(&Config { time_scale, ..Config::default() });
            for drone in &drones {
                assert_eq!(registration(&city.bases[0], drone).faults(), vec![]);
            }
            for size_kg in [1.0, 3.0, 8.0] {
                assert!(drones.iter().filter(|drone| drone.airframe.payload_kg >= size_kg).count() > 20);
            }
        }
    }

    #[test]
    fn the_time_scale_makes_drones_faster_and_nothing_else() {
        let one = all(&Config { time_scale: 1.0, ..Config::default() });
        let ten = all(&Config { time_scale: 10.0, ..Config::default() });
        for (slow, fast) in one.iter().zip(&ten) {
            assert!((fast.airframe.speed_mps / slow.airframe.speed_mps - 10.0).abs() < 0.01);
            assert_eq!(slow.airframe.range_m.to_bits(), fast.airframe.range_m.to_bits());
        }
    }

    #[test]
    fn a_cursor_is_escaped() {
        assert_eq!(escape("aZ9-_.~"), "aZ9-_.~");
        assert_eq!(escape("a+b/c="), "a%2Bb%2Fc%3D");
    }
}
