//! A run from start to end: wait for the gateway, muster the drones, take orders, see them delivered.

use std::sync::Arc;

use contracts::{Clock, api::Role};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Progress, Summary,
    city::City,
    drones::{self, Rules, Shared},
    gateway::{Gateway, Identity},
    orders,
    summary::Outcomes,
};

/// Flies and orders against the gateway at `config.gateway_url` until the configured duration and drain have passed
/// or `shutdown` is cancelled. Without a duration it goes on until `shutdown`.
///
/// # Errors
/// Where an option cannot be, no gateway answers at the start, the fleet takes no drones, or the ledger cannot be
/// written. Once a run has begun, failures of the system are survived and counted.
pub async fn run(
    config: Config,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
    progress: Arc<Progress>,
) -> anyhow::Result<Summary> {
    config.check()?;
    let city = City::checked_in()?;
    let gateway = Arc::new(Gateway::new(&config.gateway_url, Arc::clone(&clock))?);
    let mut identities = Vec::with_capacity(city.bases.len());
    for base in &city.bases {
        identities.push(Arc::new(Identity::new(Role::BaseStation, base.id.as_str())));
    }
    gateway.wait_until_ready(&identities[0], &shutdown).await?;
    let shared = Shared {
        gateway: Arc::clone(&gateway),
        clock: Arc::clone(&clock),
        progress: Arc::clone(&progress),
        rules: Rules::new(&config),
        misbehave: config.misbehave,
        seed: config.seed,
    };
    let stations = drones::muster(&shared, &config, &city, &identities, &shutdown).await?;
    if shutdown.is_cancelled() {
        return Ok(Summary::new(&progress, Outcomes::default()));
    }
    tracing::info!(drones = config.drones, bases = city.bases.len(), "the drones are ready");
    // Not a child of `shutdown`: the drones land after the last order is written down, however this function ends.
    let flying = CancellationToken::new();
    let _landing = flying.clone().drop_guard();
    let mut flights = JoinSet::new();
    for station in stations {
        flights.spawn(drones::fly(station, flying.clone()));
    }
    let ordering = orders::run(&config, &city, gateway, clock, Arc::clone(&progress), &shutdown);
    let outcomes = tokio::select! {
        outcomes = Box::pin(ordering) => outcomes?,
        Some(ended) = flights.join_next() => {
            ended??;
            anyhow::bail!("a base station has stopped");
        }
    };
    flying.cancel();
    while let Some(landed) = flights.join_next().await {
        landed??;
    }
    Ok(Summary::new(&progress, outcomes))
}
