//! Where drones are based, as fleet has said: by it a base station's reports are judged before they are passed on.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use auth::{Action, Identity, allow};
use chassis::Peer;
use contracts::{
    BaseId, DroneId,
    commands::{DroneBase, DroneIds},
};

use crate::domain::telemetry::Doubt;

/// Drones whose base is remembered, some ten megabytes of them. Where there are more, all are asked for anew.
const MAX_REMEMBERED: usize = 100_000;

/// What is remembered may be behind, so it only lets a report through: whoever stores it judges it by where the drone is
/// based then. A report is refused by what fleet says when it comes.
#[derive(Debug, Default)]
pub(crate) struct Bases {
    remembered: Mutex<HashMap<DroneId, BaseId>>,
}

impl Bases {
    /// Those of the drones that `speaker`, a base station, may not or cannot speak for now.
    pub(crate) async fn doubts(&self, speaker: &Identity, fleet: &Peer, drones: &[DroneId]) -> HashMap<DroneId, Doubt> {
        let unclear = self.not_known_as_theirs(speaker, drones);
        if unclear.is_empty() {
            return HashMap::new();
        }
        let asked = DroneIds { ids: unclear.iter().copied().collect() };
        let (said, otherwise) = match fleet.post::<Vec<DroneBase>>("/queries/bases", &asked).await {
            Ok(said) => (said, Doubt::Foreign),
            Err(error) => {
                tracing::debug!(%error, "reports wait until fleet says whose the drones are");
                (Vec::new(), Doubt::Unanswered)
            }
        };
        let mut doubts: HashMap<_, _> = unclear.into_iter().map(|drone| (drone, otherwise)).collect();
        for DroneBase { drone_id, base_id } in &said {
            if speaks_for(speaker, *drone_id, base_id) {
                doubts.remove(drone_id);
            }
        }
        self.remember(said);
        doubts
    }

    /// Takes over what fleet says.
    pub(crate) fn remember(&self, said: Vec<DroneBase>) {
        let mut remembered = self.lock();
        if remembered.len() + said.len() > MAX_REMEMBERED {
            remembered.clear();
        }
        for DroneBase { drone_id, base_id } in said {
            remembered.insert(drone_id, base_id);
        }
    }

    fn not_known_as_theirs(&self, speaker: &Identity, drones: &[DroneId]) -> HashSet<DroneId> {
        let remembered = self.lock();
        let mut unclear = HashSet::new();
        for drone in drones {
            let is_theirs = remembered.get(drone).is_some_and(|base| speaks_for(speaker, *drone, base));
            if !is_theirs {
                unclear.insert(*drone);
            }
        }
        unclear
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DroneId, BaseId>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn speaks_for(speaker: &Identity, drone: DroneId, base: &BaseId) -> bool {
    allow(speaker, &Action::SpeakForDrone { drone, base }).is_ok()
}
