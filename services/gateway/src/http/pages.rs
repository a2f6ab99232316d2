//! What is not about drones: the API's description, the pages that show it, status and readiness.

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use chassis::{ApiError, Json, Path};
use contracts::{
    Region,
    api::{Health, NotReadyProblem, Problem},
};
use serde::Serialize;
use utoipa::{
    OpenApi as _, ToSchema,
    openapi::{
        ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder,
        path::Operation,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{Gateway, deliveries, dev, fleet, history, missions, operations, streams, telemetry};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Drone delivery",
        description = "Ask for deliveries and watch them, fly drones, run the system. Times are RFC 3339 in UTC, \
            distances metres, weights kilograms. Errors are problem+json (RFC 9457) and name the fields at fault. \
            Lists are `{items, next_cursor}`: give `next_cursor` back as `cursor` for the next page.",
    ),
    paths(
        deliveries::create, deliveries::list, deliveries::read, deliveries::cancel, deliveries::timeline,
        streams::delivery, streams::mine, history::list,
        missions::list, telemetry::report,
        fleet::list, fleet::events, fleet::register, fleet::retire,
        operations::sagas, operations::lag, operations::dead_letters, operations::redrive, operations::fail_drone,
        dev::token, status, ready, description, docs, index, asset,
    ),
    components(schemas(Problem)),
    tags(
        (name = "deliveries", description = "For customers: asking for deliveries and watching them."),
        (name = "history", description = "For customers: finished deliveries, however long ago."),
        (name = "flying", description = "For drones and base stations: missions and telemetry."),
        (name = "fleet", description = "For operators and base stations: drones."),
        (name = "operations", description = "For operators."),
        (name = "development", description = "Tokens, while the development issuer is on."),
        (name = "about", description = "For everybody, without a token."),
    )
)]
struct Description;

/// The description of the public API.
pub fn openapi() -> OpenApi {
    let mut openapi = Description::openapi();
    if let Some(components) = &mut openapi.components {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    }
    for (path, item) in &mut openapi.paths.paths {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            if path.starts_with("/api/") {
                add_problems(operation);
            }
        }
    }
    openapi
}

/// Adds what any route of the API may answer.
fn add_problems(operation: &mut Operation) {
    let open = operation.security.as_ref().is_some_and(|needed| needed.contains(&Default::default()));
    let mut problems = vec![("503", "Somebody who must be asked did not answer: try again.")];
    if !open {
        operation.security =
            Some(vec![utoipa::openapi::security::SecurityRequirement::new("bearer", Vec::<String>::new())]);
        problems.push(("401", "No bearer token, or not a good one."));
        problems.push(("403", "The caller's role may not do this."));
    }
    if operation.request_body.is_some() {
        problems.push(("400", "The body cannot be read."));
        problems.push(("413", "The body is too large."));
        problems.push(("415", "The body is of the wrong type."));
    }
    if operation.request_body.is_some() || operation.parameters.as_ref().is_some_and(|given| !given.is_empty()) {
        problems.push(("422", "Some fields are not valid: `errors` names them."));
    }
    for (status, words) in problems {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new().description(words).content("application/problem+json", content).build();
        operation.responses.responses.entry(status.to_owned()).or_insert(RefOr::T(response));
    }
}

/// What runs here.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Status {
    /// The service's name.
    service: &'static str,
    /// Its version.
    version: &'static str,
    /// The region that this node runs in.
    region: Region,
}

/// What runs here, for everybody.
#[utoipa::path(
    get, path = "/api/status", tag = "about", operation_id = "getStatus",
    responses((status = 200, description = "Name, version, region.", body = Status)),
    security(())
)]
pub(super) async fn status(State(gateway): State<Gateway>) -> Json<Status> {
    Json(Status { service: "gateway", version: env!("CARGO_PKG_VERSION"), region: gateway.region.clone() })
}

/// Whether requests are worth sending here, and what is away.
#[utoipa::path(
    get, path = "/health/ready", tag = "about", operation_id = "getReadiness",
    responses(
        (status = 200, description = "Ready, or degraded: answers may lack a part.", body = Health),
        (status = 503, description = "Not ready.", body = NotReadyProblem, content_type = "application/problem+json"),
    )
)]
#[expect(dead_code, reason = "described here, and answered by the chassis")]
fn ready() {}

/// This description.
#[utoipa::path(
    get, path = "/openapi.json", tag = "about", operation_id = "getDescription",
    responses((status = 200, description = "OpenAPI 3.1.", body = Object))
)]
pub(super) async fn description(State(gateway): State<Gateway>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], gateway.openapi.clone()).into_response()
}

/// This description as a page.
#[utoipa::path(
    get, path = "/docs", tag = "about", operation_id = "getDocs",
    responses((status = 200, description = "A page.", body = String, content_type = "text/html"))
)]
pub(super) async fn docs() -> Response {
    file("text/html; charset=utf-8", include_str!("../assets/docs.html"))
}

/// What runs here and where to look.
#[utoipa::path(
    get, path = "/", tag = "about", operation_id = "getIndex",
    responses((status = 200, description = "A page.", body = String, content_type = "text/html"))
)]
pub(super) async fn index() -> Response {
    file("text/html; charset=utf-8", include_str!("../assets/index.html"))
}

/// What the pages are made of.
#[utoipa::path(
    get, path = "/assets/{name}", tag = "about", operation_id = "getAsset",
    params(("name" = String, Path, description = "The file's name.")),
    responses(
        (status = 200, description = "The file.", body = String, content_type = "text/plain"),
        (status = 404, description = "There is none.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn asset(Path(name): Path<String>) -> Result<Response, ApiError> {
    match name.as_str() {
        "style.css" => Ok(file("text/css; charset=utf-8", include_str!("../assets/style.css"))),
        "index.js" => Ok(file("text/javascript; charset=utf-8", include_str!("../assets/index.js"))),
        "docs.js" => Ok(file("text/javascript; charset=utf-8", include_str!("../assets/docs.js"))),
        "icon.svg" => Ok(file("image/svg+xml", include_str!("../assets/icon.svg"))),
        _ => Err(ApiError::not_found()),
    }
}

/// A file as it was built in. It changes only with the program, so a browser asks again each time.
fn file(media_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}
