//! The raw tables as the audit reads them: no rule of the service in between.

use messaging::sqlite;
use sqlx::Row;

use super::rows;
use crate::{audit::AuditReservation, store::StoreError};

/// Every reservation that is still open, and every drone that is still reserved, in the file at `path`.
pub(crate) async fn raw_reservations(path: &str) -> Result<Vec<AuditReservation>, StoreError> {
    let file = sqlite::open_read_only(path).await?;
    let found = sqlx::query(
        "select delivery_id, attempt, drone_id, state from reservations where state in ('waiting', 'reserved')
         union all
         select delivery_id, attempt, id, 'drone_reserved' from drones where status = 'reserved'",
    )
    .fetch_all(&file)
    .await?;
    let mut open = Vec::with_capacity(found.len());
    for row in &found {
        let hold = rows::hold(row, 0)?;
        let drone_id: Option<&str> = row.try_get(2)?;
        open.push(AuditReservation {
            delivery_id: hold.delivery_id,
            attempt: hold.attempt,
            drone_id: drone_id.map(rows::parse).transpose()?,
            state: row.try_get(3)?,
        });
    }
    Ok(open)
}
