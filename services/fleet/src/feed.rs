//! The fleet's live feed: read from the store twice a second while somebody watches, whoever wrote it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use contracts::{BaseId, Clock, DroneId, commands::FleetDrone};
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

/// Drones in one message: some 200 KB, so that neither side holds a whole fleet as one text, and a page can draw while
/// the rest is on its way.
const DRONES_PER_MESSAGE: usize = 500;

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

    /// All drones of a base (or of all) first, then those that changed; at most [`DRONES_PER_MESSAGE`] in a message.
    pub(crate) fn watch(self: Arc<Self>, base: Option<BaseId>) -> impl Stream<Item = Vec<FleetDrone>> + Send + 'static {
        // Subscribed before the first read: what changes in between comes twice rather than never.
        let changes = self.changes.subscribe();
        let watcher = Watcher { feed: self, base, changes, place: Place::Begins, changed: VecDeque::new() };
        stream::unfold(watcher, |mut watcher| async move {
            let message = watcher.next().await?;
            Some((message, watcher))
        })
    }
}

/// How far a watcher has come.
enum Place {
    /// It has nothing yet, or has missed changes: it gets the whole fleet.
    Begins,
    /// It has the fleet up to that drone.
    After(DroneId),
    /// It has the whole fleet, and gets the changes.
    Follows,
}

struct Watcher {
    feed: Arc<Feed>,
    base: Option<BaseId>,
    changes: broadcast::Receiver<Arc<[FleetDrone]>>,
    place: Place,
    /// Changes that are still to be told.
    changed: VecDeque<FleetDrone>,
}

impl Watcher {
    /// The next message; none where the stream ends, and the watcher must come back.
    async fn next(&mut self) -> Option<Vec<FleetDrone>> {
        loop {
            let (first, after) = match self.place {
                Place::Begins => (true, None),
                Place::After(drone) => (false, Some(drone)),
                Place::Follows => break,
            };
            let drones = self.some_of_all(after).await?;
            // The first message comes even if there is no drone: whoever waits for the fleet hears that it is empty.
            if first || !drones.is_empty() {
                return Some(drones);
            }
        }
        while self.changed.is_empty() {
            match self.changes.recv().await {
                Ok(changes) => {
                    let ours = |drone: &&FleetDrone| self.base.as_ref().is_none_or(|base| drone.base_id == *base);
                    self.changed.extend(changes.iter().filter(ours).cloned());
                }
                Err(RecvError::Lagged(_)) => return self.some_of_all(None).await,
                Err(RecvError::Closed) => return None,
            }
        }
        let count = self.changed.len().min(DRONES_PER_MESSAGE);
        Some(self.changed.drain(..count).collect())
    }

    /// The part of the fleet after a drone.
    async fn some_of_all(&mut self, after: Option<DroneId>) -> Option<Vec<FleetDrone>> {
        match self.feed.store.page(self.base.as_ref(), after, DRONES_PER_MESSAGE).await {
            Ok(drones) => {
                let last = drones.last().filter(|_| drones.len() == DRONES_PER_MESSAGE);
                self.place = last.map_or(Place::Follows, |drone| Place::After(drone.id));
                Some(drones.iter().map(Drone::view).collect())
            }
            Err(error) => {
                warn!(error = %chain(&error), "a watcher of the fleet is sent away");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use contracts::SystemClock;
    use futures::StreamExt;

    use super::*;
    use crate::{store, tests::make};

    #[tokio::test]
    async fn a_large_fleet_and_its_changes_come_in_messages_of_a_bounded_size() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("fleet.db").display());
        let store = store::open(&url, Arc::new(SystemClock)).await.unwrap().store;
        let feed = Feed::new(store.clone());
        let mut empty = Box::pin(feed.clone().watch(None));
        assert_eq!(empty.next().await.unwrap(), [], "an empty fleet is told, too");

        let many = 2 * DRONES_PER_MESSAGE;
        let ids: Vec<_> = (1..).take(many).map(make::drone_id).collect();
        let drones: Vec<_> = (1..).take(many).map(|number| make::registration(number, "north")).collect();
        store.register(&drones).await.unwrap();
        store.register(&[make::registration(1_000_000, "south")]).await.unwrap();
        let sizes = [DRONES_PER_MESSAGE, DRONES_PER_MESSAGE];
        let mut watched = Box::pin(feed.clone().watch(Some("north".parse().unwrap())));
        // The whole fleet, then the changes since the beginning, which are as many.
        let mut told = Vec::new();
        for size in sizes {
            let message = watched.next().await.unwrap();
            assert_eq!(message.len(), size);
            told.extend(message.into_iter().map(|drone| drone.drone_id));
        }
        assert_eq!(told, ids);
        feed.gather(0).await.unwrap();
        let mut told = Vec::new();
        for size in sizes {
            let message = watched.next().await.unwrap();
            assert_eq!(message.len(), size, "the empty end of the fleet is no message");
            told.extend(message.into_iter().map(|drone| drone.drone_id));
        }
        told.sort_unstable();
        assert_eq!(told, ids);
    }
}
