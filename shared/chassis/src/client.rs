//! HTTP clients for other services: kept connections, a deadline on every call, errors that say who was at fault.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::auth::DevIssuer;
use contracts::{
    Clock, Timestamp,
    api::{Problem, Role},
    commands::{Commands, Outcomes},
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::{Serialize, de::DeserializeOwned};

use crate::{ApiError, failover::Replicas, serve::LIVE};

/// How long a peer may take to answer: far above any batch, well below a lease.
pub const CALL_DEADLINE: Duration = Duration::from_secs(3);

/// How long connecting may take: peers are near.
pub(crate) const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// Idle connections kept per peer: the most calls that are under way at once in a busy system.
const IDLE_CONNECTIONS: usize = 64;

/// How long an idle connection is kept: well below what the servers here wait for the next request, so that none is sent
/// into a connection that is just being closed.
const IDLE: Duration = Duration::from_secs(30);

/// What separates the URLs of a peer's replicas.
pub const URL_SEPARATORS: [char; 2] = [',', '|'];

/// How long a service's own token lives.
const SERVICE_TOKEN: chrono::Duration = chrono::Duration::hours(1);

/// Why a peer did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Not reached, not in time, or it failed: the outcome is unknown, ask again.
    #[error("{peer} did not answer")]
    Unavailable {
        /// Which service.
        peer: &'static str,
        /// Why.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
        /// What it said of it, where it said anything.
        problem: Option<Box<Problem>>,
    },
    /// It answered that the request is at fault.
    #[error("{peer} refused: {}", .problem.title)]
    Refused {
        /// Which service.
        peer: &'static str,
        /// What it said.
        problem: Box<Problem>,
    },
}

impl PeerError {
    /// The problem's status, where the peer answered one.
    pub fn refused_with(&self) -> Option<u16> {
        match self {
            Self::Unavailable { .. } => None,
            Self::Refused { problem, .. } => Some(problem.status),
        }
    }
}

impl From<PeerError> for ApiError {
    /// For a gateway: a refusal is passed on as it is, silence is 503. A peer's own 503 keeps its words, since they are
    /// meant for the caller; what it says of a fault of its own is not.
    fn from(error: PeerError) -> Self {
        let words = match error {
            PeerError::Refused { problem, .. } => return Self(*problem),
            PeerError::Unavailable { ref problem, .. } => {
                let undecided = problem.as_ref().filter(|problem| problem.status == StatusCode::SERVICE_UNAVAILABLE);
                undecided.and_then(|problem| problem.detail.clone())
            }
        };
        let mut answer = Self::unavailable(&error);
        answer.0.detail = words.or(answer.0.detail);
        answer
    }
}

/// A client for one other service.
#[derive(Clone)]
pub struct Peer {
    name: &'static str,
    replicas: Arc<Replicas>,
    http: reqwest::Client,
    token: Arc<OwnToken>,
}

struct OwnToken {
    service: &'static str,
    issuer: DevIssuer,
    clock: Arc<dyn Clock>,
    current: Mutex<(String, Timestamp)>,
}

impl OwnToken {
    fn get(&self) -> String {
        let now = self.clock.now();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.1 - now < SERVICE_TOKEN / 2 {
            match self.issuer.issue(self.service, Role::Service, now, SERVICE_TOKEN) {
                Ok(fresh) => *current = fresh,
                Err(error) => tracing::error!(%error, "no token for this service"),
            }
        }
        current.0.clone()
    }
}

/// An HTTP client with the deadlines that every client here has.
pub fn http_client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .connect_timeout(CONNECT_DEADLINE)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .pool_idle_timeout(IDLE)
        .tcp_nodelay(true)
        .no_proxy()
        .build()
}

impl Peer {
    /// A client for the service `name` at `url`, speaking as `service`. `url` may be several, one for each replica, with
    /// one of [`URL_SEPARATORS`] between them: they take turns, and one that cannot be reached is left out for a while.
    pub fn new(
        name: &'static str,
        url: &str,
        service: &'static str,
        issuer: DevIssuer,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let token = OwnToken { service, issuer, clock, current: Mutex::new((String::new(), Timestamp::UNIX_EPOCH)) };
        let replicas = Arc::new(Replicas::new(name, url)?);
        Ok(Self { name, replicas, http: http_client()?, token: Arc::new(token) })
    }

    /// The peer's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether there is any use in calling it: whether a replica says that it lives, and not all of them failed a moment
    /// ago. What it depends on itself is for it to say, so that no failure is told by everybody.
    pub async fn lives(&self, deadline: Duration) -> Result<(), PeerError> {
        self.replicas.any(&self.http, LIVE, deadline).await.map_err(|error| self.unavailable(error))
    }

    /// A request in the name of this service, to be sent by [`Self::send`] or [`Self::fetch`]. `path` begins with a
    /// slash. No deadline is set yet.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_as(&self.token.get(), method, path)
    }

    /// A request in the name of a caller.
    pub fn request_as(&self, token: &str, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.replicas.url(path)).bearer_auth(token)
    }

    /// Sends; anything but a success is an error. The deadline covers the answer's head. Where no replica could be reached
    /// a moment ago, it fails at once.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, PeerError> {
        let response = self.replicas.send(request).await.map_err(|error| self.unavailable(error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let problem = response.json::<Problem>().await.ok();
        let busy = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        match problem {
            Some(problem) if !busy => Err(PeerError::Refused { peer: self.name, problem: Box::new(problem) }),
            problem => Err(PeerError::Unavailable {
                peer: self.name,
                cause: format!("status {status}").into(),
                problem: problem.map(Box::new),
            }),
        }
    }

    /// Sends with [`CALL_DEADLINE`] and reads the JSON answer.
    pub async fn fetch<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, PeerError> {
        let response = self.send(request.timeout(CALL_DEADLINE)).await?;
        response.json().await.map_err(|error| self.unavailable(error))
    }

    /// POSTs JSON in the name of this service and reads the JSON answer.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, PeerError> {
        self.fetch(self.request(Method::POST, path).json(body)).await
    }

    /// Says commands of one kind, at most [`contracts::commands::MAX_COMMANDS`]: one outcome for each, in order.
    pub async fn command<C: Serialize, O: DeserializeOwned>(
        &self,
        path: &str,
        commands: Vec<C>,
    ) -> Result<Vec<O>, PeerError> {
        let asked = commands.len();
        let answer: Outcomes<O> = self.post(path, &Commands { commands }).await?;
        if answer.outcomes.len() != asked {
            return Err(self.unavailable(format!("{} outcomes for {asked} commands", answer.outcomes.len())));
        }
        Ok(answer.outcomes)
    }

    fn unavailable(&self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PeerError {
        PeerError::Unavailable { peer: self.name, cause: cause.into(), problem: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable(problem: Option<ApiError>) -> PeerError {
        let problem = problem.map(|error| Box::new(error.0));
        PeerError::Unavailable { peer: "delivery", cause: "status".into(), problem }
    }

    #[test]
    fn a_peers_503_keeps_its_words_and_its_own_faults_stay_its_own() {
        let said = |error: PeerError| {
            let answer = ApiError::from(error);
            (answer.0.status, answer.0.detail.unwrap_or_default())
        };
        let undecided = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "still being decided");
        assert_eq!(said(unavailable(Some(undecided))), (503, "still being decided".to_owned()));
        let silence = (503, "not available now; try again".to_owned());
        assert_eq!(said(unavailable(None)), silence);
        let broken = ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "a table is missing");
        assert_eq!(said(unavailable(Some(broken))), silence);
    }
}
