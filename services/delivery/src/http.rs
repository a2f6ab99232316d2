//! The service's HTTP interface, and the only mapping from its errors to statuses.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use auth::{Action, Identity};
use axum::{
    Router,
    extract::{FromRef, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use chassis::{
    ApiError, Json, Path, Query,
    auth::{Authenticator, Caller, ServiceCaller},
};
use contracts::{
    CustomerId, DeliveryId, Region,
    api::{CreateDelivery, DEFAULT_PAGE, MAX_IDEMPOTENCY_KEY_CHARS, MAX_PAGE, Page, Timeline},
    commands::{DeliveryStatus, Ids, MAX_COMMANDS},
    events::DeliveryRecord,
};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::{
    cancel::{self, CancelError},
    domain::Delivery,
    driver::Driver,
    ledger::Ledger,
    live::{Filter, Message},
    store::{IdempotencyKey, StoreError, Summary},
};

/// What handlers share.
#[derive(Clone)]
pub(crate) struct AppState {
    pub(crate) ledger: Ledger,
    pub(crate) driver: Driver,
    pub(crate) authenticator: Authenticator,
    pub(crate) region: Region,
    pub(crate) shutdown: CancellationToken,
}

impl FromRef<AppState> for Authenticator {
    fn from_ref(state: &AppState) -> Self {
        state.authenticator.clone()
    }
}

pub(crate) fn router(state: AppState) -> Router {
    Router::new()
        .route("/deliveries", post(create).get(list))
        .route("/deliveries/events", get(watch_all))
        .route("/deliveries/{id}", get(read).delete(cancel_delivery))
        .route("/deliveries/{id}/timeline", get(timeline))
        .route("/deliveries/{id}/events", get(watch_one))
        .route("/queries/statuses", post(statuses))
        .route("/operations/sagas", get(sagas))
        .with_state(state)
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::conflict("the delivery is being changed by somebody else; try again"),
            StoreError::KeyUsed { .. } => Self::invalid_field("Idempotency-Key", "was used before with another body"),
            StoreError::Unavailable(_) => Self::unavailable(&error),
        }
    }
}

impl From<CancelError> for ApiError {
    fn from(error: CancelError) -> Self {
        match error {
            CancelError::TooLate(_) => Self::conflict(error.to_string()),
            CancelError::Undecided => Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            CancelError::Gone => Self::not_found(),
            CancelError::Store(error) => error.into(),
        }
    }
}

/// The customer that the caller is; 403 for anybody else.
fn customer(caller: &Caller) -> Result<CustomerId, ApiError> {
    caller.may(&Action::OwnDeliveries)?;
    match &caller.identity {
        Identity::Customer(id) => Ok(id.clone()),
        _ => Err(ApiError::forbidden()),
    }
}

async fn create(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    Json(wish): Json<CreateDelivery>,
) -> Result<Response, ApiError> {
    let customer = customer(&caller)?;
    let now = state.ledger.clock.now();
    let key = idempotency_key(&headers, &wish)?;
    let faults = wish.faults(now);
    if !faults.is_empty() {
        // A wish that was accepted before, and whose deadline has passed since, gets its first answer again.
        return repeated(&state, &customer, key).await?.ok_or_else(|| ApiError::invalid(faults));
    }
    let id = state.ledger.clock.new_delivery_id();
    let (delivery, changes) = Delivery::request(id, customer, state.region.clone(), wish, now);
    match state.ledger.insert(&delivery, &changes, state.driver.first_lease(now), key).await {
        Ok(()) => {
            let record = delivery.record.clone();
            state.driver.start(delivery);
            Ok(accepted(record))
        }
        Err(StoreError::KeyUsed { delivery_id, same_body: true }) => {
            let first = state.ledger.load(delivery_id).await?.ok_or_else(ApiError::not_found)?;
            Ok(accepted(first.first_answer()))
        }
        Err(error) => Err(error.into()),
    }
}

/// The answer to a key that was used before.
async fn repeated(
    state: &AppState,
    customer: &CustomerId,
    key: Option<IdempotencyKey>,
) -> Result<Option<Response>, ApiError> {
    let Some(key) = key else { return Ok(None) };
    let Some((delivery_id, body_hash)) = state.ledger.store.key_use(customer, &key.key).await? else { return Ok(None) };
    if body_hash != key.body_hash {
        return Err(StoreError::KeyUsed { delivery_id, same_body: false }.into());
    }
    let first = state.ledger.load(delivery_id).await?;
    Ok(first.map(|delivery| accepted(delivery.first_answer())))
}

fn accepted(record: DeliveryRecord) -> Response {
    (StatusCode::ACCEPTED, axum::Json(record)).into_response()
}

fn idempotency_key(headers: &HeaderMap, wish: &CreateDelivery) -> Result<Option<IdempotencyKey>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let legal = |text: &&str| (1..=MAX_IDEMPOTENCY_KEY_CHARS).contains(&text.len());
    let Some(key) = value.to_str().ok().filter(legal) else {
        let message = format!("must have 1 to {MAX_IDEMPOTENCY_KEY_CHARS} visible ASCII characters");
        return Err(ApiError::invalid_field("Idempotency-Key", message));
    };
    // The wish as we read it: the same wish in other spacing is the same body.
    let body = serde_json::to_vec(wish).map_err(|error| ApiError::unavailable(&error))?;
    let digest = Sha256::digest(body);
    let body_hash = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Some(IdempotencyKey { key: key.to_owned(), body_hash }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    cursor: Option<DeliveryId>,
    limit: Option<usize>,
}

