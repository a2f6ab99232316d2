//! The ledger: every 202 as one line of a file, handed to the operating system at once, for the audit.

use std::{io::SeekFrom, path::Path, time::Duration};

use contracts::{DeliveryId, Timestamp};
use serde::Serialize;
use tokio::{
    fs::{File, OpenOptions},
    io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _},
    sync::mpsc,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// Entries that wait for the writer: two seconds' worth of the highest load.
const QUEUED: usize = 4_096;
/// Entries written at once.
const AT_ONCE: usize = 1_024;
/// A torn last line is looked for in the file's last bytes; a line has some 150.
const TAIL_BYTES: u64 = 4_096;

/// One accepted delivery.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    id: DeliveryId,
    at: Timestamp,
    customer: String,
    latency_us: u64,
}

impl Entry {
    pub(super) fn new(id: DeliveryId, at: Timestamp, customer: &str, latency: Duration) -> Self {
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        Self { id, at, customer: customer.to_owned(), latency_us }
    }
}

/// An open ledger. What was added is in the file as soon as the writer gets to it, and surely after `close`.
#[derive(Debug)]
pub(super) struct Ledger {
    entries: mpsc::Sender<Entry>,
    closing: CancellationToken,
    writer: tokio::sync::Mutex<JoinSet<std::io::Result<()>>>,
}

impl Ledger {
    /// Opens the file to append to it. A last line that an earlier run did not finish is taken away.
    pub(super) async fn open(path: &Path) -> std::io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).await?;
        let whole = whole_lines(&mut file).await?;
        file.set_len(whole).await?;
        file.seek(SeekFrom::End(0)).await?;
        let (entries, queue) = mpsc::channel(QUEUED);
        let mut writer = JoinSet::new();
        let closing = CancellationToken::new();
        writer.spawn(write(file, queue, closing.clone()));
        Ok(Self { entries, closing, writer: writer.into() })
    }

    /// Adds one; waits only while the writer is far behind.
    pub(super) async fn add(&self, entry: Entry) {
        if self.entries.send(entry).await.is_err() {
            tracing::error!("the ledger's writer has stopped: an accepted delivery is missing from it");
        }
    }

    /// Writes the rest and says whether everything is in the file.
    pub(super) async fn close(&self) -> anyhow::Result<()> {
        self.closing.cancel();
        let mut writer = self.writer.lock().await;
        while let Some(written) = writer.join_next().await {
            written??;
        }
        Ok(())
    }
}

/// How many bytes of the file are whole lines.
async fn whole_lines(file: &mut File) -> std::io::Result<u64> {
    let length = file.metadata().await?.len();
    let tail_start = length.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(tail_start)).await?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).await?;
    let last_end = tail.iter().rposition(|byte| *byte == b'\n');
    Ok(last_end.map_or(tail_start, |end| tail_start + end as u64 + 1))
}

async fn write(mut file: File, mut queue: mpsc::Receiver<Entry>, closing: CancellationToken) -> std::io::Result<()> {
    let mut batch = Vec::with_capacity(AT_ONCE);
    let mut lines = Vec::new();
    loop {
        let count = tokio::select! {
            count = queue.recv_many(&mut batch, AT_ONCE) => count,
            // What is in the queue already is still read.
            () = closing.cancelled(), if !queue.is_closed() => {
                queue.close();
                continue;
            }
        };
        if count == 0 {
            return file.sync_all().await;
        }
        lines.clear();
        for entry in batch.drain(..) {
            serde_json::to_writer(&mut lines, &entry)?;
            lines.push(b'\n');
        }
        file.write_all(&lines).await?;
        // The file type writes behind our back; after this the bytes are the operating system's.
        file.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn entry(number: u128) -> Entry {
        let id = DeliveryId(Uuid::from_u128(number));
        Entry::new(id, Timestamp::UNIX_EPOCH, "customer-0001", Duration::from_micros(1_234))
    }

    fn ids(text: &str) -> Vec<u128> {
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| line["id"].as_str().unwrap().parse::<Uuid>().unwrap().as_u128()).collect()
    }

    #[tokio::test]
    async fn a_line_says_who_when_and_how_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("accepted.ndjson");
        let ledger = Ledger::open(&path).await.unwrap();
        ledger.add(entry(1)).await;
        ledger.close().await.unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let expected = "{\"id\":\"00000000-0000-0000-0000-000000000001\",\"at\":\"1970-01-01T00:00:00Z\",\
                        \"customer\":\"customer-0001\",\"latency_us\":1234}\n";
        assert_eq!(text, expected);
    }

    #[tokio::test]
    async fn lines_are_in_the_file_while_the_run_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("accepted.ndjson");
        let ledger = Ledger::open(&path).await.unwrap();
        for number in 0..2_500 {
            ledger.add(entry(number)).await;
        }
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let text = std::fs::read_to_string(&path).unwrap();
            if text.ends_with('\n') && ids(&text).len() == 2_500 {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "the ledger is not written while it is open");
            tokio::task::yield_now().await;
        }
        ledger.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_second_run_goes_on_behind_the_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("accepted.ndjson");
        let first = Ledger::open(&path).await.unwrap();
        first.add(entry(1)).await;
        first.close().await.unwrap();
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"id\":\"0000");
        std::fs::write(&path, text).unwrap();
        let second = Ledger::open(&path).await.unwrap();
        second.add(entry(2)).await;
        second.close().await.unwrap();
        assert_eq!(ids(&std::fs::read_to_string(&path).unwrap()), [1, 2]);
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_an_error() {
        assert!(Ledger::open(Path::new("/no/such/folder/accepted")).await.is_err());
    }
}
