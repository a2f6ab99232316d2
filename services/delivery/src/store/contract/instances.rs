//! Two instances on one store at once: of each delivery, lease and key one of them wins.

use std::collections::{BTreeMap, HashMap};

use contracts::DeliveryId;

use super::{
    Refused, Subject,
    samples::{at, hold, id, new, next, with_key},
};
use crate::store::{Change, LeaseChange, Store, StoreError};

/// Saves the changes in batches of that size, one after the other.
async fn save_all(store: &dyn Store, changes: &[Change], batch: usize) -> Vec<Result<(), StoreError>> {
    let mut results = Vec::new();
    for part in changes.chunks(batch) {
        results.extend(store.save(part).await);
    }
    results
}

/// Both instances save at once; the results of each by delivery.
async fn race(
    subject: &Subject,
    other: &Subject,
    one: &[Change],
    two: &[Change],
) -> [HashMap<DeliveryId, Result<(), Refused>>; 2] {
    // Batches that overlap, and cross each other from both ends.
    let two: Vec<Change> = two.iter().rev().cloned().collect();
    let (first, second) = futures::join!(save_all(&*subject.store, one, 7), save_all(&*other.store, &two, 5));
    let by_id = |changes: &[Change], results: Vec<Result<(), StoreError>>| {
        let results = results.into_iter().map(|result| result.map_err(Refused::from));
        changes.iter().map(|change| change.delivery.record.delivery_id).zip(results).collect()
    };
    [by_id(one, first), by_id(&two, second)]
}

pub(super) async fn of_two_instances_that_change_a_delivery_at_once_one_wins(subject: Subject) {
    const MANY: u128 = 40;
    const ROUNDS: usize = 5;
    let other = subject.another().await;
    let all: Vec<Change> = (1..=MANY).map(new).collect();
    subject.accept(&all).await;
    let mut now: BTreeMap<DeliveryId, Change> =
        all.into_iter().map(|change| (change.delivery.record.delivery_id, change)).collect();
    for round in 0..ROUNDS {
        let changes = |due: i64| -> Vec<Change> {
            let due = Some(at(due));
            now.values().map(|change| next(&change.delivery, due, LeaseChange::Keep)).collect()
        };
        let (mut one, mut two) = (changes(100), changes(200));
        for (changes, tag) in [(&mut one, "one"), (&mut two, "two")] {
            for change in changes {
                change.delivery.record.package.tag = Some(format!("{tag} {round}"));
            }
        }
        let [first, second] = race(&subject, &other, &one, &two).await;
        for (one, two) in one.into_iter().zip(two) {
            let id = one.delivery.record.delivery_id;
            let winner = match (&first[&id], &second[&id]) {
                (Ok(()), Err(Refused::Conflict)) => one,
                (Err(Refused::Conflict), Ok(())) => two,
                both => panic!("{id}: {both:?}"),
            };
            now.insert(id, winner);
        }
    }
    for (id, change) in &now {
        assert_eq!(other.get(id.0.as_u128()).await, change.delivery, "what its winner wrote");
        assert_eq!(subject.steps(id.0.as_u128()).await.len(), 2 * ROUNDS);
    }
    let mut versions: HashMap<String, Vec<u64>> = HashMap::new();
    for event in subject.told().await {
        let record: contracts::events::DeliveryRecord = serde_json::from_slice(&event.data).unwrap();
        versions.entry(event.key).or_default().push(record.version);
    }
    assert_eq!(versions.len(), now.len());
    let expected = Vec::from_iter(1..=ROUNDS as u64 + 1);
    assert!(versions.values().all(|told| *told == expected), "each once, in order within its delivery: {versions:?}");
}

