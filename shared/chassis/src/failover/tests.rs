//! Peers with real listeners, some of them dead.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use ::auth::{DevIssuer, SigningKey};
use axum::{Router, http::StatusCode};
use contracts::SystemClock;
use reqwest::Method;
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinSet,
};

use super::*;
use crate::{Peer, PeerError, breaker::FAILURES_TO_OPEN};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// An address that nobody else gets, and that refuses connections until it listens.
fn dead() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Answers everything with `status`, and counts.
fn answering(socket: TcpSocket, status: StatusCode, tasks: &mut JoinSet<()>) -> Arc<AtomicUsize> {
    let listener = socket.listen(1_024).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let answer = move || async move {
        counter.fetch_add(1, SeqCst);
        (status, axum::Json("answered"))
    };
    tasks.spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    asked
}

/// Takes connections and closes them without a word.
fn closing(listener: TcpListener, tasks: &mut JoinSet<()>) -> Arc<AtomicUsize> {
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = taken.clone();
    tasks.spawn(async move {
        loop {
            drop(listener.accept().await.unwrap());
            counter.fetch_add(1, SeqCst);
        }
    });
    taken
}

fn peer(replicas: &[SocketAddr]) -> Peer {
    crate::init().unwrap();
    let urls: Vec<_> = replicas.iter().map(|address| format!("http://{address}/")).collect();
    let issuer = DevIssuer::new(&SigningKey::generate().unwrap()).unwrap();
    Peer::new("fleet", &urls.join("|"), "test", issuer, Arc::new(SystemClock)).unwrap()
}

async fn ask(peer: &Peer) -> Result<String, PeerError> {
    peer.post("/commands/reserve?x=1", &[1, 2, 3]).await
}

fn fails_fast(error: &PeerError) -> bool {
    let PeerError::Unavailable { cause, .. } = error else { return false };
    cause.is::<AllOpen>()
}

#[tokio::test]
async fn of_two_replicas_one_may_be_dead_and_no_call_fails() {
    let mut tasks = JoinSet::new();
    for live_is_first in [true, false] {
        let ((_silent, gone), (socket, live)) = (dead(), dead());
        let asked = answering(socket, StatusCode::OK, &mut tasks);
        let peer = peer(&if live_is_first { [live, gone] } else { [gone, live] });
        let calls = futures::future::join_all((0..2 * RETRY_BURST).map(|_| ask(&peer))).await;
        assert!(calls.iter().all(Result::is_ok), "{calls:?}");
        for _ in 0..100 {
            assert_eq!(ask(&peer).await.unwrap(), "answered");
        }
        assert_eq!(asked.load(SeqCst), 2 * RETRY_BURST as usize + 100, "nothing was asked twice");
    }
}

#[tokio::test]
async fn all_dead_fails_fast() {
    let ((_one, first), (_two, second)) = (dead(), dead());
    let peer = peer(&[first, second]);
    for _ in 0..4 {
        ask(&peer).await.unwrap_err();
    }
    let started = Instant::now();
    let error = ask(&peer).await.unwrap_err();
    assert!(fails_fast(&error), "{error:?}");
    assert!(started.elapsed() < PAUSE, "{:?}", started.elapsed());
}

#[tokio::test]
async fn one_that_comes_back_is_used_again() {
    let mut tasks = JoinSet::new();
    let ((returning, first), (socket, second)) = (dead(), dead());
    answering(socket, StatusCode::OK, &mut tasks);
    let peer = peer(&[first, second]);
    for _ in 0..10 {
        ask(&peer).await.unwrap();
    }
    let returned = answering(returning, StatusCode::OK, &mut tasks);
    let started = Instant::now();
    while returned.load(SeqCst) < 10 {
        assert!(started.elapsed() < PATIENCE, "it is not used again");
        ask(&peer).await.unwrap();
    }
}

