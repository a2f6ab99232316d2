//! What is down, what hangs, and how often it is asked.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use ::auth::{DevIssuer, SigningKey};
use axum::{Router, body::to_bytes, extract::Request, http::header};
use contracts::SystemClock;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use tower::ServiceExt;

use super::*;
use crate::Door;

/// A check that fails, hangs or succeeds, and counts.
#[derive(Clone, Default)]
struct Fake {
    asked: Arc<AtomicUsize>,
    is_broken: Arc<AtomicBool>,
    hangs: bool,
}

impl Fake {
    fn broken() -> Self {
        let fake = Self::default();
        fake.is_broken.store(true, SeqCst);
        fake
    }

    async fn ping(self) -> Result<(), String> {
        self.asked.fetch_add(1, SeqCst);
        if self.hangs {
            std::future::pending::<()>().await;
        }
        if self.is_broken.load(SeqCst) { Err("broken".to_owned()) } else { Ok(()) }
    }
}

fn with_store(store: &Fake) -> Readiness {
    Readiness::new().store(store, Fake::ping)
}

fn router(readiness: Readiness) -> Router {
    Router::new().route("/", readiness.route())
}

async fn ask(router: &Router) -> (u16, Value) {
    let request = Request::builder().uri("/").body(axum::body::Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let media_type = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
    let expected = if status == 503 { "application/problem+json" } else { "application/json" };
    assert_eq!(media_type, expected);
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

/// The time until the last answer is asked for anew has passed.
async fn grow_stale() {
    let at = tokio::time::Instant::now() + FRESH;
    tokio::time::timeout_at(at, std::future::pending::<()>()).await.unwrap_err();
}

async fn peer_at(urls: &[String]) -> Peer {
    crate::init().unwrap();
    let issuer = DevIssuer::new(&SigningKey::generate().unwrap()).unwrap();
    Peer::new("fleet", &urls.join("|"), "test", issuer, Arc::new(SystemClock)).unwrap()
}

/// The URL of a listener that takes connections and never answers, which lasts as long as the listener.
async fn hanging() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// The URL of a server that serves this and its health.
async fn living(tasks: &mut JoinSet<anyhow::Result<()>>, router: Router) -> String {
    let door = Door::bind("127.0.0.1:0").await.unwrap();
    let (url, opened) = (format!("http://{}", door.address().unwrap()), door.opened());
    tasks.spawn(crate::serve(door, router, Readiness::new(), tokio_util::sync::CancellationToken::new()));
    opened.await;
    url
}

#[tokio::test]
async fn what_is_up_is_ready_and_names_what_it_depends_on() {
    let router = router(with_store(&Fake::default()));
    let expected = json!({"status": "ready", "dependencies": [{"name": "store", "status": "up"}]});
    assert_eq!(ask(&router).await, (200, expected));
}

#[tokio::test]
async fn without_its_store_a_service_is_not_ready() {
    let router = router(with_store(&Fake::broken()));
    let expected = json!({"type": "about:blank", "title": "Service Unavailable", "status": 503,
        "detail": "not ready: store down", "dependencies": [{"name": "store", "status": "down", "error": "broken"}]});
    assert_eq!(ask(&router).await, (503, expected));
}

#[tokio::test]
async fn without_a_peer_a_service_is_degraded() {
    let (gone, url) = hanging().await;
    drop(gone);
    let readiness = with_store(&Fake::default()).peers([&peer_at(&[url]).await]);
    let (status, body) = ask(&router(readiness)).await;
    assert_eq!((status, &body["status"]), (200, &json!("degraded")));
    let expected = json!([{"name": "store", "status": "up"},
        {"name": "fleet", "status": "down", "error": "fleet did not answer"}]);
    assert_eq!(body["dependencies"], expected);
}

#[tokio::test]
async fn one_replica_that_lives_is_enough_and_none_is_too_few() {
    let mut tasks = JoinSet::new();
    let ((_silent, hangs), lives) = (hanging().await, living(&mut tasks, Router::new()).await);
    let some = peer_at(&[hangs.clone(), lives]).await;
    let (_, body) = ask(&router(Readiness::new().vital_peer(&some))).await;
    assert_eq!(body["status"], "ready");
    let started = Instant::now();
    let none = peer_at(&[hangs]).await;
    assert_eq!(ask(&router(Readiness::new().vital_peer(&none))).await.0, 503);
    assert!(started.elapsed() < 5 * DEADLINE, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_peer_whose_breakers_are_open_is_down_though_it_lives() {
    let mut tasks = JoinSet::new();
    let url = living(&mut tasks, Router::new().route("/hangs", get(std::future::pending::<()>))).await;
    let peer = peer_at(&[url]).await;
    for _ in 0..crate::breaker::FAILURES_TO_OPEN {
        peer.lives(DEADLINE).await.unwrap();
        let request = peer.request(reqwest::Method::GET, "/hangs").timeout(Duration::from_millis(50));
        peer.send(request).await.unwrap_err();
    }
    peer.lives(DEADLINE).await.unwrap_err();
}

#[tokio::test]
async fn what_hangs_is_down_at_the_deadline_and_all_are_asked_at_once() {
    let hangs = Fake { hangs: true, ..Fake::default() };
    let readiness = with_store(&hangs).store(&hangs, Fake::ping).store(&hangs, Fake::ping);
    let started = Instant::now();
    let (status, body) = ask(&router(readiness)).await;
    assert_eq!((status, &body["dependencies"][0]["error"]), (503, &json!("it does not answer within 1s")));
    assert!(started.elapsed() < 3 * DEADLINE, "{:?}", started.elapsed());
}

#[tokio::test]
async fn many_probes_ask_once_and_hear_of_a_change_a_second_later() {
    let store = Fake::default();
    let router = router(with_store(&store));
    let started = Instant::now();
    let answers = join_all((0..100).map(|_| ask(&router))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200));
    if started.elapsed() < FRESH {
        assert_eq!(store.asked.load(SeqCst), 1);
    }
    for (broken, status) in [(true, 503), (false, 200)] {
        store.is_broken.store(broken, SeqCst);
        grow_stale().await;
        assert_eq!(ask(&router).await.0, status);
    }
    assert_eq!(store.asked.load(SeqCst), 3);
}
