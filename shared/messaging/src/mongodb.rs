//! MongoDB as stores use it: what is answered is on a majority's disks, and a batch is one command.

use std::time::Duration;

use ::mongodb::{
    Client, Database,
    bson::{Bson, Document, doc},
    error::Error,
    options::{Acknowledgment, ClientOptions, ReadConcern, WriteConcern},
};

/// How long a command looks for a primary: longer than this a caller had better be told; an election may outlast it,
/// and the caller's repeat mends that.
const SELECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a server is heard from though nothing happens, and how much later than that it may be, or over connecting.
/// The driver has no deadline for a command that was sent: what frees those to a server that hangs is that it has not
/// been heard from for both together. A new primary is found within the first.
const HEARTBEAT: Duration = Duration::from_secs(3);
const HEARTBEAT_DELAY: Duration = Duration::from_secs(3);

/// Connections to each server: more than this many commands at once only wait for the server's disk instead.
const POOL_SIZE: u32 = 16;

/// Statements in one command: with documents of some kilobytes far below the 16 MB of a command.
const STATEMENTS: usize = 500;

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
    options.write_concern = Some(WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build());
    // What is read can be relied upon: a primary that is being replaced does not show what will be rolled back.
    options.read_concern = Some(ReadConcern::majority());
    let name = options.default_database.clone().unwrap_or_else(|| name.to_owned());
    Ok(Client::with_options(options)?.database(&name))
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
pub async fn update(
    database: &Database,
    collection: &str,
    statements: &[Document],
) -> Result<Vec<Refused>, UpdateError> {
    let mut refused = Vec::new();
    for (number, some) in statements.chunks(STATEMENTS).enumerate() {
        let command = doc! {
            "update": collection,
            "updates": some.to_vec(),
            "ordered": false,
            "writeConcern": { "w": "majority", "j": true },
        };
        let answer = database.run_command(command).await?;
        if let Some(failure) = answer.get("writeConcernError") {
            return Err(UpdateError::NotDurable(failure.to_string()));
        }
        let Some(errors) = answer.get("writeErrors") else { continue };
        for error in errors.as_array().ok_or_else(|| UpdateError::Answer(errors.to_string()))? {
            let one = refusal(error).ok_or_else(|| UpdateError::Answer(error.to_string()))?;
            refused.push(Refused { index: one.index + number * STATEMENTS, ..one });
        }
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
