//! One set of statements for SQLite and PostgreSQL, and all that differs between the two: how a transaction begins, how
//! rows are locked, how a batch becomes rows, how values come back.
//!
//! A statement is written for both: numbered parameters (`$1`), standard casts, a batch as a JSON array that
//! `json_each($1)` unfolds into rows of one column `value`.

use std::sync::Arc;

use contracts::events::CloudEvent;
use serde::Serialize;
use sqlx::{
    AssertSqlSafe, Column, Decode, PgPool, Row, SqlitePool, Transaction, Type, TypeInfo, ValueRef, postgres::PgRow,
    sqlite::SqliteRow,
};

use crate::{
    outbox::{self, OutboxSource, PostgresOutbox, SqliteOutbox},
    postgres::{self, Hearing, Postgres},
    sqlite::{self, Sqlite},
};

type Error = sqlx::Error;

/// Where the tables of a store are.
#[derive(Debug, Clone)]
pub enum Engine {
    /// In a file.
    Sqlite(Sqlite),
    /// In a database or schema.
    Postgres(Postgres),
}

/// The scripts that bring a store's tables up to date, for each engine; the outbox's tables come before them.
#[derive(Debug, Clone, Copy)]
pub struct Migrations {
    /// For SQLite, from version 1 on.
    pub sqlite: &'static [&'static str],
    /// For PostgreSQL, from version 1 on.
    pub postgres: &'static [&'static str],
}

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is none of an engine. It is not repeated, since it may hold a password.
    #[error(
        "the store's URL is none that is known: expected sqlite:PATH or postgres://USER:PASSWORD@HOST:PORT/DATABASE"
    )]
    UnknownScheme,
    /// It cannot be reached, or its tables cannot be brought up to date.
    #[error("the store cannot be opened")]
    Unavailable(#[from] sqlx::Error),
}

/// A transaction that writes.
#[derive(Debug)]
pub enum Tx {
    /// It holds the file's write lock.
    Sqlite(Transaction<'static, sqlx::Sqlite>),
    /// It holds the locks of the rows that it has locked or written; isolation is READ COMMITTED.
    Postgres(Transaction<'static, sqlx::Postgres>),
}

/// A parameter of a statement.
#[derive(Debug, Clone, Copy)]
pub enum Bind<'a> {
    /// A text.
    Text(&'a str),
    /// A text or null.
    OptionalText(Option<&'a str>),
    /// A whole number.
    Int(i64),
}

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Null,
    Int(i64),
    Real(f64),
    Text(String),
}

/// A row as it was read.
#[derive(Debug, Clone)]
pub struct Values(Vec<Value>);

/// A batch as the one parameter of a statement that reads it with `json_each($1)`. NUL, which PostgreSQL keeps in no
/// text, becomes the replacement character U+FFFD: one odd text must not fail the whole batch.
pub fn json(rows: &impl Serialize) -> Result<String, Error> {
    let encode = |error: serde_json::Error| Error::Encode(error.into());
    let text = serde_json::to_string(rows).map_err(encode)?;
    if !text.contains("\\u0000") {
        return Ok(text);
    }
    let mut value = serde_json::to_value(rows).map_err(encode)?;
    replace_nul(&mut value);
    serde_json::to_string(&value).map_err(encode)
}

fn replace_nul(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => *text = text.replace('\0', "\u{fffd}"),
        serde_json::Value::Array(items) => items.iter_mut().for_each(replace_nul),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(replace_nul),
        _ => {}
    }
}

/// The statement as the engine takes it.
fn text(sql: &'static str, postgres: bool) -> AssertSqlSafe<String> {
    if !postgres {
        // The one writer of a file needs no locks of rows.
        return AssertSqlSafe(sql.replace(" for update skip locked", "").replace(" for update", ""));
    }
    // A list of ids holds texts; any other batch holds arrays or objects.
    let ids = "select value from json_array_elements_text($1::json) as batch (value)";
    let rows = "json_array_elements($1::json) as batch (value)";
    AssertSqlSafe(sql.replace("select value from json_each($1)", ids).replace("json_each($1)", rows))
}

macro_rules! run {
    ($how:ident, $sql:expr, $binds:expr, $on:expr) => {{
        let mut query = sqlx::query($sql);
        for bind in $binds {
            query = match *bind {
                Bind::Text(text) => query.bind(text.to_owned()),
                Bind::OptionalText(text) => query.bind(text.map(str::to_owned)),
                Bind::Int(number) => query.bind(number),
            };
        }
        query.$how($on).await?
    }};
}

impl Engine {
    /// Opens what the URL names, brings its tables up to date, and answers its outbox beside it.
    pub async fn open(url: &str, migrations: Migrations) -> Result<(Self, Arc<dyn OutboxSource>), OpenError> {
        match url.split_once(':') {
            Some(("sqlite", path)) => {
                let scripts = [&[outbox::SQLITE_SCHEMA], migrations.sqlite].concat();
                let file = sqlite::open(path, &scripts).await?;
                Ok((Self::Sqlite(file.clone()), Arc::new(SqliteOutbox::new(file))))
            }
            Some(("postgres" | "postgresql", _)) => {
                let scripts = [&[outbox::POSTGRES_SCHEMA], migrations.postgres].concat();
                let store = postgres::open(url, &scripts).await?;
                Ok((Self::Postgres(store.clone()), Arc::new(PostgresOutbox::new(store))))
            }
            _ => Err(OpenError::UnknownScheme),
        }
    }

