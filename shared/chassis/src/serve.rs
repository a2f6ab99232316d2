//! The HTTP server that every service runs.

use std::{pin::pin, time::Duration};

use axum::{
    Router, extract::DefaultBodyLimit, http::StatusCode, response::IntoResponse, routing::get, serve::Listener,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{ApiError, Door, Readiness};

/// Where a process says that it runs: it is asked by nobody else, so that it is restarted for no fault but its own.
pub(crate) const LIVE: &str = "/health/live";

/// Where a service says whether requests are worth sending to it.
const READY: &str = "/health/ready";

/// The largest body where a route does not say otherwise: a full array of commands fits.
pub const BODY_LIMIT_BYTES: usize = 4 * 1024 * 1024;

/// Connections open at once, each a file descriptor and some 20 KiB: all streams that the gateway allows, and as many
/// again for requests. Those beyond wait in the system's queue until one ends.
const MAX_CONNECTIONS: usize = 8_192;

/// How long a connection may take over a request's head, and how long it may lie idle before the next one: longer than
/// the 60 s after which the usual load balancers give an idle connection up, so that it is they who close it.
const HEAD_DEADLINE: Duration = Duration::from_secs(75);

/// How long a caller may take none of what it is sent, whether it is gone or does not read, before its connection is cut:
/// streams send something every 15 s, so nobody keeps the place of one for longer. The system's default is a quarter of an
/// hour for who is gone, and no end for who does not read.
const TAKING_DEADLINE: Duration = Duration::from_secs(30);

/// How long open requests may go on after the shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(5);

/// What a server allows its callers.
#[derive(Debug, Clone, Copy)]
struct Limits {
    connections: usize,
    head_deadline: Duration,
    taking_deadline: Duration,
}

/// Opens the door and serves `router` until `shutdown`, then lets open requests end. Adds the health endpoints, and
/// problem+json for what no route takes.
pub async fn serve(
    door: Door,
    router: Router,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let app = router
        .route(LIVE, get(|| async { "live" }))
        .route(READY, readiness.route())
        .fallback(|| async { ApiError::not_found() })
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES));
    let limits =
        Limits { connections: MAX_CONNECTIONS, head_deadline: HEAD_DEADLINE, taking_deadline: TAKING_DEADLINE };
    accept(door.open()?, app, shutdown, limits).await;
    Ok(())
}

async fn accept(mut listener: TcpListener, app: Router, shutdown: CancellationToken, limits: Limits) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head_deadline);
    let mut connections = JoinSet::new();
    loop {
        let has_room = connections.len() < limits.connections;
        tokio::select! {
            () = shutdown.cancelled() => break,
            // The listener's own pause after an error keeps a lack of descriptors from becoming a busy loop.
            (stream, _) = Listener::accept(&mut listener), if has_room => {
                prepare(&stream, limits);
                connections.spawn(converse(http.clone(), stream, app.clone(), shutdown.clone()));
            }
            // One that panicked has ended, too; the panic has been told already.
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    drop(listener);
    let drained = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::debug!(open = connections.len(), "open connections are cut off");
    }
}

fn prepare(stream: &TcpStream, limits: Limits) {
    // Answers are small and written whole: waiting to fill a packet only adds delay.
    let set = stream.set_nodelay(true);
    // Only Linux has it.
    #[cfg(target_os = "linux")]
    let set = set.and(socket2::SockRef::from(stream).set_tcp_user_timeout(Some(limits.taking_deadline)));
    if let Err(error) = set {
        tracing::debug!(%error, "a connection was not set up");
    }
}

/// One connection, request after request.
async fn converse(http: http1::Builder, stream: TcpStream, app: Router, shutdown: CancellationToken) {
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app)));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%error, "a connection broke");
    }
}

async fn method_not_allowed() -> impl IntoResponse {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not know that method")
}

#[cfg(test)]
mod tests {
    use std::{
        net::SocketAddr,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
    };

    use axum::routing::post;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Far longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    const LIMITS: Limits = Limits { connections: 10, head_deadline: PATIENCE, taking_deadline: PATIENCE };

    struct Server {
        address: SocketAddr,
        shutdown: CancellationToken,
        tasks: JoinSet<()>,
    }

    async fn server(app: Router, limits: Limits) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(accept(listener, app, shutdown.clone(), limits));
        Server { address, shutdown, tasks }
    }

    async fn ask(stream: &mut TcpStream) {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    }

    /// Reads until the text ends in `end`.
    async fn hear(stream: &mut TcpStream, end: &str) -> String {
        let mut text = Vec::new();
        let hearing = async {
            while !text.ends_with(end.as_bytes()) {
                text.push(stream.read_u8().await.unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, hearing).await.expect("an answer");
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn a_connection_too_many_waits_until_one_ends() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let app = Router::new().route(
            "/",
            get(move || async move {
                counter.fetch_add(1, SeqCst);
                "heard"
            }),
        );
        let server = server(app, Limits { connections: 1, ..LIMITS }).await;
        let mut first = TcpStream::connect(server.address).await.unwrap();
        ask(&mut first).await;
        hear(&mut first, "heard").await;
        let mut second = TcpStream::connect(server.address).await.unwrap();
        ask(&mut second).await;
        for _ in 0..50 {
            ask(&mut first).await;
            hear(&mut first, "heard").await;
        }
        assert_eq!(asked.load(SeqCst), 51, "the second one is not served yet");
        drop(first);
        hear(&mut second, "heard").await;
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_ends_its_connection() {
        let limits = Limits { head_deadline: Duration::from_millis(100), ..LIMITS };
        let server = server(Router::new(), limits).await;
        for begun in ["", "GET / HTTP/1.1\r\nhost:"] {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(begun.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "'{begun}' is still waited for");
        }
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn who_takes_nothing_loses_its_place() {
        // More than what lies between two programs.
        const MANY: usize = 64 * 1024 * 1024;
        let app = Router::new().route("/", get(|| async { vec![b'x'; MANY] }));
        let taking_deadline = Duration::from_millis(200);
        let server = server(app, Limits { connections: 1, taking_deadline, ..LIMITS }).await;
        let mut deaf = TcpStream::connect(server.address).await.unwrap();
        ask(&mut deaf).await;
        deaf.readable().await.unwrap();
        let mut next = TcpStream::connect(server.address).await.unwrap();
        ask(&mut next).await;
        hear(&mut next, "x").await;
    }

    #[tokio::test]
    async fn who_sends_too_much_hears_so_after_the_last_byte() {
        let app = Router::new().route("/", post(|_: crate::Json<serde_json::Value>| async {}));
        let server = server(app, LIMITS).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let body = vec![b'x'; 4 * BODY_LIMIT_BYTES];
        let length = body.len();
        let head =
            format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        let answer = hear(&mut stream, "}").await;
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("the body is too large"), "{answer}");
    }

    #[tokio::test]
    async fn a_shutdown_lets_an_open_request_end_and_takes_no_more() {
        let (begun, may_end) = (CancellationToken::new(), CancellationToken::new());
        let (begins, ends) = (begun.clone(), may_end.clone());
        let app = Router::new().route(
            "/",
            get(move || async move {
                begins.cancel();
                ends.cancelled().await;
                "ended"
            }),
        );
        let mut server = server(app, LIMITS).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        ask(&mut stream).await;
        begun.cancelled().await;
        server.shutdown.cancel();
        may_end.cancel();
        assert!(hear(&mut stream, "ended").await.starts_with("HTTP/1.1 200 "));
        server.tasks.join_next().await.unwrap().unwrap();
        assert!(TcpStream::connect(server.address).await.is_err());
    }
}
