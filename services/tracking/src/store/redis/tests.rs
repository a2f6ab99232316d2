//! What only Redis does: leases of buckets, hints between instances, its memory budget, expiry, and a primary's end.

use std::time::Duration;

use contracts::{
    Coordinate, Stage,
    commands::{CloseOutcome, OpenOutcome, ReportOutcome},
};
use messaging::outbox::OutboxSource;
use testkit::until;

use super::*;
use crate::{
    fixtures::{Bench, at, close, id, open, report, start},
    store::{Opened, open as open_store},
};

/// A fresh name on the server of `variable`.
async fn url(variable: &str) -> Option<String> {
    Some(format!("{}?prefix={}", testkit::real::url(variable)?, testkit::real::unique("t")))
}

async fn raw(url: &str) -> Connection {
    Connection::open(&Address::parse(url).unwrap(), |_| Ok(())).await.unwrap()
}

fn keys(url: &str) -> Keys {
    Keys::new(&Address::parse(url).unwrap().prefix)
}

/// Tests of these names on a server and on a cluster.
macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod on_redis {
            $(#[tokio::test]
            async fn $test() {
                if let Some(url) = super::url("TEST_REDIS_URL").await {
                    super::$test(url).await;
                }
            })+
        }
        mod on_redis_cluster {
            $(#[tokio::test]
            async fn $test() {
                if let Some(url) = super::url("TEST_REDIS_CLUSTER_URL").await {
                    super::$test(url).await;
                }
            })+
        }
    };
}

on_both!(
    replicas_share_the_outbox,
    what_is_read_stays_until_it_is_deleted_and_order_holds_within_a_delivery,
    a_reading_takes_no_more_than_asked_and_starves_no_bucket,
    another_instance_hears_of_changes,
    the_geo_index_holds_open_flights_and_no_pole,
    a_closed_flight_expires_by_itself_and_an_open_one_never,
    a_line_lost_with_the_store_is_a_gap,
    a_server_that_forgot_the_script_is_given_it_again,
);

async fn replicas_share_the_outbox(url: String) {
    testkit::outbox::shares_its_buckets(&*open_store(&url).await.unwrap().outbox, true).await;
}

/// Leases everything.
async fn lease(outbox: &dyn OutboxSource) -> Vec<Bucket> {
    outbox.lease("test", start(), at(1_000)).await.unwrap()
}

async fn what_is_read_stays_until_it_is_deleted_and_order_holds_within_a_delivery(url: String) {
    let opened = open_store(&url).await.unwrap();
    let bench = Bench::over(&opened);
    let buckets = lease(&*opened.outbox).await;
    assert_eq!(buckets.len(), usize::from(BUCKETS));
    assert!(opened.outbox.read(&buckets, 10).await.unwrap().is_empty());
    for number in 1..=3 {
        bench.open(open(number, 1, 1)).await;
        for (sequence, stage) in [(1, None), (2, Some(Stage::HeadedToPickup)), (3, Some(Stage::HeadedToDropoff))] {
            bench.report(vec![report(number, sequence, stage)]).await;
        }
    }
    assert_eq!(opened.outbox.backlog().await.unwrap(), 15);
    let rows = opened.outbox.read(&buckets, 100).await.unwrap();
    let again = opened.outbox.read(&buckets, 100).await.unwrap();
    let ids = |rows: &[messaging::outbox::OutboxRow]| rows.iter().map(|row| row.event.id).collect::<Vec<_>>();
    assert_eq!((rows.len(), ids(&rows)), (15, ids(&again)));
    let kinds: Vec<_> = rows.iter().filter(|row| row.event.key == id(2).key()).map(|row| &*row.event.kind).collect();
    let sampled = "PositionSampled";
    assert_eq!(kinds, [sampled, "StageChanged", sampled, "StageChanged", sampled]);
    let places: Vec<_> = rows.iter().take(14).map(|row| row.place.clone()).collect();
    opened.outbox.delete(&places).await.unwrap();
    opened.outbox.delete(&places).await.unwrap();
    assert_eq!(ids(&opened.outbox.read(&buckets, 100).await.unwrap()), ids(&rows[14..]));
    assert_eq!(opened.outbox.backlog().await.unwrap(), 1);
}

async fn a_reading_takes_no_more_than_asked_and_starves_no_bucket(url: String) {
    let opened = open_store(&url).await.unwrap();
    let bench = Bench::over(&opened);
    let buckets = lease(&*opened.outbox).await;
    for number in 1..=40 {
        bench.open(open(number, 1, 1)).await;
    }
    bench.report((1..=40).map(|number| report(number, 1, None)).collect()).await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let rows = opened.outbox.read(&buckets, 10).await.unwrap();
        assert!(rows.len() <= 10);
        seen.extend(rows.into_iter().map(|row| row.event.key));
    }
    assert_eq!(seen.len(), 40, "though nothing was deleted");
}

