//! The service over HTTP: commands and queries of other services, drones' reports and missions, customers' live views.

use std::{collections::HashMap, sync::Arc};

use auth::{Action, Identity};
use axum::{
    Router,
    extract::{FromRef, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use chassis::{
    ApiError, Json, Path,
    auth::{Authenticator, Caller, ServiceCaller},
    stream::sse,
};
use contracts::{
    Coordinate, DeliveryId, DroneId, Stage, Timestamp,
    api::MAX_TELEMETRY_LINES,
    commands::{
        CloseFlight, CloseOutcome, Commands, FlightReport, FlightStatus, Ids, MAX_COMMANDS, Mission, OpenFlight,
        OpenOutcome, Outcomes, ReportOutcome,
    },
    events::{FlightProgress, PositionFix},
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::Flight,
    live::Live,
    missions::Missions,
    store::{Audience, Store, Unavailable},
    tracker::Tracker,
};

/// What the routes work with.
#[derive(Clone)]
pub(crate) struct AppState {
    pub(crate) tracker: Tracker,
    pub(crate) missions: Missions,
    pub(crate) live: Live,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) authenticator: Authenticator,
    pub(crate) shutdown: CancellationToken,
}

impl FromRef<AppState> for Authenticator {
    fn from_ref(state: &AppState) -> Self {
        state.authenticator.clone()
    }
}

/// The routes.
pub(crate) fn router(state: AppState) -> Router {
    Router::new()
        .route("/commands/open-flight", post(open_flights))
        .route("/commands/close-flight", post(close_flights))
        .route("/commands/reports", post(take_reports))
        .route("/queries/flights", post(flight_statuses))
        .route("/flights/{delivery_id}", get(flight))
        .route("/flights/{delivery_id}/events", get(flight_events))
        .route("/missions", get(missions))
        .with_state(state)
}

/// A flight's report as it is sent: [`FlightReport`] with the fields of its fix beside the others. Read as a plain
/// structure, since a flattened one is read through a buffer, which costs more than all the rest of a report.
#[derive(Debug, Deserialize)]
struct ReportLine {
    delivery_id: DeliveryId,
    attempt: u32,
    drone_id: DroneId,
    #[serde(default)]
    stage: Option<Stage>,
    position: Coordinate,
    battery: f64,
    at: Timestamp,
    sequence: u64,
}

impl ReportLine {
    /// The first thing in it that no drone can mean, whatever its flight.
    fn fault(&self) -> Option<(&'static str, &'static str)> {
        if let Some(fault) = self.position.fault() {
            return Some(fault);
        }
        if !(0.0..=1.0).contains(&self.battery) {
            return Some(("battery", "must be between 0 and 1"));
        }
        if self.sequence == 0 || i64::try_from(self.sequence).is_err() {
            return Some(("sequence", "must be between 1 and 2^63 - 1"));
        }
        None
    }
}

impl From<ReportLine> for FlightReport {
    fn from(line: ReportLine) -> Self {
        Self {
            delivery_id: line.delivery_id,
            attempt: line.attempt,
            drone_id: line.drone_id,
            stage: line.stage,
            fix: PositionFix { position: line.position, battery: line.battery, at: line.at, sequence: line.sequence },
        }
    }
}

/// The list of missions.
#[derive(Debug, Serialize)]
struct MissionList {
    items: Vec<Mission>,
}

impl From<Unavailable> for ApiError {
    fn from(error: Unavailable) -> Self {
        Self::unavailable(&error)
    }
}

fn at_most(field: &str, count: usize, most: usize) -> Result<(), ApiError> {
    if count > most {
        return Err(ApiError::invalid_field(field, format!("must have at most {most} items")));
    }
    Ok(())
}

async fn open_flights(
    State(state): State<AppState>,
    _: ServiceCaller,
    Json(body): Json<Commands<OpenFlight>>,
) -> Result<Json<Outcomes<OpenOutcome>>, ApiError> {
    at_most("commands", body.commands.len(), MAX_COMMANDS)?;
    Ok(Json(Outcomes { outcomes: state.tracker.open(body.commands).await }))
}

async fn close_flights(
    State(state): State<AppState>,
    _: ServiceCaller,
    Json(body): Json<Commands<CloseFlight>>,
) -> Result<Json<Outcomes<CloseOutcome>>, ApiError> {
    at_most("commands", body.commands.len(), MAX_COMMANDS)?;
    Ok(Json(Outcomes { outcomes: state.tracker.close(body.commands).await }))
}

async fn take_reports(
    State(state): State<AppState>,
    caller: Caller,
    Json(body): Json<Commands<ReportLine>>,
) -> Result<Json<Outcomes<ReportOutcome>>, ApiError> {
    caller.may(&Action::Fly)?;
    at_most("commands", body.commands.len(), MAX_TELEMETRY_LINES)?;
    for (index, line) in body.commands.iter().enumerate() {
        if let Some((field, message)) = line.fault() {
            return Err(ApiError::invalid_field(format!("commands[{index}].{field}"), message));
        }
    }
    let reports = body.commands.into_iter().map(FlightReport::from).collect();
    Ok(Json(Outcomes { outcomes: state.tracker.report(caller.identity, reports).await }))
}

async fn flight_statuses(
    State(state): State<AppState>,
    _: ServiceCaller,
    Json(body): Json<Ids>,
) -> Result<Json<Vec<FlightStatus>>, ApiError> {
    at_most("ids", body.ids.len(), MAX_COMMANDS)?;
    let flights = state.store.load(&body.ids).await?;
    let flights: HashMap<_, _> = flights.iter().map(|flight| (flight.delivery_id, flight)).collect();
    let status = |delivery_id: DeliveryId| FlightStatus {
        delivery_id,
        progress: flights.get(&delivery_id).and_then(|flight| flight.progress()),
        open: flights.get(&delivery_id).is_some_and(|flight| flight.is_open()),
    };
    Ok(Json(body.ids.into_iter().map(status).collect()))
}

/// The flight, where there is one that the caller may see.
async fn visible(state: &AppState, caller: &Caller, id: DeliveryId) -> Result<(Flight, FlightProgress), ApiError> {
    let flight = state.tracker.flight(id).await?.ok_or_else(ApiError::not_found)?;
    let progress = flight.progress().ok_or_else(ApiError::not_found)?;
    caller.sees(&Action::ReadDelivery { owner: &progress.customer_id })?;
    Ok((flight, progress))
}

async fn flight(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<DeliveryId>,
) -> Result<Json<FlightProgress>, ApiError> {
    Ok(Json(visible(&state, &caller, id).await?.1))
}

async fn flight_events(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<DeliveryId>,
) -> Result<Response, ApiError> {
    // Watched before it is read: a change in between is seen by the watcher.
    let watcher = state.live.watch(id);
    let (flight, _) = visible(&state, &caller, id).await?;
    state.live.publish(&[flight]);
    Ok(sse(watcher.into_stream(), state.shutdown.clone()))
}

async fn missions(State(state): State<AppState>, caller: Caller, headers: HeaderMap) -> Result<Response, ApiError> {
    caller.may(&Action::Fly)?;
    let audience = match caller.identity {
        Identity::Drone(drone_id) => Audience::Drone(drone_id),
        Identity::BaseStation(base_id) => Audience::Base(base_id),
        _ => return Err(ApiError::forbidden()),
    };
    if wants_stream(&headers) {
        return Ok(sse(state.missions.watch(audience), state.shutdown.clone()));
    }
    let items = state.missions.list(&audience).await?;
    Ok(Json(MissionList { items }).into_response())
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.any(|value| value.contains("text/event-stream"))
}

#[cfg(test)]
mod tests;
