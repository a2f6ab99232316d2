//! What a service gets from whoever starts it.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc};

use auth::{DevIssuer, Verifier};
use contracts::{Clock, Region};
use messaging::EventLog;
use tokio::{
    net::{TcpListener, ToSocketAddrs},
    sync::SetOnce,
};
use tokio_util::sync::CancellationToken;

use crate::Peer;

/// The base URLs of the services, by name.
#[derive(Debug, Clone, Default)]
pub struct Peers(pub HashMap<&'static str, String>);

/// A bound socket: its address is known before its service has opened anything, and it tells when the service answers.
pub struct Door {
    pub(crate) socket: TcpListener,
    pub(crate) opened: Arc<SetOnce<()>>,
}

impl Door {
    /// Binds; connections wait until [`crate::serve`] takes them.
    pub async fn bind(at: impl ToSocketAddrs) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(at).await?, opened: Arc::default() })
    }

    /// Where it is bound.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Returns once the service takes connections: its stores are open.
    pub fn opened(&self) -> impl Future<Output = ()> + Send + use<> {
        let opened = self.opened.clone();
        async move {
            opened.wait().await;
        }
    }
}

/// Everything that a service shares with others.
pub struct Node {
    /// The service's name.
    pub service: &'static str,
    /// This process, unique among all replicas and restarts.
    pub instance: String,
    /// Where it is asked.
    pub door: Door,
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
            anyhow::bail!("PEERS: the URL of the service '{name}' is not among them");
        };
        Peer::new(name, url, self.service, self.issuer.clone(), self.clock.clone())
    }
}
