//! The one way out: requests to the public gateway, each in the name of a customer or a base station.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use contracts::{
    Clock, Timestamp,
    api::{Role, TokenAnswer, TokenRequest},
};
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};
use tokio_util::sync::CancellationToken;

use crate::{backoff::Backoff, random::Random};

/// A request that takes longer is given up and tried again: ten times what a busy gateway needs.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A gateway on the same network accepts in milliseconds; one that is gone should be noticed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Streams send a comment every some ten seconds; one that is silent for this long is dead.
const STREAM_SILENCE: Duration = Duration::from_secs(60);
/// Idle connections kept for the next burst of orders.
const IDLE_CONNECTIONS: usize = 512;
/// A token is renewed this long before it ends, so that none ends under way.
const RENEW_BEFORE: Duration = Duration::from_secs(60);
/// How long to wait for a gateway at the start: the whole system may be starting, on a slow machine.
const START_PATIENCE: Duration = Duration::from_secs(180);
/// The longest wait that an answer may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// The connection failed or took too long.
    #[error("the gateway cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// The gateway gives no token.
    #[error("the gateway answers {0} to a request for a token")]
    NoToken(StatusCode),
    /// It is not in the shape that was agreed on.
    #[error("the gateway's token cannot be read")]
    BadToken(#[source] serde_json::Error),
}

impl NoAnswer {
    /// Whether asking again makes no sense: development tokens are not to be had.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::NoToken(status) if status.is_client_error() && !is_passing(*status))
    }
}

impl From<reqwest::Error> for NoAnswer {
    fn from(error: reqwest::Error) -> Self {
        Self::Unreachable(error)
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    /// How long the gateway asks to wait.
    pub(crate) retry_after: Option<Duration>,
}

impl Answer {
    /// Whether the same request may go better later.
    pub(crate) fn is_passing(&self) -> bool {
        is_passing(self.status)
    }
}

/// Unauthorized is passing, too: the token is renewed before the next try.
fn is_passing(status: StatusCode) -> bool {
    let passing = [StatusCode::UNAUTHORIZED, StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
    status.is_server_error() || passing.contains(&status)
}

/// Someone in whose name requests are made, with their token.
#[derive(Debug)]
pub(crate) struct Identity {
    role: Role,
    subject: String,
    held: tokio::sync::Mutex<Option<Held>>,
}

#[derive(Debug, Clone)]
struct Held {
    bearer: HeaderValue,
    renew_at: Timestamp,
}

impl Identity {
    /// `subject` in that role; the token is fetched when it is first needed.
    pub(crate) fn new(role: Role, subject: impl Into<String>) -> Self {
        Self { role, subject: subject.into(), held: tokio::sync::Mutex::const_new(None) }
    }

    /// Its name.
    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }
}

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// From the root, with the query.
    pub(crate) path: &'a str,
    pub(crate) header: Option<(HeaderName, HeaderValue)>,
    pub(crate) content_type: &'static str,
    pub(crate) body: Option<Bytes>,
}

impl<'a> Call<'a> {
    pub(crate) const fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, header: None, content_type: "application/json", body: None }
    }

    pub(crate) fn json(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }
}

/// The gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    requests: reqwest::Client,
    streams: reqwest::Client,
    root: String,
    clock: ClockHandle,
}

/// The clock, in a shape that prints.
#[derive(Clone)]
struct ClockHandle(Arc<dyn Clock>);

impl std::fmt::Debug for ClockHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl Gateway {
    /// The gateway at `url`; nothing is asked yet.
    pub(crate) fn new(url: &str, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let parsed = reqwest::Url::parse(url).with_context(|| format!("the gateway's address {url} is not a URL"))?;
        anyhow::ensure!(
            matches!(parsed.scheme(), "http" | "https"),
            "the gateway's address {url} is not http or https"
        );
        // A proxy of the environment is not meant for a load of this kind.
        let builder = || reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
        let requests = builder().timeout(REQUEST_TIMEOUT).pool_max_idle_per_host(IDLE_CONNECTIONS).build()?;
        let streams = builder().read_timeout(STREAM_SILENCE).build()?;
        Ok(Self { requests, streams, root: url.trim_end_matches('/').to_owned(), clock: ClockHandle(clock) })
    }

