//! The raw tables as the audit reads them: no rule of the service in between.

use messaging::sql::Raw;

use super::rows;
use crate::audit::AuditReservation;

/// Every reservation that is still open, and every drone that is still reserved, in the store at `url`.
pub(crate) async fn raw_reservations(url: &str) -> anyhow::Result<Vec<AuditReservation>> {
    let store = Raw::open(url).await?;
    let found = store
        .read(
            "select delivery_id, attempt, drone_id, state from reservations where state in ('waiting', 'reserved')
             union all
             select delivery_id, attempt, id, 'drone_reserved' from drones where status = 'reserved'",
        )
        .await?;
    let mut open = Vec::with_capacity(found.len());
    for row in &found {
        let hold = rows::hold(row, 0)?;
        let drone_id = row.optional_text(2)?;
        open.push(AuditReservation {
            delivery_id: hold.delivery_id,
            attempt: hold.attempt,
            drone_id: drone_id.map(rows::parse).transpose()?,
            state: row.text(3)?.to_owned(),
        });
    }
    Ok(open)
}
