//! Finished deliveries, however long ago.

use axum::extract::State;
use chassis::{ApiError, Json, Query};
use chrono::{DateTime, Utc};
use contracts::api::{HistoryItem, Page};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    Gateway,
    request::{User, page_size},
};
use crate::domain::history::Walk;

/// Which finished deliveries. A cursor goes on in the range of its first page, whatever `from` and `to` say.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryParameters {
    /// Ended at or after; 30 days ago unless given.
    from: Option<DateTime<Utc>>,
    /// Ended before; now unless given.
    to: Option<DateTime<Utc>>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// At most this many items.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<usize>,
}

/// My finished deliveries, newest first: the last 30 days from the lookup store, older ones from the lake.
#[utoipa::path(
    get, path = "/api/history", tag = "history", operation_id = "listHistory",
    params(HistoryParameters),
    responses((status = 200, description = "A page.", body = Page<HistoryItem>))
)]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    user: User,
    query: Result<Query<HistoryParameters>, ApiError>,
) -> Result<Json<Page<HistoryItem>>, ApiError> {
    let me = user.customer()?;
    let Query(query) = query?;
    let limit = page_size(query.limit)?;
    let now = gateway.clock.now();
    let start = Walk::start(query.from, query.to, now);
    let walk = match &query.cursor {
        Some(cursor) => Walk::parse(cursor).map_err(|error| ApiError::invalid_field("cursor", error.to_string()))?,
        None => start.map_err(|error| ApiError::invalid_field("from", error.to_string()))?,
    };
    Ok(Json(gateway.services.history(&user, me, &walk, limit, now).await?))
}
