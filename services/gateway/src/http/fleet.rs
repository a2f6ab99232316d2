//! The fleet: seeing drones, registering and retiring them.

use auth::{Action, Identity};
use axum::{extract::State, http::StatusCode, response::Response};
use chassis::{ApiError, Json, Path, Query, auth::Caller, client::CALL_DEADLINE};
use contracts::{
    BaseId, DroneId,
    api::{Page, Problem, RegisterDrone},
    commands::{DroneBase, FleetDrone},
};
use reqwest::Method;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    Gateway,
    request::{Strict, User, check_cursor, page_size, with_query},
    streams,
};
use crate::aggregate::judge;

/// Which drones, and which page of them.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct FleetParameters {
    /// Only the drones of that base. A base station sees only its own.
    base_id: Option<BaseId>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// At most this many items.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<usize>,
}

/// Which drones.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct FleetStreamParameters {
    /// Only the drones of that base. A base station sees only its own.
    base_id: Option<BaseId>,
}

/// The drones, with position and battery.
#[utoipa::path(
    get, path = "/api/fleet", tag = "fleet", operation_id = "listDrones",
    params(FleetParameters),
    responses((status = 200, description = "A page.", body = Page<FleetDrone>))
)]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    user: User,
    query: Result<Query<FleetParameters>, ApiError>,
) -> Result<Json<Page<FleetDrone>>, ApiError> {
    runs_drones(&user)?;
    let Query(query) = query?;
    let base = visible_base(&user, query.base_id.as_ref())?;
    let limit = page_size(query.limit)?.to_string();
    check_cursor(query.cursor.as_deref())?;
    let parameters =
        [("base_id", base.map(BaseId::as_str)), ("cursor", query.cursor.as_deref()), ("limit", Some(limit.as_str()))];
    let fleet = &gateway.services.fleet;
    let request = fleet.request_as(&user.token, Method::GET, &with_query("/drones", &parameters));
    let mut page: Page<FleetDrone> = fleet.fetch(request).await?;
    page.items.retain(|drone| sees_drone(&user, drone));
    Ok(Json(page))
}

/// The drones, live: an array of all of them, then arrays of those that changed.
#[utoipa::path(
    get, path = "/api/fleet/events", tag = "fleet", operation_id = "watchDrones",
    params(FleetStreamParameters),
    responses(
        (status = 200, description = "Server-sent events, each an array of drones.", body = Vec<FleetDrone>,
            content_type = "text/event-stream"),
        (status = 429, description = "The caller has too many streams open.", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn events(
    State(gateway): State<Gateway>,
    user: User,
    query: Result<Query<FleetStreamParameters>, ApiError>,
) -> Result<Response, ApiError> {
    runs_drones(&user)?;
    let Query(query) = query?;
    let base = visible_base(&user, query.base_id.as_ref())?;
    let path = with_query("/drones/events", &[("base_id", base.map(BaseId::as_str))]);
    streams::pass_on(&gateway, &user, &gateway.services.fleet, path, seen_by).await
}

/// Register a drone, or change what is registered of it.
#[utoipa::path(
    put, path = "/api/fleet/{drone_id}", tag = "fleet", operation_id = "registerDrone",
    params(("drone_id" = DroneId, Path, description = "The drone.")),
    request_body = RegisterDrone,
    responses(
        (status = 200, description = "Registered.", body = FleetDrone),
        (status = 404, description = "It is another base's.", body = Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "It is reserved, and cannot move to another base now.", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn register(
    State(gateway): State<Gateway>,
    user: User,
    Path(drone_id): Path<DroneId>,
    body: Result<Strict<RegisterDrone>, ApiError>,
) -> Result<Json<FleetDrone>, ApiError> {
    runs_drones(&user)?;
    let Strict(drone) = body?;
    let faults = drone.faults();
    if !faults.is_empty() {
        return Err(ApiError::invalid(faults));
    }
    user.may(&Action::RegisterDrone { base: &drone.base_id, current: None })?;
    if let Some(known) = find(&gateway, drone_id).await? {
        user.sees(&Action::RegisterDrone { base: &drone.base_id, current: Some(&known.base_id) })?;
    }
    let fleet = &gateway.services.fleet;
    let request = fleet.request_as(&user.token, Method::PUT, &format!("/drones/{drone_id}")).json(&drone);
    let registered: FleetDrone = fleet.fetch(request).await?;
    judge(&user, &Action::ReadFleet { base: Some(&registered.base_id) })?;
    gateway.bases.remember(vec![DroneBase { drone_id: registered.drone_id, base_id: registered.base_id.clone() }]);
    Ok(Json(registered))
}

/// Retire a drone for good. One that is in use fails, and its delivery gets another or is broken off.
#[utoipa::path(
    delete, path = "/api/fleet/{drone_id}", tag = "fleet", operation_id = "retireDrone",
    params(("drone_id" = DroneId, Path, description = "The drone.")),
    responses(
        (status = 204, description = "Retired."),
        (status = 404, description = "There is none, or it is another base's.", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn retire(
    State(gateway): State<Gateway>,
    user: User,
    Path(drone_id): Path<DroneId>,
) -> Result<StatusCode, ApiError> {
    runs_drones(&user)?;
    // Read first, and retired only if it is theirs: fleet asks the same, but what it let through would be done.
    let drone = find(&gateway, drone_id).await?.ok_or_else(ApiError::not_found)?;
    user.sees(&Action::RegisterDrone { base: &drone.base_id, current: Some(&drone.base_id) })?;
    let fleet = &gateway.services.fleet;
    let request = fleet.request_as(&user.token, Method::DELETE, &format!("/drones/{drone_id}"));
    fleet.send(request.timeout(CALL_DEADLINE)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The drone as it stands, where there is one. Fleet is asked in the gateway's own name: it shows single drones to
/// services alone.
async fn find(gateway: &Gateway, drone_id: DroneId) -> Result<Option<FleetDrone>, ApiError> {
    let fleet = &gateway.services.fleet;
    match fleet.fetch(fleet.request(Method::GET, &format!("/drones/{drone_id}"))).await {
        Ok(drone) => Ok(Some(drone)),
        Err(error) if error.refused_with() == Some(404) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn sees_drone(caller: &Caller, drone: &FleetDrone) -> bool {
    judge(caller, &Action::ReadFleet { base: Some(&drone.base_id) }).is_ok()
}

/// A message of the stream without the drones that the caller may not see.
fn seen_by(caller: &Caller, mut drones: Vec<FleetDrone>) -> Option<Vec<FleetDrone>> {
    drones.retain(|drone| sees_drone(caller, drone));
    Some(drones)
}

/// 403 for a role that runs no drones, before its request is read.
fn runs_drones(user: &User) -> Result<(), ApiError> {
    match user.identity {
        Identity::Operator(_) | Identity::BaseStation(_) => Ok(()),
        _ => Err(ApiError::forbidden()),
    }
}

/// The base whose drones are asked for: the caller's own where it names none and may see no others.
fn visible_base<'a>(user: &'a User, asked: Option<&'a BaseId>) -> Result<Option<&'a BaseId>, ApiError> {
    let base = match (&user.identity, asked) {
        (Identity::BaseStation(me), None) => Some(me),
        _ => asked,
    };
    user.may(&Action::ReadFleet { base })?;
    Ok(base)
}