    /// Begins to write. On SQLite nobody else writes until it ends; on PostgreSQL others do, but not the rows that this
    /// transaction has locked.
    pub async fn begin(&self) -> Result<Tx, Error> {
        match self {
            Self::Sqlite(file) => Ok(Tx::Sqlite(file.writer.begin_with("BEGIN IMMEDIATE").await?)),
            Self::Postgres(store) => Ok(Tx::Postgres(store.pool.begin().await?)),
        }
    }

    /// Reads beside the writers.
    pub async fn read(&self, sql: &'static str, binds: &[Bind<'_>]) -> Result<Vec<Values>, Error> {
        match self {
            Self::Sqlite(file) => all(&run!(fetch_all, text(sql, false), binds, &file.reader)),
            Self::Postgres(store) => all(&run!(fetch_all, text(sql, true), binds, &store.pool)),
        }
    }

    /// Whether it answers; asks it the least that there is.
    pub async fn ping(&self) -> Result<(), Error> {
        // A table and not a constant, which would be answered without the file.
        let sql = match self {
            Self::Sqlite(_) => "select 1 from sqlite_schema limit 1",
            Self::Postgres(_) => "select until_ms from relay_leases limit 1",
        };
        self.read(sql, &[]).await.map(|_| ())
    }

    /// Hears what is said on a channel; none on SQLite, where the writer of a file is its reader, too.
    pub fn hearing(&self, channel: &str) -> Option<Hearing> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(store) => Some(store.hearing(channel)),
        }
    }

    /// Says words on a channel once the transaction is committed; nothing to do on SQLite.
    pub async fn say(&self, tx: &mut Tx, channel: &str, words: &[String]) -> Result<(), Error> {
        match (self, tx) {
            (Self::Postgres(store), Tx::Postgres(tx)) => store.say(tx, channel, words).await,
            _ => Ok(()),
        }
    }

    /// Adds the events to the outbox and commits.
    pub async fn commit(&self, tx: Tx, events: &[CloudEvent]) -> Result<(), Error> {
        match (self, tx) {
            (Self::Sqlite(_), Tx::Sqlite(mut tx)) => {
                outbox::insert_sqlite(&mut tx, events).await?;
                Ok(tx.commit().await?)
            }
            (Self::Postgres(store), Tx::Postgres(mut tx)) => {
                outbox::insert_postgres(&mut tx, store, events).await?;
                Ok(tx.commit().await?)
            }
            _ => Err(Error::Configuration("a transaction of another engine".into())),
        }
    }
}

