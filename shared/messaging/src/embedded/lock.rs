//! The lock that keeps a second process off the embedded log's file: two writers would hand out the same offsets.

use std::{
    fs::{File, OpenOptions},
    io,
    time::Duration,
};

use contracts::{Clock, SystemClock};
use fs4::fs_std::FileExt;

/// How long to wait for a log that was dropped or a process that was killed just now: its tasks and its kernel let go
/// within milliseconds. Who really uses the log keeps it for longer, and is named.
const PATIENCE: chrono::Duration = chrono::Duration::seconds(2);

/// How often to look in that time.
const POLL: Duration = Duration::from_millis(10);

/// Why the log's file is not for this process.
#[derive(Debug, thiserror::Error)]
pub(super) enum LockError {
    #[error("another process uses the event log {0}; stop it, or name another file")]
    InUse(String),
    #[error("{path} cannot be locked")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Holds a log's file for this process until dropped; the kernel drops it with the process.
pub(super) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Takes the lock `PATH.lock` for the log at `path`.
    pub(super) async fn take(path: &str) -> Result<Self, LockError> {
        let lock = format!("{path}.lock");
        let fail = |source| LockError::Io { path: lock.clone(), source };
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock).map_err(fail)?;
        // The machine's time, whatever the log's clock says: it is the machine that lets go.
        let deadline = SystemClock.now() + PATIENCE;
        while !FileExt::try_lock_exclusive(&file).map_err(fail)? {
            if SystemClock.now() >= deadline {
                return Err(LockError::InUse(path.to_owned()));
            }
            SystemClock.sleep(POLL).await;
        }
        Ok(Self { _file: file })
    }
}
