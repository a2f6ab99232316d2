//! The public routes, and what all their handlers share.

mod deliveries;
mod dev;
mod fleet;
mod history;
mod missions;
mod operations;
mod pages;
mod places;
mod request;
mod streams;
mod telemetry;

use std::{ops::Deref, sync::Arc};

use axum::{
    Router,
    extract::FromRef,
    http::{HeaderValue, header},
    middleware,
    response::Response,
    routing::{MethodRouter, get, post, put},
};
use bytes::Bytes;
use chassis::{Node, Readiness, auth::Authenticator};
use contracts::{Clock, Region};
use messaging::EventLog;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{Config, aggregate::Services, bases::Bases};

pub use pages::openapi;

/// What handlers share; cheap to clone.
#[derive(Clone)]
pub(crate) struct Gateway(Arc<Inner>);

pub(crate) struct Inner {
    authenticator: Authenticator,
    services: Services,
    bases: Bases,
    clock: Arc<dyn Clock>,
    log: Arc<dyn EventLog>,
    issuer: auth::DevIssuer,
    region: Region,
    shutdown: CancellationToken,
    places: places::Places,
    /// Readers of dead letters join the same consumer group, and would take the letters from each other.
    dead_letters: Mutex<()>,
    openapi: Bytes,
}

impl Gateway {
    /// The gateway of a node.
    pub(crate) fn new(node: &Node) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Inner {
            authenticator: Authenticator::of(node),
            services: Services::new(node)?,
            bases: Bases::default(),
            clock: node.clock.clone(),
            log: node.log.clone(),
            issuer: node.issuer.clone(),
            region: node.region.clone(),
            shutdown: node.shutdown.clone(),
            places: places::Places::new(),
            dead_letters: Mutex::new(()),
            openapi: Bytes::from(openapi().to_json()?),
        })))
    }

    /// Without delivery nothing can be ordered or answered; without any other an answer lacks a part.
    pub(crate) fn readiness(&self) -> Readiness {
        let Services { delivery, package, fleet, tracking, history, lookup } = &self.services;
        let parts = [package, fleet, tracking, history, lookup];
        Readiness::new().vital_peer(delivery).peers(parts).event_log(&self.log)
    }
}

impl Deref for Gateway {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl FromRef<Gateway> for Authenticator {
    fn from_ref(gateway: &Gateway) -> Self {
        gateway.authenticator.clone()
    }
}

/// Every route. A table, so that a test can hold it against the API's description.
fn routes(dev_issuer: bool) -> Vec<(&'static str, MethodRouter<Gateway>)> {
    let mut routes = vec![
        ("/api/deliveries", get(deliveries::list).post(deliveries::create)),
        ("/api/deliveries/{id}", get(deliveries::read).delete(deliveries::cancel)),
        ("/api/deliveries/{id}/timeline", get(deliveries::timeline)),
        ("/api/deliveries/{id}/events", get(streams::delivery)),
        ("/api/events", get(streams::mine)),
        ("/api/history", get(history::list)),
        ("/api/missions", get(missions::list)),
        ("/api/telemetry", post(telemetry::report)),
        ("/api/fleet", get(fleet::list)),
        ("/api/fleet/events", get(fleet::events)),
        ("/api/fleet/{drone_id}", put(fleet::register).delete(fleet::retire)),
        ("/api/operations/sagas", get(operations::sagas)),
        ("/api/operations/lag", get(operations::lag)),
        ("/api/operations/dead-letters", get(operations::dead_letters)),
        ("/api/operations/dead-letters/redrive", post(operations::redrive)),
        ("/api/operations/drones/{id}/fail", post(operations::fail_drone)),
        ("/api/status", get(pages::status)),
        ("/openapi.json", get(pages::description)),
        ("/docs", get(pages::docs)),
        ("/", get(pages::index)),
        ("/assets/{name}", get(pages::asset)),
    ];
    if dev_issuer {
        routes.push(("/api/dev/token", post(dev::token)));
    }
    routes
}

/// The service's routes.
pub(crate) fn router(gateway: Gateway, config: &Config) -> Router {
    let mut router = Router::new();
    for (path, handlers) in routes(config.dev_issuer) {
        router = router.route(path, handlers);
    }
    router.layer(middleware::map_response(harden)).with_state(gateway)
}

/// What a browser may do with an answer: run nothing and load nothing that does not come from here.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The methods that a path has handlers for, as they are shown by the router's own types.
    fn methods(handlers: &MethodRouter<Gateway>) -> Vec<&'static str> {
        let shown = format!("{handlers:?}");
        let has = |name: &str| shown.split(", ").any(|part| part.contains(&format!("{name}: BoxedHandler")));
        ["get", "put", "post", "delete", "patch"].into_iter().filter(|name| has(name)).collect()
    }

    #[test]
    fn every_route_is_described_and_every_description_has_a_route() {
        let mut routed = Vec::new();
        for (path, handlers) in routes(true) {
            routed.extend(methods(&handlers).into_iter().map(|method| format!("{method} {path}")));
        }
        // Every service has that one from the chassis.
        routed.push("get /health/ready".to_owned());
        let described = serde_json::to_value(openapi()).unwrap();
        let mut expected = Vec::new();
        for (path, item) in described["paths"].as_object().unwrap() {
            expected.extend(item.as_object().unwrap().keys().map(|method| format!("{method} {path}")));
        }
        routed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(routed, expected);
    }
}
