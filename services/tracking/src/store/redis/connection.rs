//! The connection to a Redis server or cluster, shared by all: deadlines, pipelines, scripts, and how far a write has come.

use std::{
    collections::HashSet,
    ops::RangeInclusive,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use futures::future::try_join_all;
use redis::{
    Client, Cmd, FromRedisValue, IntoConnectionInfo, Pipeline, ProtocolVersion, PushInfo, RedisError, RedisResult,
    ServerErrorKind, Value,
    aio::{ConnectionManager, ConnectionManagerConfig},
    cluster::ClusterClientBuilder,
    cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo, Slot},
    cmd,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use super::{
    cluster::Cluster,
    script::{Call, Script},
};

/// How long connecting may take: the store is near.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// How long an answer may take: far above any batch, below what callers of the service wait.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// How long the other end may be silent, to a probe or to what was sent, until the system closes the connection: on a
/// route that was lost nobody else would, and every request would wait for its deadline.
const SILENCE: Duration = Duration::from_secs(4);

/// The pause between two probes of a connection on which nothing happens.
const PROBE: Duration = Duration::from_secs(1);

/// How long the connection waits between two tries at most: a restart is noticed within that time.
const LONGEST_RECONNECT: Duration = Duration::from_millis(500);

/// How often a request is sent anew, after the cluster has moved a slot or elected another primary.
const CLUSTER_RETRIES: u32 = 3;

/// How long a replica may take to have a write, in milliseconds: replicas answer within a round trip. Everything behind it
/// on the connection waits as long.
const REPLICA_DEADLINE_MS: u32 = 100;

/// How often the number of replicas is asked for.
const COUNT_REPLICAS: Duration = Duration::from_secs(1);

/// Replicas that must have a command's write, where there are any.
const REPLICAS: u32 = 1;

/// Commands that wait for their turn on a connection: a batch sends one for each bucket, and two batches may be under way.
const QUEUE: usize = 512;

/// Connections to a server for writes whose replicas nobody waits for. It reads some kilobytes from each in a round, and
/// syncs its append-only file once for all of them: with more of them a round holds more, and with too many it is long.
const ASIDE: usize = 4;

/// Why no replica has a write.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotReplicated {
    /// Of these primaries.
    #[error("no replica of {} has the write in time", .0.join(", "))]
    Late(Vec<String>),
    #[error("the replicas cannot be asked")]
    Redis(#[from] RedisError),
}

/// Where a store is: `redis://HOST:PORT/DB?prefix=NAME`, `redis+cluster://HOST:PORT,HOST:PORT?prefix=NAME`, and the same
/// with `rediss` for TLS.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// URLs of a server, or of some nodes of a cluster.
    nodes: Vec<String>,
    cluster: bool,
    /// What the names of all keys begin with.
    pub(super) prefix: String,
}

impl Address {
    pub(super) fn parse(url: &str) -> anyhow::Result<Self> {
        let (place, query) = url.split_once('?').unwrap_or((url, ""));
        let mut prefix = String::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("prefix", name)) if name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)) => {
                    prefix = format!("{name}:");
                }
                Some(("prefix", _)) => bail!("'prefix' may have letters, digits, '-' and '_' only"),
                _ => bail!("'{pair}' is not a setting of a Redis store: expected prefix=NAME"),
            }
        }
        let Some((scheme, hosts)) = place.split_once("://") else { bail!("the URL of a Redis store has a host") };
        let (scheme, cluster) = scheme.strip_suffix("+cluster").map_or((scheme, false), |plain| (plain, true));
        if !cluster && hosts.contains(',') {
            bail!("several hosts are a cluster: {scheme}+cluster://");
        }
        let nodes = hosts.split(',').map(|host| format!("{scheme}://{host}")).collect();
        Ok(Self { nodes, cluster, prefix })
    }
}

enum Link {
    Server(Box<Server>),
    Cluster(Box<Cluster>),
}

/// How a command goes to a single server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By the connection on which replicas are waited for.
    Main,
    /// By another one, for a write of which [`Connection::replicated`] need not know: it keeps nobody waiting who wants to
    /// know.
    Aside,
}

fn tcp() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(SILENCE).with_interval(PROBE);
    // Nothing waits for the answer to what was written before: what belongs together is written together already.
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(SILENCE);
    settings
}

/// Connections to one server.
struct Server {
    main: ConnectionManager,
    aside: Vec<ConnectionManager>,
    /// Which of those aside is next.
    turn: AtomicUsize,
}

