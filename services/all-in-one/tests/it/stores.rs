//! What a test reads of the embedded stores while a system uses them.

use std::path::Path;

use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

/// The services with an outbox.
const WITH_OUTBOX: [&str; 4] = ["delivery", "package", "fleet", "tracking"];

/// Whether every event that was committed has gone to the log.
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
