//! The two SQL engines of fleet's store, and all that differs between them: how a transaction begins, how a batch becomes
//! rows, how values come back.

use contracts::events::CloudEvent;
use messaging::{
    outbox,
    postgres::{self, Postgres},
    sqlite::{self, Sqlite},
};
use sqlx::{
    AssertSqlSafe, Column, Decode, PgPool, Row, SqlitePool, Transaction, Type, TypeInfo, ValueRef, postgres::PgRow,
    sqlite::SqliteRow,
};

use crate::store::StoreError;

/// Where the tables are.
#[derive(Clone)]
pub(super) enum Engine {
    Sqlite(Sqlite),
    Postgres(Postgres),
}

/// A transaction that writes.
pub(super) enum Tx {
    Sqlite(Transaction<'static, sqlx::Sqlite>),
    Postgres(Transaction<'static, sqlx::Postgres>),
}

/// A parameter of a statement.
#[derive(Clone, Copy)]
pub(super) enum Bind<'a> {
    Text(&'a str),
    OptionalText(Option<&'a str>),
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
pub(super) struct Values(Vec<Value>);

/// The statement as the engine takes it. Statements are written for both: numbered parameters, standard casts, and
/// `json_each($1)` for the rows `value` of the JSON array that carries a batch.
fn text(sql: &'static str, postgres: bool) -> AssertSqlSafe<String> {
    if !postgres {
        return AssertSqlSafe(sql.to_owned());
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
    /// A transaction that no other writer is beside: what it reads cannot change before it commits, and the numbers of
    /// changes are in order of commit. On PostgreSQL the counter's row is the lock, so that writers of all replicas take
    /// turns; batches make up for it.
    pub(super) async fn begin(&self) -> Result<Tx, StoreError> {
        match self {
            Self::Sqlite(file) => Ok(Tx::Sqlite(file.writer.begin_with("BEGIN IMMEDIATE").await?)),
            Self::Postgres(store) => {
                let mut tx = store.pool.begin().await?;
                sqlx::query("select value from change_counter where id = 0 for update").execute(&mut *tx).await?;
                Ok(Tx::Postgres(tx))
            }
        }
    }

    /// Reads beside the writers.
    pub(super) async fn read(&self, sql: &'static str, binds: &[Bind<'_>]) -> Result<Vec<Values>, StoreError> {
        match self {
            Self::Sqlite(file) => all(&run!(fetch_all, text(sql, false), binds, &file.reader)),
            Self::Postgres(store) => all(&run!(fetch_all, text(sql, true), binds, &store.pool)),
        }
    }

    /// Adds the events to the outbox and commits.
    pub(super) async fn commit(&self, tx: Tx, events: &[CloudEvent]) -> Result<(), StoreError> {
        match (self, tx) {
            (Self::Sqlite(_), Tx::Sqlite(mut tx)) => {
                outbox::insert_sqlite(&mut tx, events).await?;
                Ok(tx.commit().await?)
            }
            (Self::Postgres(store), Tx::Postgres(mut tx)) => {
                outbox::insert_postgres(&mut tx, store, events).await?;
                Ok(tx.commit().await?)
            }
            _ => Err(StoreError::Unavailable("a transaction of another engine".into())),
        }
    }
}

impl Tx {
    /// Does a statement and answers how many rows it changed.
    pub(super) async fn done(&mut self, sql: &'static str, binds: &[Bind<'_>]) -> Result<u64, StoreError> {
        match self {
            Self::Sqlite(tx) => Ok(run!(execute, text(sql, false), binds, &mut **tx).rows_affected()),
            Self::Postgres(tx) => Ok(run!(execute, text(sql, true), binds, &mut **tx).rows_affected()),
        }
    }

    /// Does a statement and answers what it returns.
    pub(super) async fn rows(&mut self, sql: &'static str, binds: &[Bind<'_>]) -> Result<Vec<Values>, StoreError> {
        match self {
            Self::Sqlite(tx) => all(&run!(fetch_all, text(sql, false), binds, &mut **tx)),
            Self::Postgres(tx) => all(&run!(fetch_all, text(sql, true), binds, &mut **tx)),
        }
    }
}

/// Opened to read only, for the audit.
pub(super) enum Raw {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Raw {
    /// Opens what the URL names.
    pub(super) async fn open(url: &str) -> Result<Self, StoreError> {
        match url.strip_prefix("sqlite:") {
            Some(path) => Ok(Self::Sqlite(sqlite::open_read_only(path).await?)),
            None => Ok(Self::Postgres(postgres::open_read_only(url).await?)),
        }
    }

    /// Reads.
    pub(super) async fn read(&self, sql: &'static str) -> Result<Vec<Values>, StoreError> {
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

fn all(rows: &[impl AnyRow]) -> Result<Vec<Values>, StoreError> {
    Ok(rows.iter().map(AnyRow::values).collect::<Result<_, _>>()?)
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
    pub(super) fn text(&self, place: usize) -> Result<&str, sqlx::Error> {
        self.optional_text(place)?.ok_or_else(|| unreadable(place, "null"))
    }

    /// The text of a column, none for null.
    pub(super) fn optional_text(&self, place: usize) -> Result<Option<&str>, sqlx::Error> {
        match self.get(place) {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            Value::Int(_) | Value::Real(_) => Err(unreadable(place, "no text")),
        }
    }

    /// The whole number of a column.
    pub(super) fn int(&self, place: usize) -> Result<i64, sqlx::Error> {
        self.optional_int(place)?.ok_or_else(|| unreadable(place, "null"))
    }

    /// The whole number of a column, none for null.
    pub(super) fn optional_int(&self, place: usize) -> Result<Option<i64>, sqlx::Error> {
        match self.get(place) {
            Value::Null => Ok(None),
            Value::Int(number) => Ok(Some(*number)),
            Value::Real(_) | Value::Text(_) => Err(unreadable(place, "no whole number")),
        }
    }

    /// The number of a column.
    pub(super) fn real(&self, place: usize) -> Result<f64, sqlx::Error> {
        match self.get(place) {
            Value::Real(number) => Ok(*number),
            _ => Err(unreadable(place, "no number")),
        }
    }
}