pub(super) async fn of_two_instances_that_insert_at_once_one_wins_with_its_key(subject: Subject) {
    const MANY: u128 = 60;
    let other = subject.another().await;
    let key = |number: u128| format!("key-{number}");
    // The same ids; each key is one delivery's here and another's there.
    let made = |body: &'static str, key_of: &dyn Fn(u128) -> u128| -> Vec<Change> {
        (1..=MANY).map(|number| with_key(new(number), &key(key_of(number)), body)).collect()
    };
    let (one, two) = (made("one", &|number| number), made("two", &|number| number % MANY + 1));
    let results = race(&subject, &other, &one, &two).await;
    let mut owners: HashMap<&str, DeliveryId> = HashMap::new();
    let mut written: HashMap<DeliveryId, usize> = HashMap::new();
    for (changes, results) in [&one, &two].into_iter().zip(&results) {
        for change in changes {
            let id = change.delivery.record.delivery_id;
            let key = change.key.as_ref().unwrap().key.as_str();
            match &results[&id] {
                Ok(()) => {
                    assert_eq!(owners.insert(key, id), None, "{key} was given twice");
                    *written.entry(id).or_default() += 1;
                }
                Err(Refused::Conflict | Refused::KeyUsed { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    }
    assert!(written.values().all(|count| *count == 1), "{written:?}");
    for number in 1..=MANY {
        assert_eq!(subject.find(number).await.is_some(), written.contains_key(&id(number)), "{number}");
        let kept = subject.store.key_use(&"alice".parse().unwrap(), &key(number)).await.unwrap();
        assert_eq!(kept.map(|(id, _)| id), owners.get(key(number).as_str()).copied(), "no key of a refused delivery");
    }
    assert_eq!(subject.told().await.len(), written.len());
}

pub(super) async fn two_instances_at_once_lease_nothing_twice(subject: Subject) {
    const MANY: u128 = 120;
    let other = subject.another().await;
    let all: Vec<_> = (1..=MANY).map(new).collect();
    subject.accept(&all).await;
    let ids: Vec<_> = (1..=MANY).map(id).collect();
    let due = async |instance: &Subject, owner: &str| {
        let mut taken = Vec::new();
        for _ in 0..20 {
            taken.extend(instance.store.claim_due(owner, at(300), at(310), 7).await.unwrap());
        }
        taken
    };
    let named = async |instance: &Subject, owner: &str| {
        let mut taken = Vec::new();
        for part in ids.chunks(11) {
            taken.extend(instance.store.claim(part, owner, at(300), at(310)).await.unwrap());
        }
        taken
    };
    let (a, b, c) = futures::join!(due(&subject, "a"), due(&other, "b"), named(&other, "c"));
    let mut owners: HashMap<DeliveryId, (&str, u64)> = HashMap::new();
    for (owner, taken) in [("a", a), ("b", b), ("c", c)] {
        for claimed in taken {
            let id = claimed.delivery.record.delivery_id;
            assert_eq!(owners.insert(id, (owner, claimed.fence)), None, "{id} was leased twice");
        }
    }
    assert_eq!(owners.len(), ids.len(), "everything that was due is somebody's");
    // Only its holder may write under a lease.
    for (id, (owner, fence)) in owners {
        let read = subject.get(id.0.as_u128()).await;
        let (good, bad) = (hold(fence, owner, 320), hold(fence + 1, owner, 320));
        let conflict = Err(Refused::Conflict);
        assert_eq!(other.save(&[next(&read, Some(at(320)), bad)]).await, [conflict]);
        assert_eq!(subject.save(&[next(&read, Some(at(320)), good)]).await, [Ok(())]);
    }
}

/// Only where the engine tells of other processes.
pub(super) async fn what_one_instance_changes_the_other_hears(subject: Subject) {
    use std::{collections::HashSet, time::Duration};

    use futures::FutureExt;

    use crate::store::Elsewhere;

    const PATIENCE: Duration = Duration::from_secs(10);
    let other = subject.another().await;
    for instance in [&subject, &other] {
        assert_eq!(instance.store.changed_elsewhere().await.unwrap(), Elsewhere::Missed, "what was before");
    }
    let heard = async |count: usize| {
        let mut heard = HashSet::new();
        while heard.len() < count {
            match tokio::time::timeout(PATIENCE, other.store.changed_elsewhere()).await.unwrap().unwrap() {
                Elsewhere::Changed(ids) => heard.extend(ids),
                Elsewhere::Missed => panic!("nothing was lost"),
            }
        }
        heard
    };
    // More than one notification holds.
    let all: Vec<Change> = (1..=500).map(new).collect();
    subject.accept(&all).await;
    assert_eq!(heard(500).await, (1..=500).map(id).collect());
    let good = next(&all[0].delivery, None, LeaseChange::Keep);
    let mut bad = next(&all[1].delivery, None, LeaseChange::Keep);
    bad.expected_version = 7;
    subject.save(&[bad, good]).await;
    assert_eq!(heard(1).await, HashSet::from([id(1)]), "what was refused has not changed");
    assert!(subject.store.changed_elsewhere().now_or_never().is_none(), "one's own changes are no news");
}