    /// Returns once the gateway gives that identity a token.
    pub(crate) async fn wait_until_ready(
        &self,
        identity: &Identity,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let give_up_at = self.clock.0.now() + START_PATIENCE;
        let mut backoff = Backoff::new(Random::of(0, "ready", 0));
        loop {
            let Err(error) = self.bearer(identity).await else { return Ok(()) };
            if error.is_final() {
                return Err(error).context("the gateway gives no development tokens: is its issuer on?");
            }
            if self.clock.0.now() > give_up_at {
                return Err(error).with_context(|| format!("no gateway at {}", self.root));
            }
            tracing::debug!(%error, "waiting for the gateway");
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = self.clock.0.sleep(backoff.pause()) => {}
            }
        }
    }

    /// The header that proves who asks; renewed in time. Concurrent callers share one renewal.
    async fn bearer(&self, identity: &Identity) -> Result<HeaderValue, NoAnswer> {
        let mut held = identity.held.lock().await;
        let now = self.clock.0.now();
        if let Some(token) = held.as_ref().filter(|token| token.renew_at > now) {
            return Ok(token.bearer.clone());
        }
        let request = TokenRequest { subject: identity.subject.clone(), role: identity.role };
        let response = self.requests.post(format!("{}/api/dev/token", self.root)).json(&request).send().await?;
        if !response.status().is_success() {
            return Err(NoAnswer::NoToken(response.status()));
        }
        let answer: TokenAnswer = serde_json::from_slice(&response.bytes().await?).map_err(NoAnswer::BadToken)?;
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", answer.token))
            .map_err(|_| NoAnswer::NoToken(StatusCode::BAD_GATEWAY))?;
        bearer.set_sensitive(true);
        // A token that lasts no longer than the margin is renewed half-way.
        let lasts = (answer.expires_at - now).to_std().unwrap_or_default();
        let renew_at = now + lasts.saturating_sub(RENEW_BEFORE).max(lasts / 2);
        *held = Some(Held { bearer: bearer.clone(), renew_at });
        Ok(bearer)
    }

    /// Forgets a token that was refused, unless it has been renewed already.
    async fn forget(&self, identity: &Identity, refused: &HeaderValue) {
        let mut held = identity.held.lock().await;
        if held.as_ref().is_some_and(|token| token.bearer == *refused) {
            *held = None;
        }
    }

    /// Sends one request and reads the answer to its end.
    pub(crate) async fn send(&self, identity: &Identity, call: Call<'_>) -> Result<Answer, NoAnswer> {
        let bearer = self.bearer(identity).await?;
        let url = format!("{}{}", self.root, call.path);
        let mut request = self.requests.request(call.method, url).header(AUTHORIZATION, bearer.clone());
        if let Some((name, value)) = call.header {
            request = request.header(name, value);
        }
        if let Some(body) = call.body {
            request = request.header(CONTENT_TYPE, call.content_type).body(body);
        }
        let response = request.send().await?;
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED {
            self.forget(identity, &bearer).await;
        }
        let retry_after = retry_after(&response);
        Ok(Answer { status, body: response.bytes().await?, retry_after })
    }

    /// Opens a stream of server-sent events.
    pub(crate) async fn open_stream(&self, identity: &Identity, path: &str) -> Result<Response, NoAnswer> {
        let bearer = self.bearer(identity).await?;
        let request = self.streams.get(format!("{}{path}", self.root)).header(AUTHORIZATION, bearer.clone());
        let response = request.header(ACCEPT, "text/event-stream").send().await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.forget(identity, &bearer).await;
        }
        Ok(response)
    }
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds: u64 = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER))
}
