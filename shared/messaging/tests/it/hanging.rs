//! Stores that hang: connections stay open and nobody answers. Every call ends in bounded time, and once the store is
//! back it is used as before.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use messaging::{
    mongodb,
    outbox::OutboxSource,
    sql::{Engine, Migrations},
};
use testkit::{Wire, until};

/// In what time a call must end: no deadline on its way, nor the sum of those that follow one another, is longer.
const BOUND: Duration = Duration::from_secs(15);

/// More calls than there are connections.
const CALLS: usize = 20;

/// The call fails, and in time.
async fn ends<T, E>(what: &str, call: impl Future<Output = Result<T, E>>) {
    let started = Instant::now();
    let ended = tokio::time::timeout(2 * BOUND, Box::pin(call)).await.unwrap_or_else(|_| panic!("{what} hangs"));
    assert!(ended.is_err(), "{what} was answered");
    assert!(started.elapsed() < BOUND, "{what} took {:?}", started.elapsed());
}

mod on_postgres {
    use super::*;

    const TABLES: Migrations =
        Migrations { sqlite: &[], postgres: &["create table things (number bigint)", "insert into things values (7)"] };

    async fn opened() -> Option<(Wire, Engine, Arc<dyn OutboxSource>)> {
        let url = testkit::real::postgres().await?;
        let (wire, url) = Wire::of(&url).await;
        let (engine, outbox) = Engine::open(&url, TABLES).await.unwrap();
        Some((wire, engine, outbox))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_call_ends_and_later_ones_go_through() {
        let Some((wire, engine, outbox)) = opened().await else { return };
        let read = || engine.read("select number from things", &[]);
        let mut open = engine.begin().await.unwrap();
        let begun = engine.begin().await.unwrap();
        wire.hang();
        let reads = join_all((0..CALLS).map(|_| ends("a read", read())));
        let writing = ends("a write", open.done("update things set number = number + 1", &[]));
        let committing = ends("a commit", engine.commit(begun, &[]));
        tokio::join!(reads, writing, committing, ends("the outbox", outbox.backlog()));
        ends("a beginning", Box::pin(engine.begin())).await;
        drop(open);
        wire.go_on();
        let found = until("an answer", || async { read().await.ok() }).await;
        assert_eq!(found[0].int(0).unwrap(), 7, "what was never committed is not there");
        assert!(join_all((0..CALLS).map(|_| read())).await.iter().all(Result::is_ok));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_place_among_the_connections_is_not_held_by_one_that_hangs() {
        let Some((wire, engine, _outbox)) = opened().await else { return };
        let engine = Arc::new(engine);
        wire.hang();
        // Cut off by their caller, not by their own deadline.
        let cut_off = join_all((0..CALLS).map(|_| {
            let engine = engine.clone();
            tokio::time::timeout(Duration::from_millis(500), async move {
                engine.read("select number from things", &[]).await
            })
        }));
        assert!(cut_off.await.iter().all(Result::is_err));
        // The old wire hangs on; what connects anew goes through.
        wire.replace();
        let started = Instant::now();
        until("an answer", || async { engine.read("select number from things", &[]).await.ok() }).await;
        assert!(started.elapsed() < BOUND, "{:?}", started.elapsed());
    }
}

mod on_mongodb {
    use ::mongodb::bson::{Document, doc};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_call_ends_and_later_ones_go_through() {
        let Some(direct) = testkit::mongodb::database("hanging") else { return };
        let (wire, url) = Wire::of(&direct).await;
        // Not to where the replica set says that it is.
        let url = url.replace("replicaSet=rs0", "directConnection=true");
        let database = mongodb::open(&url, "hanging").await.unwrap();
        let things = database.collection::<Document>("things");
        things.insert_one(doc! { "_id": 7 }).await.unwrap();
        wire.hang();
        let statement = doc! { "q": { "_id": 8 }, "u": { "$set": { "x": 1 } }, "upsert": true };
        let reads = join_all((0..CALLS).map(|_| ends("a read", things.find_one(doc! { "_id": 7 }).into_future())));
        let statements = [statement];
        tokio::join!(reads, ends("a write", mongodb::update(&database, "things", &statements)));
        wire.go_on();
        let read = || async { things.find_one(doc! { "_id": 7 }).await.ok()? };
        until("an answer", read).await;
        testkit::mongodb::drop_database(&direct).await;
    }
}
