//! Whether a service is of use: what it depends on is asked at once, seldom, and with a deadline.
//!
//! Invariants:
//! - whoever asks has an answer soon after [`DEADLINE`], whatever hangs;
//! - however many ask, a dependency is asked by one of them at a time, and at most once in [`FRESH`].

use std::{
    error::Error,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::AcqRel},
    },
    time::{Duration, Instant},
};

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use contracts::api::{Dependency, DependencyStatus, Health, HealthStatus, NotReadyProblem};
use futures::{
    FutureExt, TryFutureExt,
    future::{BoxFuture, join_all},
};
use messaging::{EventLog, outbox::chain};
use tokio::{sync::Mutex, time::timeout};

use crate::{ApiError, Peer};

/// How long a dependency may take to answer: who takes longer over the least of questions does no work either, and the
/// usual probes wait hardly longer.
const DEADLINE: Duration = Duration::from_secs(1);

/// How long an answer is given again: there may be many probes, and a second's delay matters to none of them.
const FRESH: Duration = Duration::from_secs(1);

type Failure = Box<dyn Error + Send + Sync>;
type Check = Box<dyn Fn() -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

#[derive(Debug, thiserror::Error)]
#[error("it does not answer within {DEADLINE:?}")]
struct Silent;

/// What a service depends on; each has a name in the answer.
#[derive(Default)]
pub struct Readiness(Vec<Watched>);

struct Watched {
    name: &'static str,
    /// What the service is without it.
    without: HealthStatus,
    check: Check,
    was_down: AtomicBool,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|watched| watched.name)).finish()
    }
}

impl Readiness {
    /// Of a service that depends on nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Without the service's own store nothing goes. `ping` asks it the least that there is.
    pub fn store<S, F, E>(self, store: &S, ping: impl Fn(S) -> F + Send + Sync + 'static) -> Self
    where
        S: Clone + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Failure> + 'static,
    {
        self.watch("store", HealthStatus::NotReady, store, ping)
    }

    /// Without the event log nobody hears of what is done, but it is done: the outbox keeps it until then.
    pub fn event_log(self, log: &Arc<dyn EventLog>) -> Self {
        self.watch("event_log", HealthStatus::Degraded, log, |log| async move { log.ping().await })
    }

    /// Other services that are asked for something, but not for everything.
    pub fn peers<'a>(mut self, peers: impl IntoIterator<Item = &'a Peer>) -> Self {
        for peer in peers {
            self = self.peer(peer, HealthStatus::Degraded);
        }
        self
    }

    /// Another service, without which nothing goes.
    pub fn vital_peer(self, peer: &Peer) -> Self {
        self.peer(peer, HealthStatus::NotReady)
    }

    fn peer(self, peer: &Peer, without: HealthStatus) -> Self {
        self.watch(peer.name(), without, peer, |peer| async move { peer.lives(DEADLINE).await })
    }

    fn watch<T, F, E>(
        mut self,
        name: &'static str,
        without: HealthStatus,
        it: &T,
        ask: impl Fn(T) -> F + Send + Sync + 'static,
    ) -> Self
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Failure> + 'static,
    {
        let it = it.clone();
        let check: Check = Box::new(move || ask(it.clone()).map_err(Into::into).boxed());
        self.0.push(Watched { name, without, check, was_down: AtomicBool::new(false) });
        self
    }

    /// Answers how it stands.
    pub(crate) fn route<S: Clone + Send + Sync + 'static>(self) -> MethodRouter<S> {
        let shared = Arc::new(Shared { all: self.0, last: Mutex::new(None) });
        get(move || {
            let shared = shared.clone();
            async move { answer(shared.health().await) }
        })
    }
}

struct Shared {
    all: Vec<Watched>,
    /// Held while it is asked: whoever comes meanwhile waits for the same answer.
    last: Mutex<Option<(Instant, Health)>>,
}

impl Shared {
    async fn health(&self) -> Health {
        let mut last = self.last.lock().await;
        if let Some((at, health)) = &*last
            && at.elapsed() < FRESH
        {
            return health.clone();
        }
        let dependencies = join_all(self.all.iter().map(Watched::ask)).await;
        let down = |dependency: &&(HealthStatus, Dependency)| dependency.1.status == DependencyStatus::Down;
        let status = dependencies.iter().filter(down).map(|(without, _)| *without).max();
        let health = Health {
            status: status.unwrap_or(HealthStatus::Ready),
            dependencies: dependencies.into_iter().map(|(_, dependency)| dependency).collect(),
        };
        *last = Some((Instant::now(), health.clone()));
        health
    }
}

impl Watched {
    async fn ask(&self) -> (HealthStatus, Dependency) {
        let failure = match timeout(DEADLINE, (self.check)()).await {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => Some(Silent.into()),
        };
        let was_down = self.was_down.swap(failure.is_some(), AcqRel);
        match &failure {
            Some(failure) if !was_down => {
                tracing::warn!(dependency = self.name, error = chain(&**failure), "a dependency is down");
            }
            None if was_down => tracing::info!(dependency = self.name, "a dependency is up again"),
            _ => {}
        }
        let status = if failure.is_some() { DependencyStatus::Down } else { DependencyStatus::Up };
        // Without its causes, which may name hosts: anybody may ask.
        let error = failure.map(|failure| failure.to_string());
        (self.without, Dependency { name: self.name.to_owned(), status, error })
    }
}

fn answer(health: Health) -> Response {
    if health.status != HealthStatus::NotReady {
        return axum::Json(health).into_response();
    }
    let down: Vec<_> = health.dependencies.iter().filter(|one| one.status == DependencyStatus::Down).collect();
    let names: Vec<_> = down.iter().map(|one| one.name.as_str()).collect();
    let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {} down", names.join(", ")));
    let problem = error.0.clone();
    let head = error.into_response();
    let body = axum::Json(NotReadyProblem { problem, dependencies: health.dependencies });
    (head.status(), head.headers().clone(), body).into_response()
}

#[cfg(test)]
mod tests;