async fn another_instance_hears_of_changes(url: String) {
    let (here, there) = (open_store(&url).await.unwrap(), open_store(&url).await.unwrap());
    let bench = Bench::over(&there);
    let buckets = lease(&*here.outbox).await;
    here.outbox.read(&buckets, 10).await.unwrap();
    let mut position = here.store.mission_log_end().await.unwrap();
    // What was said before the subscription was complete may have been missed; from then on the flights are named.
    let number = std::sync::atomic::AtomicU32::new(1);
    let named = until("the other one's flights", async || {
        let next = u128::from(number.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        bench.open(open(next, 1, 1)).await;
        bench.report(vec![report(next, 1, None)]).await;
        let heard = tokio::time::timeout(Duration::from_secs(5), here.store.changed_elsewhere()).await.unwrap();
        heard.flights.into_iter().next()
    });
    let named = named.await;
    assert!((1..u128::from(number.into_inner())).any(|number| id(number) == named));
    let page = here.store.mission_log(&position, 100, Look::WhereHeard).await.unwrap();
    assert!(!page.lines.is_empty() && !page.gap, "{page:?}");
    position = page.position;
    assert!(here.store.mission_log(&position, 100, Look::WhereHeard).await.unwrap().lines.is_empty());
    tokio::time::timeout(Duration::from_secs(5), here.outbox.woken()).await.unwrap().unwrap();
    assert!(!here.outbox.read(&buckets, 100).await.unwrap().is_empty());
}

async fn the_geo_index_holds_open_flights_and_no_pole(url: String) {
    let opened = open_store(&url).await.unwrap();
    let bench = Bench::over(&opened);
    let (connection, keys) = (raw(&url).await, keys(&url));
    let indexed = async |number| -> bool {
        let mut ask = cmd("ZSCORE");
        ask.arg(keys.positions(bucket_of(id(number)))).arg(id(number).key());
        connection.ask::<Option<f64>>(&ask).await.unwrap().is_some()
    };
    bench.open(open(1, 1, 1)).await;
    assert!(!indexed(1).await, "nobody knows where it is");
    bench.report(vec![report(1, 1, None)]).await;
    assert!(indexed(1).await);
    bench.close(close(1, 1, 1, Stage::Completed)).await;
    assert!(!indexed(1).await);

    bench.open(open(2, 1, 1)).await;
    let mut polar = report(2, 1, Some(Stage::HeadedToPickup));
    polar.fix.position = Coordinate { latitude: 89.0, longitude: 10.0 };
    assert_eq!(bench.report(vec![polar]).await, [ReportOutcome::Accepted]);
    assert!(!indexed(2).await);
    assert_eq!(bench.stored(2).await.unwrap().last.unwrap().position.latitude, 89.0);
}

async fn a_closed_flight_expires_by_itself_and_an_open_one_never(url: String) {
    let opened = open_store(&url).await.unwrap();
    let bench = Bench::over(&opened);
    let (connection, keys) = (raw(&url).await, keys(&url));
    let left = async |number| -> i64 { connection.ask(cmd("TTL").arg(keys.flight(id(number)))).await.unwrap() };
    bench.open(open(1, 1, 1)).await;
    assert_eq!(left(1).await, -1, "for ever");
    bench.close(close(1, 1, 1, Stage::Completed)).await;
    assert!((24 * 3_600..=25 * 3_600).contains(&left(1).await));
    bench.open(open(1, 2, 1)).await;
    assert_eq!(left(1).await, -1, "the next attempt");
}

async fn a_line_lost_with_the_store_is_a_gap(url: String) {
    let opened = open_store(&url).await.unwrap();
    let bench = Bench::over(&opened);
    let (connection, keys) = (raw(&url).await, keys(&url));
    bench.open(open(1, 1, 1)).await;
    let position = opened.store.mission_log_end().await.unwrap();
    // As after a failover to a replica that had not heard of it.
    let bucket = bucket_of(id(1));
    let mut lose = pipe();
    lose.del(keys.missions(bucket)).del(keys.counts(bucket));
    connection.pipe::<(u8, u8)>(&lose).await.unwrap();
    let page = opened.store.mission_log(&position, 10, Look::Everywhere).await.unwrap();
    assert!(page.gap);
    bench.close(close(1, 1, 1, Stage::Completed)).await;
    let page = opened.store.mission_log(&page.position, 10, Look::Everywhere).await.unwrap();
    assert_eq!((page.gap, page.lines.len()), (false, 1));
}

async fn a_server_that_forgot_the_script_is_given_it_again(url: String) {
    let opened = open_store(&url).await.unwrap();
    let bench = Bench::over(&opened);
    assert_eq!(bench.open(open(1, 1, 1)).await, OpenOutcome::Opened);
    let connection = raw(&url).await;
    connection.ask::<()>(cmd("SCRIPT").arg("FLUSH")).await.unwrap();
    assert_eq!(bench.open(open(2, 1, 1)).await, OpenOutcome::Opened);
}

/// A cluster of the test's own, which it may kill nodes of.
mod on_redis_cluster_of_its_own {
    use testkit::real::Own;

    use super::*;

    #[tokio::test]
    async fn a_primary_that_was_killed_loses_no_command_and_its_buckets_go_on() {
        const FLIGHTS: u128 = 60;
        let Some(own) = Own::start("redis-cluster", "TEST_REDIS_CLUSTER_URL").await else { return };
        let opened = open_store(&own.url).await.unwrap();
        let bench = Bench::over(&opened);
        for number in 1..=FLIGHTS {
            assert_eq!(bench.open(open(number, 1, 1)).await, OpenOutcome::Opened);
        }
        let reports: Vec<_> = (1..=FLIGHTS).map(|number| report(number, 1, Some(Stage::HeadedToPickup))).collect();
        assert!(bench.report(reports).await.iter().all(|outcome| *outcome == ReportOutcome::Accepted));
        own.kill_node("redis-cluster-1").await;
        // At once in the buckets of the other primaries, after an election in all of them.
        until("every bucket takes reports again", async || {
            let reports = (1..=FLIGHTS).map(|number| report(number, 2, Some(Stage::HeadedToDropoff))).collect();
            let outcomes = bench.report(reports).await;
            outcomes.iter().all(|outcome| *outcome != ReportOutcome::Unavailable).then_some(())
        })
        .await;
        for number in 1..=FLIGHTS {
            let flight = bench.stored(number).await.unwrap();
            assert_eq!((flight.stage(), flight.stages.len()), (Stage::HeadedToDropoff, 2), "{number}");
        }
        for number in 1..=FLIGHTS {
            assert_eq!(bench.open(open(number, 2, 1)).await, OpenOutcome::Opened, "its primary has no replica left");
        }
        assert_eq!(bench.events("StageChanged").await.len(), 2 * FLIGHTS as usize);
    }

    #[tokio::test]
    async fn a_command_that_no_replica_has_is_not_acknowledged_however_often_it_comes() {
        const REPLICAS: [&str; 3] = ["redis-cluster-4", "redis-cluster-5", "redis-cluster-6"];
        let Some(own) = Own::start("redis-cluster", "TEST_REDIS_CLUSTER_URL").await else { return };
        let bench = Bench::over(&open_store(&own.url).await.unwrap());
        assert_eq!(bench.open(open(1, 1, 1)).await, OpenOutcome::Opened);
        for node in REPLICAS {
            own.freeze_node(node).await;
        }
        for _ in 0..3 {
            assert_eq!(bench.open(open(2, 1, 1)).await, OpenOutcome::Unavailable);
            assert_eq!(bench.close(close(1, 1, 1, Stage::Completed)).await, CloseOutcome::Unavailable);
        }
        assert!(bench.stored(2).await.is_some_and(|flight| flight.is_open()), "it is there, in one place");
        assert!(bench.stored(1).await.is_some_and(|flight| !flight.is_open()));
        for node in REPLICAS {
            own.thaw_node(node).await;
        }
        until("the replicas follow again", async || {
            (bench.open(open(2, 1, 1)).await == OpenOutcome::Opened).then_some(())
        })
        .await;
        assert!(matches!(bench.close(close(1, 1, 1, Stage::Completed)).await, CloseOutcome::Closed { .. }));
    }

    #[tokio::test]
    async fn a_replica_that_stands_still_holds_up_its_own_buckets_only() {
        const FLIGHTS: usize = 60;
        let Some(own) = Own::start("redis-cluster", "TEST_REDIS_CLUSTER_URL").await else { return };
        let bench = Bench::over(&open_store(&own.url).await.unwrap());
        let open_all = async || {
            let outcomes = bench.tracker.open((1..=FLIGHTS as u128).map(|number| open(number, 1, 1)).collect()).await;
            outcomes.into_iter().filter(|outcome| *outcome == OpenOutcome::Opened).count()
        };
        own.freeze_node("redis-cluster-4").await;
        let opened = open_all().await;
        assert!((FLIGHTS / 2..FLIGHTS).contains(&opened), "of two of three primaries: {opened}");
        own.thaw_node("redis-cluster-4").await;
        until("the replica follows again", async || (open_all().await == FLIGHTS).then_some(())).await;
    }
}

/// Servers of one test's own, which it may fill, stop and kill.
mod on_redis_of_its_own {
    use testkit::real::Own;

    use super::*;

    async fn opened(own: &Own) -> (Opened, Connection) {
        (open_store(&own.url).await.unwrap(), raw(&own.url).await)
    }

    #[tokio::test]
    async fn a_full_store_says_so_takes_only_stages_and_ends_and_goes_on_when_there_is_room() {
        let Some(own) = Own::start("redis", "TEST_REDIS_URL").await else { return };
        let (opened, connection) = opened(&own).await;
        let bench = Bench::over(&opened);
        assert_eq!(bench.open(open(1, 1, 1)).await, OpenOutcome::Opened);
        let budget = async |bytes: &str| {
            let mut set = cmd("CONFIG");
            connection.ask::<()>(set.arg("SET").arg("maxmemory").arg(bytes)).await.unwrap();
        };
        budget("1mb").await;
        let change = crate::store::contract::opening(2);
        let Err(SaveError::Unavailable(error)) = &opened.store.save(&[change], start()).await[0] else {
            panic!("saved")
        };
        assert!(messaging::outbox::chain(error).contains("memory budget"), "{error:?}");
        assert_eq!(bench.open(open(2, 1, 1)).await, OpenOutcome::Unavailable);
        assert_eq!(bench.report(vec![report(1, 1, None)]).await, [ReportOutcome::Unavailable]);
        assert!(bench.stored(2).await.is_none(), "reading goes on");
        assert_eq!(bench.open(open(1, 1, 1)).await, OpenOutcome::Opened, "again: it takes no room");
        let stages = [Stage::HeadedToPickup, Stage::HeadedToDropoff];
        for (stage, sequence) in stages.into_iter().zip(2..) {
            assert_eq!(bench.report(vec![report(1, sequence, Some(stage))]).await, [ReportOutcome::Accepted]);
            assert_eq!(bench.stored(1).await.unwrap().stage(), stage);
        }

        // The relay leases, reads and deletes, and flights end.
        let buckets = lease(&*opened.outbox).await;
        bench.close(close(1, 1, 1, Stage::Completed)).await;
        assert!(!bench.stored(1).await.unwrap().is_open());
        let events = opened.outbox.read(&buckets, 100).await.unwrap();
        let places: Vec<_> = events.iter().map(|row| row.place.clone()).collect();
        opened.outbox.delete(&places).await.unwrap();
        assert_eq!(opened.outbox.backlog().await.unwrap(), 0);

        budget("512mb").await;
        assert_eq!(bench.open(open(2, 1, 1)).await, OpenOutcome::Opened);
    }

    #[tokio::test]
    async fn a_store_that_forgets_is_refused() {
        let Some(own) = Own::start("redis", "TEST_REDIS_URL").await else { return };
        let connection = raw(&own.url).await;
        let mut set = cmd("CONFIG");
        connection.ask::<()>(set.arg("SET").arg("maxmemory-policy").arg("allkeys-lru")).await.unwrap();
        let Err(error) = open_store(&own.url).await else { panic!("opened") };
        assert!(format!("{error:#}").contains("noeviction"), "{error:#}");
        for (name, value) in [("maxmemory-policy", "noeviction"), ("appendonly", "no")] {
            connection.ask::<()>(cmd("CONFIG").arg("SET").arg(name).arg(value)).await.unwrap();
        }
        let Err(error) = open_store(&own.url).await else { panic!("opened") };
        assert!(format!("{error:#}").contains("appendonly"), "{error:#}");
    }

    #[tokio::test]
    async fn a_server_that_was_killed_has_all_that_was_acknowledged() {
        let Some(own) = Own::start("redis", "TEST_REDIS_URL").await else { return };
        let (opened, _) = opened(&own).await;
        let bench = Bench::over(&opened);
        for number in 1..=20 {
            assert_eq!(bench.open(open(number, 1, 1)).await, OpenOutcome::Opened);
            assert_eq!(bench.report(vec![report(number, 7, None)]).await, [ReportOutcome::Accepted]);
        }
        own.kill().await;
        assert_eq!(bench.open(open(21, 1, 1)).await, OpenOutcome::Unavailable);
        own.start_again().await;
        until("the connection is mended", async || {
            (bench.open(open(21, 1, 1)).await == OpenOutcome::Opened).then_some(())
        })
        .await;
        for number in 1..=20 {
            assert_eq!(bench.stored(number).await.unwrap().last.unwrap().sequence, 7);
        }
        assert_eq!(opened.outbox.backlog().await.unwrap(), 20);
    }
}
