//! The logs that tests run on: each case in a fresh one of each kind.

use std::{future::Future, panic::AssertUnwindSafe, path::Path, sync::Arc, time::Duration};

use futures::FutureExt;
use messaging::{EventLog, Subscription};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use tempfile::TempDir;
use testkit::ManualClock;

use crate::log_contract::{TOPIC, event};

/// How long the cluster may take to forget a test.
const PATIENCE: Duration = Duration::from_secs(30);

/// A fresh log, and the time that it lives in.
pub(crate) struct Subject {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) url: String,
    folder: TempDir,
}

impl Subject {
    /// Opens the log whose URL `url` makes of a fresh folder.
    pub(crate) async fn open(url: impl Fn(&std::path::Path) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::starting_now());
        let url = url(folder.path());
        let log = messaging::open(&url, clock.clone()).await.unwrap();
        Self { log, clock, url, folder }
    }

    /// Closes the log and opens it again.
    pub(crate) async fn reopen(self) -> Self {
        self.close().1.open().await
    }

    /// Closes the log; its URL, for somebody else meanwhile.
    pub(crate) fn close(self) -> (String, Closed) {
        let Self { log, clock, url, folder } = self;
        drop(log);
        (url.clone(), Closed { clock, url, folder })
    }

    /// Where the file of that name in the log's folder lies.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub(crate) async fn join(&self, group: &str) -> Box<dyn Subscription> {
        self.log.subscribe(group, &[TOPIC]).await.unwrap()
    }

    /// Publishes records `numbers` of a key, in one call.
    pub(crate) async fn publish(&self, key: &str, numbers: std::ops::Range<u64>) {
        let events: Vec<_> = numbers.map(|number| event(TOPIC, key, number)).collect();
        self.log.publish(events).await.unwrap();
    }
}

/// A log that can be opened again.
pub(crate) struct Closed {
    clock: Arc<ManualClock>,
    url: String,
    folder: TempDir,
}

impl Closed {
    pub(crate) async fn open(self) -> Subject {
        let Self { clock, url, folder } = self;
        let log = messaging::open(&url, clock.clone()).await.unwrap();
        Subject { log, clock, url, folder }
    }
}

/// Tests of these names, which call the functions of these names with a fresh subject, one for each log.
macro_rules! on_every_log {
    ($($case:ident)+) => {
        mod on_embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::engine::on_embedded(super::$case).await;
            })+
        }
        mod on_kafka {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::engine::on_kafka(super::$case).await;
            })+
        }
    };
}
pub(crate) use on_every_log;

pub(crate) fn embedded(folder: &Path) -> String {
    format!("embedded:{}", folder.join("log.db").display())
}

pub(crate) async fn on_embedded<F: Future<Output = ()>>(case: impl FnOnce(Subject) -> F) {
    case(Subject::open(embedded).await).await;
}

/// On the cluster of `TEST_KAFKA_URL`, under a prefix of its own; what the case leaves there is deleted.
pub(crate) async fn on_kafka<F: Future<Output = ()>>(case: impl FnOnce(Subject) -> F) {
    let Some(url) = testkit::real::url("TEST_KAFKA_URL") else { return };
    let prefix = testkit::real::unique("log");
    let opened = Subject::open(|_| format!("{url}/{prefix}"));
    let result = AssertUnwindSafe(async { case(opened.await).await }).catch_unwind().await;
    forget(url.strip_prefix("kafka://").unwrap(), &prefix).await;
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Deletes the topics and groups of a prefix. A group whose last member is just leaving stays, and expires.
pub(crate) async fn forget(brokers: &str, prefix: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let admin = Arc::new(admin);
    let (asker, ours) = (admin.clone(), format!("{prefix}."));
    let (topics, groups) = tokio::task::spawn_blocking(move || {
        let metadata = asker.inner().fetch_metadata(None, PATIENCE).unwrap();
        let topics = metadata.topics().iter().map(|topic| topic.name().to_owned());
        let groups = asker.inner().fetch_group_list(None, PATIENCE).unwrap();
        let groups = groups.groups().iter().map(|group| group.name().to_owned());
        let is_ours = |name: &String| name.starts_with(&ours);
        (topics.filter(is_ours).collect::<Vec<_>>(), groups.filter(is_ours).collect::<Vec<_>>())
    })
    .await
    .unwrap();
    let options = AdminOptions::new();
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    if !groups.is_empty() {
        let _ = admin.delete_groups(&groups, &options).await;
    }
    if !topics.is_empty() {
        admin.delete_topics(&topics, &options).await.unwrap();
    }
}