#[tokio::test]
async fn the_only_one_comes_back_too() {
    let mut tasks = JoinSet::new();
    let (socket, address) = dead();
    let peer = peer(&[address]);
    let mut error = ask(&peer).await.unwrap_err();
    while !fails_fast(&error) {
        error = ask(&peer).await.unwrap_err();
    }
    answering(socket, StatusCode::OK, &mut tasks);
    let back = async {
        while ask(&peer).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.unwrap();
}

#[tokio::test]
async fn what_may_have_arrived_is_not_sent_again() {
    let mut tasks = JoinSet::new();
    let ((broken, first), (socket, second)) = (dead(), dead());
    let taken = closing(broken.listen(1_024).unwrap(), &mut tasks);
    let asked = answering(socket, StatusCode::OK, &mut tasks);
    let peer = peer(&[first, second]);
    let mut failed = 0;
    for _ in 0..50 {
        failed += u32::from(ask(&peer).await.is_err());
    }
    let expected = (FAILURES_TO_OPEN, FAILURES_TO_OPEN as usize, 50 - FAILURES_TO_OPEN as usize);
    assert_eq!((failed, taken.load(SeqCst), asked.load(SeqCst)), expected);
}

#[tokio::test]
async fn one_that_hangs_is_left_out() {
    let mut tasks = JoinSet::new();
    let ((hanging, first), (socket, second)) = (dead(), dead());
    let _listener = hanging.listen(1_024).unwrap();
    answering(socket, StatusCode::OK, &mut tasks);
    let peer = peer(&[first, second]);
    let mut failed = 0;
    for _ in 0..10 {
        let request = peer.request(Method::GET, "/").timeout(Duration::from_millis(100));
        failed += u32::from(peer.send(request).await.is_err());
    }
    assert_eq!(failed, FAILURES_TO_OPEN);
}

#[tokio::test]
async fn whoever_answers_is_alive_whatever_the_answer() {
    let mut tasks = JoinSet::new();
    let (socket, address) = dead();
    let asked = answering(socket, StatusCode::INTERNAL_SERVER_ERROR, &mut tasks);
    let peer = peer(&[address]);
    for _ in 0..20 {
        let error = ask(&peer).await.unwrap_err();
        assert!(!fails_fast(&error));
    }
    assert_eq!(asked.load(SeqCst), 20);
}

#[tokio::test]
async fn a_deadline_covers_every_try() {
    let (_socket, address) = dead();
    let peer = peer(&[address]);
    for _ in 0..FAILURES_TO_OPEN {
        let request = peer.request(Method::GET, "/").timeout(PAUSE / 4);
        let error = peer.send(request).await.unwrap_err();
        assert!(!fails_fast(&error), "there was no time for a second try");
    }
    assert!(fails_fast(&ask(&peer).await.unwrap_err()));
}

#[test]
fn retries_are_a_tenth_of_the_requests_once_the_burst_is_spent() {
    let budget = RetryBudget::full();
    let burst = (0..1_000).filter(|_| budget.spend()).count();
    assert_eq!(burst, RETRY_BURST as usize);
    let later = (0..1_000).filter(|_| {
        budget.earn();
        budget.spend()
    });
    assert_eq!(later.count(), 100);
    (0..10 * RetryBudget::FULL).for_each(|_| budget.earn());
    assert_eq!((0..1_000).filter(|_| budget.spend()).count(), RETRY_BURST as usize, "no more is saved");
}

#[test]
fn a_request_keeps_its_path_and_query_wherever_it_goes() {
    let replicas = Replicas::new("fleet", "http://a:80/, http://b:8080/deep/|https://c").unwrap();
    let urls = ["http://a/x/y?z=1", "http://b:8080/deep/x/y?z=1", "https://c/x/y?z=1"];
    for (replica, url) in urls.iter().enumerate() {
        let mut request = Request::new(Method::GET, Url::parse(&replicas.url("/x/y?z=1")).unwrap());
        replicas.direct(&mut request, replica).unwrap();
        assert_eq!(request.url().as_str(), *url);
    }
    let mut elsewhere = Request::new(Method::GET, Url::parse("http://z/x").unwrap());
    assert!(replicas.direct(&mut elsewhere, 1).is_err());
    for bad in ["", "fleet", "http://user:word@a", "http://a?b=c", "http://a,"] {
        assert!(Replicas::new("fleet", bad).is_err(), "{bad}");
    }
}
