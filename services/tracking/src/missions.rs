//! What drones and bases are to do: a snapshot of the store, then the lines of its mission log as they are committed.
//!
//! The feed tails the log, whoever wrote it: woken by this instance's commits, and now and then for those of others.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use contracts::{Clock, commands::{Mission, MissionUpdate}};
use futures::Stream;
use messaging::outbox::chain;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

use crate::{
    live::Live,
    store::{Audience, LoggedMission, Store, Unavailable},
};

/// Updates kept for a watcher that is behind: the changes of some busy seconds at one base. One that is further behind
/// gets a snapshot, which says the same in one message.
const BUFFERED_UPDATES: usize = 256;

/// Lines of the log read in one go.
const LOG_PAGE: u32 = 1_000;

/// How often the store is asked for what other instances have changed: a mission shows within half a second.
const POLL: Duration = Duration::from_millis(500);

/// How long to wait before a snapshot or the log is asked for again after the store failed.
const RETRY: Duration = Duration::from_millis(500);

/// The watched missions.
#[derive(Clone)]
pub(crate) struct Missions {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    watched: Arc<Mutex<HashMap<Audience, broadcast::Sender<Arc<MissionUpdate>>>>>,
}

impl Missions {
    /// Nobody watches yet.
    pub(crate) fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock, watched: Arc::default() }
    }

    /// The missions of an audience now, by delivery.
    pub(crate) async fn list(&self, audience: &Audience) -> Result<Vec<Mission>, Unavailable> {
        let flights = self.store.missions(audience).await?;
        let mut missions: Vec<_> = flights.iter().filter_map(crate::domain::Flight::mission).collect();
        missions.sort_unstable_by_key(|mission| mission.delivery_id);
        Ok(missions)
    }

    /// The missions of an audience: a snapshot, then what changes. A watcher that lags gets a snapshot again.
    pub(crate) fn watch(&self, audience: Audience) -> impl Stream<Item = Arc<MissionUpdate>> + Send + 'static {
        let watcher = Watcher { updates: Some(self.subscribe(&audience)), missions: self.clone(), audience };
        futures::stream::unfold((watcher, true), |(mut watcher, behind)| async move {
            let update = if behind { watcher.snapshot().await } else { watcher.next().await };
            Some((update, (watcher, false)))
        })
    }

    fn subscribe(&self, audience: &Audience) -> broadcast::Receiver<Arc<MissionUpdate>> {
        let mut watched = self.watched();
        let sender = watched.entry(audience.clone()).or_insert_with(|| broadcast::channel(BUFFERED_UPDATES).0);
        sender.subscribe()
    }

    /// Lets every watcher begin again with a snapshot.
    fn restart(&self) {
        self.watched().clear();
    }

    /// Tells the watchers of its base and its drone.
    async fn announce(&self, lines: Vec<LoggedMission>) -> Result<(), Unavailable> {
        let mut heard = Vec::new();
        for LoggedMission { note, .. } in lines {
            let watched = self.watched();
            let audiences = [Audience::Base(note.base_id.clone()), Audience::Drone(note.drone_id)];
            let senders: Vec<_> = audiences.iter().filter_map(|audience| watched.get(audience).cloned()).collect();
            if !senders.is_empty() {
                heard.push((note, senders));
            }
        }
        let assigned: HashSet<_> = heard.iter().filter(|(note, _)| note.assigned).map(|(note, _)| note.delivery_id).collect();
        let assigned: Vec<_> = assigned.into_iter().collect();
        let flights: HashMap<_, _> =
            self.store.load(&assigned).await?.into_iter().map(|flight| (flight.delivery_id, flight)).collect();
        for (note, senders) in heard {
            let (delivery_id, drone_id, attempt) = (note.delivery_id, note.drone_id, note.attempt);
            let update = if note.assigned {
                // Over already: its recall is a later line.
                let mission = flights.get(&delivery_id).and_then(crate::domain::Flight::mission);
                let Some(mission) = mission.filter(|mission| mission.attempt == attempt) else { continue };
                MissionUpdate::Assigned { mission }
            } else {
                MissionUpdate::Recalled { delivery_id, drone_id, attempt }
            };
            let update = Arc::new(update);
            for sender in senders {
                // Nobody left to hear it.
                let _ = sender.send(update.clone());
            }
        }
        Ok(())
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<Audience, broadcast::Sender<Arc<MissionUpdate>>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One watcher. The last of an audience takes its entry along.
struct Watcher {
    missions: Missions,
    audience: Audience,
    updates: Option<broadcast::Receiver<Arc<MissionUpdate>>>,
}

impl Watcher {
    async fn next(&mut self) -> Arc<MissionUpdate> {
        if let Some(updates) = &mut self.updates {
            if let Ok(update) = updates.recv().await {
                return update;
            }
        }
        self.snapshot().await
    }

    /// Every mission, read after the subscription: what is committed later is heard as an update.
    async fn snapshot(&mut self) -> Arc<MissionUpdate> {
        loop {
            self.updates = Some(self.missions.subscribe(&self.audience));
            match self.missions.list(&self.audience).await {
                Ok(missions) => return Arc::new(MissionUpdate::Snapshot { missions }),
                Err(error) => tracing::warn!(error = %chain(&error), "missions cannot be read"),
            }
            self.missions.clock.sleep(RETRY).await;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut watched = self.missions.watched();
        self.updates = None;
        if watched.get(&self.audience).is_some_and(|sender| sender.receiver_count() == 0) {
            watched.remove(&self.audience);
        }
    }
}

/// Tails the mission log for the watchers of missions, and the watched flights for the live view.
pub(crate) struct Feed {
    pub(crate) missions: Missions,
    pub(crate) live: Live,
    /// Wakes it early.
    pub(crate) wake: Arc<Notify>,
}

impl Feed {
    /// Runs until `shutdown`. What was committed before is in every watcher's snapshot.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut position = None;
        while !shutdown.is_cancelled() {
            let pause = match self.turn(&mut position).await {
                Ok(true) => continue,
                Ok(false) => POLL,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the mission log cannot be read");
                    RETRY
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = self.missions.clock.sleep(pause) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// One page of the log and the watched flights; true where there may be more.
    async fn turn(&self, position: &mut Option<u64>) -> Result<bool, Unavailable> {
        let store = &self.missions.store;
        let after = match *position {
            Some(after) => after,
            None => {
                let end = store.mission_log_end().await?;
                // Watchers that came before the position was known may have missed something.
                self.missions.restart();
                *position.insert(end)
            }
        };
        let lines = store.mission_log(after, LOG_PAGE).await?;
        let more = lines.len() == LOG_PAGE as usize;
        if let (Some(first), Some(last)) = (lines.first().map(|line| line.number), lines.last().map(|line| line.number)) {
            if first == after + 1 {
                self.missions.announce(lines).await?;
            } else {
                // This process was stopped for longer than the log is kept.
                self.missions.restart();
            }
            *position = Some(last);
        }
        self.live.publish(&store.moved(&self.live.versions()).await?);
        Ok(more)
    }
}
