//! The lake's promises: every row exactly once, in its own date, whatever is killed, doubled or paused.

/// Makes each of these functions a test of its own on every kind of store: it gets an empty lake there.
macro_rules! on_each_store {
    ($($test:ident),+ $(,)?) => {
        on_each_store!(@on_embedded Embedded: $($test)+);
        on_each_store!(@on_s3 S3: $($test)+);
        on_each_store!(@on_azure Azure: $($test)+);
    };
    (@$module:ident $engine:ident: $($test:ident)+) => {
        mod $module {
            $(
                // Several workers, as in the service: a client's connections belong to the runtime that made them.
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let bench = crate::lake::tests::Bench::new(crate::lake::tests::Engine::$engine).await;
                    if let Some(bench) = bench {
                        let place = bench.location();
                        super::$test(bench).await;
                        crate::lake::tests::remove(&place).await;
                    }
                }
            )+
        }
    };
}

mod exactly_once;
mod losing;
mod lost_answers;

mod queries;
mod upkeep;

use std::{collections::BTreeMap, sync::Arc};

use contracts::{
    Clock, DeliveryId, Timestamp,
    events::{DeliveryRecord, Topic},
};
use futures::{StreamExt, TryStreamExt};
use messaging::{EventLog, Subscription};
use object_store::ObjectStore;

use super::{AuditRow, KeyCache, Location, Place, Table, TableKind, Taken, Writer, scan_deliveries};
use crate::{
    domain::DeliveryRow,
    fixtures::{StillClock, at, delivery_event, finished},
};

/// Where a test's lake is.
#[derive(Clone, Copy)]
enum Engine {
    Embedded,
    S3,
    Azure,
}

/// A lake of one's own, and a log in a folder.
struct Bench {
    lake: String,
    clock: Arc<StillClock>,
    log: Arc<dyn EventLog>,
    _folder: tempfile::TempDir,
}

impl Bench {
    /// An empty lake; none where there is no such store.
    async fn new(engine: Engine) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let below = |url| format!("{url}/{}", testkit::real::unique("lake"));
        let lake = match engine {
            Engine::Embedded => folder.path().join("lake").display().to_string(),
            Engine::S3 => below(testkit::real::url("TEST_S3_URL")?),
            Engine::Azure => below(testkit::real::url("TEST_AZURE_URL")?),
        };
        let clock = Arc::new(StillClock::new(at(1, 0)));
        let path = format!("embedded:{}", folder.path().join("log.db").display());
        let log = messaging::open(&path, clock.clone()).await.unwrap();
        Some(Self { lake, clock, log, _folder: folder })
    }

    fn location(&self) -> Location {
        Location::open(&self.lake).unwrap()
    }

    /// The deliveries table, as another process opens it.
    async fn table(&self) -> Arc<Table> {
        self.table_at(&self.location()).await
    }

    async fn table_at(&self, lake: &Location) -> Arc<Table> {
        let clock: Arc<dyn Clock> = self.clock.clone();
        Arc::new(Table::open(TableKind::Deliveries, lake, clock).await.unwrap())
    }

    /// A writer of another process.
    async fn writer(&self) -> Writer<DeliveryRow> {
        Writer::new(self.table().await, Arc::default())
    }

    async fn publish(&self, records: &[DeliveryRecord]) {
        let events: Vec<_> = records.iter().map(|record| delivery_event(record).encode()).collect();
        self.log.publish(events).await.unwrap();
    }

    async fn subscribe(&self, group: &str) -> Box<dyn Subscription> {
        self.log.subscribe(group, &[Topic::Delivery.name()]).await.unwrap()
    }

    /// Reads everything that is in the log from where the table stands, as a subscriber does. Each reader is a group
    /// of its own, so that a zombie and its successor read at the same time.
    async fn read_all(&self, writer: &mut Writer<DeliveryRow>, group: &str) {
        let mut subscription = self.subscribe(group).await;
        let topic_id = self.log.topic_id(Topic::Delivery.name()).await.unwrap();
        let mut missing = 0;
        for mut at in subscription.assignment().await.unwrap() {
            let place = Place { topic: at.topic.as_str().into(), partition: at.partition };
            at.offset = writer.align(place, &topic_id).await.unwrap();
            subscription.seek(&at).await.unwrap();
            let lag = self.log.lag().await.unwrap();
            let end =
                lag.iter().find(|lag| lag.group == group && lag.partition == at.partition).map_or(0, |lag| lag.end);
            missing += end.saturating_sub(at.offset);
        }
        while missing > 0 {
            for record in subscription.next(100).await.unwrap() {
                let place = Place { topic: record.topic.clone(), partition: record.partition };
                assert_eq!(writer.expects(&place, record.offset), Taken::Yes);
                writer.take(&place, record.offset, DeliveryRow::from_event(&record.event).unwrap());
                missing -= 1;
            }
        }
    }

    /// Every row of the lake.
    async fn rows(&self) -> Vec<AuditRow> {
        scan_deliveries(&self.lake).await.unwrap()
    }

    /// Fails unless the lake holds exactly these deliveries, each once, each in its date.
    async fn assert_holds(&self, expected: &[DeliveryRecord]) {
        let rows = self.rows().await;
        let mut counts: BTreeMap<DeliveryId, usize> = BTreeMap::new();
        for row in &rows {
            *counts.entry(row.delivery_id).or_default() += 1;
            assert_eq!(row.date, row.finished_at.date_naive());
        }
        let wanted: BTreeMap<DeliveryId, usize> = expected.iter().map(|record| (record.delivery_id, 1)).collect();
        assert_eq!(counts, wanted);
    }
}

/// Removes a lake whose test has passed: a store in memory would keep it.
async fn remove(place: &Location) {
    for kind in [TableKind::Deliveries, TableKind::Positions] {
        let store = place.log_store(kind).unwrap().object_store(None);
        let paths = store.list(None).map_ok(|meta| meta.location).boxed();
        store.delete_stream(paths).try_collect::<Vec<_>>().await.unwrap();
    }
}

/// Deliveries that were completed one second after the other.
fn some(count: u64, from: Timestamp) -> Vec<DeliveryRecord> {
    let customers = ["alice", "bob", "carol"];
    let mut records = Vec::new();
    for number in 0..count {
        let finished_at = from + chrono::Duration::seconds(number.cast_signed());
        records.push(finished(number, customers[usize::try_from(number % 3).unwrap()], finished_at));
    }
    records
}

/// A cache that knows nothing, as after a restart.
fn forgetful() -> Arc<KeyCache> {
    Arc::default()
}
