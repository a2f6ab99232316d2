//! The folder that holds everything: stores, event log, lake, signing key, and the lock of the process that uses it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use auth::{DevIssuer, SigningKey};
use fs4::fs_std::FileExt;

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process uses it.
    #[error("another process uses the data folder {0}; stop it, or give --data-dir another folder")]
    InUse(PathBuf),
    /// It cannot be read or written.
    #[error("the data folder {path} cannot be used")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The signing key in it is none.
    #[error("{path} holds no usable signing key; remove it to have a new one made")]
    Key {
        /// The key's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: auth::TokenError,
    },
}

/// The data folder.
#[derive(Debug, Clone)]
pub struct DataDir {
    path: PathBuf,
}

/// Holds the folder for this process until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl DataDir {
    /// The folder at `path`, made if it is not there.
    pub fn create(path: &Path) -> Result<Self, DataDirError> {
        let fail = |source| DataDirError::Io { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(fail)?;
        Ok(Self { path: path.canonicalize().map_err(fail)? })
    }

    /// The folder at `path`, which must be there.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let path = path.canonicalize().map_err(|source| DataDirError::Io { path: path.to_owned(), source })?;
        Ok(Self { path })
    }

    /// Takes the folder for this process.
    pub fn lock(&self) -> Result<Lock, DataDirError> {
        let path = self.path.join("lock");
        let fail = |source| DataDirError::Io { path: path.clone(), source };
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(fail)?;
        match FileExt::try_lock_exclusive(&file) {
            Ok(true) => Ok(Lock { _file: file }),
            Ok(false) => Err(DataDirError::InUse(self.path.clone())),
            Err(source) => Err(fail(source)),
        }
    }

    /// The URL of a service's embedded store.
    pub fn store(&self, service: &str) -> String {
        format!("sqlite:{}", self.path.join(format!("{service}.db")).display())
    }

    /// Whether that store has been made.
    pub fn has_store(&self, service: &str) -> bool {
        self.path.join(format!("{service}.db")).exists()
    }

    /// The URL of the embedded event log.
    pub fn event_log(&self) -> String {
        format!("embedded:{}", self.path.join("events.db").display())
    }

    /// The URL of the lake.
    pub fn lake(&self) -> String {
        format!("file://{}", self.path.join("lake").display())
    }

    /// The development issuer, with the key in the folder; a key is made where there is none.
    pub fn issuer(&self) -> Result<DevIssuer, DataDirError> {
        let path = self.path.join("dev-issuer.key");
        let bad_key = |source| DataDirError::Key { path: path.clone(), source };
        let key = match fs::read(&path) {
            Ok(bytes) => SigningKey::from_bytes(bytes).map_err(bad_key)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = SigningKey::generate().map_err(bad_key)?;
                self.write_key(&path, &key).map_err(|source| DataDirError::Io { path: path.clone(), source })?;
                key
            }
            Err(source) => return Err(DataDirError::Io { path, source }),
        };
        DevIssuer::new(&key).map_err(bad_key)
    }

    /// Written aside and renamed, so that a kill leaves no half key.
    fn write_key(&self, path: &Path, key: &SigningKey) -> io::Result<()> {
        let aside = path.with_extension("new");
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&aside)?;
        file.write_all(key.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        File::open(&self.path)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::create(&folder.path().join("data")).unwrap();
        let held = data.lock().unwrap();
        assert!(matches!(data.lock(), Err(DataDirError::InUse(_))));
        drop(held);
        data.lock().unwrap();
    }

    #[test]
    fn the_key_stays_and_a_broken_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::create(folder.path()).unwrap();
        let now = contracts::Timestamp::UNIX_EPOCH;
        let hour = chrono::Duration::hours(1);
        let (token, _) = data.issuer().unwrap().issue("a", contracts::api::Role::Customer, now, hour).unwrap();
        assert!(data.issuer().unwrap().verifier().verify(&token, now).is_ok());
        fs::write(folder.path().join("dev-issuer.key"), b"none").unwrap();
        let error = data.issuer().err().unwrap().to_string();
        assert!(error.contains("dev-issuer.key"), "{error}");
    }
}
