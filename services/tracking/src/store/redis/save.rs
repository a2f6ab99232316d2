//! Saves a batch: its changes by bucket, one run of a script for some of a bucket's, all at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use contracts::Timestamp;
use futures::future::join_all;
use messaging::outbox::Bucket;

use super::{
    Shared,
    connection::Way,
    documents,
    keys::bucket_of,
    script::{Call, Script},
};
use crate::{
    domain::{Flight, MissionNote},
    store::{Audience, Change, SaveError, Unavailable},
};

/// Changes in one run of the script: about a millisecond in which the server does nothing else.
const CHANGES_IN_A_CALL: usize = 64;

/// How long a closed flight is kept though no janitor comes, in milliseconds: an hour more than janitors keep it.
const KEEP_CLOSED_MS: u64 = 25 * 60 * 60 * 1_000;

/// The geo index takes no place nearer to a pole: <https://redis.io/docs/latest/commands/geoadd/>.
const MAX_INDEXED_LATITUDE: f64 = 85.051_128_78;

/// The script by which a batch is saved.
pub(super) struct SaveScript {
    saving: Script,
    /// The same, taken by a store that is full as well.
    owed: Script,
}

impl SaveScript {
    pub(super) fn new() -> Self {
        Self {
            saving: Script::new(include_str!("save.lua")),
            owed: Script::new(concat!("#!lua flags=allow-oom\n", include_str!("save.lua"))),
        }
    }

    /// The one for changes that are all owed, or that are not.
    fn of(&self, owed: bool) -> &Script {
        if owed { &self.owed } else { &self.saving }
    }
}

/// Changes that share a call: those of a bucket that a full store takes as well, or the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    bucket: Bucket,
    owed: bool,
}

