//! Server-sent events: JSON messages from a stream, kept alive, ended at shutdown.

use std::{convert::Infallible, time::Duration};

use axum::response::{
    IntoResponse, Response,
    sse::{Event, KeepAlive, Sse},
};
use futures::{Stream, StreamExt};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// A comment this often keeps proxies from closing a quiet stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Answers a stream of messages as server-sent events, until it ends or `shutdown`.
pub fn sse<T: Serialize>(messages: impl Stream<Item = T> + Send + 'static, shutdown: CancellationToken) -> Response {
    let events = messages.map(|message| -> Result<Event, Infallible> {
        // Messages are plain structs; where one cannot be written, the watcher gets a comment instead.
        Ok(Event::default().json_data(&message).unwrap_or_else(|_| Event::default().comment("unreadable")))
    });
    let until_shutdown = events.take_until(shutdown.cancelled_owned());
    Sse::new(until_shutdown).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}
