//! What the audit reads of fleet: whatever still holds a drone or waits for one.

use contracts::{DeliveryId, DroneId};

use crate::store;

/// Something that is still open in fleet's tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditReservation {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// Its attempt.
    pub attempt: u32,
    /// The drone, where there is one.
    pub drone_id: Option<DroneId>,
    /// `waiting` or `reserved` for a reservation; `drone_reserved` for a drone's own row.
    pub state: String,
}

/// Reads everything that is open from the raw tables of the store at `store_url`.
pub async fn audit_scan(store_url: &str) -> anyhow::Result<Vec<AuditReservation>> {
    store::raw_reservations(store_url).await
}
