//! Deliveries: asking for one, reading, listing and cancelling them.

use auth::{Action, Identity};
use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use chassis::{ApiError, Json, Path, Query};
use contracts::{
    DeliveryId,
    api::{CreateDelivery, DeliveryView, Page, Problem, Timeline},
    events::DeliveryRecord,
};
use reqwest::Method;

use super::{
    Gateway,
    request::{IDEMPOTENCY_KEY, ListQuery, Strict, User, idempotency_key},
};
use crate::aggregate::{judge, readable, sees};

/// The saga's definition of a timeline whose steps are not kept any more.
const STEPS_NOT_KEPT: u32 = 0;

/// Ask for a delivery. 202 means that it is stored and will be decided, whatever fails meanwhile.
#[utoipa::path(
    post, path = "/api/deliveries", tag = "deliveries", operation_id = "createDelivery",
    params(("Idempotency-Key" = Option<String>, Header, max_length = 128,
        description = "Within 24 hours the same key with the same body is answered with the first answer.")),
    request_body = CreateDelivery,
    responses((status = 202, description = "Accepted, durable; Location says where it is.", body = DeliveryView,
        headers(("Location" = String, description = "/api/deliveries/{id}"))))
)]
pub(super) async fn create(
    State(gateway): State<Gateway>,
    user: User,
    headers: HeaderMap,
    body: Result<Strict<CreateDelivery>, ApiError>,
) -> Result<Response, ApiError> {
    user.customer()?;
    let key = idempotency_key(&headers)?;
    let Strict(wish) = body?;
    let mut faults = wish.faults(gateway.clock.now());
    if key.is_some() {
        // A wish said again gets its first answer, though its deadline may have passed since: only delivery knows
        // whether it is the first time.
        faults.retain(|fault| fault.field != "deadline");
    }
    if !faults.is_empty() {
        return Err(ApiError::invalid(faults));
    }
    let delivery = &gateway.services.delivery;
    let mut request = delivery.request_as(&user.token, Method::POST, "/deliveries").json(&wish);
    if let Some(key) = key {
        request = request.header(IDEMPOTENCY_KEY, key);
    }
    let record: DeliveryRecord = delivery.fetch(request).await?;
    // Judged like every answer: a key that somebody else has used, too, must not show what they asked for with it.
    sees(&user, &record)?;
    let mut response = (StatusCode::ACCEPTED, Json(DeliveryView::from(&record))).into_response();
    if let Ok(location) = HeaderValue::try_from(format!("/api/deliveries/{}", record.delivery_id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// My deliveries, newest first, as delivery alone knows them.
#[utoipa::path(
    get, path = "/api/deliveries", tag = "deliveries", operation_id = "listDeliveries",
    params(ListQuery),
    responses((status = 200, description = "A page.", body = Page<DeliveryView>))
)]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    user: User,
    query: Result<Query<ListQuery>, ApiError>,
) -> Result<Json<Page<DeliveryView>>, ApiError> {
    user.customer()?;
    let path = format!("/deliveries{}", query?.0.passed_on()?);
    let delivery = &gateway.services.delivery;
    let page: Page<DeliveryRecord> = delivery.fetch(delivery.request_as(&user.token, Method::GET, &path)).await?;
    let mine = page.items.iter().filter(|record| sees(&user, record).is_ok());
    Ok(Json(Page { items: mine.map(DeliveryView::from).collect(), next_cursor: page.next_cursor }))
}

/// One delivery: live from four services while it is under way, afterwards from the history.
#[utoipa::path(
    get, path = "/api/deliveries/{id}", tag = "deliveries", operation_id = "getDelivery",
    params(("id" = DeliveryId, Path, description = "The delivery.")),
    responses(
        (status = 200, description = "The delivery; `degraded` names the parts that could not be had.",
            body = DeliveryView),
        (status = 404, description = "There is none, or it is somebody else's.", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn read(
    State(gateway): State<Gateway>,
    user: User,
    Path(id): Path<DeliveryId>,
) -> Result<Json<DeliveryView>, ApiError> {
    Ok(Json(gateway.services.delivery(&user, id).await?))
}

/// Cancel a delivery before its package is picked up.
#[utoipa::path(
    delete, path = "/api/deliveries/{id}", tag = "deliveries", operation_id = "cancelDelivery",
    params(("id" = DeliveryId, Path, description = "The delivery.")),
    responses(
        (status = 200, description = "Cancelled.", body = DeliveryView),
        (status = 404, description = "There is none, or it is somebody else's.", body = Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "Too late.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn cancel(
    State(gateway): State<Gateway>,
    user: User,
    Path(id): Path<DeliveryId>,
) -> Result<Json<DeliveryView>, ApiError> {
    if !matches!(user.identity, Identity::Customer(_)) {
        return Err(ApiError::not_found());
    }
    let delivery = &gateway.services.delivery;
    let path = format!("/deliveries/{id}");
    // Read first, and changed only if it is theirs: delivery asks the same, but what it let through would be done.
    let found = delivery.fetch::<DeliveryRecord>(delivery.request_as(&user.token, Method::GET, &path)).await;
    let cancelled = match found {
        Ok(record) => {
            judge(&user, &Action::ChangeDelivery { owner: &record.customer_id })?;
            delivery.fetch::<DeliveryRecord>(delivery.request_as(&user.token, Method::DELETE, &path)).await
        }
        Err(error) => Err(error),
    };
    match cancelled {
        Ok(record) => {
            sees(&user, &record)?;
            Ok(Json(DeliveryView::from(&record)))
        }
        Err(error) if error.refused_with() == Some(404) => {
            // Over for so long that delivery has forgotten it, unless there never was one.
            gateway.services.finished(&user, id).await?;
            Err(ApiError::conflict("the delivery is over"))
        }
        Err(error) => Err(error.into()),
    }
}

/// The saga's steps of a delivery with their outcomes, and every stage with its time.
#[utoipa::path(
    get, path = "/api/deliveries/{id}/timeline", tag = "deliveries", operation_id = "getTimeline",
    params(("id" = DeliveryId, Path, description = "The delivery.")),
    responses(
        (status = 200, description = "The timeline. Long after the end only the stages are kept, and \
            `saga_definition` is 0.", body = Timeline),
        (status = 404, description = "There is none, or it is somebody else's.", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn timeline(
    State(gateway): State<Gateway>,
    user: User,
    Path(id): Path<DeliveryId>,
) -> Result<Json<Timeline>, ApiError> {
    readable(&user)?;
    let delivery = &gateway.services.delivery;
    let request = delivery.request_as(&user.token, Method::GET, &format!("/deliveries/{id}/timeline"));
    match delivery.fetch::<Timeline>(request).await {
        Ok(timeline) => {
            judge(&user, &Action::ReadDelivery { owner: &timeline.customer_id })?;
            Ok(Json(timeline))
        }
        Err(error) if error.refused_with() == Some(404) => {
            let record = gateway.services.finished(&user, id).await?;
            Ok(Json(Timeline {
                delivery_id: id,
                customer_id: record.customer_id,
                saga_definition: STEPS_NOT_KEPT,
                steps: vec![],
                stages: record.stages,
            }))
        }
        Err(error) => Err(error.into()),
    }
}
