//! What drones and bases are to do: a snapshot of the store, then the lines of its mission log as they are committed.
//!
//! The feed tails the log, whoever wrote it: woken by this instance's commits, and now and then for those of others.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use contracts::{
    Clock, Timestamp,
    commands::{Mission, MissionUpdate},
};
use futures::Stream;
use messaging::{Pace, outbox::chain};
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{Flight, MissionNote},
    live::Live,
    store::{Audience, Elsewhere, LogPosition, Look, Store, Unavailable},
};

/// Updates kept for a watcher that is behind: the changes of some busy seconds at one base. One that is further behind
/// gets a snapshot, which says the same in one message.
const BUFFERED_UPDATES: usize = 256;

/// Lines of the log read in one go.
const LOG_PAGE: u32 = 1_000;

/// How often the store is asked for what other instances have changed: a mission shows within half a second.
const POLL: Duration = Duration::from_millis(500);

/// The least time between two turns: what comes in a burst is read in one go.
const PACE: Duration = Duration::from_millis(10);

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
        let mut missions: Vec<_> = flights.iter().filter_map(Flight::mission).collect();
        missions.sort_unstable_by_key(|mission| mission.delivery_id);
        Ok(missions)
    }

    /// The missions of an audience: a snapshot, then what changes. A watcher that lags gets a snapshot again.
    pub(crate) fn watch(&self, audience: Audience) -> impl Stream<Item = Arc<MissionUpdate>> + Send + 'static {
        let watcher = Watcher { missions: self.clone(), audience, updates: None };
        futures::stream::unfold(watcher, |mut watcher| async move { Some((watcher.next().await, watcher)) })
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
    async fn announce(&self, lines: Vec<MissionNote>) -> Result<(), Unavailable> {
        let mut heard = Vec::new();
        for note in lines {
            let watched = self.watched();
            let audiences = [Audience::Base(note.base_id.clone()), Audience::Drone(note.drone_id)];
            let senders: Vec<_> = audiences.iter().filter_map(|audience| watched.get(audience).cloned()).collect();
            if !senders.is_empty() {
                heard.push((note, senders));
            }
        }
        let assigned: HashSet<_> =
            heard.iter().filter(|(note, _)| note.assigned).map(|(note, _)| note.delivery_id).collect();
        let assigned: Vec<_> = assigned.into_iter().collect();
        let flights: HashMap<_, _> =
            self.store.load(&assigned).await?.into_iter().map(|flight| (flight.delivery_id, flight)).collect();
        for (note, senders) in heard {
            let (delivery_id, drone_id, attempt) = (note.delivery_id, note.drone_id, note.attempt);
            let update = if note.assigned {
                // Over already: its recall is a later line.
                let mission = flights.get(&delivery_id).and_then(Flight::mission);
                let Some(mission) = mission.filter(|mission| mission.attempt == attempt) else { continue };
                MissionUpdate::Assigned { mission }
            } else {
                MissionUpdate::Recalled { delivery_id, drone_id, base_id: note.base_id, attempt }
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
    /// None before the first snapshot.
    updates: Option<broadcast::Receiver<Arc<MissionUpdate>>>,
}

impl Watcher {
    async fn next(&mut self) -> Arc<MissionUpdate> {
        if let Some(updates) = &mut self.updates
            && let Ok(update) = updates.recv().await
        {
            return update;
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

/// Tails the mission log for the watchers of missions, and reads the watched flights that others have moved.
pub(crate) struct Feed {
    missions: Missions,
    live: Live,
    /// Wakes it early.
    wake: Arc<Notify>,
    /// Where it is in the log; none before the first turn.
    position: Option<LogPosition>,
    /// When it looks everywhere next. What it hears of reaches the watchers without that.
    due: Timestamp,
    /// What it has heard of other instances since the last turn.
    heard: Elsewhere,
}

impl Feed {
    /// A feed for those who watch missions and flights.
    pub(crate) fn new(missions: Missions, live: Live, wake: Arc<Notify>) -> Self {
        Self { missions, live, wake, position: None, due: Timestamp::UNIX_EPOCH, heard: Elsewhere::default() }
    }

    /// Runs until `shutdown`. What was committed before is in every watcher's snapshot.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let store = self.missions.store.clone();
        let mut pace = Pace::new(PACE);
        while !shutdown.is_cancelled() {
            pace.next().await;
            let until = match self.turn().await {
                Ok(true) => continue,
                Ok(false) => self.due,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the mission log cannot be read");
                    self.missions.clock.now() + RETRY
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                heard = store.changed_elsewhere() => self.heard = heard,
                () = self.missions.clock.sleep_until(until) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// One page of the log, and the watched flights that others may have moved; true where there may be more.
    async fn turn(&mut self) -> Result<bool, Unavailable> {
        let store = self.missions.store.clone();
        let now = self.missions.clock.now();
        let everywhere = now >= self.due;
        let heard = std::mem::take(&mut self.heard);
        if everywhere || heard.missed || !heard.flights.is_empty() {
            let mut watched = self.live.versions();
            watched.retain(|(id, _)| everywhere || heard.missed || heard.flights.contains(id));
            self.live.replace(&watched, &store.moved(&watched).await?);
        }
        let Some(after) = &self.position else {
            self.position = Some(store.mission_log_end().await?);
            // Watchers that came before the position was known may have missed something.
            self.missions.restart();
            return Ok(true);
        };
        let look = if everywhere || heard.missed { Look::Everywhere } else { Look::WhereHeard };
        let page = store.mission_log(after, LOG_PAGE, look).await?;
        if page.gap {
            // This process was stopped for longer than the log is kept, or the store has lost its end.
            self.missions.restart();
        } else {
            self.missions.announce(page.lines).await?;
        }
        self.position = Some(page.position);
        if everywhere && !page.more {
            self.due = now + POLL;
        }
        Ok(page.more)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use contracts::Stage;
    use futures::StreamExt;

    use super::*;
    use crate::fixtures::{BASE, Bench, close, drone, flying, id, open, report, sqlite};

    fn summary(update: &MissionUpdate) -> String {
        match update {
            MissionUpdate::Snapshot { missions } => format!("snapshot of {}", missions.len()),
            MissionUpdate::Assigned { mission } => {
                format!("assigned {} {}", mission.delivery_id.0.as_u128(), mission.attempt)
            }
            MissionUpdate::Recalled { delivery_id, attempt, .. } => {
                format!("recalled {} {attempt}", delivery_id.0.as_u128())
            }
        }
    }

    fn base() -> Audience {
        Audience::Base(BASE.parse().unwrap())
    }

    fn run_feed(bench: &mut Bench) {
        bench.tasks.spawn(bench.feed.take().unwrap().run(CancellationToken::new()));
    }

    #[tokio::test]
    async fn a_watcher_sees_a_snapshot_then_what_changes() {
        let (_folder, opened) = sqlite().await;
        let mut bench = Bench::over(&opened);
        bench.open(open(1, 1, 1)).await;
        let mut of_base = pin!(bench.missions.watch(base()));
        let mut of_drone = pin!(bench.missions.watch(Audience::Drone(drone(1, 2))));
        // Both subscribe with their first read; the feed's start is seen as a second snapshot.
        assert_eq!(summary(&of_base.next().await.unwrap()), "snapshot of 1");
        assert_eq!(summary(&of_drone.next().await.unwrap()), "snapshot of 0");
        run_feed(&mut bench);
        assert_eq!(summary(&of_base.next().await.unwrap()), "snapshot of 1");
        assert_eq!(summary(&of_drone.next().await.unwrap()), "snapshot of 0");
        bench.open(open(1, 2, 1)).await;
        assert_eq!(summary(&of_base.next().await.unwrap()), "recalled 1 1");
        assert_eq!(summary(&of_base.next().await.unwrap()), "assigned 1 2");
        assert_eq!(summary(&of_drone.next().await.unwrap()), "assigned 1 2");
        bench.close(close(1, 2, 1, Stage::HeadedToDropoff)).await;
        assert_eq!(summary(&of_base.next().await.unwrap()), "recalled 1 2");
        assert_eq!(summary(&of_drone.next().await.unwrap()), "recalled 1 2");
    }

    #[tokio::test]
    async fn a_watcher_that_lags_gets_a_snapshot() {
        let (_folder, opened) = sqlite().await;
        let mut bench = Bench::over(&opened);
        let mut feed = bench.feed.take().unwrap();
        feed.turn().await.unwrap();
        let mut slow = Box::pin(bench.missions.watch(base()));
        assert_eq!(summary(&slow.next().await.unwrap()), "snapshot of 0");
        let many = BUFFERED_UPDATES + 1;
        let commands = (1..=many as u128).map(|number| open(number, 1, 1)).collect();
        bench.tracker.open(commands).await;
        while feed.turn().await.unwrap() {}
        assert_eq!(summary(&slow.next().await.unwrap()), format!("snapshot of {many}"));
        bench.close(close(1, 1, 1, Stage::Completed)).await;
        feed.turn().await.unwrap();
        assert_eq!(summary(&slow.next().await.unwrap()), "recalled 1 1", "and goes on from there");
    }

    #[tokio::test]
    async fn what_another_instance_opens_and_moves_shows_here() {
        let (_folder, opened) = sqlite().await;
        let (mut here, there) = (Bench::over(&opened), Bench::over(&opened));
        there.open(open(1, 1, 1)).await;
        let mut updates = Box::pin(here.missions.watch(base()));
        updates.next().await;
        let mut live = Box::pin(here.live.watch(id(1)).into_stream());
        run_feed(&mut here);
        assert_eq!(summary(&updates.next().await.unwrap()), "snapshot of 1");
        assert_eq!(live.next().await.unwrap().last, None);
        there.open(open(2, 1, 1)).await;
        there.report(vec![report(1, 9, None)]).await;
        here.clock.advance(POLL);
        assert_eq!(summary(&updates.next().await.unwrap()), "assigned 2 1");
        assert_eq!(live.next().await.unwrap().last.unwrap().sequence, 9);
    }

    #[tokio::test]
    async fn what_a_failover_took_back_is_shown() {
        let (_folder, opened) = sqlite().await;
        let mut bench = Bench::over(&opened);
        bench.open(open(1, 1, 1)).await;
        bench.report(vec![report(1, 4, None)]).await;
        let mut live = Box::pin(bench.live.watch(id(1)).into_stream());
        // Shown before, and no longer in the store.
        let lost = Flight { version: (u64::from(u32::MAX) << 8).into(), ..flying(1, 9) };
        bench.live.publish(&[lost]);
        assert_eq!(live.next().await.unwrap().last.unwrap().sequence, 9);
        bench.feed.take().unwrap().turn().await.unwrap();
        assert_eq!(live.next().await.unwrap().last.unwrap().sequence, 4);
    }

    #[tokio::test]
    async fn a_gap_in_the_log_and_the_last_watchers_leaving() {
        let (_folder, opened) = sqlite().await;
        let mut bench = Bench::over(&opened);
        let mut updates = Box::pin(bench.missions.watch(base()));
        assert_eq!(summary(&updates.next().await.unwrap()), "snapshot of 0");
        let mut feed = bench.feed.take().unwrap();
        feed.turn().await.unwrap();
        assert_eq!(summary(&updates.next().await.unwrap()), "snapshot of 0");
        bench.open(open(1, 1, 1)).await;
        opened.store.trim_mission_log(crate::fixtures::at(9), 10).await.unwrap();
        bench.open(open(2, 1, 1)).await;
        feed.turn().await.unwrap();
        assert_eq!(summary(&updates.next().await.unwrap()), "snapshot of 2", "a line is missing: begin again");
        drop(updates);
        assert!(bench.missions.watched().is_empty());
    }
}
