//! Where the events go: an outbox in a fresh schema and a log under a prefix of its own, and events as services tell them.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use contracts::{
    Clock, Coordinate, DeliveryId, Stage, SystemClock,
    api::{Confirmation, PackageSize, PackageSpec, default_region},
    events::{CloudEvent, DeliveryEvent, DeliveryEventKind, DeliveryRecord, StageEntry},
};
use messaging::{
    EventLog,
    outbox::{self, OutboxSignal, OutboxSource, Relay, insert_postgres},
    postgres::{self, Postgres},
};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};

/// How long the cluster may take to name its topics.
const PATIENCE: Duration = Duration::from_secs(30);

/// A store with an outbox, and a log.
pub(crate) struct Place {
    pub(crate) store: Postgres,
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) signal: OutboxSignal,
    brokers: String,
    prefix: String,
}

impl Place {
    pub(crate) async fn open() -> anyhow::Result<Self> {
        let url = testkit::real::postgres().await.context("TEST_POSTGRES_URL is not set")?;
        let store = postgres::open(&url, &[outbox::POSTGRES_SCHEMA]).await?;
        let kafka = testkit::real::url("TEST_KAFKA_URL").context("TEST_KAFKA_URL is not set")?;
        let prefix = testkit::real::unique("bench");
        let log = messaging::open(&format!("{kafka}/{prefix}"), Arc::new(SystemClock)).await?;
        let brokers = kafka.trim_start_matches("kafka://").to_owned();
        Ok(Self { store, log, signal: OutboxSignal::default(), brokers, prefix })
    }

    /// Commits events as a service does.
    pub(crate) async fn commit(&self, events: &[CloudEvent]) -> anyhow::Result<()> {
        let mut transaction = self.store.pool.begin().await?;
        insert_postgres(&mut transaction, &self.store, events).await?;
        transaction.commit().await?;
        self.signal.wake();
        Ok(())
    }

    /// The relay of `source`, which reads this store.
    pub(crate) fn relay(&self, source: Arc<dyn OutboxSource>) -> Relay {
        Relay {
            source,
            log: self.log.clone(),
            signal: self.signal.clone(),
            clock: Arc::new(SystemClock),
            owner: "bench".to_owned(),
        }
    }

    /// Leaves nothing behind.
    pub(crate) async fn clear(self) -> anyhow::Result<()> {
        sqlx::raw_sql("drop table outbox, relay_leases, relay_members, schema_version")
            .execute(&self.store.pool)
            .await?;
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.brokers).create()?;
        let ours = format!("{}.", self.prefix);
        let metadata = admin.inner().fetch_metadata(None, PATIENCE)?;
        let topics: Vec<&str> = metadata
            .topics()
            .iter()
            .map(rdkafka::metadata::MetadataTopic::name)
            .filter(|name| name.starts_with(&ours))
            .collect();
        admin.delete_topics(&topics, &AdminOptions::new()).await?;
        Ok(())
    }
}

/// What a delivery's last event tells: about a kilobyte.
pub(crate) fn event(delivery_id: DeliveryId) -> anyhow::Result<CloudEvent> {
    let now = SystemClock.now();
    let stages = [Stage::Requested, Stage::Scheduled, Stage::HeadedToPickup, Stage::HeadedToDropoff, Stage::Completed];
    let data = DeliveryRecord {
        delivery_id,
        customer_id: "0198a1b2-customer-of-the-benchmark".parse()?,
        home_region: default_region(),
        version: 6,
        stage: Stage::Completed,
        attempt: 1,
        pickup: Coordinate { latitude: 43.296_482, longitude: 5.369_78 },
        dropoff: Coordinate { latitude: 43.310_218, longitude: 5.405_61 },
        package: PackageSpec {
            size: PackageSize::Medium,
            weight_kg: 1.25,
            tag: Some(delivery_id.to_string()),
            description: Some(
                "A vase, wrapped twice; it is older than it looks and does not like to be turned.".to_owned(),
            ),
        },
        expedited: false,
        confirmation: Confirmation::None,
        requested_at: now,
        deadline: now + chrono::Duration::minutes(30),
        updated_at: now,
        finished_at: Some(now),
        drone: None,
        stages: stages.map(|stage| StageEntry { stage, attempt: 1, at: now }).to_vec(),
        end_reason: None,
        confirmation_missing: false,
    };
    let id = SystemClock.new_id();
    Ok(DeliveryEvent { id, time: now, kind: DeliveryEventKind::DeliveryCompleted, data }.encode())
}