impl Tx {
    /// Locks rows of a query that ends in `for update`, in its order; the same order everywhere keeps two batches from
    /// waiting for each other. Nothing to do on SQLite.
    pub async fn lock(&mut self, sql: &'static str, binds: &[Bind<'_>]) -> Result<(), Error> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(_) => self.done(sql, binds).await.map(|_| ()),
        }
    }

    /// Does a statement and answers how many rows it changed.
    pub async fn done(&mut self, sql: &'static str, binds: &[Bind<'_>]) -> Result<u64, Error> {
        match self {
            Self::Sqlite(tx) => Ok(run!(execute, text(sql, false), binds, &mut **tx).rows_affected()),
            Self::Postgres(tx) => Ok(run!(execute, text(sql, true), binds, &mut **tx).rows_affected()),
        }
    }

    /// Does a statement and answers what it returns.
    pub async fn rows(&mut self, sql: &'static str, binds: &[Bind<'_>]) -> Result<Vec<Values>, Error> {
        match self {
            Self::Sqlite(tx) => all(&run!(fetch_all, text(sql, false), binds, &mut **tx)),
            Self::Postgres(tx) => all(&run!(fetch_all, text(sql, true), binds, &mut **tx)),
        }
    }
}

/// A store opened to read only, for the audit.
#[derive(Debug)]
pub enum Raw {
    /// A file.
    Sqlite(SqlitePool),
    /// A database.
    Postgres(PgPool),
}

impl Raw {
    /// Opens what the URL names.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        match url.split_once(':') {
            Some(("sqlite", path)) => Ok(Self::Sqlite(sqlite::open_read_only(path).await?)),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(postgres::open_read_only(url).await?)),
            _ => Err(OpenError::UnknownScheme),
        }
    }

    /// Reads.
    pub async fn read(&self, sql: &'static str) -> Result<Vec<Values>, Error> {
        let binds: &[Bind<'_>] = &[];
        match self {
            Self::Sqlite(pool) => all(&run!(fetch_all, text(sql, false), binds, pool)),
            Self::Postgres(pool) => all(&run!(fetch_all, text(sql, true), binds, pool)),
        }
    }
}

/// A row of either engine.
trait AnyRow {
    fn values(&self) -> Result<Values, sqlx::Error>;
}

fn all(rows: &[impl AnyRow]) -> Result<Vec<Values>, Error> {
    rows.iter().map(AnyRow::values).collect()
}

/// Reads every column by the type that its value has.
fn values_of<'r, R>(row: &'r R) -> Result<Values, sqlx::Error>
where
    R: Row,
    usize: sqlx::ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    f64: Decode<'r, R::Database> + Type<R::Database>,
    bool: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
{
    let mut values = Vec::with_capacity(row.columns().len());
    for column in row.columns() {
        let place = column.ordinal();
        let raw = row.try_get_raw(place)?;
        let kind = raw.type_info();
        values.push(match kind.name() {
            _ if raw.is_null() => Value::Null,
            "INTEGER" | "INT8" => Value::Int(row.try_get(place)?),
            "BOOL" | "BOOLEAN" => Value::Int(i64::from(row.try_get::<bool, _>(place)?)),
            "REAL" | "FLOAT8" => Value::Real(row.try_get(place)?),
            "TEXT" => Value::Text(row.try_get(place)?),
            other => return Err(unreadable(place, other)),
        });
    }
    Ok(Values(values))
}

impl AnyRow for SqliteRow {
    fn values(&self) -> Result<Values, sqlx::Error> {
        values_of(self)
    }
}

impl AnyRow for PgRow {
    fn values(&self) -> Result<Values, sqlx::Error> {
        values_of(self)
    }
}

fn unreadable(place: usize, what: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("column {place} holds {what}").into())
}

impl Values {
    fn get(&self, place: usize) -> &Value {
        self.0.get(place).unwrap_or(&Value::Null)
    }

