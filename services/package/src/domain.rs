//! What a command does to a package: pure rules, with time and ids as arguments.

use std::collections::HashMap;

use contracts::{
    CustomerId, DeliveryId, Region, Stage, Timestamp,
    api::PackageSpec,
    commands::{PackageOutcome, Refusal, RegisterPackage, WithdrawPackage},
    events::{
        DeliveryEvent, DeliveryEventKind, DeliveryRecord, PackageEvent, PackageEventKind, PackageRecord, PackageState,
    },
};
use uuid::Uuid;

/// A package, or the tombstone of one that ended before it was registered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Package {
    pub(crate) delivery_id: DeliveryId,
    pub(crate) customer_id: CustomerId,
    pub(crate) home_region: Region,
    /// The delivery's attempt in which it last changed.
    pub(crate) attempt: u32,
    /// The highest fence that was heard for it; 0 where only an event was.
    pub(crate) fence: u64,
    pub(crate) state: PackageState,
    pub(crate) package: PackageSpec,
    /// `None` for a tombstone.
    pub(crate) registered_at: Option<Timestamp>,
    pub(crate) updated_at: Timestamp,
}

impl Package {
    /// The package as others see it.
    pub(crate) fn record(&self) -> PackageRecord {
        PackageRecord {
            delivery_id: self.delivery_id,
            attempt: self.attempt,
            customer_id: self.customer_id.clone(),
            home_region: self.home_region.clone(),
            state: self.state,
            package: self.package.clone(),
            registered_at: self.registered_at.unwrap_or(self.updated_at),
            updated_at: self.updated_at,
        }
    }
}

/// One thing to do to one package.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command {
    /// Make it known.
    Register(RegisterPackage),
    /// Undo that.
    Withdraw(WithdrawPackage),
    /// Its delivery is over.
    End(PackageEnd),
}

impl Command {
    pub(crate) fn delivery_id(&self) -> DeliveryId {
        match self {
            Self::Register(register) => register.delivery_id,
            Self::Withdraw(withdraw) => withdraw.delivery_id,
            Self::End(end) => end.delivery_id,
        }
    }
}

/// How a package ends, as its delivery's last event tells.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PackageEnd {
    pub(crate) delivery_id: DeliveryId,
    pub(crate) attempt: u32,
    pub(crate) customer_id: CustomerId,
    pub(crate) home_region: Region,
    pub(crate) package: PackageSpec,
    /// Withdrawn, Delivered or Returned.
    pub(crate) state: PackageState,
}

impl PackageEnd {
    /// The end that an event tells; `None` where the delivery goes on.
    pub(crate) fn of(event: DeliveryEvent) -> Option<Self> {
        let record = event.data;
        let state = match event.kind {
            DeliveryEventKind::DeliveryCompleted => PackageState::Delivered,
            DeliveryEventKind::DeliveryCancelled | DeliveryEventKind::DeliveryRejected => PackageState::Withdrawn,
            DeliveryEventKind::DeliveryFailed if was_on_board(&record) => PackageState::Returned,
            DeliveryEventKind::DeliveryFailed => PackageState::Withdrawn,
            DeliveryEventKind::DeliveryRequested
            | DeliveryEventKind::DeliveryScheduled
            | DeliveryEventKind::DeliveryRescheduled => return None,
        };
        Some(Self {
            delivery_id: record.delivery_id,
            attempt: record.attempt,
            customer_id: record.customer_id,
            home_region: record.home_region,
            package: record.package,
            state,
        })
    }
}

fn was_on_board(record: &DeliveryRecord) -> bool {
    record.stages.iter().any(|entry| entry.stage == Stage::HeadedToDropoff)
}

/// What a batch comes to.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    /// One for each command, in order.
    pub(crate) outcomes: Vec<PackageOutcome>,
    /// The packages to write, each once.
    pub(crate) changed: Vec<DeliveryId>,
    /// What to tell, in order.
    pub(crate) events: Vec<PackageEvent>,
}

/// Decides a batch in order, over `packages`: those that are stored; afterwards they are as they must be written.
pub(crate) fn decide(
    packages: &mut HashMap<DeliveryId, Package>,
    commands: &[Command],
    now: Timestamp,
    mut new_id: impl FnMut() -> Uuid,
) -> Decided {
    let mut decided = Decided::default();
    let mut changed = HashMap::with_capacity(commands.len());
    for command in commands {
        let id = command.delivery_id();
        let Decision { outcome, package, tells } = decide_one(packages.get(&id), command, now);
        decided.outcomes.push(outcome);
        let Some(package) = package else { continue };
        if let Some(kind) = tells {
            decided.events.push(PackageEvent { id: new_id(), time: now, kind, data: package.record() });
        }
        packages.insert(id, package);
        if changed.insert(id, ()).is_none() {
            decided.changed.push(id);
        }
    }
    decided
}

struct Decision {
    outcome: PackageOutcome,
    /// As it must be written; `None` where nothing changes.
    package: Option<Package>,
    tells: Option<PackageEventKind>,
}

