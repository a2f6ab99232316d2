//! The HTTP side: questions about finished deliveries, each with the customer that they are about.

use std::sync::Arc;

use auth::Action;
use axum::{
    Router,
    extract::{FromRef, State},
    routing::post,
};
use chassis::{
    ApiError, Json, Node,
    auth::{Authenticator, Caller, ServiceCaller},
};
use contracts::{
    CustomerId, DeliveryId,
    api::{DeliveryView, HistoryItem, HistoryPage, HistoryQuery, MAX_PAGE},
    commands::{Ids, MAX_COMMANDS},
    events::DeliveryRecord,
};
use serde::Deserialize;

use crate::{domain::page_start, store::Store};

/// Where the items of a page were found.
const SOURCE: &str = "lookup";

pub(crate) fn router(node: &Node, store: Arc<dyn Store>) -> Router {
    Router::new()
        .route("/queries/history", post(history))
        .route("/queries/delivery", post(delivery))
        .route("/queries/contains", post(contains))
        .with_state(Api { authenticator: Authenticator::of(node), store })
}

#[derive(Clone)]
struct Api {
    authenticator: Authenticator,
    store: Arc<dyn Store>,
}

impl FromRef<Api> for Authenticator {
    fn from_ref(api: &Api) -> Self {
        api.authenticator.clone()
    }
}

/// A question for one delivery.
#[derive(Debug, Deserialize)]
struct DeliveryQuery {
    delivery_id: DeliveryId,
    /// Whose. Only an operator, who asks by id alone, does not know.
    customer_id: Option<CustomerId>,
}

async fn history(
    State(api): State<Api>,
    caller: Caller,
    Json(query): Json<HistoryQuery>,
) -> Result<Json<HistoryPage>, ApiError> {
    caller.sees(&Action::ReadDelivery { owner: &query.customer_id })?;
    if query.limit == 0 || query.limit > MAX_PAGE {
        return Err(ApiError::invalid_field("limit", format!("must be between 1 and {MAX_PAGE}")));
    }
    let size = query.limit;
    let start = page_start(query.to, query.after);
    // One more than asked tells whether there is a next page.
    let found = api.store.list(&query.customer_id, query.from, start, size + 1).await;
    let mut records = found.map_err(|error| ApiError::unavailable(&error))?;
    let more = records.len() > size;
    records.truncate(size);
    let next = records.last().filter(|_| more).and_then(|last| Some((last.finished_at?, last.delivery_id)));
    Ok(Json(HistoryPage { items: records.into_iter().map(item).collect(), next }))
}

fn item(record: DeliveryRecord) -> HistoryItem {
    let delivery = DeliveryView::from(&record);
    HistoryItem { delivery, customer_id: record.customer_id, stages: record.stages, source: SOURCE.to_owned() }
}

async fn delivery(
    State(api): State<Api>,
    caller: Caller,
    Json(query): Json<DeliveryQuery>,
) -> Result<Json<DeliveryRecord>, ApiError> {
    match &query.customer_id {
        Some(owner) => caller.sees(&Action::ReadDelivery { owner })?,
        None => caller.sees(&Action::Operate)?,
    }
    let found = api.store.find(query.customer_id.as_ref(), query.delivery_id).await;
    let record = found.map_err(|error| ApiError::unavailable(&error))?;
    record.map(Json).ok_or_else(ApiError::not_found)
}

async fn contains(State(api): State<Api>, _: ServiceCaller, Json(asked): Json<Ids>) -> Result<Json<Ids>, ApiError> {
    if asked.ids.len() > MAX_COMMANDS {
        return Err(ApiError::invalid_field("ids", format!("must be at most {MAX_COMMANDS}")));
    }
    let ids = api.store.contains(&asked.ids).await.map_err(|error| ApiError::unavailable(&error))?;
    Ok(Json(Ids { ids }))
}
