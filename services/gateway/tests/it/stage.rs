//! A gateway with a stand-in for every service behind it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use contracts::api::{Problem, Role};
use futures::StreamExt;
use gateway::Config;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use testkit::{World, serving};
use tokio::{net::TcpListener, sync::broadcast, task::JoinSet};
use tokio_stream::wrappers::BroadcastStream;

const PEERS: [&str; 6] = ["delivery", "package", "fleet", "tracking", "history", "lookup"];

/// What a stand-in was asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    /// Method and path with query.
    pub(crate) what: String,
    /// The bearer token.
    pub(crate) token: String,
    /// The Idempotency-Key.
    pub(crate) key: Option<String>,
    /// The body; null where there is none.
    pub(crate) body: Value,
}

#[derive(Clone)]
enum Answer {
    Json(u16, Value),
    Never,
    Stream(Vec<String>, broadcast::Sender<String>),
}

/// A service's stand-in: answers what it was told to, and 404 to everything else.
#[derive(Clone, Default)]
pub(crate) struct Peer {
    calls: Arc<Mutex<Vec<Call>>>,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
}

impl Peer {
    /// Answers `what` with that: method and path, and the query where the answer is for that query alone.
    pub(crate) fn on(&self, what: &str, status: u16, body: Value) {
        self.answers.lock().unwrap().insert(what.to_owned(), Answer::Json(status, body));
    }

    /// Takes `what` and never answers.
    pub(crate) fn silent(&self, what: &str) {
        self.answers.lock().unwrap().insert(what.to_owned(), Answer::Never);
    }

    /// Answers `what` with a stream that begins with `first`; more is sent by the sender.
    pub(crate) fn stream(&self, what: &str, first: &[Value]) -> broadcast::Sender<String> {
        let sender = broadcast::channel(16).0;
        let first = first.iter().map(event).collect();
        self.answers.lock().unwrap().insert(what.to_owned(), Answer::Stream(first, sender.clone()));
        sender
    }

    /// Everything it was asked.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }
}

/// A server-sent event.
pub(crate) fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

async fn answer(State(peer): State<Peer>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let text = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let what = format!("{} {}", parts.method, parts.uri);
    let token = text("authorization").unwrap_or_default().replace("Bearer ", "");
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let without_query = format!("{} {}", parts.method, parts.uri.path());
    let answer = {
        let answers = peer.answers.lock().unwrap();
        answers.get(&what).or_else(|| answers.get(&without_query)).cloned()
    };
    peer.calls.lock().unwrap().push(Call { what, token, key: text("idempotency-key"), body });
    match answer {
        None => problem(404),
        Some(Answer::Json(status, Value::Null)) if status >= 400 => problem(status),
        Some(Answer::Json(status, body)) => (StatusCode::from_u16(status).unwrap(), Json(body)).into_response(),
        Some(Answer::Never) => std::future::pending().await,
        Some(Answer::Stream(first, sender)) => {
            let later = BroadcastStream::new(sender.subscribe());
            // "close" ends the stream, as a restart of the service would.
            let later = later.map(Result::unwrap).take_while(|event| futures::future::ready(event != "close"));
            let chunks = futures::stream::iter(first).chain(later).map(|text| Ok::<_, String>(Bytes::from(text)));
            ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(chunks)).into_response()
        }
    }
}

fn problem(status: u16) -> Response {
    let body =
        json!({"type": "about:blank", "title": "the peer's own words", "status": status, "detail": "of the peer"});
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

/// The gateway, its stand-ins and a client.
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) url: String,
    pub(crate) http: reqwest::Client,
    peers: HashMap<&'static str, Peer>,
    _tasks: JoinSet<anyhow::Result<()>>,
}

impl Stage {
    /// Everybody is there.
    pub(crate) async fn new() -> Self {
        Self::without(&[]).await
    }

    /// Those services are not reachable.
    pub(crate) async fn without(away: &[&str]) -> Self {
        Self::start(World::new().await, away, Config { dev_issuer: true }).await
    }

    pub(crate) async fn start(world: World, away: &[&str], config: Config) -> Self {
        let mut tasks = JoinSet::new();
        let mut peers = HashMap::new();
        let mut urls = Vec::new();
        for name in PEERS {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let peer = Peer::default();
            if !away.contains(&name) {
                let app = Router::new().fallback(answer).with_state(peer.clone());
                tasks.spawn(async move { Ok(axum::serve(listener, app).await?) });
            }
            urls.push((name, url));
            peers.insert(name, peer);
        }
        let urls: Vec<_> = urls.iter().map(|(name, url)| (*name, url.as_str())).collect();
        let (node, url) = world.node("gateway", &urls).await;
        serving(&mut tasks, node.door.opened(), gateway::run(config, node)).await;
        Self { world, url, http: chassis::client::http_client().unwrap(), peers, _tasks: tasks }
    }

    pub(crate) fn peer(&self, name: &str) -> &Peer {
        &self.peers[name]
    }

    /// Every call to every stand-in, as "service method path".
    pub(crate) fn calls(&self) -> Vec<String> {
        let mut calls = Vec::new();
        for name in PEERS {
            calls.extend(self.peers[name].calls().iter().map(|call| format!("{name} {}", call.what)));
        }
        calls
    }

    /// How many calls to stand-ins carried that token.
    pub(crate) fn calls_with(&self, token: &str) -> usize {
        self.peers.values().map(|peer| peer.calls().iter().filter(|call| call.token == token).count()).sum()
    }

    pub(crate) fn token(&self, subject: &str, role: Role) -> String {
        self.world.token(subject, role)
    }

    pub(crate) fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    pub(crate) fn as_role(&self, subject: &str, role: Role, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, path).bearer_auth(self.token(subject, role))
    }

    /// A request of the customer alice.
    pub(crate) fn alice(&self, method: Method, path: &str) -> RequestBuilder {
        self.as_role("alice", Role::Customer, method, path)
    }

    /// A request of an operator.
    pub(crate) fn operator(&self, method: Method, path: &str) -> RequestBuilder {
        self.as_role("olga", Role::Operator, method, path)
    }

    /// A request of the base station north.
    pub(crate) fn north(&self, method: Method, path: &str) -> RequestBuilder {
        self.as_role("north", Role::BaseStation, method, path)
    }
}

/// The answer's status and JSON.
pub(crate) async fn json_of(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, response.json().await.unwrap())
}

/// The answer's status and problem, after checking that it is one.
pub(crate) async fn problem_of(request: RequestBuilder) -> (u16, Problem) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let media_type = response.headers().get("content-type").map(|value| value.to_str().unwrap().to_owned());
    let text = response.text().await.unwrap();
    assert_eq!(media_type.as_deref(), Some("application/problem+json"), "{status} {text}");
    let problem: Problem = serde_json::from_str(&text).unwrap();
    assert_eq!(problem.status, status);
    (status, problem)
}
