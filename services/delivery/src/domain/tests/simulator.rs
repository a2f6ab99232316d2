//! Drives one delivery as the service does, against participants in memory, with faults where a test wants them.

use chrono::Duration;
use contracts::{
    Stage, Timestamp,
    commands::{CloseOutcome, OpenOutcome, PackageOutcome, ReleaseOutcome, ReserveOutcome},
    events::{DeliveryEventKind, FlightProgress, StageEntry},
};

use super::{
    Action, Changes, Delivery, Next, Outcome, at, drone,
    participants::{Command, Participants},
    requested,
};
use crate::domain::{EXPIRY, allowed};

/// What may go wrong with one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The participant is away and did nothing.
    Away,
    /// The participant acted, but its answer was lost.
    AnswerLost,
    /// The command is held up on its way, and arrives when the test says so.
    HeldUp,
    /// The command arrives twice; the second answer counts.
    Twice,
    /// The process is killed after the participant acted: another one goes on from the row, with a higher fence.
    Killed,
    /// The row changes between the command and the save, which therefore conflicts.
    Interrupted(Happening),
}

impl Fault {
    pub(super) const ALL: [Self; 8] = [
        Self::Away,
        Self::AnswerLost,
        Self::HeldUp,
        Self::Twice,
        Self::Killed,
        Self::Interrupted(Happening::Cancel),
        Self::Interrupted(Happening::DroneFails),
        Self::Interrupted(Happening::Reported),
    ];
}

/// What may happen at any point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happening {
    /// The customer cancels.
    Cancel,
    /// The reserved drone fails.
    DroneFails,
    /// The drone flies on and the report is heard at once.
    Reported,
    /// The drone flies on and nobody has heard of it yet.
    Flown,
    /// The deadline passes.
    Deadline,
    /// Ten minutes more pass.
    Expiry,
    /// The process is killed between two steps.
    Kill,
}

impl Happening {
    pub(super) const ALL: [Self; 7] =
        [Self::Cancel, Self::DroneFails, Self::Reported, Self::Flown, Self::Deadline, Self::Expiry, Self::Kill];
}

/// What the world is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scenario {
    /// Drones that are idle from the beginning.
    pub(super) idle: u32,
    /// Whether a drone comes for what waits in the line.
    pub(super) grants: bool,
    /// How many stages a drone flies before it stays silent.
    pub(super) flies: usize,
}

impl Scenario {
    pub(super) const ALL: [Self; 6] = [
        Self { idle: 9, grants: true, flies: 3 },
        Self { idle: 0, grants: true, flies: 3 },
        Self { idle: 1, grants: false, flies: 3 },
        Self { idle: 0, grants: false, flies: 3 },
        Self { idle: 9, grants: true, flies: 1 },
        Self { idle: 1, grants: false, flies: 2 },
    ];
}

/// An event on its way to the delivery.
#[derive(Debug, Clone)]
enum News {
    Reserved(u32),
    Failed(u32),
    Flight(FlightProgress),
}

/// Steps after which a delivery that has not ended never will.
const MOST_STEPS: usize = 2_000;

/// Steps without a pause in between that no delivery needs: more are a loop.
const MOST_STEPS_AT_ONCE: usize = 60;

/// One delivery in its world.
#[derive(Debug, Clone)]
pub(super) struct Simulator {
    scenario: Scenario,
    pub(super) delivery: Delivery,
    fence: u64,
    now: Timestamp,
    pub(super) participants: Participants,
    /// The stage log, as it was committed.
    log: Vec<StageEntry>,
    told: Vec<DeliveryEventKind>,
    /// Every command that was ever said: any of them may arrive again, late.
    said: Vec<Command>,
    held_up: Vec<Command>,
    inbox: Vec<News>,
    heard: Vec<News>,
    pub(super) cancelled: bool,
    steps_at_once: usize,
}

impl Simulator {
    pub(super) fn new(scenario: Scenario) -> Self {
        let delivery = requested();
        let mut participants = Participants::default();
        participants.fleet.idle = scenario.idle;
        Self {
            scenario,
            log: delivery.record.stages.clone(),
            told: vec![DeliveryEventKind::DeliveryRequested],
            delivery,
            fence: 1,
            now: at(0),
            participants,
            said: Vec::new(),
            held_up: Vec::new(),
            inbox: Vec::new(),
            heard: Vec::new(),
            cancelled: false,
            steps_at_once: 0,
        }
    }