async fn list(
    State(state): State<AppState>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<DeliveryRecord>>, ApiError> {
    let customer = customer(&caller)?;
    let limit = query.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError::invalid_field("limit", format!("must be between 1 and {MAX_PAGE}")));
    }
    // One more than asked for tells whether there is a next page.
    let mut found = state.ledger.store.list(&customer, query.cursor, limit + 1).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let items: Vec<DeliveryRecord> = found.into_iter().map(|delivery| delivery.record).collect();
    let next_cursor = items.last().filter(|_| more).map(|record| record.delivery_id.to_string());
    Ok(Json(Page { items, next_cursor }))
}

/// The delivery, if there is one that the caller may see.
async fn visible(state: &AppState, caller: &Caller, id: DeliveryId) -> Result<Delivery, ApiError> {
    let delivery = state.ledger.load(id).await?.ok_or_else(ApiError::not_found)?;
    caller.sees(&Action::ReadDelivery { owner: &delivery.record.customer_id })?;
    Ok(delivery)
}

async fn read(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<DeliveryId>,
) -> Result<Json<DeliveryRecord>, ApiError> {
    Ok(Json(visible(&state, &caller, id).await?.record))
}

async fn cancel_delivery(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<DeliveryId>,
) -> Result<Json<DeliveryRecord>, ApiError> {
    let delivery = visible(&state, &caller, id).await?;
    caller.sees(&Action::ChangeDelivery { owner: &delivery.record.customer_id })?;
    Ok(Json(cancel::cancel(&state.ledger, &state.driver, delivery).await?))
}

async fn timeline(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<DeliveryId>,
) -> Result<Json<Timeline>, ApiError> {
    let delivery = visible(&state, &caller, id).await?;
    let steps = state.ledger.store.steps(id).await?;
    Ok(Json(Timeline {
        delivery_id: id,
        customer_id: delivery.record.customer_id,
        saga_definition: delivery.saga.definition,
        steps,
        stages: delivery.record.stages,
    }))
}

/// The current state, then every change, until the delivery is over.
async fn watch_one(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<DeliveryId>,
) -> Result<Response, ApiError> {
    // Watching begins before reading, so that no change falls between.
    let mut watch = state.ledger.live.watch(Filter::One(id));
    let first = visible(&state, &caller, id).await?.record;
    watch.note(&first);
    let start = (Some(Arc::new(first)), watch, state.ledger.clone());
    let records = stream::unfold(start, move |(pending, mut watch, ledger)| async move {
        if let Some(record) = pending {
            return Some((record, (None, watch, ledger)));
        }
        loop {
            let record = match watch.next().await {
                Message::Changed(record) => record,
                Message::Skipped => {
                    let record = ledger.load(id).await.ok()??.record;
                    if !watch.note(&record) {
                        continue;
                    }
                    Arc::new(record)
                }
                Message::Closed => return None,
            };
            return Some((record, (None, watch, ledger)));
        }
    });
    let until_over = stream::unfold((Box::pin(records), false), |(mut records, over)| async move {
        if over {
            return None;
        }
        let record = records.next().await?;
        let over = record.stage.is_terminal();
        Some((record, (records, over)))
    });
    Ok(chassis::stream::sse(until_over, state.shutdown))
}

/// Every change of the customer's deliveries; begins with those that are open among the newest. Where changes were
/// skipped it ends: whoever watches watches anew, and reads the list for as far back as they know deliveries.
async fn watch_all(State(state): State<AppState>, caller: Caller) -> Result<Response, ApiError> {
    let customer = customer(&caller)?;
    // Watching begins before reading, so that no change falls between.
    let mut watch = state.ledger.live.watch(Filter::AllOf(customer.clone()));
    let mut open = Vec::new();
    for Delivery { record, .. } in state.ledger.store.list(&customer, None, MAX_PAGE).await? {
        if watch.note(&record) && !record.stage.is_terminal() {
            open.push(Arc::new(record));
        }
    }
    let oldest_first = stream::iter(open.into_iter().rev());
    Ok(chassis::stream::sse(oldest_first.chain(watch.changes()), state.shutdown))
}

async fn statuses(
    State(state): State<AppState>,
    _: ServiceCaller,
    Json(query): Json<Ids>,
) -> Result<Json<Vec<DeliveryStatus>>, ApiError> {
    if query.ids.len() > MAX_COMMANDS {
        return Err(ApiError::invalid_field("ids", format!("must have at most {MAX_COMMANDS} items")));
    }
    let mut found = HashMap::with_capacity(query.ids.len());
    // One that cannot be read counts as unknown, on which nobody acts.
    for Delivery { record, .. } in state.ledger.store.load(&query.ids).await?.into_iter().flatten() {
        found.insert(record.delivery_id, record);
    }
    let mut answer = Vec::with_capacity(query.ids.len());
    for delivery_id in query.ids {
        answer.push(DeliveryStatus { delivery_id, record: found.get(&delivery_id).cloned() });
    }
    Ok(Json(answer))
}

/// What the operator sees of the sagas.
#[derive(Serialize)]
struct Sagas {
    #[serde(flatten)]
    summary: Summary,
    /// Events committed by this process, by kind.
    since_start: BTreeMap<&'static str, u64>,
}

async fn sagas(State(state): State<AppState>, caller: Caller) -> Result<Json<Sagas>, ApiError> {
    caller.may(&Action::Operate)?;
    let summary = state.ledger.store.summary(state.ledger.clock.now()).await?;
    Ok(Json(Sagas { summary, since_start: state.ledger.committed() }))
}
