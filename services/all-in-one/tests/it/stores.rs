//! The stores that a system runs on: the embedded ones, or fresh ones on the real engines.

use std::path::Path;

use all_in_one::{DataDir, Stores};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use testkit::real;

/// Set to `real`, every system of these scenarios is on the real engines, where `infra/local/up` says they are.
const SYSTEM_STORES: &str = "SYSTEM_STORES";

/// Whether the scenarios run on the real engines.
pub(crate) fn are_real() -> bool {
    match std::env::var(SYSTEM_STORES).as_deref() {
        Ok("real") => true,
        Ok("embedded") | Err(_) => false,
        Ok(other) => panic!("{SYSTEM_STORES} is '{other}': expected real or embedded"),
    }
}

/// Stores that nobody has used.
pub(crate) async fn fresh(data: &DataDir) -> Stores {
    if !are_real() {
        return Stores::embedded(data);
    }
    let url = |variable| real::url(variable).unwrap_or_else(|| panic!("{SYSTEM_STORES}=real needs {variable}"));
    let name = real::unique("it");
    Stores {
        event_log: format!("{}/{name}", url("TEST_KAFKA_URL")),
        delivery: real::postgres().await.unwrap(),
        fleet: real::postgres().await.unwrap(),
        package: testkit::mongodb::database("package").unwrap(),
        package_relay: package::Relaying::Changes,
        lookup: testkit::mongodb::database("lookup").unwrap(),
        tracking: format!("{}?prefix={name}", url("TEST_REDIS_URL")),
        lake: format!("{}/{name}/", url("TEST_S3_URL")),
    }
}

/// The services with an outbox.
const WITH_OUTBOX: [&str; 4] = ["delivery", "package", "fleet", "tracking"];

/// Whether every event that was committed to the embedded stores in a folder has gone to the log.
pub(crate) async fn outboxes_are_empty(folder: &Path) -> bool {
    for service in WITH_OUTBOX {
        if count(folder, service, "select count(*) from outbox").await != 0 {
            return false;
        }
    }
    true
}

async fn count(folder: &Path, service: &str, query: &'static str) -> i64 {
    let options = SqliteConnectOptions::new().filename(folder.join(format!("{service}.db"))).read_only(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let (count,): (i64,) = sqlx::query_as(query).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    count
}
