//! PostgreSQL as every store on it uses it: a bounded pool, bounded statements, migrations under a lock, retries of
//! what the database asks to repeat, notifications.

mod hearing;

use std::{future::Future, io, str::FromStr, time::Duration};

use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::timeout;

pub use hearing::{Heard, Hearing};

/// Connections of one replica: a writer, a relay, one for each channel that is listened to, readers, and a few for
/// requests. PostgreSQL does more with few busy connections than with many; nine replicas stay below its default of 100.
const MAX_CONNECTIONS: u32 = 10;

/// How long a caller waits for a connection before it hears that the store is unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a session may take, in milliseconds: a statement (the largest batch takes a tenth), a wait for a row's lock, and
/// an open transaction that does nothing, whose holder is gone.
const SESSION: [(&str, &str); 6] = [
    // Whatever the role or the database says: what was acknowledged is on disk.
    ("synchronous_commit", "on"),
    ("statement_timeout", "5000"),
    ("lock_timeout", "3000"),
    ("idle_in_transaction_session_timeout", "10000"),
    ("timezone", "UTC"),
    // A page out of turn costs what one in turn does, in memory and on flash: a batch looks its rows up instead of reading
    // through the table.
    ("random_page_cost", "1.1"),
];

/// How long the database may take to say that a statement is done: longer than it lets one run. Who has said nothing by
/// then is stopped, or behind a lost route, where no limit of its own counts.
const ANSWER_DEADLINE: Duration = Duration::from_secs(7);

/// How long a connection that is given back may take to say that it is idle. Otherwise it is closed, and the next caller
/// makes a new one: one that hangs would take its place among the few for as long as the other end is silent.
const RELEASE_DEADLINE: Duration = Duration::from_secs(2);

/// How often a transaction that lost against another is repeated: each time somebody got on.
const MAX_RETRIES: u32 = 5;

/// The pause before a repetition, doubled each time and spread, so that two that collided do not meet again.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// The key of the lock that one migration at a time holds; the number means nothing.
const MIGRATION_LOCK: i64 = 0x6472_6f6e_6573;

/// The longest word of a notification, in bytes: PostgreSQL takes fewer than 8,000.
pub const MAX_WORD: usize = 7_999;

/// One database (or schema) of one service.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// Its connections.
    pub pool: PgPool,
    /// Prefix of its notification channels: those of the database are shared by all its schemas.
    schema: String,
}

/// Opens the database that `url` names and brings its schema up to date: `migrations[n]` leads from version n to n + 1.
pub async fn open(url: &str, migrations: &[&'static str]) -> Result<Postgres, sqlx::Error> {
    let options = PgConnectOptions::from_str(url)?.application_name("drone-delivery").options(SESSION);
    let pool = PgPoolOptions::new()
        .max_connections(MAX_CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_release(|connection, _| Box::pin(is_idle(connection)))
        .connect_with(options)
        .await?;
    migrate(&pool, migrations).await?;
    let (schema,): (String,) = sqlx::query_as("select current_schema()::text").fetch_one(&pool).await?;
    Ok(Postgres { pool, schema })
}

/// Also where its user was cut off in the middle of a statement.
async fn is_idle(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    timeout(RELEASE_DEADLINE, connection.ping()).await.map_err(|_| silent())??;
    Ok(true)
}

fn silent() -> sqlx::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the database is silent").into()
}

/// The answer of a statement, or of a few quick ones, unless the database is silent. What was asked may have been done.
pub(crate) async fn answered<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(ANSWER_DEADLINE, work).await.unwrap_or_else(|_| Err(silent()))
}

/// Opens an existing database to read only, for the audit.
pub async fn open_read_only(url: &str) -> Result<PgPool, sqlx::Error> {
    let options = PgConnectOptions::from_str(url)?.options([("default_transaction_read_only", "on")]);
    PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT).connect_with(options).await
}

impl Postgres {
    /// The full name of a notification channel of this service.
    pub fn channel(&self, name: &str) -> String {
        format!("{}_{name}", self.schema)
    }

    /// Hears what is said on a channel of this service.
    pub fn hearing(&self, name: &str) -> Hearing {
        Hearing::new(self.pool.clone(), self.channel(name))
    }

    /// Says words on a channel of this service once the caller's transaction is committed. A word of more than
    /// [`MAX_WORD`] bytes fails the transaction, and one that is said twice in it is heard once.
    pub async fn say(&self, connection: &mut PgConnection, name: &str, words: &[String]) -> Result<(), sqlx::Error> {
        if words.is_empty() {
            return Ok(());
        }
        sqlx::query("select pg_notify($1, word) from unnest($2::text[]) as words (word)")
            .bind(self.channel(name))
            .bind(words)
            .execute(connection)
            .await?;
        Ok(())
    }
}

async fn migrate(pool: &PgPool, migrations: &[&'static str]) -> Result<(), sqlx::Error> {
    let known = i64::try_from(migrations.len()).unwrap_or(i64::MAX);
    let mut transaction = pool.begin().await?;
    // Until the commit: replicas that start at once bring it up to date one after the other.
    sqlx::query("select pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(&mut *transaction).await?;
    sqlx::raw_sql("create table if not exists schema_version (version bigint not null)")
        .execute(&mut *transaction)
        .await?;
    let (version,): (i64,) =
        sqlx::query_as("select coalesce(max(version), 0) from schema_version").fetch_one(&mut *transaction).await?;
    if version > known {
        let text = format!("the database is of schema version {version}, this program knows {known}");
        return Err(sqlx::Error::Configuration(text.into()));
    }
    for script in migrations.iter().skip(usize::try_from(version).unwrap_or(0)) {
        sqlx::raw_sql(*script).execute(&mut *transaction).await?;
    }
    if version < known {
        sqlx::query("insert into schema_version (version) values ($1)").bind(known).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// Does `work`, a whole transaction, again when it lost against another one: a serialization failure, a deadlock, or a
/// lock that did not come in time. Any other error, and what still fails after the last try, is the caller's.
pub async fn retried<T, F, Fut>(mut work: F) -> Result<T, sqlx::Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, sqlx::Error>>,
{
    let mut pause = RETRY_PAUSE;
    for _ in 0..MAX_RETRIES {
        match work().await {
            Err(error) if is_lost(&error) => {
                tracing::debug!(%error, "a transaction is repeated");
                back_off(pause).await;
                pause *= 2;
            }
            result => return result,
        }
    }
    work().await
}

/// Whether the database asks to repeat the transaction: 40001 serialization_failure, 40P01 deadlock_detected, 55P03
/// lock_not_available.
pub fn is_lost(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("40001" | "40P01" | "55P03"))
}

#[expect(clippy::disallowed_methods, reason = "real milliseconds between two tries: about cost, not about meaning")]
async fn back_off(pause: Duration) {
    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
}
