//! Which replica of a peer a request goes to, and to which other one where it cannot have arrived.

use std::{
    error::Error,
    sync::atomic::{
        AtomicU32, AtomicUsize,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use futures::future::select_ok;
use reqwest::{Request, RequestBuilder, Response, Url};

use crate::{breaker::Breaker, client::URL_SEPARATORS};

/// How often one request is tried at most: the first, and two more, since a rolling restart may have met two replicas.
const MAX_TRIES: usize = 3;

/// The pause before the same replica is tried again, half as long to half as long again: a restarted listener's gap.
const PAUSE: Duration = Duration::from_millis(50);

/// Requests that earn one retry: at most a tenth more load, so that retries never add much to what made them needed.
const REQUESTS_PER_RETRY: u32 = 10;

/// Retries kept for bad times: as many as calls are under way at once in a busy system, so that a replica's end fails
/// none of them.
const RETRY_BURST: u32 = 64;

/// Every replica failed a moment ago.
#[derive(Debug, thiserror::Error)]
#[error("no replica could be reached a moment ago, so none is asked now")]
pub(crate) struct AllOpen;

type Cause = Box<dyn Error + Send + Sync>;

/// A peer's replicas, which take turns.
#[derive(Debug)]
pub(crate) struct Replicas {
    peer: &'static str,
    all: Vec<Replica>,
    turn: AtomicUsize,
    budget: RetryBudget,
}

#[derive(Debug)]
struct Replica {
    /// As a URL writes it, without a slash at its end.
    base: String,
    breaker: Breaker,
}

impl Replicas {
    /// Those at `urls`, with [`URL_SEPARATORS`] between them.
    pub(crate) fn new(peer: &'static str, urls: &str) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        for text in urls.split(URL_SEPARATORS) {
            let url = Url::parse(text.trim()).with_context(|| format!("the URL of the service '{peer}'"))?;
            // Nothing may come between the base and a request's path.
            let plain = url.username().is_empty() && url.query().is_none() && url.fragment().is_none();
            ensure!(plain, "the URL of the service '{peer}' has more than a host and a path");
            all.push(Replica { base: url.as_str().trim_end_matches('/').to_owned(), breaker: Breaker::new() });
        }
        Ok(Self { peer, all, turn: AtomicUsize::new(0), budget: RetryBudget::full() })
    }

    /// The URL of a path as requests are built with; [`Self::send`] decides where they go.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.all[0].base)
    }

    /// Asks every replica at once for `path`, past the breakers: one that is slow to say how it is must not be left alone
    /// for it. Answers at the first success, and fails with what the last one said.
    pub(crate) async fn any(&self, http: &reqwest::Client, path: &str, deadline: Duration) -> Result<(), Cause> {
        let now = Instant::now();
        if self.all.iter().all(|replica| replica.breaker.holds_back(now)) {
            return Err(AllOpen.into());
        }
        let ask = |replica: &Replica| {
            let asked = http.get(format!("{}{path}", replica.base)).timeout(deadline).send();
            Box::pin(async { asked.await?.error_for_status() })
        };
        select_ok(self.all.iter().map(ask)).await?;
        Ok(())
    }

    /// Sends to the replica whose turn it is. Where no connection could be made, the request cannot have reached anybody,
    /// so that it goes to another one, whatever it asks. Its deadline covers all of that.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, Cause> {
        let (http, request) = request.build_split();
        let mut request = request?;
        let (started, deadline) = (Instant::now(), request.timeout().copied());
        let mut tried = Vec::with_capacity(MAX_TRIES);
        self.budget.earn();
        let mut chosen = self.choose(&tried).ok_or(AllOpen)?;
        loop {
            // A body that is a stream cannot be sent twice.
            let again = if tried.len() + 1 < MAX_TRIES { request.try_clone() } else { None };
            self.direct(&mut request, chosen)?;
            let error = match http.execute(request).await {
                Ok(response) => {
                    self.answered(chosen);
                    return Ok(response);
                }
                Err(error) => error,
            };
            self.failed(chosen, &error);
            tried.push(chosen);
            let Some(next) = again.filter(|_| error.is_connect() && self.budget.spend()) else {
                return Err(error.into());
            };
            let Some(replica) = self.choose(&tried) else { return Err(error.into()) };
            let wait =
                if tried.contains(&replica) { PAUSE.mul_f64(rand::random_range(0.5..1.5)) } else { Duration::ZERO };
            (request, chosen) = (next, replica);
            if let Some(deadline) = deadline {
                let Some(left) = deadline.checked_sub(started.elapsed() + wait) else { return Err(error.into()) };
                *request.timeout_mut() = Some(left);
            }
            pause(wait).await;
        }
    }

    /// Of the replicas that may be asked now the next one; one that was tried already only where there is no other.
    fn choose(&self, tried: &[usize]) -> Option<usize> {
        let (now, count) = (Instant::now(), self.all.len());
        let turn = self.turn.fetch_add(1, Relaxed);
        let in_turn = || (0..count).map(|step| turn.wrapping_add(step) % count);
        let admits = |replica: &usize| self.all[*replica].breaker.admits(now);
        let fresh = in_turn().filter(|replica| !tried.contains(replica)).find(admits);
        fresh.or_else(|| in_turn().filter(|replica| tried.contains(replica)).find(admits))
    }

    fn direct(&self, request: &mut Request, replica: usize) -> Result<(), Cause> {
        let rest = request.url().as_str().strip_prefix(self.all[0].base.as_str());
        let rest = rest.ok_or("the request's path leads out of the peer's URL")?;
        if replica != 0 {
            *request.url_mut() = Url::parse(&format!("{}{rest}", self.all[replica].base))?;
        }
        Ok(())
    }

    fn answered(&self, replica: usize) {
        let replica = &self.all[replica];
        if replica.breaker.answered() {
            tracing::info!(peer = self.peer, replica = replica.base, "a replica answers again");
        }
    }

    fn failed(&self, replica: usize, error: &reqwest::Error) {
        // Those two are no silence: the first was never sent, the second is about an answer.
        if error.is_builder() || error.is_redirect() {
            return;
        }
        let replica = &self.all[replica];
        if replica.breaker.failed(Instant::now()) {
            tracing::warn!(peer = self.peer, replica = replica.base, "a replica does not answer and is left alone");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a network's pause: a test's clock must not hold it")]
async fn pause(wait: Duration) {
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
}

/// What may be spent on retries, counted in requests.
#[derive(Debug)]
struct RetryBudget(AtomicU32);

impl RetryBudget {
    const FULL: u32 = RETRY_BURST * REQUESTS_PER_RETRY;

    fn full() -> Self {
        Self(AtomicU32::new(Self::FULL))
    }

    /// A request was made.
    fn earn(&self) {
        // An error means that it is full.
        let _ = self.0.fetch_update(AcqRel, Acquire, |saved| (saved < Self::FULL).then_some(saved + 1));
    }

    /// Whether there is enough for a retry, which is then spent.
    fn spend(&self) -> bool {
        self.0.fetch_update(AcqRel, Acquire, |saved| saved.checked_sub(REQUESTS_PER_RETRY)).is_ok()
    }
}

#[cfg(test)]
mod tests;
