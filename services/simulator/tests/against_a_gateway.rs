//! The simulator against a small gateway: every order is flown from pickup to drop-off, whatever goes wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

mod fake_gateway;

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use contracts::{Clock as _, Stage, SystemClock};
use fake_gateway::{FakeGateway, Running};
use simulator::{Config, Progress, Summary};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Far longer than any of these runs takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A short run in which everything is fast.
fn config(gateway: &Running) -> Config {
    Config {
        gateway_url: gateway.url.clone(),
        drones: 24,
        customers: 5,
        orders_per_second: 20.0,
        time_scale: 400.0,
        duration: Some(Duration::from_secs(1)),
        drain: Duration::from_secs(40),
        misbehave: 0.0,
        cancel_share: 0.0,
        report_every: Duration::from_millis(200),
        ground_report_every: Duration::from_secs(1),
        ..Config::default()
    }
}

async fn run(config: Config) -> (Summary, Arc<Progress>) {
    let progress = Arc::new(Progress::default());
    let run = simulator::run(config, Arc::new(SystemClock), CancellationToken::new(), Arc::clone(&progress));
    let summary = tokio::time::timeout(PATIENCE, run).await.expect("the run ends").expect("the run succeeds");
    (summary, progress)
}

fn ids_in(ledger: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(ledger).unwrap();
    let id = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    text.lines().map(id).collect()
}

fn ids_of(gateway: &FakeGateway) -> BTreeSet<String> {
    gateway.known().deliveries.iter().map(|delivery| delivery.id.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_is_flown_through_its_stages() {
    let gateway = FakeGateway::start(false).await;
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("accepted");
    let (summary, progress) = run(Config { accepted: Some(ledger.clone()), ..config(&gateway) }).await;
    assert_eq!((summary.offered, summary.accepted, summary.completed), (20, 20, 20), "{summary:?}");
    assert_eq!((summary.refused, summary.errors, summary.still_open, summary.not_offered), (0, 0, 0, 0));
    assert!(summary.post_p50_ms > 0.0 && summary.post_p50_ms <= summary.post_max_ms);
    for delivery in &gateway.gateway.known().deliveries {
        assert_eq!(delivery.said, [Stage::HeadedToPickup, Stage::HeadedToDropoff, Stage::Completed]);
    }
    assert_eq!(ids_in(&ledger), ids_of(&gateway.gateway));
    assert_eq!(progress.finished.load(std::sync::atomic::Ordering::Relaxed), 20);
    let known = gateway.gateway.known();
    assert_eq!((known.registrations, known.drones.len(), known.posts), (24, 24, 20));
    assert_eq!(known.lines as u64, summary.reports_accepted + summary.reports_stale);
    // Where the answer to the end takes longer than the next report, it is reported once more.
    assert_eq!(known.stale, known.repeated_ends, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_when_answers_and_streams_break() {
    let gateway = FakeGateway::start(true).await;
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("accepted");
    let (summary, _) = run(Config { accepted: Some(ledger.clone()), ..config(&gateway) }).await;
    assert_eq!((summary.accepted, summary.completed, summary.still_open), (20, 20, 0), "{summary:?}");
    assert!(summary.report_errors > 0);
    assert!(gateway.gateway.known().posts > 20, "answers that were lost are asked for again");
    assert_eq!(gateway.gateway.known().deliveries.len(), 20, "under the same key");
    assert_eq!(ids_in(&ledger), ids_of(&gateway.gateway));
}

#[tokio::test(flavor = "multi_thread")]
async fn misbehaving_drones_and_customers_leave_nothing_open() {
    let gateway = FakeGateway::start(false).await;
    // Silence lasts 45 s: too long for this test, so only some misbehave; the seed has breakdowns and stutters.
    let config = Config { misbehave: 0.25, cancel_share: 0.3, seed: 5, ..config(&gateway) };
    let (summary, _) = run(Config { drain: Duration::from_secs(3), ..config }).await;
    let ended = summary.completed + summary.failed + summary.cancelled;
    assert_eq!(ended + summary.still_open, 20, "{summary:?}");
    assert!(summary.failed <= summary.breakdowns);
    assert!(summary.still_open <= summary.silences, "only a silent drone keeps a delivery open: {summary:?}");
    assert!(summary.failed + summary.cancelled + summary.reports_stale > 0, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_ended_from_outside_has_written_everything_down() {
    let gateway = FakeGateway::start(false).await;
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("accepted");
    let endless = Config { duration: None, accepted: Some(ledger.clone()), ..config(&gateway) };
    let (shutdown, progress) = (CancellationToken::new(), Arc::new(Progress::default()));
    let mut runs = JoinSet::new();
    runs.spawn(simulator::run(endless, Arc::new(SystemClock), shutdown.clone(), progress));
    let wait_for_flights = async {
        while gateway.gateway.known().deliveries.iter().filter(|delivery| !delivery.said.is_empty()).count() < 5 {
            SystemClock.sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait_for_flights).await.expect("drones fly");
    shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), runs.join_next()).await.expect("it ends soon");
    let summary = ended.unwrap().unwrap().unwrap();
    assert_eq!(ids_in(&ledger).len() as u64, summary.accepted);
    assert!(ids_in(&ledger).is_subset(&ids_of(&gateway.gateway)));

    // A second run takes the same drones on and flies home what the first one left in the air.
    let before = gateway.gateway.known().registrations;
    let (second, _) = run(Config { accepted: Some(ledger.clone()), ..config(&gateway) }).await;
    assert_eq!(gateway.gateway.known().registrations, before, "known drones are not registered again");
    assert_eq!(second.completed, 20, "{second:?}");
    assert_eq!(ids_in(&ledger).len() as u64, summary.accepted + 20, "keys of the first run are not used again");
    let open = gateway.gateway.known().deliveries.iter().filter(|delivery| !delivery.stage.is_terminal()).count();
    assert_eq!(open, 0);
}

#[tokio::test]
async fn an_impossible_option_is_named() {
    let config = Config { misbehave: 2.0, ..Config::default() };
    let run = simulator::run(config, Arc::new(SystemClock), CancellationToken::new(), Arc::default());
    assert!(run.await.unwrap_err().to_string().contains("--misbehave"));
}
