//! The folder that holds everything: stores, event log, lake, signing key, and the lock of the process that uses it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use auth::{DevIssuer, SigningKey};
use fs4::fs_std::FileExt;
use url::Url;

/// The signing key's file.
const KEY: &str = "dev-issuer.key";

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process uses it.
    #[error("another process uses the data folder {0}; stop it, or give --data-dir another folder")]
    InUse(PathBuf),
    /// The lake's tables would land in another folder: Delta's reader decodes the name a second time.
    #[error("the data folder {0} has '%' before two hexadecimal digits in its name; give --data-dir another folder")]
    Name(PathBuf),
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
        refuse_escapes(&std::path::absolute(path).map_err(fail)?)?;
        create_durably(path).map_err(fail)?;
        let path = path.canonicalize().map_err(fail)?;
        // Again, since a link may lead anywhere.
        refuse_escapes(&path)?;
        Ok(Self { path })
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
        let path = self.path.join("lake");
        // The folder's path is absolute, so that this always has a URL; the bare path would name the lake, too.
        Url::from_directory_path(&path).map_or_else(|()| path.display().to_string(), String::from)
    }

    /// The development issuer, with the key in the folder; a key is made where there is none.
    pub fn issuer(&self) -> Result<DevIssuer, DataDirError> {
        let path = self.path.join(KEY);
        let bad_key = |source| DataDirError::Key { path: path.clone(), source };
        let bytes = match self.kept(KEY)? {
            Some(bytes) => bytes,
            None => self.keep(KEY, SigningKey::generate().map_err(bad_key)?.as_bytes())?,
        };
        let key = SigningKey::from_bytes(bytes).map_err(bad_key)?;
        DevIssuer::new(&key).map_err(bad_key)
    }

    /// What the folder keeps by that name, if anything.
    pub fn kept(&self, name: &str) -> Result<Option<Vec<u8>>, DataDirError> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DataDirError::Io { path, source }),
        }
    }

    /// Keeps `bytes` by that name, unless something is kept by it already; answers what is. For its owner's eyes only.
    pub fn keep(&self, name: &str, bytes: &[u8]) -> Result<Vec<u8>, DataDirError> {
        let path = self.path.join(name);
        self.write_once(&path, bytes).map_err(|source| DataDirError::Io { path, source })
    }

    /// Written aside and linked, so that a kill leaves no half file, and one that somebody may have used is never
    /// replaced.
    fn write_once(&self, path: &Path, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let aside = path.with_extension(format!("{:016x}.new", rand::random::<u64>()));
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&aside)?;
        let linked =
            file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| match fs::hard_link(&aside, path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                result => result,
            });
        // Left behind after a kill, it is a file that nobody uses.
        let removed = fs::remove_file(&aside);
        linked.and(removed)?;
        sync_folder(&self.path)?;
        fs::read(path)
    }
}

/// Any other character will do.
fn refuse_escapes(path: &Path) -> Result<(), DataDirError> {
    let is_escape = |three: &[u8]| three[0] == b'%' && three[1].is_ascii_hexdigit() && three[2].is_ascii_hexdigit();
    if path.as_os_str().as_encoded_bytes().windows(3).any(is_escape) {
        return Err(DataDirError::Name(path.to_owned()));
    }
    Ok(())
}

/// Makes the folder and those above it that are missing, so that a power cut does not take them with all that is in it:
/// a file's own sync does not reach the entry of its folder.
fn create_durably(path: &Path) -> io::Result<()> {
    let parents = parents_of_missing(&std::path::absolute(path)?);
    fs::create_dir_all(path)?;
    parents.iter().try_for_each(|parent| sync_folder(parent))
}

/// The folders that get an entry when `path` is made, the innermost first.
fn parents_of_missing(path: &Path) -> Vec<PathBuf> {
    let missing = path.ancestors().take_while(|folder| !folder.exists());
    missing.filter_map(Path::parent).map(Path::to_owned).collect()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
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
    fn a_folder_is_made_with_those_above_it_and_each_new_entry_is_synced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some/where/deep");
        let parents = parents_of_missing(&path);
        assert_eq!(parents, [folder.path().join("some/where"), folder.path().join("some"), folder.path().to_owned()]);
        DataDir::create(&path).unwrap();
        assert!(path.is_dir());
        assert!(parents_of_missing(&path).is_empty());
    }

    #[test]
    fn a_name_that_the_lake_would_misread_is_refused_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a#1 50%20?x");
        assert!(matches!(DataDir::create(&path), Err(DataDirError::Name(named)) if named == path));
        assert!(!path.exists());
    }

    #[test]
    fn every_other_name_comes_back_out_of_the_urls() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("a#1 50% ?x:%2 é");
        let data = DataDir::create(&path).unwrap();
        assert_eq!(Url::parse(&data.lake()).unwrap().to_file_path().unwrap(), path.join("lake"));
        assert_eq!(data.store("fleet"), format!("sqlite:{}", path.join("fleet.db").display()));
    }

    #[test]
    fn whoever_makes_the_key_first_all_use_the_same() {
        let (now, hour) = (contracts::Timestamp::UNIX_EPOCH, chrono::Duration::hours(1));
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let data = DataDir::create(folder.path()).unwrap();
            let start = std::sync::Barrier::new(8);
            let issuers: Vec<DevIssuer> = std::thread::scope(|scope| {
                let open = || {
                    start.wait();
                    data.issuer().unwrap()
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            for issuer in &issuers {
                let (token, _) = issuer.issue("a", contracts::api::Role::Customer, now, hour).unwrap();
                assert!(issuers.iter().all(|other| other.verifier().verify(&token, now).is_ok()));
            }
            let files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
            assert_eq!(files, ["dev-issuer.key"], "nothing is left aside");
        }
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
