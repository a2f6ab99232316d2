//! Drives deliveries: holds their lease, asks participants for the next step, commits what they answer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use contracts::{
    DeliveryId, Timestamp,
    commands::{CloseFlight, OpenFlight, RegisterPackage, ReleaseDrone, ReserveDrone, WithdrawPackage},
};
use messaging::{abort_point, outbox::chain};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{
    domain::{Action, Changes, Delivery, Next, Outcome},
    ledger::Ledger,
    participants::Participants,
    store::{Claimed, LeaseChange, StoreError},
};

/// How long a lease lasts without being renewed: well above a call's deadline, as short as a restart may wait.
pub(crate) const LEASE: chrono::Duration = chrono::Duration::seconds(10);

/// How long a participant may take to act on a command: past it the command is refused, so that one that was held up
/// on its way does nothing any more.
const STEP_DEADLINE: chrono::Duration = chrono::Duration::seconds(10);

/// Deliveries driven at once. Most of their time they wait for a batch, so that this is what fills the batches.
const MAX_ACTIVE: usize = 2_048;

/// Requests to drive that wait. Past it a delivery is found by its due time instead.
const KICKS: usize = 8_192;

/// How often due deliveries are looked for at least: the bound of what a lost kick costs.
const POLL: Duration = Duration::from_millis(250);

/// Conflicts in a row before a driver leaves a delivery to its due time: something writes it all the time.
const MAX_CONFLICTS: u32 = 16;

/// Why to look at a delivery.
enum Kick {
    /// Just made, with its lease held already.
    Leased(Box<Claimed>),
    /// Changed by somebody without the lease.
    Changed(DeliveryId),
}

/// A handle to the driver.
#[derive(Clone)]
pub(crate) struct Driver {
    kicks: mpsc::Sender<Kick>,
    owner: Arc<str>,
}

impl Driver {
    /// A handle, and what [`run`] needs.
    pub(crate) fn new(instance: &str) -> (Self, Kicks) {
        let (kicks, receiver) = mpsc::channel(KICKS);
        (Self { kicks, owner: instance.into() }, Kicks(receiver))
    }

    /// The lease that a new delivery starts with.
    pub(crate) fn first_lease(&self, now: Timestamp) -> LeaseChange {
        LeaseChange::Hold { fence: FIRST_FENCE, owner: self.owner.clone(), until: now + LEASE }
    }

    /// Starts on a delivery that was made with [`Self::first_lease`].
    pub(crate) fn start(&self, delivery: Delivery) {
        // A full queue loses nothing: the lease ends, and the delivery is due.
        let _ = self.kicks.try_send(Kick::Leased(Box::new(Claimed { delivery, fence: FIRST_FENCE })));
    }

    /// Looks at a delivery that was changed.
    pub(crate) fn kick(&self, id: DeliveryId) {
        // A full queue loses nothing: the delivery is due.
        let _ = self.kicks.try_send(Kick::Changed(id));
    }
}

/// The fence of a delivery's first lease.
const FIRST_FENCE: u64 = 1;

/// The receiving end of kicks.
pub(crate) struct Kicks(mpsc::Receiver<Kick>);

/// Deliveries that this instance drives now; true where it was changed meanwhile.
type Active = Arc<Mutex<HashMap<DeliveryId, bool>>>;

fn lock(active: &Active) -> MutexGuard<'_, HashMap<DeliveryId, bool>> {
    active.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drives whatever is kicked or due, until `shutdown`; then finishes the steps that are under way.
