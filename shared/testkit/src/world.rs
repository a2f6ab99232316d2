//! A place to start services in: a folder, an event log, an issuer, loopback listeners.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use auth::{DevIssuer, SigningKey};
use chassis::{Door, Node, Peers};
use contracts::{Clock, SystemClock, api::Role};
use messaging::EventLog;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Everything that a test's services share.
#[allow(missing_debug_implementations)]
pub struct World {
    folder: TempDir,
    /// Signs tokens.
    pub issuer: DevIssuer,
    /// The event log, in the folder.
    pub log: Arc<dyn EventLog>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Ends every node of this world.
    pub shutdown: CancellationToken,
}

#[allow(clippy::unwrap_used, reason = "for tests")]
impl World {
    /// A fresh world on the machine's clock.
    pub async fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock)).await
    }

    /// A fresh world on that clock.
    pub async fn with_clock(clock: Arc<dyn Clock>) -> Self {
        chassis::init().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let url = format!("embedded:{}", folder.path().join("log.db").display());
        let log = messaging::open(&url, clock.clone()).await.unwrap();
        let issuer = DevIssuer::new(&SigningKey::generate().unwrap()).unwrap();
        Self { folder, issuer, log, clock, shutdown: CancellationToken::new() }
    }

    /// A path in the world's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A node for `service` with a door of its own, and its URL. `peers` are names and URLs.
    pub async fn node(&self, service: &'static str, peers: &[(&'static str, &str)]) -> (Node, String) {
        let door = Door::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", door.address().unwrap());
        let peers = peers.iter().map(|(name, url)| (*name, (*url).to_owned())).collect::<HashMap<_, _>>();
        let node = Node {
            service,
            instance: format!("{service}-{}", self.clock.new_id()),
            door,
            log: self.log.clone(),
            shutdown: self.shutdown.child_token(),
            peers: Peers(peers),
            clock: self.clock.clone(),
            verifier: self.issuer.verifier(),
            issuer: self.issuer.clone(),
            region: contracts::api::default_region(),
        };
        (node, url)
    }

    /// A token for an hour.
    pub fn token(&self, subject: &str, role: Role) -> String {
        self.issuer.issue(subject, role, self.clock.now(), chrono::Duration::hours(1)).unwrap().0
    }
}

/// Runs a service among `tasks`; returns once its door has `opened`.
#[allow(clippy::panic, reason = "for tests")]
pub async fn serving(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    opened: impl Future<Output = ()>,
    run: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) {
    tasks.spawn(run);
    tokio::select! {
        () = opened => {}
        Some(ended) = tasks.join_next() => panic!("it has ended: {ended:?}"),
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
