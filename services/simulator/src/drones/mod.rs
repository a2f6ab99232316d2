//! The drones: one task and one missions stream per base station, however many drones it has.

mod base;
mod drone;
mod faults;
mod missions;
mod register;
mod reports;

use std::sync::Arc;

use contracts::Clock;
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Progress,
    city::City,
    gateway::{Gateway, Identity},
};

pub(crate) use base::{Station, fly};
pub(crate) use drone::Rules;
pub(crate) use register::escape;

/// A full charge, in seconds before the time scale.
const FULL_CHARGE_SECONDS: f64 = 1_200.0;
/// How long a free drone waits for the next mission before it goes home, in seconds before the time scale.
const IDLE_SECONDS: f64 = 120.0;
/// Registrations at a time, over all bases: enough to keep the fleet's batches full.
const REGISTRATIONS_AT_ONCE: usize = 64;

/// What the drones' tasks share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) rules: Rules,
    pub(crate) misbehave: f64,
    pub(crate) seed: u64,
}

impl Rules {
    /// The rules of that configuration.
    pub(crate) fn new(config: &Config) -> Self {
        let scaled_ms = |seconds: f64| (seconds * 1_000.0 / config.time_scale) as i64;
        let millis = |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self {
            handover_ms: scaled_ms(config.handover_seconds),
            idle_ms: scaled_ms(IDLE_SECONDS),
            charge_per_ms: config.time_scale / (FULL_CHARGE_SECONDS * 1_000.0),
            report_ms: millis(config.report_every),
            ground_report_ms: millis(config.ground_report_every),
        }
    }
}

/// Makes every drone known to the fleet, or takes on where the fleet has it; all bases at the same time.
pub(crate) async fn muster(
    shared: &Shared,
    config: &Config,
    city: &City,
    identities: &[Arc<Identity>],
    shutdown: &CancellationToken,
) -> anyhow::Result<Vec<Station>> {
    let slots = Arc::new(Semaphore::new(REGISTRATIONS_AT_ONCE));
    let mut bases = JoinSet::new();
    for (index, (base, identity)) in city.bases.iter().zip(identities).enumerate() {
        let plan = register::planned_drones(config, index, city.bases.len(), base);
        let muster = register::Muster {
            shared: shared.clone(),
            identity: Arc::clone(identity),
            base: base.clone(),
            slots: Arc::clone(&slots),
            shutdown: shutdown.clone(),
        };
        bases.spawn(async move { (index, muster.run(plan).await) });
    }
    let mut stations = Vec::new();
    while let Some(mustered) = bases.join_next().await {
        let (index, drones) = mustered?;
        let identity = Arc::clone(&identities[index]);
        stations.push(Station::new(shared.clone(), city.bases[index].clone(), identity, index, drones?));
    }
    Ok(stations)
}
