//! Telemetry: what drones report, split between fleet and tracking.

use std::time::Duration;

use auth::{Action, Identity};
use axum::{
    extract::{Request, State},
    http::StatusCode,
};
use chassis::{ApiError, Json, Peer, PeerError, extract::body_of};
use contracts::{
    DroneId,
    api::{MAX_TELEMETRY_LINES, TelemetryAnswer, TelemetryLine},
    commands::{Commands, Outcomes, ReportOutcome},
};
use reqwest::Method;
use serde::Serialize;

use super::{
    Gateway,
    request::{User, check_media_type, read_json},
};
use crate::domain::telemetry;

/// The types that telemetry may say it is of.
const MEDIA_TYPES: [&str; 3] = ["application/x-ndjson", "application/ndjson", "application/json"];

/// How long an owner may take to store a full request of 10,000 reports: the more it takes, the less good is sending
/// them all again at once.
const REPORT_DEADLINE: Duration = Duration::from_secs(10);

/// Reports of drones, one JSON object a line. What is accepted is stored.
#[utoipa::path(
    post, path = "/api/telemetry", tag = "flying", operation_id = "reportTelemetry",
    request_body(content = TelemetryLine, content_type = "application/x-ndjson",
        description = "At most 10,000 lines and 4 MiB."),
    responses((status = 200, description = "What became of every line.", body = TelemetryAnswer))
)]
pub(super) async fn report(
    State(gateway): State<Gateway>,
    user: User,
    request: Request,
) -> Result<Json<TelemetryAnswer>, ApiError> {
    user.may(&Action::Fly)?;
    check_media_type(request.headers(), &MEDIA_TYPES)?;
    let body = body_of(request).await?;
    let mut split = telemetry::split(&body, gateway.clock.now(), &user.identity, explain).map_err(|_| {
        let mut error = ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "there are too many lines");
        let message = format!("must have at most {MAX_TELEMETRY_LINES} lines");
        error.0.errors.push(contracts::api::FieldError::new("body", message));
        error
    })?;
    let services = &gateway.services;
    // What a drone says of itself is judged line by line; which drones are a base station's, only fleet knows.
    if matches!(user.identity, Identity::BaseStation(_)) {
        let drones: Vec<DroneId> = split.drones.iter().map(|report| report.drone_id).collect();
        split.leave_out(&gateway.bases.doubts(&user.identity, &services.fleet, &drones).await);
    }
    let (drones, flights) = (std::mem::take(&mut split.drones), std::mem::take(&mut split.flights));
    let (fleet, tracking) = tokio::join!(say(&services.fleet, &user, drones), say(&services.tracking, &user, flights));
    Ok(Json(split.answer(fleet?.as_deref(), tracking?.as_deref())))
}

/// Reports to one owner, with the caller's own token: it knows whose drone is whose. `None` where it did not answer.
async fn say<C: Serialize>(peer: &Peer, user: &User, reports: Vec<C>) -> Result<Option<Vec<ReportOutcome>>, ApiError> {
    let asked = reports.len();
    if asked == 0 {
        return Ok(Some(Vec::new()));
    }
    let request = peer.request_as(&user.token, Method::POST, "/commands/reports");
    let request = request.json(&Commands { commands: reports }).timeout(REPORT_DEADLINE);
    let response = match peer.send(request).await {
        Ok(response) => response,
        Err(error @ PeerError::Refused { .. }) => return Err(error.into()),
        Err(PeerError::Unavailable { .. }) => return Ok(None),
    };
    let outcomes = response.json::<Outcomes<ReportOutcome>>().await.ok().map(|answer| answer.outcomes);
    Ok(outcomes.filter(|outcomes| outcomes.len() == asked))
}

/// What is wrong with a line that cannot be read: the field, where it is one field's fault.
fn explain(line: &[u8]) -> String {
    let Err(error) = read_json::<TelemetryLine>(line) else { return "the line cannot be read".to_owned() };
    match error.0.errors.first() {
        Some(fault) => format!("{}: {}", fault.field, fault.message),
        None => error.0.detail.unwrap_or(error.0.title).replace("the body", "the line"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_line_is_explained_by_its_field() {
        for (line, field) in [
            (r#"{"drone_id":"x"}"#, "drone_id: "),
            (r#"{"color":1}"#, "color: "),
            ("{}", "drone_id: "),
            (r#"{"stage":"Flying"}"#, "stage: "),
            (r#"{"stage":1}"#, "stage: "),
            ("{", "the line is not JSON"),
        ] {
            let reason = explain(line.as_bytes());
            assert!(reason.starts_with(field), "{line}: {reason}");
        }
    }
}
