//! Tells watchers in this process of every change that is committed, here or by another process.

use std::{collections::HashMap, sync::Arc};

use contracts::{CustomerId, DeliveryId, events::DeliveryRecord};
use futures::{Stream, stream};
use tokio::sync::broadcast;

/// Changes kept for a slow watcher. One that is further behind is told so.
const BACKLOG: usize = 1_024;

/// Deliveries of which a watcher remembers what it has seen: more than anybody has open. Past it all are forgotten, and
/// at worst a change is told twice.
const MAX_SEEN: usize = 4_096;

/// The committed changes.
#[derive(Clone)]
pub(crate) struct Live {
    sender: broadcast::Sender<Told>,
}

#[derive(Clone)]
enum Told {
    Changed(Arc<DeliveryRecord>),
    /// Changes of other processes were missed.
    Missed,
}

/// What a watcher is after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filter {
    One(DeliveryId),
    AllOf(CustomerId),
}

/// A watcher's next message.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    Changed(Arc<DeliveryRecord>),
    /// Changes were skipped, nobody knows of which deliveries: read the store.
    Skipped,
    /// There will be no more.
    Closed,
}

pub(crate) struct Watch {
    receiver: broadcast::Receiver<Told>,
    filter: Filter,
    /// The versions that the watcher knows: changes are told after their commit, so not always in its order, and a
    /// watcher must not see a delivery go back.
    seen: HashMap<DeliveryId, u64>,
}

impl Live {
    pub(crate) fn new() -> Self {
        Self { sender: broadcast::channel(BACKLOG).0 }
    }

    /// Tells whoever watches; nearly free where nobody does.
    pub(crate) fn tell(&self, record: &DeliveryRecord) {
        if self.is_watched() {
            // An error means that the last watcher has just gone.
            let _ = self.sender.send(Told::Changed(Arc::new(record.clone())));
        }
    }

    /// Whether anybody watches. Who begins to after this was asked reads the store after that.
    pub(crate) fn is_watched(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Tells everybody to read the store: changes of other processes were missed.
    pub(crate) fn missed(&self) {
        // An error means that nobody watches.
        let _ = self.sender.send(Told::Missed);
    }

    pub(crate) fn watch(&self, filter: Filter) -> Watch {
        Watch { receiver: self.sender.subscribe(), filter, seen: HashMap::new() }
    }
}

impl Watch {
    /// Notes what the watcher has read elsewhere; false where it knows that, or a later state.
    pub(crate) fn note(&mut self, record: &DeliveryRecord) -> bool {
        if self.seen.len() >= MAX_SEEN {
            self.seen.clear();
        }
        let seen = self.seen.entry(record.delivery_id).or_insert(0);
        let newer = record.version > *seen;
        *seen = record.version.max(*seen);
        newer
    }

    /// The next change that the filter lets through and the watcher does not know.
    pub(crate) async fn next(&mut self) -> Message {
        loop {
            match self.receiver.recv().await {
                Ok(Told::Changed(record)) if self.filter.takes(&record) => {
                    if self.note(&record) {
                        return Message::Changed(record);
                    }
                }
                Ok(Told::Changed(_)) => {}
                Ok(Told::Missed) | Err(broadcast::error::RecvError::Lagged(_)) => return Message::Skipped,
                Err(broadcast::error::RecvError::Closed) => return Message::Closed,
            }
        }
    }

    /// The changes, until some were skipped. Any delivery may be among those, also one that no page of a list begins
    /// with, so that only who watches can make up for them: by watching anew.
    pub(crate) fn changes(self) -> impl Stream<Item = Arc<DeliveryRecord>> + Send + 'static {
        stream::unfold(self, |mut watch| async move {
            match watch.next().await {
                Message::Changed(record) => Some((record, watch)),
                Message::Skipped | Message::Closed => None,
            }
        })
    }
}

impl Filter {
    fn takes(&self, record: &DeliveryRecord) -> bool {
        match self {
            Self::One(id) => record.delivery_id == *id,
            Self::AllOf(customer) => record.customer_id == *customer,
        }
    }
}

