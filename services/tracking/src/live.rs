//! Watchers of single flights: each sees the newest state, and a slow one skips what came in between.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use contracts::{DeliveryId, events::FlightProgress};
use futures::Stream;
use tokio::sync::watch;

use crate::domain::{Flight, Version};

/// The newest known state of a watched flight; none before the first.
type Seen = Option<(Version, Arc<FlightProgress>)>;

/// The watched flights. Nobody watches most flights: those cost one look-up.
#[derive(Clone, Default)]
pub(crate) struct Live {
    watched: Arc<Mutex<HashMap<DeliveryId, watch::Sender<Seen>>>>,
}

fn version_of(seen: &Seen) -> Version {
    seen.as_ref().map(|(version, _)| *version).unwrap_or_default()
}

impl Live {
    /// Watches a flight. What is known of it must be offered after this, so that no change falls in between.
    pub(crate) fn watch(&self, id: DeliveryId) -> Watcher {
        let sender = self.watched().entry(id).or_insert_with(|| watch::channel(None).0).subscribe();
        Watcher { id, live: self.clone(), seen: Some(sender) }
    }

    /// Tells the watchers what the flights have become; what is older than they have seen is passed over.
    pub(crate) fn publish(&self, flights: &[Flight]) {
        self.tell(flights, |seen, flight| flight.version > seen);
    }

    /// Tells the watchers of flights that the store has otherwise than they were `seen`: also what is older, since a store
    /// that fails over may lose what was told already.
    pub(crate) fn replace(&self, seen: &[(DeliveryId, Version)], flights: &[Flight]) {
        let asked: HashMap<_, _> = seen.iter().copied().collect();
        self.tell(flights, |seen, flight| asked.get(&flight.delivery_id) == Some(&seen));
    }

    fn tell(&self, flights: &[Flight], is_news: impl Fn(Version, &Flight) -> bool) {
        let watched = self.watched();
        if watched.is_empty() {
            return;
        }
        for flight in flights {
            let Some(sender) = watched.get(&flight.delivery_id) else { continue };
            sender.send_if_modified(|seen| {
                if !is_news(version_of(seen), flight) {
                    return false;
                }
                let Some(progress) = flight.progress() else { return false };
                *seen = Some((flight.version, Arc::new(progress)));
                true
            });
        }
    }

    /// The watched flights, each with the version that its watchers have seen.
    pub(crate) fn versions(&self) -> Vec<(DeliveryId, Version)> {
        self.watched().iter().map(|(id, sender)| (*id, version_of(&sender.borrow()))).collect()
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<DeliveryId, watch::Sender<Seen>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One watcher. The last of a flight takes its entry along.
pub(crate) struct Watcher {
    id: DeliveryId,
    live: Live,
    seen: Option<watch::Receiver<Seen>>,
}

impl Watcher {
    /// The flight's states: the current one, then each newest one.
    pub(crate) fn into_stream(mut self) -> impl Stream<Item = Arc<FlightProgress>> + Send + 'static {
        if let Some(seen) = &mut self.seen {
            seen.mark_changed();
        }
        futures::stream::unfold(self, |mut watcher| async move {
            loop {
                let seen = watcher.seen.as_mut()?;
                seen.changed().await.ok()?;
                let newest = seen.borrow_and_update().clone();
                if let Some((_, progress)) = newest {
                    return Some((progress, watcher));
                }
            }
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut watched = self.live.watched();
        self.seen = None;
        if watched.get(&self.id).is_some_and(|sender| sender.receiver_count() == 0) {
            watched.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;
    use crate::fixtures::{flying, id};

    #[tokio::test]
    async fn a_slow_watcher_is_skipped_ahead_and_nothing_goes_back() {
        let live = Live::default();
        let mut states = Box::pin({
            let watcher = live.watch(id(1));
            live.publish(&[flying(1, 3)]);
            watcher.into_stream()
        });
        assert_eq!(states.next().await.unwrap().last.unwrap().sequence, 3);
        for sequence in [4, 5, 9, 7] {
            live.publish(&[flying(1, sequence), flying(2, sequence)]);
        }
        assert_eq!(states.next().await.unwrap().last.unwrap().sequence, 9);
        assert_eq!(futures::poll!(states.next()), std::task::Poll::Pending);
    }

    #[tokio::test]
    async fn what_the_store_has_lost_is_told_again_and_nothing_newer_is_hidden() {
        let live = Live::default();
        let mut states = Box::pin(live.watch(id(1)).into_stream());
        live.publish(&[flying(1, 9)]);
        assert_eq!(states.next().await.unwrap().last.unwrap().sequence, 9);
        let asked = live.versions();
        live.replace(&asked, &[flying(1, 4)]);
        assert_eq!(states.next().await.unwrap().last.unwrap().sequence, 4);
        live.publish(&[flying(1, 6)]);
        live.replace(&asked, &[flying(1, 5)]);
        assert_eq!(states.next().await.unwrap().last.unwrap().sequence, 6, "it has changed since it was asked about");
    }

    #[tokio::test]
    async fn the_last_watcher_takes_the_entry_along() {
        let live = Live::default();
        let (first, second) = (live.watch(id(1)), live.watch(id(1)));
        drop(first);
        assert_eq!(live.versions(), [(id(1), Version::default())]);
        drop(second.into_stream());
        assert_eq!(live.versions(), []);
    }
}