    /// Writes a changed delivery, as the store would.
    fn commit(&mut self, mut next: Delivery, changes: &Changes) {
        for entry in &changes.stages {
            let last = self.log.last().copied().unwrap();
            let back = entry.stage == Stage::Scheduled
                && entry.attempt == last.attempt + 1
                && matches!(last.stage, Stage::Scheduled | Stage::HeadedToPickup);
            assert!(back || allowed(last.stage, entry.stage), "{last:?} -> {entry:?}");
            self.log.push(*entry);
        }
        next.stamp(self.now);
        assert_eq!(next.record.stages, self.log, "the record and the log say the same");
        self.told.extend(&changes.events);
        self.delivery = next;
        // Of its end they hear in [`Self::check_end`], after whatever else is on its way.
        if !changes.events.is_empty() && !self.delivery.record.stage.is_terminal() {
            self.participants.hear(&self.delivery.record);
        }
    }

    /// One turn of the driver, or, where that waits, of the world; false once the delivery is over.
    pub(super) fn step(&mut self, fault: Option<Fault>) -> bool {
        match self.delivery.next(self.now) {
            Next::Over => return false,
            Next::Wait(until) => {
                assert!(until > self.now, "waits for what is past: {:?}", self.delivery);
                self.steps_at_once = 0;
                self.wait(until);
            }
            Next::Do(action) => {
                self.steps_at_once += 1;
                assert!(self.steps_at_once < MOST_STEPS_AT_ONCE, "goes round in circles: {:?}", self.delivery);
                self.drive(action, fault);
            }
        }
        true
    }

    fn drive(&mut self, action: Action, fault: Option<Fault>) {
        let command = Command { action, attempt: self.delivery.record.attempt, fence: self.fence };
        self.said.push(command);
        let outcome = match fault {
            _ if action == Action::GiveUp => Outcome::Local,
            Some(Fault::Away) => unavailable(action),
            Some(Fault::HeldUp) => {
                self.held_up.push(command);
                unavailable(action)
            }
            Some(Fault::AnswerLost) => {
                self.perform(command);
                unavailable(action)
            }
            Some(Fault::Twice) => {
                self.perform(command);
                self.perform(command)
            }
            _ => self.perform(command),
        };
        if fault == Some(Fault::Killed) || outcome.lease_lost() {
            self.fence += 1;
            return;
        }
        if let Some(Fault::Interrupted(happening)) = fault
            && self.happen(happening)
        {
            self.fence += 1;
            return;
        }
        let mut next = self.delivery.clone();
        let changes = match next.apply(action, &outcome, self.now) {
            Ok(changes) => changes,
            Err(illegal) => panic!("{illegal}: {:?}", self.delivery),
        };
        if outcome == unavailable(action) && action != Action::GiveUp {
            let paused = matches!(next.next(self.now), Next::Wait(until) if until > self.now);
            assert!(paused, "asks again at once: {next:?}");
        }
        self.commit(next, &changes);
    }

    fn perform(&mut self, command: Command) -> Outcome {
        let outcome = self.participants.perform(command);
        if let Outcome::Reserve(ReserveOutcome::Reserved { .. }) = outcome {
            self.inbox.push(News::Reserved(command.attempt));
        }
        outcome
    }

    /// What the world does while the delivery waits.
    fn wait(&mut self, until: Timestamp) {
        if !self.inbox.is_empty() {
            let news = self.inbox.remove(0);
            self.hear(news);
            return;
        }
        if self.scenario.grants
            && let Some(attempt) = self.participants.fleet.grant()
        {
            self.inbox.push(News::Reserved(attempt));
            return;
        }
        if self.happen(Happening::Flown) {
            return;
        }
        self.now = until;
    }

    /// Takes up an event; true where it changed the row.
    fn hear(&mut self, news: News) -> bool {
        let mut next = self.delivery.clone();
        let changes = match &news {
            News::Reserved(attempt) => next.grant(*attempt, &drone(*attempt), self.now),
            News::Failed(attempt) => {
                let _ = next.drone_failed(*attempt, "silent");
                Changes::default()
            }
            News::Flight(progress) => next.apply_progress(progress, self.now),
        };
        self.heard.push(news);
        let changed = next != self.delivery;
        if changed {
            self.commit(next, &changes);
        } else {
            assert_eq!(changes, Changes::default(), "logs of a change that is none");
        }
        changed
    }

