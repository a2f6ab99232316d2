//! An object store behind a network that loses answers to writes, delivers some writes late, and is slow enough for
//! others to do something meanwhile.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};

/// What happens to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It is done, and the caller gets an error.
    Answer,
    /// It is done, and a client that got no answer asks once more by itself.
    AnswerThenRepeated,
    /// The caller gets an error, and it is done when the test says so.
    Late,
}

/// What others do once, at a request for a path that contains a text.
struct Meanwhile {
    part: String,
    done: BoxFuture<'static, ()>,
}

impl Meanwhile {
    fn new(part: impl Into<String>, done: impl Future<Output = ()> + Send + 'static) -> Option<Self> {
        Some(Self { part: part.into(), done: Box::pin(done) })
    }

    /// Does it where its turn has come.
    async fn at(slot: &Mutex<Option<Self>>, path: &Path) {
        let due = slot.lock().unwrap().take_if(|meanwhile| path.as_ref().contains(&meanwhile.part));
        if let Some(due) = due {
            due.done.await;
        }
    }
}

type Decide = Box<dyn FnMut(&Path) -> Option<Loss> + Send>;

/// The store.
pub(super) struct LosingStore {
    inner: Arc<dyn ObjectStore>,
    decide: Mutex<Decide>,
    late: Mutex<Vec<(Path, PutPayload, PutOptions)>>,
    before_read: Mutex<Option<Meanwhile>>,
    after_write: Mutex<Option<Meanwhile>>,
}

impl LosingStore {
    /// One that loses nothing yet.
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self {
            inner,
            decide: Mutex::new(Box::new(|_| None)),
            late: Mutex::default(),
            before_read: Mutex::default(),
            after_write: Mutex::default(),
        }
    }

    /// Has others do something before the next read of a path that contains `part`.
    pub(super) fn before_next_read(&self, part: impl Into<String>, done: impl Future<Output = ()> + Send + 'static) {
        *self.before_read.lock().unwrap() = Meanwhile::new(part, done);
    }

    /// Has others do something after the next write to a path that contains `part`, before it is answered.
    pub(super) fn after_next_write(&self, part: impl Into<String>, done: impl Future<Output = ()> + Send + 'static) {
        *self.after_write.lock().unwrap() = Meanwhile::new(part, done);
    }

    /// From now on this decides.
    pub(super) fn lose(&self, decide: impl FnMut(&Path) -> Option<Loss> + Send + 'static) {
        *self.decide.lock().unwrap() = Box::new(decide);
    }

    /// Loses the next write to a path that contains `part`, and no other.
    pub(super) fn lose_next(&self, part: &'static str, loss: Loss) {
        let mut loss = Some(loss);
        self.lose(move |path| if path.as_ref().contains(part) { loss.take() } else { None });
    }

    /// Delivers the writes that are late.
    pub(super) async fn deliver(&self) -> Vec<Result<PutResult>> {
        let late: Vec<_> = self.late.lock().unwrap().drain(..).collect();
        let mut results = Vec::new();
        for (path, payload, options) in late {
            results.push(self.inner.put_opts(&path, payload, options).await);
        }
        results
    }
}

fn no_answer() -> Error {
    Error::Generic { store: "LosingStore", source: "no answer".into() }
}

#[async_trait]
impl ObjectStore for LosingStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let loss = (self.decide.lock().unwrap())(location);
        match loss {
            None => {
                let put = self.inner.put_opts(location, payload, options).await;
                Meanwhile::at(&self.after_write, location).await;
                put
            }
            Some(Loss::Answer) => {
                self.inner.put_opts(location, payload, options).await?;
                Err(no_answer())
            }
            Some(Loss::AnswerThenRepeated) => {
                self.inner.put_opts(location, payload.clone(), options.clone()).await?;
                self.inner.put_opts(location, payload, options).await
            }
            Some(Loss::Late) => {
                self.late.lock().unwrap().push((location.clone(), payload, options));
                Err(no_answer())
            }
        }
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        Meanwhile::at(&self.before_read, location).await;
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
        self.inner.copy_opts(from, to, options).await
    }
}

impl fmt::Debug for LosingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LosingStore({:?})", self.inner)
    }
}

impl fmt::Display for LosingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "losing {}", self.inner)
    }
}
