//! The HTTP server that every service runs.

use std::time::Duration;

use axum::{
    Router, extract::DefaultBodyLimit, http::StatusCode, response::IntoResponse, routing::get, serve::ListenerExt,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::ApiError;

/// The largest body where a route does not say otherwise: a full array of commands fits.
pub const BODY_LIMIT_BYTES: usize = 4 * 1024 * 1024;

/// How long open requests may go on after the shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves `router` until `shutdown`, then lets open requests end. Adds the health endpoints and problem+json for what
/// no route takes.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> anyhow::Result<()> {
    let app = router
        .route("/health/live", get(|| async { "live" }))
        .fallback(|| async { ApiError::not_found() })
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES));
    let listener = listener.tap_io(|stream| {
        // Answers are small and written whole: waiting to fill a packet only adds delay.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was not set");
        }
    });
    let asked = shutdown.clone();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async move { asked.cancelled().await });
    tokio::select! {
        result = serving => result?,
        () = cut_off(shutdown) => tracing::debug!("open connections were cut off"),
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the bound of a shutdown is real time, whatever the service's clock says"
)]
async fn cut_off(shutdown: CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(DRAIN).await;
}

async fn method_not_allowed() -> impl IntoResponse {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not know that method")
}
