//! The contract on a real MongoDB, and what is this engine's own.

mod on_mongodb {
    mod relays;

    use std::{collections::BTreeSet, process::Command as Process, sync::Arc};

    use ::mongodb::{
        Database,
        bson::{Bson, Document, doc},
    };
    use contracts::{Clock, SystemClock, Timestamp, commands::PackageOutcome, events::PackageState};
    use messaging::{abort::ABORT_AT, mongodb, outbox::Place};
    use testkit::{
        ManualClock,
        mongodb::{Commands, drop_database, scatter, unconfirmed},
        until,
    };

    use crate::{
        domain::Command,
        store::{
            AuditPackage, Relaying, Store, StoreError,
            contract::{Subject, store_contract},
            mongodb::{CONTENTS, DATABASE, PACKAGES, documents, leases, opened, outbox, positions},
            samples::{at, described, id, register, withdraw},
        },
    };

    /// The environment variable by which a test knows that it is the process that is killed, and on which store.
    const VICTIM: &str = "PACKAGE_VICTIM_STORE";

    async fn subject() -> Option<Subject> {
        relayed(Relaying::Poll).await
    }

    async fn relayed(relaying: Relaying) -> Option<Subject> {
        let url = testkit::mongodb::database("package")?;
        Some(Subject::relayed(relaying, |_| url.clone()).await)
    }

    mod polled {
        super::store_contract!(super::subject);
    }

    mod by_changes {
        use super::{Relaying, Subject, relayed};

        async fn subject() -> Option<Subject> {
            relayed(Relaying::Changes).await
        }

        super::store_contract!(subject);
    }

    async fn raw(subject: &Subject) -> Database {
        mongodb::open(&subject.url, DATABASE).await.unwrap()
    }

    async fn count(database: &Database, collection: &str) -> u64 {
        database.collection::<Document>(collection).count_documents(doc! {}).await.unwrap()
    }

    #[tokio::test]
    async fn the_audit_reads_every_document() {
        let Some(subject) = subject().await else { return };
        subject.opened.store.apply(&[register(2, 1), withdraw(2, 1), register(1, 1)]).await;
        let rows = crate::store::audit_scan(&subject.url).await.unwrap();
        let row = |n, state| AuditPackage { delivery_id: id(n), state };
        assert_eq!(rows, [row(1, PackageState::Registered), row(2, PackageState::Withdrawn)]);
        drop_database(&subject.url).await;
    }

    #[tokio::test]
    async fn relays_share_the_buckets() {
        let Some(subject) = subject().await else { return };
        testkit::outbox::shares_its_buckets(&*subject.opened.outbox, true).await;
        drop_database(&subject.url).await;
    }

    #[tokio::test]
    async fn relays_by_changes_share_the_buckets() {
        let Some(subject) = relayed(Relaying::Changes).await else { return };
        testkit::outbox::shares_its_buckets(&*subject.opened.outbox, true).await;
        drop_database(&subject.url).await;
    }

