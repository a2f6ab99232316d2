//! The process is ended at every named place between two durable effects; what it left is taken up again, whole.

use std::{collections::BTreeSet, path::Path, time::Duration};

use contracts::{Clock, DeliveryId, SystemClock, api::Role};
use futures::{StreamExt, stream};
use reqwest::Method;
use serde_json::json;

use crate::{
    api::{wish, with},
    process::{Site, aborted, finished},
    world::within,
};

/// Every abort point, and the most passings that may be waited for: as many as a run of some seconds surely has.
const POINTS: [(&str, u64); 20] = [
    ("consumer.handled", 20),
    ("delivery.before_commit", 30),
    ("delivery.committed", 30),
    ("delivery.event_applied", 10),
    ("delivery.step_answered", 30),
    ("fleet.event_applied", 5),
    ("fleet.reserved", 10),
    ("history.committed", 2),
    ("history.files_written", 2),
    ("lookup.stored", 3),
    ("package.event_applied", 3),
    ("package.registered", 10),
    ("package.withdrawn", 1),
    ("relay.deleted", 30),
    ("relay.published", 30),
    ("relay.read", 30),
    ("tracking.closed", 1),
    ("tracking.event_applied", 3),
    ("tracking.opened", 10),
    ("tracking.reported", 10),
];

/// Points that a system without faults on the embedded stores does not pass: tests of whose they are abort at each.
const TRIED_ELSEWHERE: [&str; 4] =
    ["consumer.buried", "package.contents_swept", "package.contents_written", "package.events_pulled"];

/// Systems at a time.
const PARALLEL: usize = 2;

/// The variable that repeats a run.
const SEED: &str = "IT_SEED";

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_at_any_of_them_loses_and_doubles_nothing() {
    let seed = seed();
    println!("{SEED}={seed}");
    stream::iter(POINTS)
        .map(|(point, most)| async move {
            let passing = 1 + seed % most;
            let accepted = abort_at(&format!("{point}:{passing}"), seed).await;
            println!("{point}:{passing} survived, {accepted} accepted");
        })
        .buffer_unordered(PARALLEL)
        .collect::<Vec<()>>()
        .await;
}

fn seed() -> u64 {
    let given = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| SystemClock.now().timestamp_millis().unsigned_abs() % 1_000_000)
}

/// Ends a system there, under load, starts it again and audits it; how many deliveries it had accepted.
async fn abort_at(point: &str, seed: u64) -> usize {
    let site = Site::new();
    let mut system = site.start(Some(point));
    let mut simulator = site.simulate(6, 5, seed);
    let (hopeless, ()) = tokio::join!(order_in_vain(&site), async {
        aborted(&mut system, point, &site).await;
        system = site.start(None);
    });
    finished(&mut simulator, &site).await;
    site.settle().await;
    site.stop_and_audit(system, &[hopeless]).await;
    site.accepted().len() + 1
}

/// An order that no drone can fly, so that its saga is undone at the deadline; asked until it is accepted.
async fn order_in_vain(site: &Site) -> DeliveryId {
    let far_away = json!({"latitude": -48.0, "longitude": 170.0});
    let mut body = json!(null);
    within(Duration::from_secs(120), "an order by hand is accepted", async || {
        if body.is_null() {
            site.is_ready().await;
            body = with(wish(), &json!({"dropoff": far_away, "deadline": SystemClock.now() + Duration::from_secs(4)}));
        }
        let (status, answer) = site.ask("carol", Role::Customer, Method::POST, "/api/deliveries", &body).await?;
        if status == 422 {
            // The deadline has passed meanwhile, and the order was never stored: a new one.
            body["deadline"] = json!(SystemClock.now() + Duration::from_secs(4));
            return None;
        }
        (status == 202).then(|| answer["id"].as_str()?.parse().ok())?
    })
    .await
}

/// The names in the sources, so that none is forgotten above.
#[test]
fn every_abort_point_in_the_sources_is_tried() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = BTreeSet::new();
    for folder in ["services", "shared"] {
        for member in std::fs::read_dir(root.join(folder)).unwrap() {
            let sources = member.unwrap().path().join("src");
            if sources.is_dir() {
                names_in(&sources, &mut found);
            }
        }
    }
    let listed = POINTS.iter().map(|(name, _)| *name).chain(TRIED_ELSEWHERE);
    let listed: BTreeSet<String> = listed.map(str::to_owned).collect();
    assert_eq!(found, listed);
}

fn names_in(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names_in(&path, found);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for rest in text.split("abort_point(\"").skip(1) {
            found.insert(rest.split_once('"').unwrap().0.to_owned());
        }
    }
}
