//! Fleet's HTTP: commands from services, reports from drones, the fleet for operators and base stations.

use std::sync::Arc;

use auth::{Action, Identity, allow};
use axum::{
    Router,
    extract::{FromRef, State},
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use chassis::{
    ApiError, Json, Path, Query,
    auth::{Authenticator, Caller, ServiceCaller},
    stream::sse,
};
use contracts::{
    BaseId, DroneId,
    api::{DEFAULT_PAGE, FieldError, MAX_PAGE, MAX_TELEMETRY_LINES, Page, RegisterDrone},
    commands::{
        Commands, DroneBase, DroneIds, DroneReport, DroneStatus, FleetDrone, MAX_COMMANDS, Outcomes, ReleaseDrone,
        ReleaseOutcome, ReportFault, ReportOutcome, ReserveDrone, ReserveOutcome,
    },
};
use messaging::BatcherClosed;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::{
    desk::Desk,
    domain::{Drone, Registration, RegistrationRefusal},
    feed::Feed,
    fleet::{Fleet, RegisterError},
    reports::Report,
    store::{Guard, Removal, StoreError},
};

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) desk: Desk,
    pub(crate) feed: Arc<Feed>,
    pub(crate) authenticator: Authenticator,
    pub(crate) shutdown: CancellationToken,
}

impl FromRef<App> for Authenticator {
    fn from_ref(app: &App) -> Self {
        app.authenticator.clone()
    }
}

/// Every route of the service.
pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/commands/reserve", post(reserve))
        .route("/commands/release", post(release))
        .route("/commands/reports", post(report))
        .route("/queries/bases", post(bases))
        .route("/drones", get(list))
        .route("/drones/events", get(watch))
        .route("/drones/{drone_id}", get(read).put(register).delete(retire))
        .route("/drones/{drone_id}/fail", post(fail))
        .with_state(app)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    base_id: Option<BaseId>,
    cursor: Option<DroneId>,
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WatchQuery {
    base_id: Option<BaseId>,
}

fn store_failed(error: &StoreError) -> ApiError {
    ApiError::unavailable(error)
}

fn closing(error: BatcherClosed) -> ApiError {
    ApiError::unavailable(&error)
}

fn at_most<C>(commands: &[C], most: usize) -> Result<(), ApiError> {
    if commands.len() > most {
        return Err(ApiError::invalid_field("commands", format!("must be at most {most}")));
    }
    Ok(())
}

async fn reserve(
    State(app): State<App>,
    _: ServiceCaller,
    Json(Commands { commands }): Json<Commands<ReserveDrone>>,
) -> Result<Json<Outcomes<ReserveOutcome>>, ApiError> {
    at_most(&commands, MAX_COMMANDS)?;
    let outcomes = app.desk.reserve(commands).await.map_err(closing)?;
    Ok(Json(Outcomes { outcomes }))
}

async fn release(
    State(app): State<App>,
    _: ServiceCaller,
    Json(Commands { commands }): Json<Commands<ReleaseDrone>>,
) -> Result<Json<Outcomes<ReleaseOutcome>>, ApiError> {
    at_most(&commands, MAX_COMMANDS)?;
    let outcomes = app.desk.release(commands).await.map_err(closing)?;
    Ok(Json(Outcomes { outcomes }))
}

async fn report(
    State(app): State<App>,
    caller: Caller,
    Json(Commands { commands }): Json<Commands<DroneReport>>,
) -> Result<Json<Outcomes<ReportOutcome>>, ApiError> {
    caller.may(&Action::Fly)?;
    at_most(&commands, MAX_TELEMETRY_LINES)?;
    check_reports(&commands)?;
    let ids = || commands.iter().map(|report| report.drone_id);
    app.fleet.learn(ids()).await.map_err(|error| store_failed(&error))?;
    let mut outcomes = app.fleet.index.of_bases(ids(), |drone, base| refusal(&caller.identity, drone, base));
    // That is how it was: whose the drone is now is judged where it cannot change any more, in the store's transaction.
    let base = match &caller.identity {
        Identity::BaseStation(own) => Some(own),
        _ => None,
    };
    let mut places = Vec::with_capacity(commands.len());
    let mut allowed = Vec::with_capacity(commands.len());
    for (place, said) in commands.into_iter().enumerate() {
        if outcomes[place].is_none() {
            places.push(place);
            allowed.push(Report { said, base: base.cloned() });
        }
    }
    if !allowed.is_empty() {
        let stored = app.desk.report(allowed).await.map_err(closing)?;
        for (place, outcome) in places.into_iter().zip(stored) {
            outcomes[place] = Some(outcome);
        }
    }
    let outcomes = outcomes.into_iter().map(|outcome| outcome.unwrap_or(ReportOutcome::Unavailable)).collect();
    Ok(Json(Outcomes { outcomes }))
}

/// Why a caller may not report for a drone. Somebody else's is as unknown as one that is not there: whoever tries ids
/// does not learn which of them are drones.
fn refusal(caller: &Identity, drone: DroneId, base: Option<&BaseId>) -> Option<ReportOutcome> {
    let may = base.is_some_and(|base| allow(caller, &Action::SpeakForDrone { drone, base }).is_ok());
    (!may).then_some(ReportOutcome::Rejected { reason: ReportFault::UnknownDrone })
}

/// What the gateway has checked of each line already, and no honest caller sends.
fn check_reports(reports: &[DroneReport]) -> Result<(), ApiError> {
    for (number, DroneReport { fix, .. }) in reports.iter().enumerate() {
        let fault = if let Some((field, message)) = fix.position.fault() {
            (field, message)
        } else if !(0.0..=1.0).contains(&fix.battery) {
            ("battery", "must be between 0 and 1")
        } else if fix.sequence == 0 || i64::try_from(fix.sequence).is_err() {
            ("sequence", "must be between 1 and 2^63 - 1")
        } else {
            continue;
        };
        return Err(ApiError::invalid(vec![FieldError::new(format!("commands[{number}].{}", fault.0), fault.1)]));
    }
    Ok(())
}

