//! What every store of packages must do, whatever the engine.

use std::{path::Path, sync::Arc, time::Duration};

use contracts::{
    Clock, DeliveryId, SystemClock,
    commands::{PackageOutcome, Refusal},
    events::{DeliveryEventKind, PackageEvent, PackageEventKind, PackageState},
};
use messaging::outbox::OutboxRow;
use tempfile::TempDir;
use testkit::{ManualClock, until};

use super::{
    Opened, Relaying, open,
    samples::{at, delivery_event, described, id, register, withdraw},
};
use crate::domain::{Command, PackageEnd};

/// A fresh store, and the time that it lives in.
pub(crate) struct Subject {
    pub(crate) opened: Opened,
    pub(crate) url: String,
    pub(crate) clock: Arc<ManualClock>,
    relaying: Relaying,
    folder: TempDir,
}

impl Subject {
    /// Opens the store whose URL `url` makes of a fresh folder.
    pub(crate) async fn open(url: impl Fn(&Path) -> String) -> Self {
        Self::relayed(Relaying::Poll, url).await
    }

    /// The same, of a store whose events leave like that.
    pub(crate) async fn relayed(relaying: Relaying, url: impl Fn(&Path) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(at(0)));
        let url = url(folder.path());
        let opened = open(&url, relaying, clock.clone()).await.unwrap();
        Self { opened, url, clock, relaying, folder }
    }

    /// A file in the store's folder.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Closes the store and opens it again.
    async fn reopen(mut self) -> Self {
        self.opened = open(&self.url, self.relaying, self.clock.clone()).await.unwrap();
        self
    }

    async fn apply(&self, commands: &[Command]) -> Vec<PackageOutcome> {
        let outcomes = self.opened.store.apply(commands).await;
        assert_eq!(outcomes.len(), commands.len());
        outcomes.into_iter().map(Result::unwrap).collect()
    }

    async fn state(&self, delivery_id: DeliveryId) -> Option<PackageState> {
        self.opened.store.find(delivery_id).await.unwrap().map(|record| record.state)
    }

    /// What waits in the outbox, in order.
    async fn told(&self) -> Vec<PackageEvent> {
        let rows = self.waiting().await;
        rows.iter().map(|row| PackageEvent::decode(&row.event).unwrap().unwrap()).collect()
    }

    /// What waits in the outbox, for its one relay; a source that hears of it may take a moment.
    pub(crate) async fn waiting(&self) -> Vec<OutboxRow> {
        let outbox = &*self.opened.outbox;
        let now = SystemClock.now();
        let buckets = outbox.lease("test", now, now + chrono::Duration::hours(1)).await.unwrap();
        until("all that waits is read", || async {
            let rows = outbox.read(&buckets, 100_000).await.unwrap();
            (rows.len() as u64 == outbox.backlog().await.unwrap()).then_some(rows)
        })
        .await
    }

    /// As if the relay had published everything.
    pub(crate) async fn all_told(&self) {
        let rows = self.waiting().await;
        let places: Vec<_> = rows.into_iter().map(|row| row.place).collect();
        self.opened.outbox.delete(&places).await.unwrap();
    }
}

/// Leaves nothing of a store that is not a file in the subject's folder.
pub(crate) async fn forget(url: &str) {
    if url.starts_with("mongodb:") {
        testkit::mongodb::drop_database(url).await;
    }
}

macro_rules! store_contract {
    ($subject:path) => {
        $crate::store::contract::store_contract!(@cases $subject:
            a_registered_package_is_found_whole
            a_batch_answers_each_command_in_order
            one_package_twice_in_a_batch_is_written_once
            an_event_tells_exactly_what_is_stored
            repetition_and_refusal_tell_nothing
            what_has_been_told_is_not_told_again
            what_was_answered_survives_reopening
            an_ended_package_is_kept_until_its_events_have_left
            the_sweep_takes_the_oldest_ended_and_never_a_registered_one
            a_package_that_was_swept_is_gone_with_its_details
            writers_at_the_same_time_tell_each_change_once
            it_answers_that_it_is_ready
        );
    };
    (@cases $subject:path: $($case:ident)+) => {
        $(#[tokio::test]
        async fn $case() {
            let Some(subject) = $subject().await else { return };
            let url = subject.url.clone();
            $crate::store::contract::$case(subject).await;
            $crate::store::contract::forget(&url).await;
        })+
    };
}
pub(crate) use store_contract;

