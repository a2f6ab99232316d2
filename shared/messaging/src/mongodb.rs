//! MongoDB as stores use it: what is answered is on a majority's disks, and a batch is one command.

use std::{future::Future, time::Duration};

use ::mongodb::{
    Client, Database,
    bson::{Bson, doc, serialize_to_raw_document_buf},
    error::{Error, ErrorKind},
    options::{Acknowledgment, ClientOptions, ReadConcern, WriteConcern},
};
use futures::{StreamExt, stream};
use serde::Serialize;

/// How long a command looks for a primary: longer than this a caller had better be told; an election may outlast it,
/// and the caller's repeat mends that.
const SELECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a server is heard from though nothing happens, and how much later than that it may be, or over connecting.
/// The driver has no deadline for a command that was sent: what frees those to a server that hangs is that it has not
/// been heard from for both together. A new primary is found within the first.
const HEARTBEAT: Duration = Duration::from_secs(3);
const HEARTBEAT_DELAY: Duration = Duration::from_secs(3);

/// How long a majority may take to have a write on its disks: secondaries whose heartbeats go on while their disks stand
/// still would otherwise keep writers waiting for ever. The write itself stays, so that its repeat finds it done.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(5);

/// Connections to each server: more than this many commands at once only wait for the server's disk instead.
const POOL_SIZE: u32 = 16;

/// Statements in one command: with documents of some kilobytes far below the 16 MB of a command.
const STATEMENTS: usize = 500;

/// Commands of one batch under way at once: while one waits for the journal, the server works on the next.
const COMMANDS: usize = 4;

/// The server's code of a unique index that was violated.
const DUPLICATE_KEY: i32 = 11_000;

/// The database that a URL names in its path, or else `name`.
pub async fn open(url: &str, name: &str) -> Result<Database, Error> {
    connect(ClientOptions::parse(url).await?, name)
}

/// As [`open`], with options that were parsed before.
pub fn connect(mut options: ClientOptions, name: &str) -> Result<Database, Error> {
    options.server_selection_timeout.get_or_insert(SELECTION_TIMEOUT);
    options.heartbeat_freq.get_or_insert(HEARTBEAT);
    options.connect_timeout.get_or_insert(HEARTBEAT_DELAY);
    options.max_pool_size.get_or_insert(POOL_SIZE);
    let durable = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).w_timeout(CONFIRM_DEADLINE);
    options.write_concern = Some(durable.build());
    // What is read can be relied upon: a primary that is being replaced does not show what will be rolled back.
    options.read_concern = Some(ReadConcern::majority());
    let name = options.default_database.clone().unwrap_or_else(|| name.to_owned());
    Ok(Client::with_options(options)?.database(&name))
}

/// Whether the server is the router of a sharded cluster.
pub async fn through_router(database: &Database) -> Result<bool, Error> {
    Ok(database.run_command(doc! { "hello": 1 }).await?.get_str("msg").is_ok_and(|kind| kind == "isdbgrid"))
}

/// Why a whole command's writes cannot be relied upon.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The command failed.
    #[error("the command failed")]
    Driver(#[from] Error),
    /// A majority did not confirm it in time.
    #[error("not on a majority's disks: {0}")]
    NotDurable(String),
    /// The answer is none that the server documents.
    #[error("the answer is not understood: {0}")]
    Answer(String),
}

/// A statement that was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its place among the statements.
    pub index: usize,
    /// Whether somebody else had inserted the document before: a race that was lost.
    pub lost: bool,
    /// What the server says.
    pub message: String,
}

/// Carries out statements of the `update` command (`{q, u, upsert}`), each atomic by itself, in no order; those that are
/// not named in the answer are on a majority's disks.
pub async fn update<T: Serialize + Sync>(
    database: &Database,
    collection: &str,
    statements: &[T],
) -> Result<Vec<Refused>, UpdateError> {
    gathered(statements.chunks(STATEMENTS).map(|some| update_some(database, collection, some)).collect()).await
}

/// The `update` command.
#[derive(Serialize)]
struct Update<'a, T> {
    update: &'a str,
    updates: &'a [T],
    ordered: bool,
    #[serde(rename = "writeConcern")]
    write_concern: Option<&'a WriteConcern>,
}

async fn update_some<T: Serialize + Sync>(
    database: &Database,
    collection: &str,
    some: &[T],
) -> Result<Vec<Refused>, UpdateError> {
    let write_concern = database.write_concern();
    let command = Update { update: collection, updates: some, ordered: false, write_concern };
    let command = serialize_to_raw_document_buf(&command).map_err(Error::from)?;
    let answer = database.run_raw_command(command).await?;
    if let Some(failure) = answer.get("writeConcernError") {
        return Err(UpdateError::NotDurable(failure.to_string()));
    }
    let Some(errors) = answer.get("writeErrors") else { return Ok(Vec::new()) };
    let errors = errors.as_array().ok_or_else(|| UpdateError::Answer(errors.to_string()))?;
    errors.iter().map(|error| refusal(error).ok_or_else(|| UpdateError::Answer(error.to_string()))).collect()
}

/// Inserts documents, in no order; those that are not named in the answer are on a majority's disks.
pub async fn insert<T: Serialize + Send + Sync>(
    database: &Database,
    collection: &str,
    documents: &[T],
) -> Result<Vec<Refused>, UpdateError> {
    gathered(documents.chunks(STATEMENTS).map(|some| insert_some(database, collection, some)).collect()).await
}

async fn insert_some<T: Serialize + Send + Sync>(
    database: &Database,
    collection: &str,
    some: &[T],
) -> Result<Vec<Refused>, UpdateError> {
    let Err(error) = database.collection::<T>(collection).insert_many(some).ordered(false).await else {
        return Ok(Vec::new());
    };
    let ErrorKind::InsertMany(failure) = &*error.kind else { return Err(error.into()) };
    if let Some(failure) = &failure.write_concern_error {
        return Err(UpdateError::NotDurable(failure.message.clone()));
    }
    let refusals = failure.write_errors.iter().flatten();
    Ok(refusals
        .map(|error| Refused { index: error.index, lost: error.code == DUPLICATE_KEY, message: error.message.clone() })
        .collect())
}

/// Has commands done, each of up to [`STATEMENTS`] of a whole: what was refused, by its place in the whole.
async fn gathered(
    commands: Vec<impl Future<Output = Result<Vec<Refused>, UpdateError>>>,
) -> Result<Vec<Refused>, UpdateError> {
    let mut answers = stream::iter(commands).buffered(COMMANDS).enumerate();
    let mut refused = Vec::new();
    while let Some((number, answer)) = answers.next().await {
        let placed = |one: Refused| Refused { index: one.index + number * STATEMENTS, ..one };
        refused.extend(answer?.into_iter().map(placed));
    }
    Ok(refused)
}

fn refusal(error: &Bson) -> Option<Refused> {
    let error = error.as_document()?;
    Some(Refused {
        index: usize::try_from(error.get_i32("index").ok()?).ok()?,
        lost: error.get_i32("code").ok()? == DUPLICATE_KEY,
        message: error.get_str("errmsg").unwrap_or_default().to_owned(),
    })
}