/// Where drones are based, those that are known: the gateway judges base stations by it.
async fn bases(
    State(app): State<App>,
    _: ServiceCaller,
    Json(asked): Json<DroneIds>,
) -> Result<Json<Vec<DroneBase>>, ApiError> {
    if asked.ids.len() > MAX_TELEMETRY_LINES {
        return Err(ApiError::invalid_field("ids", format!("must be at most {MAX_TELEMETRY_LINES}")));
    }
    let ids = || asked.ids.iter().copied();
    app.fleet.learn(ids()).await.map_err(|error| store_failed(&error))?;
    let known = app.fleet.index.of_bases(ids(), |drone_id, base| {
        let base_id = base?.clone();
        Some(DroneBase { drone_id, base_id })
    });
    Ok(Json(known.into_iter().flatten().collect()))
}

/// The base whose drones the caller may see: a base station that does not say gets its own.
fn visible_base(caller: &Caller, asked: Option<BaseId>) -> Result<Option<BaseId>, ApiError> {
    let base = match (asked, &caller.identity) {
        (None, Identity::BaseStation(own)) => Some(own.clone()),
        (asked, _) => asked,
    };
    caller.may(&Action::ReadFleet { base: base.as_ref() })?;
    Ok(base)
}

async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<FleetDrone>>, ApiError> {
    let base = visible_base(&caller, query.base_id)?;
    let limit = query.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError::invalid_field("limit", format!("must be between 1 and {MAX_PAGE}")));
    }
    // One more than asked tells whether there is a next page.
    let page = app.fleet.store.page(base.as_ref(), query.cursor, limit + 1).await;
    let mut drones = page.map_err(|error| store_failed(&error))?;
    let more = drones.len() > limit;
    drones.truncate(limit);
    let next_cursor = drones.last().filter(|_| more).map(|drone| drone.id.to_string());
    Ok(Json(Page { items: drones.iter().map(Drone::view).collect(), next_cursor }))
}

async fn watch(State(app): State<App>, caller: Caller, Query(query): Query<WatchQuery>) -> Result<Response, ApiError> {
    let base = visible_base(&caller, query.base_id)?;
    Ok(sse(app.feed.watch(base), app.shutdown))
}

async fn find(app: &App, id: DroneId) -> Result<Drone, ApiError> {
    let found = app.fleet.store.drones(&[id]).await.map_err(|error| store_failed(&error))?;
    found.into_iter().next().ok_or_else(ApiError::not_found)
}

async fn read(
    State(app): State<App>,
    _: ServiceCaller,
    Path(drone_id): Path<DroneId>,
) -> Result<Json<FleetDrone>, ApiError> {
    Ok(Json(find(&app, drone_id).await?.view()))
}

async fn register(
    State(app): State<App>,
    caller: Caller,
    Path(drone_id): Path<DroneId>,
    Json(facts): Json<RegisterDrone>,
) -> Result<Json<FleetDrone>, ApiError> {
    caller.may(&Action::RegisterDrone { base: &facts.base_id, current: None })?;
    let faults = facts.faults();
    if !faults.is_empty() {
        return Err(ApiError::invalid(faults));
    }
    // Whose the drone is now is judged where it cannot change any more: in the store's transaction.
    let may_move = allow(&caller.identity, &Action::Operate).is_ok();
    match app.desk.register(Registration { drone_id, facts, may_move }).await {
        Ok(drone) => Ok(Json(drone.view())),
        Err(RegisterError::Refused(RegistrationRefusal::Foreign)) => Err(ApiError::not_found()),
        Err(RegisterError::Refused(refusal @ RegistrationRefusal::Reserved)) => {
            Err(ApiError::conflict(refusal.to_string()))
        }
        Err(error @ RegisterError::Unavailable) => Err(ApiError::unavailable(&error)),
    }
}

async fn remove(app: &App, drone_id: DroneId, to: DroneStatus, reason: &str, guard: Guard) -> Result<Drone, ApiError> {
    let removal = Removal { drone_id, to, reason: reason.to_owned(), guard };
    let removed = app.fleet.remove(&[removal]).await.map_err(|error| store_failed(&error))?;
    removed.into_iter().next().flatten().ok_or_else(ApiError::not_found)
}

async fn retire(State(app): State<App>, caller: Caller, Path(drone_id): Path<DroneId>) -> Result<StatusCode, ApiError> {
    // Whose the drone is now is judged where it cannot change any more: in the store's transaction.
    let guard = match &caller.identity {
        Identity::BaseStation(own) => Guard::BasedAt(own.clone()),
        _ => {
            // A customer or a drone retires nothing, whatever exists.
            caller.may(&Action::Operate)?;
            Guard::Always
        }
    };
    let drone = remove(&app, drone_id, DroneStatus::Retired, "the drone was retired", guard).await?;
    caller.sees(&Action::RegisterDrone { base: &drone.base_id, current: Some(&drone.base_id) })?;
    Ok(StatusCode::NO_CONTENT)
}

async fn fail(
    State(app): State<App>,
    caller: Caller,
    Path(drone_id): Path<DroneId>,
) -> Result<Json<FleetDrone>, ApiError> {
    caller.may(&Action::Operate)?;
    let reason = "an operator declared the drone failed";
    let drone = remove(&app, drone_id, DroneStatus::Failed, reason, Guard::Always).await?;
    if drone.status == DroneStatus::Retired {
        return Err(ApiError::conflict("the drone is retired"));
    }
    Ok(Json(drone.view()))
}