    /// Lets something happen; true where there was something to happen.
    pub(super) fn happen(&mut self, happening: Happening) -> bool {
        match happening {
            Happening::Cancel => {
                let mut next = self.delivery.clone();
                if !next.want_cancel(self.now) {
                    return false;
                }
                self.cancelled = true;
                self.commit(next, &Changes::default());
                true
            }
            Happening::DroneFails => {
                let Some(attempt) = self.participants.fleet.fail() else { return false };
                self.hear(News::Failed(attempt))
            }
            Happening::Reported => {
                let Some(progress) = self.participants.tracking.fly(self.scenario.flies) else { return false };
                self.hear(News::Flight(progress))
            }
            Happening::Flown => {
                let Some(progress) = self.participants.tracking.fly(self.scenario.flies) else { return false };
                self.inbox.push(News::Flight(progress));
                true
            }
            Happening::Deadline => self.pass(Duration::zero()),
            Happening::Expiry => self.pass(EXPIRY),
            Happening::Kill => {
                self.fence += 1;
                true
            }
        }
    }

    fn pass(&mut self, after: Duration) -> bool {
        let then = self.delivery.record.deadline + after;
        let later = then > self.now;
        self.now = self.now.max(then);
        later
    }

    /// The `index`-th of all events that were heard comes again.
    pub(super) fn repeat(&mut self, index: usize) {
        if let Some(news) = self.heard.get(index % self.heard.len().max(1)).cloned() {
            self.hear(news);
        }
    }

    /// The event that came last is heard first.
    pub(super) fn hear_last(&mut self) {
        if let Some(news) = self.inbox.pop() {
            self.hear(news);
        }
    }

    /// The `index`-th of the commands that were held up arrives; nobody waits for its answer.
    pub(super) fn arrive(&mut self, index: usize) {
        if !self.held_up.is_empty() {
            let command = self.held_up.remove(index % self.held_up.len());
            self.perform(command);
        }
    }

    /// Goes on without faults until the delivery is over.
    pub(super) fn finish(&mut self) {
        for _ in 0..MOST_STEPS {
            if !self.step(None) {
                return;
            }
        }
        panic!("never ends: {:?}", self.delivery);
    }

    /// What must hold of a delivery that is over.
    pub(super) fn check_end(mut self) {
        let record = self.delivery.record.clone();
        let terminal = self.log.iter().filter(|entry| entry.stage.is_terminal()).count();
        assert_eq!((terminal, record.stage), (1, self.log.last().unwrap().stage), "exactly one end, the last");
        let ends = self.told.iter().filter(|kind| is_end(**kind)).count();
        assert_eq!((ends, self.told.last().copied().map(is_end)), (1, Some(true)), "told once: {:?}", self.told);
        assert!(record.finished_at.is_some());

        let flight = self.participants.tracking.flight.clone().filter(|flight| flight.attempt == record.attempt);
        let flown = flight.and_then(|flight| flight.flown).unwrap_or(0);
        assert_eq!(record.stage == Stage::Completed, flown == 3, "what is dropped off is completed: {record:?}");
        assert!(flown < 2 || !matches!(record.stage, Stage::Cancelled | Stage::Rejected), "{record:?}");
        assert!(self.cancelled || record.stage != Stage::Cancelled);
        let scheduled = self.log.iter().any(|entry| entry.stage == Stage::Scheduled);
        assert!(record.stage != Stage::Rejected || !scheduled, "{record:?}");

        // Whatever is still on its way arrives before the participants hear of the end, and once more after it.
        for command in std::mem::take(&mut self.held_up) {
            self.participants.perform(command);
        }
        self.participants.hear(&record);
        for command in std::mem::take(&mut self.said) {
            self.participants.perform(command);
        }
        assert_eq!(self.participants.held(), Vec::<&str>::new(), "held for {record:?}");
        for news in self.heard.clone().into_iter().rev().chain(self.inbox.clone()) {
            self.hear(news);
        }
        assert!(!self.delivery.clone().want_cancel(self.now));
        assert_eq!(self.delivery.record, record, "nothing changes what is over");
    }
}

const fn is_end(kind: DeliveryEventKind) -> bool {
    use DeliveryEventKind::{DeliveryCancelled, DeliveryCompleted, DeliveryFailed, DeliveryRejected};
    matches!(kind, DeliveryCancelled | DeliveryCompleted | DeliveryFailed | DeliveryRejected)
}

fn unavailable(action: Action) -> Outcome {
    match action {
        Action::RegisterPackage | Action::WithdrawPackage => Outcome::Package(PackageOutcome::Unavailable),
        Action::ReserveDrone => Outcome::Reserve(ReserveOutcome::Unavailable),
        Action::ReleaseDrone => Outcome::Release(ReleaseOutcome::Unavailable),
        Action::OpenFlight => Outcome::Open(OpenOutcome::Unavailable),
        Action::CloseFlight { .. } => Outcome::Close(CloseOutcome::Unavailable),
        Action::GiveUp => Outcome::Local,
    }
}