impl Decision {
    fn refuse(reason: Refusal) -> Self {
        Self { outcome: PackageOutcome::Refused { reason }, package: None, tells: None }
    }

    /// Nothing new but, where it is higher, the fence.
    fn keep(current: &Package, outcome: PackageOutcome, fence: u64) -> Self {
        let package = (fence > current.fence).then(|| Package { fence, ..current.clone() });
        Self { outcome, package, tells: None }
    }
}

fn decide_one(current: Option<&Package>, command: &Command, now: Timestamp) -> Decision {
    match command {
        Command::Register(register) => decide_register(current, register, now),
        Command::Withdraw(withdraw) => {
            if current.is_some_and(|package| withdraw.fence < package.fence) {
                return Decision::refuse(Refusal::StaleFence);
            }
            let end = PackageEnd {
                delivery_id: withdraw.delivery_id,
                attempt: withdraw.attempt,
                customer_id: withdraw.customer_id.clone(),
                home_region: withdraw.home_region.clone(),
                package: withdraw.package.clone(),
                state: PackageState::Withdrawn,
            };
            decide_end(current, &end, withdraw.fence, now)
        }
        Command::End(end) => decide_end(current, end, 0, now),
    }
}

/// Whether a register still makes a package where there is none.
pub(crate) fn in_time(register: &RegisterPackage, now: Timestamp) -> bool {
    now <= register.step_deadline
}

fn decide_register(current: Option<&Package>, register: &RegisterPackage, now: Timestamp) -> Decision {
    if let Some(current) = current {
        if register.fence < current.fence {
            return Decision::refuse(Refusal::StaleFence);
        }
        // Registered before the step's deadline is registered, whenever it is asked again.
        let outcome = match current.state {
            PackageState::Registered => PackageOutcome::Done,
            PackageState::Withdrawn | PackageState::Delivered | PackageState::Returned => {
                PackageOutcome::Refused { reason: Refusal::Undone }
            }
        };
        return Decision::keep(current, outcome, register.fence);
    }
    if !in_time(register, now) {
        return Decision::refuse(Refusal::StepExpired);
    }
    let package = Package {
        delivery_id: register.delivery_id,
        customer_id: register.customer_id.clone(),
        home_region: register.home_region.clone(),
        attempt: register.attempt,
        fence: register.fence,
        state: PackageState::Registered,
        package: register.package.clone(),
        registered_at: Some(now),
        updated_at: now,
    };
    Decision { outcome: PackageOutcome::Done, package: Some(package), tells: Some(PackageEventKind::PackageRegistered) }
}

fn decide_end(current: Option<&Package>, end: &PackageEnd, fence: u64, now: Timestamp) -> Decision {
    match current {
        None => {
            // The tombstone: a register that comes late is refused. Nobody heard of the package, so nobody hears of
            // its end.
            let package = Package {
                delivery_id: end.delivery_id,
                customer_id: end.customer_id.clone(),
                home_region: end.home_region.clone(),
                attempt: end.attempt,
                fence,
                state: end.state,
                package: end.package.clone(),
                registered_at: None,
                updated_at: now,
            };
            Decision { outcome: PackageOutcome::Done, package: Some(package), tells: None }
        }
        Some(current) if current.state == PackageState::Registered => {
            let package = Package {
                attempt: end.attempt,
                fence: current.fence.max(fence),
                state: end.state,
                updated_at: now,
                ..current.clone()
            };
            Decision { outcome: PackageOutcome::Done, package: Some(package), tells: told_by(end.state) }
        }
        // The first end stands.
        Some(current) => Decision::keep(current, PackageOutcome::Done, fence),
    }
}