/// The server refused to take more.
#[derive(Debug, thiserror::Error)]
#[error("the store has used up its memory budget (maxmemory) and takes no more until flights end or it is raised")]
struct Full(#[source] redis::RedisError);

/// See `Store::save`.
pub(super) async fn save(
    shared: &Shared,
    script: &SaveScript,
    changes: &[Change],
    now: Timestamp,
) -> Vec<Result<(), SaveError>> {
    let mut by_group: BTreeMap<Group, Vec<usize>> = BTreeMap::new();
    for (at, change) in changes.iter().enumerate() {
        let group = Group { bucket: bucket_of(change.flight.delivery_id), owed: change.is_owed() };
        by_group.entry(group).or_default().push(at);
    }
    let calls: Vec<(Group, &[usize])> = by_group
        .iter()
        .flat_map(|(group, places)| places.chunks(CHANGES_IN_A_CALL).map(|some| (*group, some)))
        .collect();
    let answers = calls.iter().map(|(group, places)| save_some(shared, script, *group, changes, places, now));
    let answers = join_all(answers).await;
    let mut results: Vec<Result<(), SaveError>> = changes.iter().map(|_| Ok(())).collect();
    for ((_, places), outcomes) in calls.into_iter().zip(answers) {
        for (at, outcome) in places.iter().zip(outcomes) {
            results[*at] = outcome;
        }
    }
    await_replicas(shared, changes, &mut results).await;
    results
}

async fn save_some(
    shared: &Shared,
    script: &SaveScript,
    Group { bucket, owed }: Group,
    changes: &[Change],
    places: &[usize],
    now: Timestamp,
) -> Vec<Result<(), SaveError>> {
    let changes: Vec<&Change> = places.iter().map(|at| &changes[*at]).collect();
    let outcome = async {
        let call = call(shared, bucket, &changes, now)?;
        let way = if changes.iter().any(|change| change.whole) { Way::Main } else { Way::Aside };
        let saved: Vec<u8> = shared.connection.run(script.of(owed), &call, way).await.map_err(unavailable)?;
        Ok::<_, Unavailable>(saved)
    };
    match outcome.await {
        Ok(saved) => {
            let won = || changes.iter().zip(&saved).filter(|(_, saved)| **saved == 1).map(|(change, _)| change);
            let events = won().any(|change| !change.events.is_empty());
            shared.news.wrote(bucket, events, won().any(|change| !change.missions.is_empty()));
            saved.iter().map(|saved| if *saved == 1 { Ok(()) } else { Err(SaveError::Conflict) }).collect()
        }
        Err(error) => {
            // It may have been saved all the same.
            shared.news.wrote(bucket, true, true);
            changes.iter().map(|_| Err(error.clone().into())).collect()
        }
    }
}

fn unavailable(error: redis::RedisError) -> Unavailable {
    if error.code() == Some("OOM") { Unavailable(Arc::new(Full(error))) } else { error.into() }
}

/// What the script is called with: see its head.
fn call(shared: &Shared, bucket: Bucket, changes: &[&Change], now: Timestamp) -> Result<Call, Unavailable> {
    let keys = &shared.keys;
    let mut call = Call::default();
    for key in [
        keys.outbox(bucket),
        keys.missions(bucket),
        keys.counts(bucket),
        keys.positions(bucket),
        keys.open(bucket),
        keys.closed(bucket),
        keys.channel(bucket),
    ] {
        call.key(&key);
    }
    let tell = shared.connection.tell();
    call.arg(&shared.news.origin).arg(now.timestamp_micros()).arg(tell).arg(KEEP_CLOSED_MS);
    for change in changes {
        call.key(&keys.flight(change.flight.delivery_id));
        add_flight(&mut call, change)?;
        call.arg(change.events.len());
        for event in &change.events {
            call.arg(event.id.to_string()).arg(&event.topic).arg(&event.key).arg(&event.kind).arg(&event.source);
            call.arg(event.time.to_rfc3339()).arg(event.traceparent.as_deref().unwrap_or_default()).arg(&event.data);
        }
        call.arg(change.missions.len());
        for note in &change.missions {
            call.key(&keys.audience(bucket, &Audience::Base(note.base_id.clone())));
            call.key(&keys.audience(bucket, &Audience::Drone(note.drone_id)));
            call.arg(u8::from(note.assigned)).arg(text_of(note)?);
        }
    }
    Ok(call)
}

fn add_flight(call: &mut Call, change: &Change) -> Result<(), Unavailable> {
    let flight = &change.flight;
    call.arg(flight.delivery_id.key()).arg(change.replaces.number()).arg(flight.version.number());
    call.arg(documents::fix(flight)?);
    if change.whole {
        call.arg(documents::whole(flight)?);
    } else {
        call.arg("");
    }
    call.arg(u8::from(flight.is_open()));
    match indexed_place(flight) {
        Some(place) => call.arg(place.longitude).arg(place.latitude),
        None => call.arg("").arg(""),
    };
    let closed = flight.closed_at.unwrap_or_default();
    call.arg(flight.changed_at.timestamp_micros()).arg(closed.timestamp_micros());
    Ok(())
}

/// Where an open flight is, as far as the index can say.
fn indexed_place(flight: &Flight) -> Option<contracts::Coordinate> {
    let place = flight.last.filter(|_| flight.is_open())?.position;
    (place.latitude.abs() <= MAX_INDEXED_LATITUDE).then_some(place)
}

fn text_of(note: &MissionNote) -> Result<String, Unavailable> {
    serde_json::to_string(note).map_err(|error| documents::Unreadable::new("a mission note", error).into())
}

/// What is more than a position is not said twice: it counts once a replica has it.
async fn await_replicas(shared: &Shared, changes: &[Change], results: &mut [Result<(), SaveError>]) {
    let waits = |at: &usize, results: &[Result<(), SaveError>]| changes[*at].whole && results[*at].is_ok();
    let waiting: Vec<usize> = (0..changes.len()).filter(|at| waits(at, results)).collect();
    if waiting.is_empty() {
        return;
    }
    let Err(fault) = shared.connection.replicated().await else { return };
    let key_of = |at: &usize| shared.keys.open(bucket_of(changes[*at].flight.delivery_id));
    let keys: Vec<String> = waiting.iter().map(key_of).collect::<BTreeSet<_>>().into_iter().collect();
    let spared = shared.connection.spared(&fault, &keys).await;
    let error = Unavailable(Arc::new(fault));
    for at in waiting.into_iter().filter(|at| !spared.contains(key_of(at).as_str())) {
        results[at] = Err(error.clone().into());
    }
}
