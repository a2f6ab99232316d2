//! SQLite as every embedded store uses it: WAL, fsync at every commit, one writer, some readers.

use std::time::Duration;

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

/// Readers of one file: two cores' worth, and a spare for a long scan.
const READERS: u32 = 3;

/// How long a statement waits for another process's lock. Within one process the writer pool queues instead.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause before a connection that found the file locked is tried again: it is made in less than that ...
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
/// ... and how often: as long as a statement would wait.
const CONNECTS: u32 = 250;

/// How long a caller waits for a connection before it hears that the store is unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// Rows that a connection's thread may be ahead of its reader: with few, the two wake each other for every row.
const ROW_BUFFER: usize = 1_024;

/// Pages in the write-ahead log before they are moved into the file (32 MB): a page that is written every second is
/// moved once for many writes, and a restart still reads the log in a fraction of a second.
const CHECKPOINT_PAGES: &str = "8000";

/// Pages of the cache per connection, in KiB (a negative cache_size means KiB).
const CACHE_KIB: &str = "-8000";

/// One SQLite file.
#[derive(Debug, Clone)]
pub struct Sqlite {
    /// The single connection that writes: batches queue here instead of meeting SQLITE_BUSY.
    pub writer: SqlitePool,
    /// Connections that only read, beside the writer.
    pub reader: SqlitePool,
}

/// Opens (and makes) the file, and brings its schema up to date: `migrations[n]` leads from version n to n + 1.
pub async fn open(path: &str, migrations: &[&'static str]) -> Result<Sqlite, sqlx::Error> {
    // A path, not a URL: it may hold any character.
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .row_buffer_size(ROW_BUFFER)
        .pragma("cache_size", CACHE_KIB)
        .pragma("temp_store", "memory")
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        // Keeps the log file from staying as large as its largest burst.
        .pragma("journal_size_limit", "67108864");
    let writer = connected(1, &options).await?;
    migrate(&writer, migrations).await?;
    let reader = connected(READERS, &options.read_only(true)).await?;
    Ok(Sqlite { writer, reader })
}

/// A pool with its first connection. Where another process is just making the file, the change to a write-ahead log is
/// refused at once, whatever the busy timeout says.
async fn connected(connections: u32, options: &SqliteConnectOptions) -> Result<SqlitePool, sqlx::Error> {
    let pool = || SqlitePoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE_TIMEOUT);
    for _ in 0..CONNECTS {
        match pool().connect_with(options.clone()).await {
            Err(error) if is_busy(&error) => back_off().await,
            result => return result,
        }
    }
    pool().connect_with(options.clone()).await
}

/// Whether SQLite says SQLITE_BUSY.
fn is_busy(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() == Some("5")
}

#[expect(clippy::disallowed_methods, reason = "real milliseconds between two tries: about cost, not about meaning")]
async fn back_off() {
    tokio::time::sleep(CONNECT_PAUSE.mul_f64(rand::random_range(0.5..1.5))).await;
}

/// Opens an existing file to read only, for the audit.
pub async fn open_read_only(path: &str) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT);
    SqlitePoolOptions::new().max_connections(1).connect_with(options).await
}

async fn migrate(writer: &SqlitePool, migrations: &[&'static str]) -> Result<(), sqlx::Error> {
    let known = i64::try_from(migrations.len()).unwrap_or(i64::MAX);
    let (version,): (i64,) = sqlx::query_as("PRAGMA user_version").fetch_one(writer).await?;
    if version == known {
        return Ok(());
    }
    // Read again under the lock: another instance on the same file may be bringing it up to date at this moment.
    let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await?;
    let (version,): (i64,) = sqlx::query_as("PRAGMA user_version").fetch_one(&mut *transaction).await?;
    if version > known {
        let text = format!("the file is of schema version {version}, this program knows {known}");
        return Err(sqlx::Error::Configuration(text.into()));
    }
    for script in migrations.iter().skip(usize::try_from(version).unwrap_or(0)) {
        sqlx::raw_sql(*script).execute(&mut *transaction).await?;
    }
    let set_version = sqlx::AssertSqlSafe(format!("PRAGMA user_version = {known}"));
    sqlx::raw_sql(set_version).execute(&mut *transaction).await?;
    transaction.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_pooled_connection_syncs_at_every_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let store = open(path.to_str().unwrap(), &["create table t (x)"]).await.unwrap();
        for pool in [&store.writer, &store.reader] {
            let mut connections = Vec::new();
            for _ in 0..pool.options().get_max_connections() {
                connections.push(pool.acquire().await.unwrap());
            }
            for connection in &mut connections {
                let (synchronous,): (i64,) =
                    sqlx::query_as("PRAGMA synchronous").fetch_one(&mut **connection).await.unwrap();
                let (journal,): (String,) =
                    sqlx::query_as("PRAGMA journal_mode").fetch_one(&mut **connection).await.unwrap();
                assert_eq!((synchronous, journal.as_str()), (2, "wal"));
            }
        }
    }

    #[tokio::test]
    async fn a_path_may_hold_any_character() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a#1 50%20?x");
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("odd ?#%41.db");
        let store = open(path.to_str().unwrap(), &["create table t (x)"]).await.unwrap();
        sqlx::query("insert into t values (7)").execute(&store.writer).await.unwrap();
        assert!(path.is_file());
        for pool in [store.reader, open_read_only(path.to_str().unwrap()).await.unwrap()] {
            let (x,): (i64,) = sqlx::query_as("select x from t").fetch_one(&pool).await.unwrap();
            assert_eq!(x, 7);
        }
    }

    #[tokio::test]
    async fn migrations_run_once_and_a_newer_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db").to_str().unwrap().to_owned();
        open(&path, &["create table a (x)"]).await.unwrap();
        open(&path, &["create table a (x)", "create table b (x)"]).await.unwrap();
        let error = open(&path, &["create table a (x)"]).await.unwrap_err();
        assert!(error.to_string().contains("version"), "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn instances_that_start_at_once_on_a_new_file_all_find_it_up_to_date() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..10 {
            let path = folder.path().join(format!("{round}.db")).to_str().unwrap().to_owned();
            let mut starting = tokio::task::JoinSet::new();
            for _ in 0..4 {
                let path = path.clone();
                starting.spawn(async move { open(&path, &["create table a (x)", "create table b (x)"]).await });
            }
            while let Some(started) = starting.join_next().await {
                let store = started.unwrap().unwrap();
                sqlx::query("select * from b").fetch_all(&store.reader).await.unwrap();
            }
        }
    }
}