fn told_by(end: PackageState) -> Option<PackageEventKind> {
    match end {
        PackageState::Registered => None,
        PackageState::Withdrawn => Some(PackageEventKind::PackageWithdrawn),
        PackageState::Delivered => Some(PackageEventKind::PackageDelivered),
        PackageState::Returned => Some(PackageEventKind::PackageReturned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::samples::{at, delivery_event, id, register, withdraw};

    const DONE: PackageOutcome = PackageOutcome::Done;

    fn refused(reason: Refusal) -> PackageOutcome {
        PackageOutcome::Refused { reason }
    }

    /// Runs commands one after another over an empty store.
    fn run(commands: &[Command]) -> (Vec<PackageOutcome>, Option<Package>, Vec<PackageEventKind>) {
        let mut packages = HashMap::new();
        let decided = decide(&mut packages, commands, at(10), Uuid::nil);
        let told = decided.events.iter().map(|event| event.kind).collect();
        (decided.outcomes, packages.remove(&id(1)), told)
    }

    fn end(kind: DeliveryEventKind, stages: &[Stage]) -> Command {
        Command::End(PackageEnd::of(delivery_event(1, kind, stages)).unwrap())
    }

    #[test]
    fn a_package_is_registered_once_however_often_it_is_asked() {
        let (outcomes, package, told) = run(&[register(1, 1), register(1, 1)]);
        assert_eq!(outcomes, [DONE, DONE]);
        assert_eq!(package.unwrap().state, PackageState::Registered);
        assert_eq!(told, [PackageEventKind::PackageRegistered]);
    }

    #[test]
    fn an_undo_that_comes_first_leaves_a_tombstone_that_refuses_the_do() {
        let (outcomes, package, told) = run(&[withdraw(1, 1), register(1, 1), withdraw(1, 1)]);
        assert_eq!(outcomes, [DONE, refused(Refusal::Undone), DONE]);
        let package = package.unwrap();
        assert_eq!((package.state, package.registered_at), (PackageState::Withdrawn, None));
        assert_eq!(told, []);
    }

    #[test]
    fn an_undo_withdraws_what_was_registered_and_says_so_once() {
        let (outcomes, package, told) = run(&[register(1, 1), withdraw(1, 1), withdraw(1, 1)]);
        assert_eq!(outcomes, [DONE, DONE, DONE]);
        assert_eq!(package.unwrap().state, PackageState::Withdrawn);
        assert_eq!(told, [PackageEventKind::PackageRegistered, PackageEventKind::PackageWithdrawn]);
    }

    #[test]
    fn a_fence_below_the_highest_heard_is_refused_whatever_raised_it() {
        let (outcomes, package, _) = run(&[register(1, 3), register(1, 5), register(1, 4), withdraw(1, 4)]);
        let stale = refused(Refusal::StaleFence);
        assert_eq!(outcomes, [DONE, DONE, stale.clone(), stale]);
        let package = package.unwrap();
        assert_eq!((package.fence, package.state), (5, PackageState::Registered));
        let (outcomes, ..) = run(&[withdraw(1, 7), withdraw(1, 6), register(1, 6), register(1, 7)]);
        let stale = refused(Refusal::StaleFence);
        assert_eq!(outcomes, [DONE, stale.clone(), stale, refused(Refusal::Undone)]);
    }

    #[test]
    fn a_step_past_its_deadline_is_refused_unless_it_was_done_before() {
        let Command::Register(mut late) = register(1, 1) else { unreachable!() };
        late.step_deadline = at(9);
        let (outcomes, package, told) = run(&[Command::Register(late.clone())]);
        assert_eq!(outcomes, [refused(Refusal::StepExpired)]);
        assert_eq!((package, told), (None, vec![]));
        let (outcomes, ..) = run(&[register(1, 1), Command::Register(late)]);
        assert_eq!(outcomes, [DONE, DONE]);
    }

    #[test]
    fn the_end_of_the_delivery_is_the_end_of_the_package() {
        use DeliveryEventKind as Kind;
        let on_board = [Stage::Requested, Stage::Scheduled, Stage::HeadedToPickup, Stage::HeadedToDropoff];
        for (kind, stages, state, told_kind) in [
            (Kind::DeliveryCompleted, &on_board[..], PackageState::Delivered, PackageEventKind::PackageDelivered),
            (Kind::DeliveryCancelled, &on_board[..2], PackageState::Withdrawn, PackageEventKind::PackageWithdrawn),
            (Kind::DeliveryRejected, &on_board[..1], PackageState::Withdrawn, PackageEventKind::PackageWithdrawn),
            (Kind::DeliveryFailed, &on_board[..3], PackageState::Withdrawn, PackageEventKind::PackageWithdrawn),
            (Kind::DeliveryFailed, &on_board[..], PackageState::Returned, PackageEventKind::PackageReturned),
        ] {
            let (_, package, told) = run(&[register(1, 1), end(kind, stages), end(kind, stages)]);
            assert_eq!(package.unwrap().state, state, "{kind:?}");
            assert_eq!(told, [PackageEventKind::PackageRegistered, told_kind], "{kind:?}");
            let (outcomes, package, told) = run(&[end(kind, stages), register(1, 1)]);
            assert_eq!(outcomes[1], refused(Refusal::Undone), "{kind:?}");
            assert_eq!((package.unwrap().state, told), (state, vec![]), "{kind:?}");
        }
    }

    #[test]
    fn a_delivery_that_goes_on_ends_nothing() {
        for kind in [
            DeliveryEventKind::DeliveryRequested,
            DeliveryEventKind::DeliveryScheduled,
            DeliveryEventKind::DeliveryRescheduled,
        ] {
            assert_eq!(PackageEnd::of(delivery_event(1, kind, &[Stage::Requested])), None);
        }
    }

    #[test]
    fn what_has_been_delivered_stays_delivered_when_it_is_withdrawn() {
        let (outcomes, package, told) =
            run(&[register(1, 1), end(DeliveryEventKind::DeliveryCompleted, &[]), withdraw(1, 1)]);
        assert_eq!(outcomes, [DONE, DONE, DONE]);
        assert_eq!(package.unwrap().state, PackageState::Delivered);
        assert_eq!(told.len(), 2);
    }
}