#[cfg(test)]
mod tests {
    use contracts::{
        Clock, Coordinate, SystemClock, Timestamp,
        api::{Confirmation, CreateDelivery, PackageSize, PackageSpec, default_region},
    };
    use futures::StreamExt;

    use super::*;
    use crate::domain::Delivery;

    fn record(customer: &str) -> DeliveryRecord {
        let wish = CreateDelivery {
            pickup: Coordinate { latitude: 1.0, longitude: 2.0 },
            dropoff: Coordinate { latitude: 1.1, longitude: 2.0 },
            package: PackageSpec { size: PackageSize::Small, weight_kg: 0.5, tag: None, description: None },
            deadline: None,
            expedited: false,
            confirmation: Confirmation::None,
        };
        let id = SystemClock.new_delivery_id();
        Delivery::request(id, customer.parse().unwrap(), default_region(), wish, Timestamp::UNIX_EPOCH).0.record
    }

    fn version(record: &DeliveryRecord, version: u64) -> DeliveryRecord {
        DeliveryRecord { version, ..record.clone() }
    }

    async fn heard(watch: &mut Watch) -> u64 {
        match watch.next().await {
            Message::Changed(record) => record.version,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_watcher_never_sees_a_delivery_go_back_nor_the_same_twice() {
        let (live, alices) = (Live::new(), record("alice"));
        let mut watch = live.watch(Filter::One(alices.delivery_id));
        // Told after the watch began, but before the watcher read the second version from the store.
        live.tell(&version(&alices, 1));
        live.tell(&version(&alices, 2));
        assert!(watch.note(&version(&alices, 2)));
        for told in [4, 3, 4, 5] {
            live.tell(&version(&alices, told));
        }
        assert_eq!((heard(&mut watch).await, heard(&mut watch).await), (4, 5));
    }

    #[tokio::test]
    async fn a_filter_lets_through_what_it_names() {
        let (live, alices, bobs) = (Live::new(), record("alice"), record("bob"));
        let mut one = live.watch(Filter::One(alices.delivery_id));
        let mut all = live.watch(Filter::AllOf("bob".parse().unwrap()));
        live.tell(&version(&bobs, 7));
        live.tell(&version(&alices, 8));
        assert_eq!((heard(&mut one).await, heard(&mut all).await), (8, 7));
    }

    #[tokio::test]
    async fn a_watcher_that_is_far_behind_is_told_to_read() {
        let (live, alices) = (Live::new(), record("alice"));
        let mut watch = live.watch(Filter::One(alices.delivery_id));
        for number in 0..=BACKLOG as u64 {
            live.tell(&version(&alices, number + 1));
        }
        assert!(matches!(watch.next().await, Message::Skipped));
    }

    #[tokio::test]
    async fn a_stream_of_changes_ends_where_some_were_skipped_and_not_before() {
        let (live, alices) = (Live::new(), record("alice"));
        let watch = live.watch(Filter::AllOf("alice".parse().unwrap()));
        live.tell(&version(&alices, 1));
        live.tell(&version(&alices, 2));
        live.missed();
        live.tell(&version(&alices, 3));
        let told: Vec<u64> = watch.changes().map(|record| record.version).collect().await;
        assert_eq!(told, [1, 2], "whoever goes on from here would never hear what was skipped");
    }

    #[tokio::test]
    async fn what_was_missed_is_told_to_everybody() {
        let (live, alices) = (Live::new(), record("alice"));
        assert!(!live.is_watched());
        live.missed();
        let mut one = live.watch(Filter::One(alices.delivery_id));
        let mut all = live.watch(Filter::AllOf("bob".parse().unwrap()));
        assert!(live.is_watched());
        live.missed();
        live.tell(&version(&alices, 2));
        assert!(matches!(one.next().await, Message::Skipped) && matches!(all.next().await, Message::Skipped));
        assert_eq!(heard(&mut one).await, 2);
    }
}
