//! Starts one service as a process of its own, configured by the environment.

use std::{collections::HashMap, future::Future, path::PathBuf, sync::Arc};

use anyhow::Context;
use auth::{DevIssuer, SigningKey};
use clap::{Args, Parser};
use contracts::{Clock, Region, SystemClock};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Node, Peers};

/// What every service is configured by.
#[derive(Debug, Clone, Args)]
pub struct NodeConfig {
    /// Where to listen.
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:0")]
    pub listen: String,
    /// The event log: embedded:PATH.
    #[arg(long, env = "EVENT_LOG")]
    pub event_log: String,
    /// The file that holds the development issuer's signing key.
    #[arg(long, env = "DEV_ISSUER_KEY")]
    pub dev_issuer_key: PathBuf,
    /// The region of this node.
    #[arg(long, env = "REGION", default_value = contracts::api::DEFAULT_REGION)]
    pub region: Region,
    /// Where the others are: name=URL, separated by commas.
    #[arg(long, env = "PEERS", value_delimiter = ',', value_parser = parse_peer)]
    pub peers: Vec<(&'static str, String)>,
}

/// The names of the services that others call.
pub const SERVICES: [&str; 7] = ["gateway", "delivery", "package", "fleet", "tracking", "history", "lookup"];

fn parse_peer(text: &str) -> Result<(&'static str, String), String> {
    let (name, url) = text.split_once('=').ok_or("expected name=URL")?;
    let known = SERVICES.into_iter().find(|service| *service == name);
    let name = known.ok_or_else(|| format!("'{name}' is not one of {}", SERVICES.join(", ")))?;
    Ok((name, url.to_owned()))
}

#[derive(Parser)]
struct CommandLine<C: Args> {
    #[command(flatten)]
    node: NodeConfig,
    #[command(flatten)]
    service: C,
}

/// Runs a service until SIGINT or SIGTERM; the whole of a service's `main`.
pub fn main<C, F, Fut>(service: &'static str, run: F) -> anyhow::Result<()>
where
    C: Args,
    F: FnOnce(C, Node) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    crate::init();
    let config = CommandLine::<C>::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let node = node(service, &config.node, shutdown.clone()).await?;
        tokio::select! {
            result = run(config.service, node) => result,
            () = async { asked_to_stop().await; shutdown.cancel(); std::future::pending().await } => Ok(()),
        }
    })
}

async fn node(service: &'static str, config: &NodeConfig, shutdown: CancellationToken) -> anyhow::Result<Node> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let listener = TcpListener::bind(&config.listen)
        .await
        .with_context(|| format!("LISTEN: cannot listen on {}", config.listen))?;
    let log = messaging::open(&config.event_log, clock.clone()).await.context("EVENT_LOG cannot be opened")?;
    let key = std::fs::read(&config.dev_issuer_key)
        .with_context(|| format!("DEV_ISSUER_KEY: cannot read {}", config.dev_issuer_key.display()))?;
    let issuer = DevIssuer::new(&SigningKey::from_bytes(key)?)?;
    Ok(Node {
        service,
        instance: format!("{service}-{}", clock.new_id()),
        listener,
        log,
        shutdown,
        peers: Peers(config.peers.iter().cloned().collect::<HashMap<_, _>>()),
        clock,
        verifier: issuer.verifier(),
        issuer,
        region: config.region.clone(),
    })
}

/// Returns at the first SIGINT or SIGTERM.
pub async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals end the process by themselves.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
