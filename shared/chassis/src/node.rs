//! What a service gets from whoever starts it.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc};

use anyhow::Context;
use auth::{DevIssuer, Verifier};
use contracts::{Clock, Region};
use messaging::EventLog;
use tokio::{
    net::{TcpListener, TcpSocket, ToSocketAddrs},
    sync::SetOnce,
};
use tokio_util::sync::CancellationToken;

use crate::Peer;

/// The base URLs of the services, by name.
#[derive(Debug, Clone, Default)]
pub struct Peers(pub HashMap<&'static str, String>);

/// Connections that wait to be taken: as many as the system allows by default.
const BACKLOG: u32 = 1024;

/// A bound socket: its address is known before its service has opened anything, and it tells when the service answers.
pub struct Door {
    socket: TcpSocket,
    opened: Arc<SetOnce<()>>,
}

impl Door {
    /// Binds. Until [`crate::serve`] connections are refused, so that callers go to another replica, or come again.
    pub async fn bind(at: impl ToSocketAddrs) -> io::Result<Self> {
        let mut fault = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in tokio::net::lookup_host(at).await? {
            match bound(address) {
                Ok(socket) => return Ok(Self { socket, opened: Arc::default() }),
                Err(error) => fault = error,
            }
        }
        Err(fault)
    }

    /// Takes connections from now on. Fails where another process was faster, which binding does not show.
    pub(crate) fn open(self) -> anyhow::Result<TcpListener> {
        let address = self.address()?;
        let listener =
            self.socket.listen(BACKLOG).with_context(|| format!("cannot listen on {address} (LISTEN, or --port)"))?;
        // Nobody opens a door twice.
        let _ = self.opened.set(());
        Ok(listener)
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

fn bound(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of the process before may not have ended yet.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_door_refuses_callers_until_it_is_opened() {
        let door = Door::bind("127.0.0.1:0").await.unwrap();
        let (address, opened) = (door.address().unwrap(), door.opened());
        assert_eq!(TcpStream::connect(address).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let _listener = door.open().unwrap();
        opened.await;
        TcpStream::connect(address).await.unwrap();
        assert_eq!(Door::bind(address).await.err().unwrap().kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn of_two_doors_at_one_address_one_opens() {
        let first = Door::bind("127.0.0.1:0").await.unwrap();
        let address = first.address().unwrap();
        let second = Door::bind(address).await.unwrap();
        let _listener = second.open().unwrap();
        let error = first.open().unwrap_err().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
