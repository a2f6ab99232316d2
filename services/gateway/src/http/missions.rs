//! Missions: what a drone, or a base station's drones, are to do.

use auth::Action;
use axum::{
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use chassis::{ApiError, Json};
use contracts::{
    api::Problem,
    commands::{Mission, MissionUpdate},
};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Gateway,
    request::{User, wants_stream},
    streams,
};

/// The open missions of the caller.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Missions {
    /// All of them.
    items: Vec<Mission>,
}

/// The caller's missions: as a list, or with `Accept: text/event-stream` as a stream of changes and recalls.
#[utoipa::path(
    get, path = "/api/missions", tag = "flying", operation_id = "listMissions",
    responses(
        (status = 200, description = "All missions, or a stream that begins with all of them.",
            content((Missions = "application/json"), (MissionUpdate = "text/event-stream"))),
        (status = 429, description = "The caller has too many streams open.", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(State(gateway): State<Gateway>, user: User, headers: HeaderMap) -> Result<Response, ApiError> {
    user.may(&Action::Fly)?;
    let tracking = &gateway.services.tracking;
    if wants_stream(&headers) {
        return streams::pass_on(&gateway, &user, tracking, "/missions".to_owned()).await;
    }
    let missions: Missions = tracking.fetch(tracking.request_as(&user.token, Method::GET, "/missions")).await?;
    Ok(Json(missions).into_response())
}
