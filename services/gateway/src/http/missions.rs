//! Missions: what a drone, or a base station's drones, are to do.

use auth::Action;
use axum::{
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use chassis::{ApiError, Json, auth::Caller};
use contracts::{
    BaseId, DroneId,
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
use crate::aggregate::judge;

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
        return streams::pass_on(&gateway, &user, tracking, "/missions".to_owned(), flown_by).await;
    }
    let mut missions: Missions = tracking.fetch(tracking.request_as(&user.token, Method::GET, "/missions")).await?;
    missions.items.retain(|mission| flies(&user, mission.drone_id, &mission.base_id));
    Ok(Json(missions).into_response())
}

fn flies(caller: &Caller, drone: DroneId, base: &BaseId) -> bool {
    judge(caller, &Action::SpeakForDrone { drone, base }).is_ok()
}

/// A message of the stream without the missions that others fly; none where it is of theirs alone.
fn flown_by(caller: &Caller, mut update: MissionUpdate) -> Option<MissionUpdate> {
    let told = match &mut update {
        MissionUpdate::Snapshot { missions } => {
            missions.retain(|mission| flies(caller, mission.drone_id, &mission.base_id));
            true
        }
        MissionUpdate::Assigned { mission } => flies(caller, mission.drone_id, &mission.base_id),
        MissionUpdate::Recalled { drone_id, base_id, .. } => flies(caller, *drone_id, base_id),
    };
    told.then_some(update)
}