const DONE: PackageOutcome = PackageOutcome::Done;
const UNDONE: PackageOutcome = PackageOutcome::Refused { reason: Refusal::Undone };

fn end(number: u128, kind: DeliveryEventKind) -> Command {
    Command::End(PackageEnd::of(delivery_event(number, kind, &[])).unwrap())
}

pub(crate) async fn a_registered_package_is_found_whole(subject: Subject) {
    let Command::Register(mut command) = described(1, "it's \"glass\", ⚠ \\ 50 %") else { unreachable!() };
    command.package.tag = Some("order-1".to_owned());
    assert_eq!(subject.apply(&[Command::Register(command.clone())]).await, [DONE]);
    let found = subject.opened.store.find(id(1)).await.unwrap().unwrap();
    assert_eq!(found.package, command.package);
    assert_eq!((found.customer_id, found.home_region), (command.customer_id, command.home_region));
    assert_eq!((found.state, found.registered_at, found.updated_at), (PackageState::Registered, at(0), at(0)));
    assert_eq!(subject.opened.store.find(id(2)).await.unwrap(), None);
}

pub(crate) async fn a_batch_answers_each_command_in_order(subject: Subject) {
    subject.apply(&[withdraw(1, 1), register(2, 5)]).await;
    let outcomes = subject.apply(&[register(1, 1), register(2, 4), register(3, 1), withdraw(2, 5)]).await;
    let stale = PackageOutcome::Refused { reason: Refusal::StaleFence };
    assert_eq!(outcomes, [UNDONE, stale, DONE, DONE]);
    assert_eq!(subject.apply(&[]).await, []);
}

pub(crate) async fn one_package_twice_in_a_batch_is_written_once(subject: Subject) {
    let batch = [described(1, "a"), described(1, "b"), withdraw(1, 1), register(1, 1)];
    assert_eq!(subject.apply(&batch).await, [DONE, DONE, DONE, UNDONE]);
    let found = subject.opened.store.find(id(1)).await.unwrap().unwrap();
    assert_eq!((found.state, found.package.description.as_deref()), (PackageState::Withdrawn, Some("a")));
    let kinds: Vec<_> = subject.told().await.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [PackageEventKind::PackageRegistered, PackageEventKind::PackageWithdrawn]);
}

pub(crate) async fn an_event_tells_exactly_what_is_stored(subject: Subject) {
    // Finer than any store: what is told must still be what is read back.
    subject.clock.advance(Duration::from_nanos(1_234_567_891));
    subject.apply(&[described(1, "a vase")]).await;
    let registered = subject.opened.store.find(id(1)).await.unwrap().unwrap();
    subject.clock.advance(Duration::from_secs(9));
    subject.apply(&[end(1, DeliveryEventKind::DeliveryCompleted)]).await;
    let delivered = subject.opened.store.find(id(1)).await.unwrap().unwrap();
    assert_eq!(delivered.registered_at, registered.registered_at);
    assert!(delivered.updated_at > registered.updated_at);
    let told = subject.told().await;
    let said: Vec<_> = told.iter().map(|event| (event.kind, event.time, event.data.clone())).collect();
    assert_eq!(
        said,
        [
            (PackageEventKind::PackageRegistered, registered.updated_at, registered),
            (PackageEventKind::PackageDelivered, delivered.updated_at, delivered),
        ]
    );
    assert_ne!(told[0].id, told[1].id);
}

pub(crate) async fn repetition_and_refusal_tell_nothing(subject: Subject) {
    subject.apply(&[register(1, 1), withdraw(2, 1), end(3, DeliveryEventKind::DeliveryFailed)]).await;
    let before = subject.told().await;
    assert_eq!(before.len(), 1);
    subject.apply(&[register(1, 2), register(2, 1), register(3, 1), withdraw(2, 1), withdraw(3, 1)]).await;
    assert_eq!(subject.told().await, before);
}

pub(crate) async fn what_has_been_told_is_not_told_again(subject: Subject) {
    let kinds = async || subject.told().await.iter().map(|event| event.kind).collect::<Vec<_>>();
    subject.apply(&[register(1, 1)]).await;
    assert_eq!(kinds().await, [PackageEventKind::PackageRegistered]);
    assert_eq!(kinds().await, [PackageEventKind::PackageRegistered], "until it is said to be");
    subject.all_told().await;
    assert_eq!(kinds().await, []);
    subject.apply(&[withdraw(1, 1), register(2, 1)]).await;
    let mut told = kinds().await;
    told.sort_by_key(|kind| format!("{kind:?}"));
    assert_eq!(told, [PackageEventKind::PackageRegistered, PackageEventKind::PackageWithdrawn]);
    subject.all_told().await;
    assert_eq!(kinds().await, []);
}