impl Server {
    async fn open(
        client: Client,
        heard: impl Fn(PushInfo) -> Result<(), std::convert::Infallible> + Send + Sync + 'static,
    ) -> RedisResult<Self> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            .set_response_timeout(Some(ANSWER_DEADLINE))
            .set_max_delay(LONGEST_RECONNECT)
            .set_pipeline_buffer_size(QUEUE);
        let mut aside = Vec::with_capacity(ASIDE);
        for _ in 0..ASIDE {
            aside.push(ConnectionManager::new_with_config(client.clone(), config.clone()).await?);
        }
        let hearing = config.set_push_sender(heard).set_automatic_resubscription();
        let main = ConnectionManager::new_with_config(client, hearing).await?;
        Ok(Self { main, aside, turn: AtomicUsize::new(0) })
    }

    fn link(&self, way: Way) -> ConnectionManager {
        match way {
            Way::Main => self.main.clone(),
            Way::Aside => self.aside[self.turn.fetch_add(1, Ordering::Relaxed) % ASIDE].clone(),
        }
    }
}

/// A connection that mends itself: to a server several, to a cluster one to each node.
pub(super) struct Connection {
    link: Link,
    /// When the replicas were last counted, and whether there were any.
    replicas: Mutex<Option<(Instant, bool)>>,
}

impl Connection {
    /// Connects; `heard` takes what the server says unasked and must not wait.
    pub(super) async fn open(
        address: &Address,
        heard: impl Fn(PushInfo) -> Result<(), std::convert::Infallible> + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let link = if address.cluster {
            let client = ClusterClientBuilder::new(address.nodes.iter().map(String::as_str))
                .use_protocol(ProtocolVersion::RESP3)
                .tcp_settings(tcp())
                .retries(CLUSTER_RETRIES)
                .connection_timeout(CONNECT_DEADLINE)
                .response_timeout(ANSWER_DEADLINE)
                .overall_response_timeout(Some(ANSWER_DEADLINE))
                .push_sender(heard)
                .build()?;
            Link::Cluster(Box::new(Cluster::open(client).await.context("no node of the cluster answers")?))
        } else {
            let server = address.nodes[0].as_str().into_connection_info()?;
            let speak = server.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
            let client = Client::open(server.set_redis_settings(speak).set_tcp_settings(tcp()))?;
            let server = Server::open(client, heard).await.context("the server does not answer")?;
            Link::Server(Box::new(server))
        };
        let connection = Self { link, replicas: Mutex::new(None) };
        connection.refuse_a_forgetful_store().await?;
        Ok(connection)
    }

