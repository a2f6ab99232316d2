//! Proves the promises over the raw stores: what was accepted is there, ended once, kept once, and leaked nothing.

mod checks;
mod ledger;
mod report;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use anyhow::Context;
use contracts::{DeliveryId, DroneId, Stage, events::StageEntry};

pub use ledger::Ledger;
pub use report::{Check, Report};

use crate::Stores;

/// A delivery as its owner's store has it.
#[derive(Debug, Clone)]
pub struct Owned {
    /// The delivery.
    pub id: DeliveryId,
    /// The stage in the row.
    pub stage: Stage,
    /// The row's version.
    pub version: u64,
    /// When it was over, in milliseconds since 1970.
    pub finished_ms: Option<i64>,
    /// The stage log, oldest first.
    pub log: Vec<StageEntry>,
}

/// A finished delivery as the lake or the lookup store has it.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The delivery.
    pub id: DeliveryId,
    /// Its stage there.
    pub stage: Stage,
    /// Its version there.
    pub version: u64,
}

/// Something that must not outlive its delivery.
#[derive(Debug, Clone)]
pub struct Held {
    /// The delivery.
    pub id: DeliveryId,
    /// The drone, where it is one.
    pub drone: Option<DroneId>,
}

/// Everything that the audit looks at.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// delivery's rows with their stage log.
    pub deliveries: Vec<Owned>,
    /// The lake's rows.
    pub lake: Vec<Kept>,
    /// Rows of the lake's positions.
    pub positions: usize,
    /// Those of them that are there twice.
    pub doubled_positions: usize,
    /// lookup's rows.
    pub lookup: Vec<Kept>,
    /// fleet's drones that are reserved, and places in the line.
    pub reservations: Vec<Held>,
    /// package's packages that are registered.
    pub packages: Vec<Held>,
    /// tracking's flights that are open.
    pub flights: Vec<Held>,
    /// Events in delivery's outbox.
    pub unrelayed: u64,
}

/// Audits stores at rest.
pub async fn audit(stores: &Stores, ledger: Option<Ledger>) -> anyhow::Result<Report> {
    let snapshot = read(stores).await?;
    Ok(checks::check(&snapshot, ledger.as_ref()))
}

async fn read(stores: &Stores) -> anyhow::Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    let (deliveries, unrelayed) = delivery::store::audit_scan(&stores.delivery).await.context("the delivery store")?;
    snapshot.unrelayed = unrelayed;
    for row in deliveries {
        let record = row.delivery.record;
        snapshot.deliveries.push(Owned {
            id: record.delivery_id,
            stage: record.stage,
            version: record.version,
            finished_ms: record.finished_at.map(|at| at.timestamp_millis()),
            log: row.stages,
        });
    }
    for row in history::audit::scan_deliveries(&stores.lake).await.context("the lake")? {
        snapshot.lake.push(Kept { id: row.delivery_id, stage: row.stage, version: row.version });
    }
    let positions = history::audit::scan_positions_keys(&stores.lake).await.context("the lake")?;
    (snapshot.positions, snapshot.doubled_positions) = (positions.rows, positions.doubled);
    for row in lookup::audit_scan(&stores.lookup).await.context("the lookup store")? {
        snapshot.lookup.push(Kept { id: row.delivery_id, stage: row.stage, version: row.version });
    }
    for row in fleet::audit_scan(&stores.fleet).await.context("the fleet store")? {
        snapshot.reservations.push(Held { id: row.delivery_id, drone: row.drone_id });
    }
    for row in package::audit_scan(&stores.package).await.context("the package store")? {
        if row.state == contracts::events::PackageState::Registered {
            snapshot.packages.push(Held { id: row.delivery_id, drone: None });
        }
    }
    for row in tracking::audit_scan(&stores.tracking).await.context("the tracking store")? {
        if row.open {
            snapshot.flights.push(Held { id: row.delivery_id, drone: None });
        }
    }
    Ok(snapshot)
}

/// The ids that occur more than once.
fn repeated(ids: impl Iterator<Item = DeliveryId>) -> Vec<DeliveryId> {
    let (mut seen, mut again) = (BTreeSet::new(), BTreeSet::new());
    for id in ids {
        if !seen.insert(id) {
            again.insert(id);
        }
    }
    again.into_iter().collect()
}