    #[tokio::test]
    async fn relays_that_ask_at_once_never_get_the_same_bucket() {
        let Some(subject) = subject().await else { return };
        let now = SystemClock.now();
        for round in 0..5 {
            let owners: Vec<String> = (0..6).map(|number| format!("relay-{number}")).collect();
            let until = now + chrono::Duration::seconds(5 + round);
            let asking = owners.iter().map(|owner| subject.opened.outbox.lease(owner, now, until));
            let held = futures::future::try_join_all(asking).await.unwrap().concat();
            assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), held.len(), "{held:?}");
        }
        drop_database(&subject.url).await;
    }

    #[tokio::test]
    async fn events_leave_in_order_however_little_is_read_at_once() {
        let Some(subject) = subject().await else { return };
        subject.opened.store.apply(&[register(1, 1), withdraw(1, 1)]).await;
        subject.clock.advance(std::time::Duration::from_secs(1));
        subject.opened.store.apply(&[register(2, 1)]).await;
        let outbox = &*subject.opened.outbox;
        assert_eq!(outbox.backlog().await.unwrap(), 3);
        let (now, until) = (at(0), at(9));
        let buckets = outbox.lease("one", now, until).await.unwrap();
        assert_eq!(outbox.read(&[], 10).await.unwrap().len(), 0, "nothing of buckets that are not one's own");
        let mut kinds = Vec::new();
        loop {
            let rows = outbox.read(&buckets, 1).await.unwrap();
            let Some(row) = rows.first() else { break };
            assert_eq!(rows.len(), 1);
            assert!(matches!(row.place, Place::Part { event, .. } if event == row.event.id));
            kinds.push((row.event.key.clone(), row.event.kind.clone()));
            // Twice, as a relay does that was killed in between.
            outbox.delete(std::slice::from_ref(&row.place)).await.unwrap();
            outbox.delete(std::slice::from_ref(&row.place)).await.unwrap();
        }
        let told = |n, kind: &str| (id(n).to_string(), kind.to_owned());
        assert_eq!(kinds, [told(1, "PackageRegistered"), told(1, "PackageWithdrawn"), told(2, "PackageRegistered")]);
        assert_eq!(outbox.backlog().await.unwrap(), 0);
        outbox.delete(&[]).await.unwrap();
        drop_database(&subject.url).await;
    }

    #[tokio::test]
    async fn an_event_that_comes_while_others_leave_stays() {
        let Some(subject) = subject().await else { return };
        subject.opened.store.apply(&[register(1, 1)]).await;
        let first = subject.waiting().await;
        subject.opened.store.apply(&[withdraw(1, 1)]).await;
        let places: Vec<_> = first.into_iter().map(|row| row.place).collect();
        subject.opened.outbox.delete(&places).await.unwrap();
        let left = subject.waiting().await;
        assert_eq!(left.iter().map(|row| row.event.kind.as_str()).collect::<Vec<_>>(), ["PackageWithdrawn"]);
        drop_database(&subject.url).await;
    }

    #[tokio::test]
    async fn what_is_bulky_lies_apart_and_only_where_something_is_said() {
        let Some(subject) = subject().await else { return };
        subject.opened.store.apply(&[register(1, 1), described(2, "a vase"), described(2, "a vase")]).await;
        subject.all_told().await;
        let database = raw(&subject).await;
        assert_eq!((count(&database, PACKAGES).await, count(&database, CONTENTS).await), (2, 1));
        let packages = database.collection::<Document>(PACKAGES);
        let hot = packages.find_one(doc! { "_id": documents::key(id(2)) }).await.unwrap().unwrap();
        assert!(!hot.to_string().contains("vase"), "{hot}");
        drop_database(&subject.url).await;
    }

    #[tokio::test]
    async fn the_server_refuses_what_is_no_package_and_its_neighbours_pass() {
        let Some(subject) = subject().await else { return };
        let Command::Register(mut odd) = register(1, 1) else { unreachable!() };
        odd.package.weight_kg = -1.0;
        let outcomes = subject.opened.store.apply(&[register(2, 1), Command::Register(odd), register(3, 1)]).await;
        assert_eq!(outcomes[0].as_ref().unwrap(), &PackageOutcome::Done);
        assert!(matches!(outcomes[1], Err(StoreError::Unavailable(_))), "{:?}", outcomes[1]);
        assert_eq!(outcomes[2].as_ref().unwrap(), &PackageOutcome::Done);
        let packages = raw(&subject).await.collection::<Document>(PACKAGES);
        assert!(packages.insert_one(doc! { "_id": documents::key(id(9)), "state": "Lost" }).await.is_err());
        assert_eq!(packages.count_documents(doc! {}).await.unwrap(), 2);
        drop_database(&subject.url).await;
    }

    #[tokio::test]
    async fn replicas_that_start_at_once_all_start() {
        let Some(url) = testkit::mongodb::database("package") else { return };
        let clock = Arc::new(ManualClock::at(at(0)));
        let starting = (0..4).map(|_| crate::store::open(&url, Relaying::Changes, clock.clone()));
        futures::future::try_join_all(starting).await.map(|_| ()).unwrap();
        drop_database(&url).await;
    }

    #[tokio::test]
    async fn a_collection_that_was_sharded_before_a_service_came_gets_the_schema() {
        let Some(url) = testkit::mongodb::database("package") else { return };
        mongodb::open(&url, DATABASE).await.unwrap().create_collection(PACKAGES).await.unwrap();
        let subject = Subject::open(|_| url.clone()).await;
        let packages = raw(&subject).await.collection::<Document>(PACKAGES);
        assert!(packages.insert_one(doc! { "_id": documents::key(id(9)), "state": "Lost" }).await.is_err());
        drop_database(&url).await;
    }

    /// Lives with the store and its relay, and answers which commands asked every shard.
    async fn scattered(relaying: Relaying) -> Option<Vec<String>> {
        let url = testkit::mongodb::database("package")?;
        let commands = Commands::default();
        let database = mongodb::connect(commands.of(&url).await, DATABASE).unwrap();
        let opened = opened(database, relaying, Arc::new(ManualClock::at(at(0)))).await.unwrap();
        commands.take();
        let (store, outbox): (&dyn Store, _) = (&*opened.store, &*opened.outbox);
        store.apply(&[described(1, "a vase"), register(2, 1), withdraw(3, 1)]).await;
        let buckets = outbox.lease("one", at(0), at(5)).await.unwrap();
        for left in [2, 2] {
            let places = until("all that waits is read", || async {
                let rows = outbox.read(&buckets, 10).await.unwrap();
                (rows.len() == left).then(|| rows.into_iter().map(|row| row.place).collect::<Vec<_>>())
            });
            outbox.delete(&places.await).await.unwrap();
            store.apply(&[register(2, 2), withdraw(1, 1), register(4, 1)]).await;
        }
        assert!(store.find(id(1)).await.unwrap().is_some());
        assert_eq!(outbox.backlog().await.unwrap(), 0);
        outbox.lease("one", at(0), Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(store.sweep(at(9), 10).await.unwrap(), 2);
        let mut scattered = BTreeSet::new();
        for command in commands.take() {
            if ["ping", "getMore", "killCursors"].iter().any(|name| command.contains_key(name)) {
                // Of no collection, or of a cursor that is here already.
                continue;
            }
            let collection = command.values().next().and_then(Bson::as_str).unwrap_or_default();
            let shard_key = match collection {
                PACKAGES => "_id",
                CONTENTS => "delivery_id",
                // Not sharded: one document, found by its id all the same.
                leases::COLLECTION | positions::COLLECTION => "_id",
                _ => panic!("a command to no collection of ours: {command}"),
            };
            scattered.extend(scatter(&command, shard_key));
            assert_eq!(unconfirmed(&command), None);
        }
        drop_database(&url).await;
        Some(scattered.into_iter().collect())
    }

    #[tokio::test]
    async fn only_what_is_listed_asks_every_shard() {
        let Some(polled) = scattered(Relaying::Poll).await else { return };
        assert_eq!(polled, ["aggregate: backlog", "find: outbox", "find: sweep"]);
    }

    #[tokio::test]
    async fn of_a_relay_by_changes_only_the_stream_and_its_first_poll_ask_every_shard() {
        let Some(by_changes) = scattered(Relaying::Changes).await else { return };
        assert_eq!(by_changes, ["aggregate", "aggregate: backlog", "find: outbox", "find: sweep"]);
    }

    #[tokio::test]
    async fn the_relay_and_the_sweep_read_small_indexes_without_sorting() {
        let Some(subject) = subject().await else { return };
        let database = raw(&subject).await;
        let mut of_buckets = outbox::waiting();
        of_buckets.insert("bucket", doc! { "$in": (0..16).collect::<Vec<i32>>() });
        let relay = doc! { "find": PACKAGES, "filter": of_buckets, "sort": { "updated_us": 1 }, "limit": 100 };
        let old = doc! { "ended_us": { "$lt": 9_i64 }, "outbox.0": { "$exists": false } };
        let sweep = doc! { "find": PACKAGES, "filter": old, "sort": { "ended_us": 1 }, "limit": 100 };
        for (find, index) in [(relay, "bucket_1_updated_us_1"), (sweep, "ended_us_1")] {
            let answer = database.run_command(doc! { "explain": find, "verbosity": "queryPlanner" }).await.unwrap();
            let plan = answer.get_document("queryPlanner").unwrap().get_document("winningPlan").unwrap().to_string();
            assert!(plan.contains(index) && plan.contains("\"isPartial\": true"), "{plan}");
            assert!(!plan.contains("\"SORT\""), "{plan}");
        }
        drop_database(&subject.url).await;
    }

    /// The whole life of one package, which the process that is killed does not reach the end of.
    async fn live(url: String) {
        let subject = Subject::open(|_| url.clone()).await;
        subject.opened.store.apply(&[described(1, "a vase")]).await;
        subject.opened.store.apply(&[withdraw(1, 1)]).await;
        subject.all_told().await;
        subject.opened.store.sweep(at(1), 10).await.unwrap();
    }

    /// Runs that test again, in a process that is killed at that point while it lives on the subject's store.
    fn killed_at(point: &str, test: &str, subject: &Subject) {
        let output = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("{}::{test}", module_path!().split_once("::").unwrap().1)])
            .env(ABORT_AT, point)
            .env(VICTIM, &subject.url)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), None, "killed by a signal: {output:?}");
    }

    #[tokio::test]
    async fn a_kill_between_contents_and_package_leaves_what_the_sweep_takes() {
        if let Ok(url) = std::env::var(VICTIM) {
            return live(url).await;
        }
        let Some(subject) = subject().await else { return };
        killed_at(
            "package.contents_written",
            "a_kill_between_contents_and_package_leaves_what_the_sweep_takes",
            &subject,
        );
        let database = raw(&subject).await;
        assert_eq!((count(&database, PACKAGES).await, count(&database, CONTENTS).await), (0, 1));
        assert_eq!(subject.waiting().await.len(), 0, "nobody hears of it");
        let store = &*subject.opened.store;
        store.apply(&[described(1, "a bowl")]).await;
        let found = store.find(id(1)).await.unwrap().unwrap();
        assert_eq!(found.package.description.as_deref(), Some("a bowl"));
        store.apply(&[withdraw(1, 1)]).await;
        subject.all_told().await;
        assert_eq!(store.sweep(at(1), 10).await.unwrap(), 1);
        assert_eq!((count(&database, PACKAGES).await, count(&database, CONTENTS).await), (0, 0));
        drop_database(&subject.url).await;
    }

    #[tokio::test]
    async fn a_sweep_that_was_killed_is_ended_by_the_next() {
        if let Ok(url) = std::env::var(VICTIM) {
            return live(url).await;
        }
        let Some(subject) = subject().await else { return };
        killed_at("package.contents_swept", "a_sweep_that_was_killed_is_ended_by_the_next", &subject);
        let database = raw(&subject).await;
        assert_eq!((count(&database, PACKAGES).await, count(&database, CONTENTS).await), (1, 0));
        let store = &*subject.opened.store;
        assert_eq!(store.find(id(1)).await.unwrap().unwrap().state, PackageState::Withdrawn);
        assert_eq!(store.sweep(at(1), 10).await.unwrap(), 1);
        assert_eq!(count(&database, PACKAGES).await, 0);
        drop_database(&subject.url).await;
    }
}