    /// How changes are told: on a cluster by the node of the bucket alone.
    pub(super) fn tell(&self) -> &'static str {
        match self.link {
            Link::Server(_) => "PUBLISH",
            Link::Cluster(_) => "SPUBLISH",
        }
    }

    /// Answers once each connection aside does.
    pub(super) async fn ping_aside(&self) -> RedisResult<()> {
        if let Link::Server(server) = &self.link {
            let asked = server.aside.iter().map(async |link| cmd("PING").exec_async(&mut link.clone()).await);
            try_join_all(asked).await?;
        }
        Ok(())
    }

    /// Listens on these channels for ever, also after the connection was lost.
    pub(super) async fn listen(&self, channels: &[String]) -> RedisResult<()> {
        match &self.link {
            Link::Server(server) => server.main.clone().subscribe(channels).await,
            Link::Cluster(cluster) => cluster.listen(channels).await,
        }
    }

    /// One command about one key.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        self.send(command, Way::Main).await
    }

    async fn send<T: FromRedisValue>(&self, command: &Cmd, way: Way) -> RedisResult<T> {
        match &self.link {
            Link::Server(server) => command.query_async(&mut server.link(way)).await,
            Link::Cluster(cluster) => cluster.with(async |mut link| command.query_async(&mut link).await).await,
        }
    }

    /// Commands about keys of one bucket, in one go.
    pub(super) async fn pipe<T: FromRedisValue>(&self, commands: &Pipeline) -> RedisResult<T> {
        match &self.link {
            Link::Server(server) => commands.query_async(&mut server.main.clone()).await,
            Link::Cluster(cluster) => cluster.with(async |mut link| commands.query_async(&mut link).await).await,
        }
    }

    /// Runs a script; a server that does not know it yet is given it.
    pub(super) async fn run<T: FromRedisValue>(&self, script: &Script, call: &Call, way: Way) -> RedisResult<T> {
        match self.send(&script.by_name(call), way).await {
            Err(error) if error.kind() == ServerErrorKind::NoScript.into() => {
                self.send(&script.in_full(call), way).await
            }
            result => result,
        }
    }

    /// Answers once a replica of every primary that has any has all that was written here, but for what went aside.
    pub(super) async fn replicated(&self) -> Result<(), NotReplicated> {
        if !self.has_replicas().await? {
            return Ok(());
        }
        let mut wait = cmd("WAIT");
        wait.arg(REPLICAS).arg(REPLICA_DEADLINE_MS);
        let acknowledged = self.everywhere::<u32>(&wait).await?;
        let mut late: Vec<String> =
            acknowledged.into_iter().filter(|(_, count)| *count < REPLICAS).map(|(node, _)| node).collect();
        if late.is_empty() {
            return Ok(());
        }
        // A primary that has lost its replicas goes on alone: what it loses then is mended by comparing every minute.
        let followed = self.replicas_now().await?;
        late.retain(|node| followed.iter().any(|(name, count)| name == node && *count > 0));
        if late.is_empty() { Ok(()) } else { Err(NotReplicated::Late(late)) }
    }

    /// Those of the keys that a fault of [`Self::replicated`] is not about: it is known that their primaries are others.
    pub(super) async fn spared<'a>(&self, fault: &NotReplicated, keys: &'a [String]) -> HashSet<&'a str> {
        let (NotReplicated::Late(late), Link::Cluster(cluster)) = (fault, &self.link) else { return HashSet::new() };
        let any = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
        let mut ask = cmd("CLUSTER");
        ask.arg("SLOTS");
        let told = cluster.with(async |mut link| link.route_command(ask, any).await).await;
        match told.and_then(primaries) {
            Ok(primaries) => keys.iter().map(String::as_str).filter(|key| is_spared(key, &primaries, late)).collect(),
            Err(error) => {
                tracing::warn!(%error, "the cluster does not tell its slots, so that all of it counts as late");
                HashSet::new()
            }
        }
    }

    /// Whether any primary has a replica; as of a moment ago.
    async fn has_replicas(&self) -> RedisResult<bool> {
        let known = *self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, any)) = known.filter(|(at, _)| at.elapsed() < COUNT_REPLICAS) {
            return Ok(any);
        }
        let any = self.replicas_now().await?.iter().any(|(_, count)| *count > 0);
        *self.replicas.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), any));
        Ok(any)
    }

    /// The replicas that each primary is connected to.
    async fn replicas_now(&self) -> RedisResult<Vec<(String, u32)>> {
        let told = self.everywhere::<redis::InfoDict>(cmd("INFO").arg("replication")).await?;
        Ok(told.into_iter().map(|(node, info)| (node, replicas_of(&info))).collect())
    }

    /// Asks every primary; the answers by node.
    async fn everywhere<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<Vec<(String, T)>> {
        match &self.link {
            Link::Server(server) => {
                Ok(vec![("the server".to_owned(), command.query_async(&mut server.main.clone()).await?)])
            }
            Link::Cluster(cluster) => {
                let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                let asked = cluster.with(async |mut link| link.route_command(command.clone(), all).await);
                let answers = asked.await?;
                let Value::Map(answers) = answers else { return Ok(Vec::from_redis_value(answers)?) };
                let read = |(node, answer)| Ok((String::from_redis_value(node)?, T::from_redis_value(answer)?));
                answers.into_iter().map(read).collect()
            }
        }
    }

    /// A server that drops what is old when it is full would drop what was acknowledged; so would one that keeps nothing
    /// on disk, at its next start.
    async fn refuse_a_forgetful_store(&self) -> anyhow::Result<()> {
        let mut ask = cmd("CONFIG");
        ask.arg("GET").arg("maxmemory-policy").arg("appendonly").arg("appendfsync");
        let answers = match self.everywhere::<std::collections::HashMap<String, String>>(&ask).await {
            Ok(answers) => answers,
            Err(error) if matches!(error.kind(), redis::ErrorKind::Server(_)) => {
                tracing::warn!(
                    %error,
                    "the store does not tell its settings: it needs maxmemory-policy noeviction, appendonly yes and \
                     appendfsync always"
                );
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        for (node, settings) in answers {
            let other = |name: &str, wanted: &str| settings.get(name).filter(|value| *value != wanted);
            if let Some(policy) = other("maxmemory-policy", "noeviction") {
                bail!("maxmemory-policy of {node} is {policy}, and would drop what was acknowledged: set noeviction");
            }
            if other("appendonly", "yes").is_some() {
                bail!("appendonly of {node} is off, and a restart would lose what was acknowledged: set yes");
            }
            if let Some(when) = other("appendfsync", "always") {
                tracing::warn!(%node, %when, "appendfsync is not always: a crash of the machine loses the last writes");
            }
        }
        Ok(())
    }
}

/// The primaries of a cluster, each with slots that it has, as `CLUSTER SLOTS` tells them:
/// <https://redis.io/docs/latest/commands/cluster-slots/>.
fn primaries(told: Value) -> RedisResult<Vec<(RangeInclusive<u16>, String)>> {
    let mut primaries = Vec::new();
    for part in Vec::<Vec<Value>>::from_redis_value(told)? {
        let mut part = part.into_iter();
        let (Some(first), Some(last), Some(primary)) = (part.next(), part.next(), part.next()) else { continue };
        let mut primary = Vec::<Value>::from_redis_value(primary)?.into_iter();
        let (Some(host), Some(port)) = (primary.next(), primary.next()) else { continue };
        let name = format!("{}:{}", String::from_redis_value(host)?, u16::from_redis_value(port)?);
        primaries.push((u16::from_redis_value(first)?..=u16::from_redis_value(last)?, name));
    }
    Ok(primaries)
}

/// Whether the key's primary is known, and none of those that are late.
fn is_spared(key: &str, primaries: &[(RangeInclusive<u16>, String)], late: &[String]) -> bool {
    let slot = Some(Slot::for_key(key));
    let primary = primaries.iter().find(|(slots, _)| slots.clone().any(|number| Slot::new(number) == slot));
    primary.is_some_and(|(_, name)| !late.contains(name))
}

/// The replicas of a primary that follow it: one that is still being given everything acknowledges nothing yet.
fn replicas_of(replication: &redis::InfoDict) -> u32 {
    let connected: u32 = replication.get("connected_slaves").unwrap_or(0);
    let states = (0..connected).filter_map(|number| replication.get::<String>(&format!("slave{number}")));
    states.map(|state| u32::from(state.split(',').any(|part| part == "state=online"))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_is_still_being_filled_does_not_count() {
        let info = "connected_slaves:2\r\nslave0:ip=::1,port=1,state=wait_bgsave,offset=0,lag=0\r\n\
                    slave1:ip=::1,port=2,state=online,offset=7,lag=1\r\n";
        assert_eq!(replicas_of(&redis::InfoDict::new(info)), 1);
    }

    #[test]
    fn a_key_is_spared_whose_primary_is_known_and_not_late() {
        let primaries = [(0..=8_000, "one:1".to_owned()), (8_001..=16_000, "two:2".to_owned())];
        // By `CLUSTER KEYSLOT`: 5061, 12182 and 16287.
        let [low, high, nobodys] = ["bar", "foo", "x"];
        let spared = |key, late: &str| is_spared(key, &primaries, &[late.to_owned()]);
        assert!(!spared(low, "one:1") && spared(high, "one:1"));
        assert!(spared(low, "two:2") && !spared(high, "two:2"));
        assert!(!spared(nobodys, "one:1"));
    }

    #[test]
    fn urls_name_a_server_or_a_cluster_and_a_prefix() {
        let server = Address::parse("redis://:secret@one:6379/2?prefix=blue").unwrap();
        assert_eq!(
            server,
            Address {
                nodes: vec!["redis://:secret@one:6379/2".to_owned()],
                cluster: false,
                prefix: "blue:".to_owned(),
            }
        );
        let cluster = Address::parse("rediss+cluster://one:1,two:2").unwrap();
        let nodes = vec!["rediss://one:1".to_owned(), "rediss://two:2".to_owned()];
        assert_eq!(cluster, Address { nodes, cluster: true, prefix: String::new() });
        for (wrong, word) in [
            ("redis://one:1?prefix={a}", "prefix"),
            ("redis://one:1?colour=red", "colour"),
            ("redis://one:1,two:2", "cluster"),
            ("redis:one", "host"),
        ] {
            let error = Address::parse(wrong).unwrap_err().to_string();
            assert!(error.contains(word), "{wrong}: {error}");
        }
    }
}
