//! The lake's promises: every row exactly once, in its own date, whatever is killed, doubled or paused.

mod exactly_once;
mod queries;
mod upkeep;

use std::{collections::BTreeMap, sync::Arc};

use contracts::{
    Clock, DeliveryId, Timestamp,
    events::{DeliveryRecord, Topic},
};
use messaging::{EventLog, Subscription};

use super::{AuditRow, KeyCache, Place, Table, TableKind, Taken, Writer, parse_url, scan_deliveries};
use crate::{
    domain::DeliveryRow,
    fixtures::{StillClock, at, delivery_event, finished},
};

/// A lake and a log in a folder of their own.
struct Bench {
    folder: tempfile::TempDir,
    clock: Arc<StillClock>,
    log: Arc<dyn EventLog>,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(StillClock::new(at(1, 0)));
        let path = format!("embedded:{}", folder.path().join("log.db").display());
        let log = messaging::open(&path, clock.clone()).await.unwrap();
        Self { folder, clock, log }
    }

    fn lake(&self) -> String {
        self.folder.path().join("lake").display().to_string()
    }

    /// The deliveries table, as another process opens it.
    async fn table(&self) -> Arc<Table> {
        let clock: Arc<dyn Clock> = self.clock.clone();
        let url = parse_url(&self.lake()).unwrap();
        Arc::new(Table::open(TableKind::Deliveries, &url, clock).await.unwrap())
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
        scan_deliveries(&self.lake()).await.unwrap()
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
