//! What a service gets from whoever starts it.

use std::{collections::HashMap, sync::Arc};

use auth::{DevIssuer, Verifier};
use contracts::{Clock, Region};
use messaging::EventLog;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::Peer;

/// The base URLs of the services, by name.
#[derive(Debug, Clone, Default)]
pub struct Peers(pub HashMap<&'static str, String>);

/// Everything that a service shares with others.
pub struct Node {
    /// The service's name.
    pub service: &'static str,
    /// This process, unique among all replicas and restarts.
    pub instance: String,
    /// Bound already: the address is known before the service runs.
    pub listener: TcpListener,
    /// The event log.
    pub log: Arc<dyn EventLog>,
    /// Ends the service when cancelled.
    pub shutdown: CancellationToken,
    /// Where the others are.
    pub peers: Peers,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Verifies callers.
    pub verifier: Arc<Verifier>,
    /// Signs this service's own tokens, and at the gateway those of the development issuer.
    pub issuer: DevIssuer,
    /// The region that this node runs in.
    pub region: Region,
}

impl Node {
    /// A client for another service, speaking as this one.
    pub fn peer(&self, name: &'static str) -> anyhow::Result<Peer> {
        let Some(url) = self.peers.0.get(name) else {
            anyhow::bail!("the URL of the service '{name}' is not configured");
        };
        Peer::new(name, url, self.service, self.issuer.clone(), self.clock.clone())
    }
}
