//! The local file system as an object store that answers only once file and folder are on disk.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{ErrorKind, Write},
    ops::Range,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart, local::LocalFileSystem,
    path::Path,
};

/// object_store's local file system writes and renames without a sync: after a power failure a file that was
/// acknowledged may be empty or absent. This one syncs the file before it gets its name, then the folder.
#[derive(Debug, Clone)]
pub(crate) struct DurableFileSystem {
    inner: Arc<LocalFileSystem>,
}

impl DurableFileSystem {
    /// The whole file system, `/` being its root.
    pub(crate) fn new() -> Self {
        Self { inner: Arc::new(LocalFileSystem::new()) }
    }

    async fn write(&self, location: &Path, payload: PutPayload, create: bool) -> Result<PutResult> {
        let path = self.inner.path_to_filesystem(location)?;
        blocking(move || write_file(&path, &payload, create)).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn sync(&self, location: &Path) -> Result<()> {
        let path = self.inner.path_to_filesystem(location)?;
        blocking(move || {
            File::open(&path).and_then(|file| file.sync_all()).map_err(|source| failed(&path, source))?;
            sync_folder(&path)
        })
        .await
    }
}

impl fmt::Display for DurableFileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "durable {}", self.inner)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|source| Error::Generic { store: "DurableFileSystem", source: Box::new(source) })?
}

fn failed(path: &FilePath, source: std::io::Error) -> Error {
    let path_text = path.display().to_string();
    match source.kind() {
        ErrorKind::AlreadyExists => Error::AlreadyExists { path: path_text, source: Box::new(source) },
        ErrorKind::NotFound => Error::NotFound { path: path_text, source: Box::new(source) },
        _ => Error::Generic { store: "DurableFileSystem", source: Box::new(source) },
    }
}

/// A file that no listing shows: object_store hides names that end in `#` and digits.
fn staged(path: &FilePath) -> Result<(File, PathBuf)> {
    let mut number = 1_u64;
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("#{number}"));
        let staging = PathBuf::from(name);
        match OpenOptions::new().write(true).create_new(true).open(&staging) {
            Ok(file) => return Ok((file, staging)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            Err(error) if error.kind() == ErrorKind::NotFound => create_folders(path)?,
            Err(error) => return Err(failed(&staging, error)),
        }
    }
}

/// Makes the folders of `path`, each on disk before the next.
fn create_folders(path: &FilePath) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    let mut missing = Vec::new();
    for ancestor in folder.ancestors() {
        if ancestor.exists() {
            break;
        }
        missing.push(ancestor);
    }
    for folder in missing.into_iter().rev() {
        match std::fs::create_dir(folder) {
            Ok(()) => sync_folder(folder)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(folder, error)),
        }
    }
    Ok(())
}

/// Makes the entry of `path` in its folder durable.
fn sync_folder(path: &FilePath) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| failed(folder, source))
}

fn write_file(path: &FilePath, payload: &PutPayload, create: bool) -> Result<()> {
    let (mut file, staging) = staged(path)?;
    let written = (|| {
        for chunk in payload {
            file.write_all(chunk)?;
        }
        file.sync_all()?;
        // A link never replaces; a rename does.
        if create { std::fs::hard_link(&staging, path) } else { std::fs::rename(&staging, path) }
    })();
    if create || written.is_err() {
        // What stays behind after a kill is invisible and harmless.
        let _ = std::fs::remove_file(&staging);
    }
    written.map_err(|source| failed(path, source))?;
    sync_folder(path)
}

/// An upload in parts that is written in one piece at its end, so that the file appears whole or not at all. The
/// lake's largest such file is a checkpoint of its log: a few megabytes.
#[derive(Debug)]
struct BufferedUpload {
    store: DurableFileSystem,
    location: Path,
    parts: Vec<Bytes>,
}

#[async_trait]
impl MultipartUpload for BufferedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts.extend(data);
        Box::pin(async { Ok(()) })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let payload = PutPayload::from_iter(std::mem::take(&mut self.parts));
        self.store.write(&self.location, payload, false).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts.clear();
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for DurableFileSystem {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        match options.mode {
            PutMode::Create => self.write(location, payload, true).await,
            PutMode::Overwrite => self.write(location, payload, false).await,
            PutMode::Update(_) => Err(Error::NotImplemented {
                operation: "put with PutMode::Update".to_owned(),
                implementer: self.to_string(),
            }),
        }
    }

    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(BufferedUpload { store: self.clone(), location: location.clone(), parts: Vec::new() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await?;
        self.sync(to).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await?;
        self.sync(to).await?;
        let old = self.inner.path_to_filesystem(from)?;
        blocking(move || sync_folder(&old)).await
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use object_store::ObjectStoreExt;

    use super::*;

    fn place(folder: &tempfile::TempDir, name: &str) -> Path {
        Path::from_absolute_path(folder.path().join(name)).unwrap()
    }

    #[tokio::test]
    async fn of_two_creations_one_wins_and_stays_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableFileSystem::new();
        let path = place(&folder, "a/b/commit.json");
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        store.put_opts(&path, "first".into(), create.clone()).await.unwrap();
        let second = store.put_opts(&path, "second".into(), create).await;
        assert!(matches!(second, Err(Error::AlreadyExists { .. })), "{second:?}");
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "first");
    }

    #[tokio::test]
    async fn a_kill_in_the_middle_leaves_nothing_that_a_listing_shows() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableFileSystem::new();
        std::fs::write(folder.path().join("x.parquet#1"), "torn").unwrap();
        store.put(&place(&folder, "x.parquet"), "whole".into()).await.unwrap();
        let prefix = Path::from_absolute_path(folder.path()).unwrap();
        let listed: Vec<_> = store.list(Some(&prefix)).map(|meta| meta.unwrap().location).collect().await;
        assert_eq!(listed, [place(&folder, "x.parquet")]);
    }

    #[tokio::test]
    async fn parts_become_one_file_at_the_end_only() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableFileSystem::new();
        let path = place(&folder, "parts");
        let mut upload = store.put_multipart(&path).await.unwrap();
        upload.put_part("a".into()).await.unwrap();
        upload.put_part("b".into()).await.unwrap();
        assert!(store.head(&path).await.is_err());
        upload.complete().await.unwrap();
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "ab");
    }
}
