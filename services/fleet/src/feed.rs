//! The fleet's live feed: read from the store twice a second while somebody watches, whoever wrote it.

use std::{sync::Arc, time::Duration};

use contracts::{BaseId, Clock, commands::FleetDrone};
use futures::{Stream, stream};
use messaging::outbox::chain;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    domain::Drone,
    store::{Store, StoreError},
    upkeep::pause,
};

/// How often changes are gathered: fluent on a map, and a scan of a few milliseconds.
const GATHER: Duration = Duration::from_millis(500);

/// Changes kept for slow watchers: eight seconds' worth. A slower one gets the whole fleet again.
const KEPT: usize = 16;

/// Who watches the fleet.
pub(crate) struct Feed {
    store: Arc<dyn Store>,
    changes: broadcast::Sender<Arc<[FleetDrone]>>,
}

impl Feed {
    /// A feed that nobody watches yet.
    pub(crate) fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { store, changes: broadcast::Sender::new(KEPT) })
    }

    /// Gathers changes until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
        let mut change = 0;
        while pause(&*clock, GATHER, &shutdown).await {
            match self.gather(change).await {
                Ok(last) => change = last,
                Err(error) => warn!(error = %chain(&error), "the live feed goes on later"),
            }
        }
    }

    async fn gather(&self, change: i64) -> Result<i64, StoreError> {
        if self.changes.receiver_count() == 0 {
            return self.store.last_change().await;
        }
        let (drones, last) = self.store.touched_since(change).await?;
        if !drones.is_empty() {
            // An error means that the last watcher has just left.
            let _ = self.changes.send(drones.iter().map(Drone::view).collect());
        }
        Ok(last)
    }

    /// All drones of a base (or of all) first, then those that changed.
    pub(crate) fn watch(self: Arc<Self>, base: Option<BaseId>) -> impl Stream<Item = Vec<FleetDrone>> + Send + 'static {
        // Subscribed before the first read: what changes in between comes twice rather than never.
        let changes = self.changes.subscribe();
        let watcher = Watcher { feed: self, base, changes, begins: true };
        stream::unfold(watcher, |mut watcher| async move {
            let message = watcher.next().await?;
            Some((message, watcher))
        })
    }
}

struct Watcher {
    feed: Arc<Feed>,
    base: Option<BaseId>,
    changes: broadcast::Receiver<Arc<[FleetDrone]>>,
    begins: bool,
}

impl Watcher {
    /// The next message; none where the stream ends, and the watcher must come back.
    async fn next(&mut self) -> Option<Vec<FleetDrone>> {
        if std::mem::take(&mut self.begins) {
            return self.everything().await;
        }
        loop {
            let changes = match self.changes.recv().await {
                Ok(changes) => changes,
                Err(RecvError::Lagged(_)) => return self.everything().await,
                Err(RecvError::Closed) => return None,
            };
            let ours = |drone: &&FleetDrone| self.base.as_ref().is_none_or(|base| drone.base_id == *base);
            let changed: Vec<_> = changes.iter().filter(ours).cloned().collect();
            if !changed.is_empty() {
                return Some(changed);
            }
        }
    }

    async fn everything(&self) -> Option<Vec<FleetDrone>> {
        match self.feed.store.page(self.base.as_ref(), None, usize::MAX).await {
            Ok(drones) => Some(drones.iter().map(Drone::view).collect()),
            Err(error) => {
                warn!(error = %chain(&error), "a watcher of the fleet is sent away");
                None
            }
        }
    }
}