pub(crate) async fn run(
    driver: Driver,
    kicks: Kicks,
    ledger: Ledger,
    participants: Participants,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Kicks(mut kicks) = kicks;
    let seat =
        Seat { owner: driver.owner, ledger, participants, active: Active::default(), shutdown: shutdown.clone() };
    let mut driven = JoinSet::new();
    let mut batch = Vec::new();
    let (mut last_poll, mut pause) = (Timestamp::UNIX_EPOCH, POLL);
    loop {
        let room = MAX_ACTIVE.saturating_sub(driven.len());
        let next_poll = next_poll(last_poll, seat.ledger.clock.now(), pause);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            // Before the kicks, so that these cannot keep timers waiting: it is ready only once in a while.
            () = seat.ledger.clock.sleep_until(next_poll), if room > 0 => {
                last_poll = seat.ledger.clock.now();
                // Spread: among replicas none looks just before another each time, so that a delivery whose steps fail here,
                // since a participant is out of this one's reach, soon is another's.
                pause = POLL.mul_f64(rand::random_range(0.5..1.0));
                seat.take_due(room, &mut driven).await;
            }
            Some(ended) = driven.join_next(), if !driven.is_empty() => ended?,
            received = kicks.recv_many(&mut batch, room.max(1)), if room > 0 => {
                if received == 0 {
                    break;
                }
                seat.take_kicks(&mut batch, &mut driven).await;
            }
        }
    }
    // What was made just now has its lease already: whoever drives it gives that back, so that nobody waits it out.
    kicks.close();
    while let Ok(kick) = kicks.try_recv() {
        if let Kick::Leased(claimed) = kick {
            seat.drive(*claimed, &mut driven);
        }
    }
    while let Some(ended) = driven.join_next().await {
        ended?;
    }
    Ok(())
}

/// When due deliveries are looked for next. A clock that was set back does not put it off by more than the pause.
fn next_poll(last_poll: Timestamp, now: Timestamp, pause: Duration) -> Timestamp {
    last_poll.min(now) + pause
}

#[derive(Clone)]
struct Seat {
    owner: Arc<str>,
    ledger: Ledger,
    participants: Participants,
    active: Active,
    shutdown: CancellationToken,
}

impl Seat {
    async fn take_kicks(&self, kicks: &mut Vec<Kick>, driven: &mut JoinSet<()>) {
        let mut changed = Vec::new();
        for kick in kicks.drain(..) {
            match kick {
                Kick::Leased(claimed) => self.drive(*claimed, driven),
                Kick::Changed(id) => {
                    // Whoever drives it meets the change at the next save, or is told at the end.
                    if let Some(again) = lock(&self.active).get_mut(&id) {
                        *again = true;
                        continue;
                    }
                    changed.push(id);
                }
            }
        }
        if changed.is_empty() {
            return;
        }
        let now = self.ledger.clock.now();
        match self.ledger.store.claim(&changed, &self.owner, now, now + LEASE).await {
            Ok(claimed) => claimed.into_iter().for_each(|claimed| self.drive(claimed, driven)),
            Err(error) => warn!(error = %chain(&error), "changed deliveries wait for their due time"),
        }
    }

    async fn take_due(&self, room: usize, driven: &mut JoinSet<()>) {
        let now = self.ledger.clock.now();
        match self.ledger.store.claim_due(&self.owner, now, now + LEASE, room).await {
            Ok(claimed) => claimed.into_iter().for_each(|claimed| self.drive(claimed, driven)),
            Err(error) => warn!(error = %chain(&error), "due deliveries wait"),
        }
    }

    fn drive(&self, claimed: Claimed, driven: &mut JoinSet<()>) {
        let id = claimed.delivery.record.delivery_id;
        if let Some(again) = lock(&self.active).get_mut(&id) {
            // Driven already: that task conflicts with this claim's fence. If it has saved for the last time, it must
            // look once more, or this lease would hold the delivery with nobody at work on it.
            *again = true;
            return;
        }
        lock(&self.active).insert(id, false);
        let seat = self.clone();
        driven.spawn(async move { seat.drive_on(id, claimed).await });
    }