    /// The text of a column.
    pub fn text(&self, place: usize) -> Result<&str, sqlx::Error> {
        self.optional_text(place)?.ok_or_else(|| unreadable(place, "null"))
    }

    /// The text of a column, none for null.
    pub fn optional_text(&self, place: usize) -> Result<Option<&str>, sqlx::Error> {
        match self.get(place) {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            Value::Int(_) | Value::Real(_) => Err(unreadable(place, "no text")),
        }
    }

    /// The whole number of a column.
    pub fn int(&self, place: usize) -> Result<i64, sqlx::Error> {
        self.optional_int(place)?.ok_or_else(|| unreadable(place, "null"))
    }

    /// The whole number of a column, none for null.
    pub fn optional_int(&self, place: usize) -> Result<Option<i64>, sqlx::Error> {
        match self.get(place) {
            Value::Null => Ok(None),
            Value::Int(number) => Ok(Some(*number)),
            Value::Real(_) | Value::Text(_) => Err(unreadable(place, "no whole number")),
        }
    }

    /// The number of a column.
    pub fn real(&self, place: usize) -> Result<f64, sqlx::Error> {
        match self.get(place) {
            Value::Real(number) => Ok(*number),
            _ => Err(unreadable(place, "no number")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_becomes_the_replacement_character_and_a_text_about_one_stays() {
        let rows = [("a\0b", "\\u0000"), ("c", "d")];
        let back: Vec<(String, String)> = serde_json::from_str(&json(&rows).unwrap()).unwrap();
        assert_eq!(back[0], ("a\u{fffd}b".to_owned(), "\\u0000".to_owned()));
        assert_eq!(json(&["plain"]).unwrap(), r#"["plain"]"#);
    }

    async fn keeps_a_batch(url: &str) {
        let tables = Migrations {
            sqlite: &["create table things (id text primary key, number integer, size real)"],
            postgres: &["create table things (id text primary key, number bigint, size double precision)"],
        };
        let (engine, outbox) = Engine::open(url, tables).await.unwrap();
        let mut tx = engine.begin().await.unwrap();
        tx.lock("select id from things order by id for update", &[]).await.unwrap();
        let batch = json(&[("a", Some(1), 0.5), ("b\0", None, 2.0)]).unwrap();
        let written = tx
            .done(
                "insert into things (id, number, size)
                 select value ->> 0, cast(value ->> 1 as bigint), cast(value ->> 2 as double precision)
                 from json_each($1)",
                &[Bind::Text(&batch)],
            )
            .await
            .unwrap();
        assert_eq!(written, 2);
        engine.commit(tx, &[]).await.unwrap();
        let ids = json(&["a", "c"]).unwrap();
        let sql = "select id, number, size from things where id in (select value from json_each($1))";
        let found = engine.read(sql, &[Bind::Text(&ids)]).await.unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].text(0).unwrap(), found[0].int(1).unwrap()), ("a", 1));
        assert!((found[0].real(2).unwrap() - 0.5).abs() < f64::EPSILON);
        let sql = "select number, size from things where id = $1";
        let found = engine.read(sql, &[Bind::OptionalText(Some("b\u{fffd}"))]).await.unwrap();
        assert_eq!(found[0].optional_int(0).unwrap(), None);
        assert!(found[0].text(1).is_err() && found[0].int(0).is_err());
        assert_eq!(outbox.backlog().await.unwrap(), 0);
        engine.ping().await.unwrap();
        assert!(Raw::open(url).await.unwrap().read("select id from things").await.unwrap().len() == 2);
    }

    #[tokio::test]
    async fn a_batch_is_kept_on_sqlite() {
        let folder = tempfile::tempdir().unwrap();
        keeps_a_batch(&format!("sqlite:{}", folder.path().join("t.db").display())).await;
    }

    #[tokio::test]
    async fn a_batch_is_kept_on_postgres() {
        let Some(url) = testkit::real::postgres().await else { return };
        keeps_a_batch(&url).await;
    }
}