pub(crate) async fn what_was_answered_survives_reopening(subject: Subject) {
    subject.apply(&[register(1, 7), withdraw(2, 1)]).await;
    let told = subject.told().await;
    let subject = subject.reopen().await;
    assert_eq!(subject.told().await, told);
    assert_eq!(subject.state(id(1)).await, Some(PackageState::Registered));
    let stale = PackageOutcome::Refused { reason: Refusal::StaleFence };
    assert_eq!(subject.apply(&[register(1, 6), register(2, 1)]).await, [stale, UNDONE]);
}

pub(crate) async fn an_ended_package_is_kept_until_its_events_have_left(subject: Subject) {
    subject.apply(&[register(1, 1), withdraw(1, 1), withdraw(2, 1)]).await;
    assert_eq!(subject.opened.store.sweep(at(1), 10).await.unwrap(), 1);
    assert_eq!((subject.state(id(1)).await, subject.state(id(2)).await), (Some(PackageState::Withdrawn), None));
    subject.all_told().await;
    assert_eq!(subject.opened.store.sweep(at(1), 10).await.unwrap(), 1);
    assert_eq!(subject.state(id(1)).await, None);
}

pub(crate) async fn the_sweep_takes_the_oldest_ended_and_never_a_registered_one(subject: Subject) {
    subject.apply(&[register(1, 1)]).await;
    for number in 2..6 {
        subject.clock.advance(Duration::from_secs(1));
        subject.apply(&[withdraw(number, 1)]).await;
    }
    subject.all_told().await;
    assert_eq!(subject.opened.store.sweep(at(4), 2).await.unwrap(), 2);
    assert_eq!(subject.opened.store.sweep(at(4), 2).await.unwrap(), 1);
    assert_eq!(subject.opened.store.sweep(at(4), 2).await.unwrap(), 0);
    for (number, kept) in [(1, true), (2, false), (3, false), (4, false), (5, true)] {
        assert_eq!(subject.state(id(number)).await.is_some(), kept, "{number}");
    }
}

pub(crate) async fn a_package_that_was_swept_is_gone_with_its_details(subject: Subject) {
    subject.apply(&[described(1, "old"), withdraw(1, 1)]).await;
    subject.all_told().await;
    subject.opened.store.sweep(at(1), 10).await.unwrap();
    assert_eq!(subject.apply(&[register(1, 1)]).await, [DONE]);
    let found = subject.opened.store.find(id(1)).await.unwrap().unwrap();
    assert_eq!(found.package.description, None);
}

pub(crate) async fn writers_at_the_same_time_tell_each_change_once(subject: Subject) {
    const WRITERS: u128 = 6;
    // Each begins elsewhere in the same packages, and says something of its own in them.
    let batch = |writer: u128| -> Vec<Command> {
        let ids = (0..WRITERS).map(|number| 1 + (number + writer) % WRITERS);
        ids.flat_map(|number| [described(number, &format!("of {writer}")), withdraw(number, 1)]).collect()
    };
    let batches: Vec<_> = (0..WRITERS).map(batch).collect();
    let writing = batches.iter().map(|batch| subject.apply(batch));
    for outcomes in futures::future::join_all(writing).await {
        assert!(outcomes.iter().all(|outcome| [DONE, UNDONE].contains(outcome)), "{outcomes:?}");
    }
    let told = subject.told().await;
    for number in 1..=WRITERS {
        let found = subject.opened.store.find(id(number)).await.unwrap().unwrap();
        let of_it: Vec<_> = told.iter().filter(|event| event.data.delivery_id == id(number)).collect();
        let kinds: Vec<_> = of_it.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [PackageEventKind::PackageRegistered, PackageEventKind::PackageWithdrawn]);
        assert!(of_it.iter().all(|event| event.data.package == found.package), "one writer's contents, everywhere");
    }
}

pub(crate) async fn it_answers_that_it_is_ready(subject: Subject) {
    subject.opened.store.ready().await.unwrap();
}