    async fn drive_on(&self, id: DeliveryId, claimed: Claimed) {
        let mut claimed = Some(claimed);
        while let Some(Claimed { delivery, fence }) = claimed.take() {
            if let Err(error) = self.drive_leased(delivery, fence).await {
                warn!(delivery = %id, error = %chain(&error), "a delivery waits for its due time");
            }
            if !self.goes_on(id) {
                return;
            }
            let now = self.ledger.clock.now();
            claimed = match self.ledger.store.claim(&[id], &self.owner, now, now + LEASE).await {
                Ok(mut claims) => claims.pop(),
                Err(_) => None,
            };
        }
        lock(&self.active).remove(&id);
    }

    /// Whether the delivery was changed while it was driven; if not, it is no longer driven here.
    fn goes_on(&self, id: DeliveryId) -> bool {
        let mut active = lock(&self.active);
        match active.get_mut(&id) {
            Some(again) if *again && !self.shutdown.is_cancelled() => {
                *again = false;
                true
            }
            _ => {
                active.remove(&id);
                false
            }
        }
    }

    /// Step by step until there is nothing to do now, or the lease is another's.
    async fn drive_leased(&self, mut delivery: Delivery, mut fence: u64) -> Result<(), StoreError> {
        let mut conflicts = 0;
        loop {
            let now = self.ledger.clock.now();
            let action = match delivery.next(now) {
                Next::Do(action) if !self.shutdown.is_cancelled() => action,
                _ => return self.hand_back(&delivery, fence).await,
            };
            let outcome = self.perform(action, &delivery, fence, now).await;
            abort_point("delivery.step_answered");
            if outcome.lease_lost() {
                return Ok(());
            }
            let now = self.ledger.clock.now();
            let mut next = delivery.clone();
            let changes = match next.apply(action, &outcome, now) {
                Ok(changes) => changes,
                Err(illegal) => {
                    // The tables of decide.rs ask for no such thing; leaving it to its due time loses nothing.
                    error!(delivery = %delivery.record.delivery_id, error = %illegal, "a step was refused");
                    return Ok(());
                }
            };
            let over = !matches!(next.next(now), Next::Do(_));
            let lease = if over { LeaseChange::Release { fence } } else { self.hold(fence, now) };
            match self.ledger.update(&delivery, &mut next, &changes, lease).await {
                Ok(()) if over => return Ok(()),
                Ok(()) => {
                    delivery = next;
                    conflicts = 0;
                }
                Err(StoreError::Conflict) if conflicts < MAX_CONFLICTS => {
                    conflicts += 1;
                    let now = self.ledger.clock.now();
                    let claims =
                        self.ledger.store.claim(&[delivery.record.delivery_id], &self.owner, now, now + LEASE).await?;
                    let Some(claimed) = claims.into_iter().next() else { return Ok(()) };
                    (delivery, fence) = (claimed.delivery, claimed.fence);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn hold(&self, fence: u64, now: Timestamp) -> LeaseChange {
        LeaseChange::Hold { fence, owner: self.owner.clone(), until: now + LEASE }
    }

    /// Gives the lease back with nothing done, so that the due time is right again.
    async fn hand_back(&self, delivery: &Delivery, fence: u64) -> Result<(), StoreError> {
        if delivery.record.stage.is_terminal() {
            return Ok(());
        }
        let mut same = delivery.clone();
        match self.ledger.update(delivery, &mut same, &Changes::default(), LeaseChange::Release { fence }).await {
            // Somebody else has changed it, and set its due time.
            Err(StoreError::Conflict) => Ok(()),
            result => result,
        }
    }

    /// Asks the participant. Nothing is assumed where it does not answer.
    async fn perform(&self, action: Action, delivery: &Delivery, fence: u64, now: Timestamp) -> Outcome {
        let record = &delivery.record;
        let (delivery_id, attempt) = (record.delivery_id, record.attempt);
        let (customer_id, home_region) = (record.customer_id.clone(), record.home_region.clone());
        let step_deadline = now + STEP_DEADLINE;
        let participants = &self.participants;
        use contracts::commands::{CloseOutcome, OpenOutcome, PackageOutcome, ReleaseOutcome, ReserveOutcome};
        match action {
            Action::GiveUp => Outcome::Local,
            Action::RegisterPackage => {
                let package = record.package.clone();
                let command =
                    RegisterPackage { delivery_id, attempt, fence, step_deadline, customer_id, home_region, package };
                Outcome::Package(participants.register.call(command).await.unwrap_or(PackageOutcome::Unavailable))
            }
            Action::WithdrawPackage => {
                let package = record.package.clone();
                let command = WithdrawPackage { delivery_id, attempt, fence, customer_id, home_region, package };
                Outcome::Package(participants.withdraw.call(command).await.unwrap_or(PackageOutcome::Unavailable))
            }
            Action::ReserveDrone => {
                let command = reserve_command(delivery, fence, step_deadline);
                Outcome::Reserve(participants.reserve.call(command).await.unwrap_or(ReserveOutcome::Unavailable))
            }
            Action::ReleaseDrone => {
                let reason = "the delivery gave up".to_owned();
                let command = ReleaseDrone { delivery_id, attempt, fence, reason };
                Outcome::Release(participants.release.call(command).await.unwrap_or(ReleaseOutcome::Unavailable))
            }
            Action::OpenFlight => {
                let Some(command) = open_command(delivery, fence, step_deadline) else {
                    // A reserved drone is always in the record; without one there is nothing to open.
                    return Outcome::Open(OpenOutcome::Unavailable);
                };
                Outcome::Open(participants.open.call(command).await.unwrap_or(OpenOutcome::Unavailable))
            }
            Action::CloseFlight { before, .. } => {
                let command = CloseFlight { delivery_id, attempt, fence, before };
                Outcome::Close(participants.close.call(command).await.unwrap_or(CloseOutcome::Unavailable))
            }
        }
    }
}

fn reserve_command(delivery: &Delivery, fence: u64, step_deadline: Timestamp) -> ReserveDrone {
    let record = &delivery.record;
    ReserveDrone {
        delivery_id: record.delivery_id,
        attempt: record.attempt,
        fence,
        step_deadline,
        customer_id: record.customer_id.clone(),
        home_region: record.home_region.clone(),
        pickup: record.pickup,
        dropoff: record.dropoff,
        weight_kg: record.package.weight_kg,
        expedited: record.expedited,
        requested_at: record.requested_at,
        deadline: record.deadline,
    }
}

fn open_command(delivery: &Delivery, fence: u64, step_deadline: Timestamp) -> Option<OpenFlight> {
    let record = &delivery.record;
    Some(OpenFlight {
        delivery_id: record.delivery_id,
        attempt: record.attempt,
        fence,
        step_deadline,
        customer_id: record.customer_id.clone(),
        home_region: record.home_region.clone(),
        drone: record.drone.clone()?,
        pickup: record.pickup,
        dropoff: record.dropoff,
        weight_kg: record.package.weight_kg,
        confirmation: record.confirmation,
        deadline: record.deadline,
    })
}

#[cfg(test)]
mod tests {
    use contracts::{
        Coordinate,
        api::{Confirmation, CreateDelivery, PackageSize, PackageSpec, default_region},
    };
    use testkit::World;

    use super::*;
    use crate::{live::Live, participants::Peers, store};

    /// A seat whose peers are not there.
    async fn seat(world: &World) -> (Seat, chassis::supervise::Tasks) {
        let nobody = ["package", "fleet", "tracking"].map(|name| (name, "http://127.0.0.1:1"));
        let (node, _) = world.node("delivery", &nobody).await;
        let peer = |name| node.peer(name).unwrap();
        let peers = Peers { package: peer("package"), fleet: peer("fleet"), tracking: peer("tracking") };
        let store = store::open(&format!("sqlite:{}", world.path("delivery.db").display())).await.unwrap();
        let mut tasks = chassis::supervise::Tasks::new();
        let ledger = Ledger::new(store, world.clock.clone(), Live::new(), &mut tasks);
        let participants = Participants::new(&peers, &mut tasks);
        let seat = Seat {
            owner: "me".into(),
            ledger,
            participants,
            active: Active::default(),
            shutdown: world.shutdown.clone(),
        };
        (seat, tasks)
    }

    async fn made(seat: &Seat) -> Delivery {
        let wish = CreateDelivery {
            pickup: Coordinate { latitude: 1.0, longitude: 2.0 },
            dropoff: Coordinate { latitude: 1.1, longitude: 2.0 },
            package: PackageSpec { size: PackageSize::Small, weight_kg: 0.5, tag: None, description: None },
            deadline: None,
            expedited: false,
            confirmation: Confirmation::None,
        };
        let (id, now) = (seat.ledger.clock.new_delivery_id(), seat.ledger.clock.now());
        let (delivery, changes) = Delivery::request(id, "alice".parse().unwrap(), default_region(), wish, now);
        let lease = seat.hold(FIRST_FENCE, now);
        seat.ledger.insert(&delivery, &changes, lease, None).await.unwrap();
        delivery
    }

    #[tokio::test]
    async fn a_claim_or_a_kick_of_what_is_driven_already_makes_its_driver_look_once_more() {
        let world = World::new().await;
        let (seat, _tasks) = seat(&world).await;
        let delivery = made(&seat).await;
        let id = delivery.record.delivery_id;
        for again in [Kick::Leased(Box::new(Claimed { delivery, fence: 2 })), Kick::Changed(id)] {
            lock(&seat.active).insert(id, false);
            let mut driven = JoinSet::new();
            seat.take_kicks(&mut vec![again], &mut driven).await;
            assert!(driven.is_empty(), "no second driver");
            assert!(seat.goes_on(id), "told");
            assert!(!seat.goes_on(id), "once");
            assert!(lock(&seat.active).is_empty());
        }
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stop_the_looking_for_due_deliveries() {
        let now = Timestamp::UNIX_EPOCH + chrono::Duration::days(20_000);
        assert_eq!(next_poll(now - POLL, now, POLL), now);
        assert_eq!(next_poll(now + chrono::Duration::hours(1), now, POLL), now + POLL);
    }

    #[tokio::test]
    async fn what_cannot_go_on_is_handed_back_and_due_after_a_pause() {
        let world = World::new().await;
        let (seat, _tasks) = seat(&world).await;
        let delivery = made(&seat).await;
        let id = delivery.record.delivery_id;
        seat.drive_leased(delivery, FIRST_FENCE).await.unwrap();
        assert!(lock(&seat.active).is_empty());
        let now = seat.ledger.clock.now();
        let other = seat.ledger.store.claim(&[id], "another", now, now + LEASE).await.unwrap();
        assert_eq!(other.len(), 1, "the lease was given back");
        let Next::Wait(until) = other[0].delivery.next(other[0].delivery.record.updated_at) else {
            panic!("asks again at once")
        };
        assert!(until > other[0].delivery.record.updated_at);
    }

    #[tokio::test]
    async fn at_shutdown_nothing_more_is_asked_and_the_lease_is_given_back() {
        let world = World::new().await;
        let (seat, _tasks) = seat(&world).await;
        let delivery = made(&seat).await;
        let id = delivery.record.delivery_id;
        world.shutdown.cancel();
        seat.drive_leased(delivery, FIRST_FENCE).await.unwrap();
        let now = seat.ledger.clock.now();
        let due = seat.ledger.store.claim_due("another", now, now + LEASE, 9).await.unwrap();
        assert_eq!(due.len(), 1, "due at once, for whoever is there");
        assert_eq!((due[0].delivery.record.delivery_id, due[0].delivery.saga.tries), (id, 0));
    }
}
