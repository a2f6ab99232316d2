//! Server-sent events of other services: read, decoded, and followed over reconnects.

use std::{collections::VecDeque, marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use chassis::{Peer, PeerError, client::CALL_DEADLINE};
use contracts::Clock;
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use reqwest::{Method, Response, header};
use serde::de::DeserializeOwned;

/// How long to wait at most before a stream that broke, or is not there yet, is asked for again: a restart takes seconds.
const RECONNECT: Duration = Duration::from_secs(1);

/// A stream that says nothing for so long is broken: our services send a comment every 15 s.
const SILENCE: Duration = Duration::from_secs(45);

/// The largest event: the whole fleet's first message is far smaller, a runaway stream is not.
const MAX_EVENT_BYTES: usize = 4 * 1024 * 1024;

/// How long to wait before a stream is asked for again: at least half of [`RECONNECT`], spread, since what breaks one
/// stream mostly breaks all of a service's, and each begins with reading.
pub(crate) fn reconnect_pause() -> Duration {
    RECONNECT.mul_f64(rand::random_range(0.5..1.0))
}

/// Where a stream comes from.
#[derive(Clone)]
pub(crate) struct Source {
    /// Who sends it.
    pub(crate) peer: Peer,
    /// Who asks.
    pub(crate) token: String,
    /// What for.
    pub(crate) path: String,
    /// Paces the reconnects.
    pub(crate) clock: Arc<dyn Clock>,
    /// What a 404 means: that the stream is over, or that it has not begun.
    pub(crate) absent: Absent,
}

/// What a stream's 404 means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// The object is gone.
    Ends,
    /// The object may come: ask again.
    MayCome,
}

impl Source {
    /// Asks for the stream; answers once its head is there.
    pub(crate) async fn open(&self) -> Result<Response, PeerError> {
        let request =
            self.peer.request_as(&self.token, Method::GET, &self.path).header(header::ACCEPT, "text/event-stream");
        let opened = tokio::time::timeout(CALL_DEADLINE, self.peer.send(request)).await;
        opened.unwrap_or_else(|elapsed| {
            Err(PeerError::Unavailable { peer: self.peer.name(), cause: elapsed.into(), problem: None })
        })
    }
}

/// What a followed stream says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Heard<T> {
    /// Its source answers, for the first time or again: something may have been missed.
    Connected,
    /// Its source does not answer. It is asked on, and heard of again when it does.
    Lost,
    /// A message.
    Message(T),
}

/// Follows a stream until its source refuses it. It is read only as fast as the result is: nothing piles up here.
pub(crate) fn follow<T: DeserializeOwned + Send + 'static>(
    source: Source,
    first: Option<Response>,
) -> BoxStream<'static, Heard<T>> {
    let following = Following { source, messages: None, first, is_lost: false };
    stream::unfold(following, async |mut following| following.next().await.map(|heard| (heard, following))).boxed()
}

struct Following<T> {
    source: Source,
    messages: Option<BoxStream<'static, T>>,
    first: Option<Response>,
    /// As it was told last.
    is_lost: bool,
}

impl<T: DeserializeOwned + Send + 'static> Following<T> {
    async fn next(&mut self) -> Option<Heard<T>> {
        loop {
            if let Some(messages) = self.messages.as_mut() {
                if let Some(message) = messages.next().await {
                    return Some(Heard::Message(message));
                }
                self.messages = None;
                self.source.clock.sleep(reconnect_pause()).await;
            } else if self.is_lost {
                self.source.clock.sleep(reconnect_pause()).await;
            }
            let opened = match self.first.take() {
                Some(response) => Ok(response),
                None => self.source.open().await,
            };
            match opened {
                Ok(response) => {
                    self.is_lost = false;
                    self.messages = Some(messages(response).boxed());
                    return Some(Heard::Connected);
                }
                Err(PeerError::Unavailable { .. }) if self.is_lost => {}
                Err(PeerError::Unavailable { .. }) => {
                    self.is_lost = true;
                    return Some(Heard::Lost);
                }
                Err(error) if error.refused_with() == Some(404) && self.source.absent == Absent::MayCome => {
                    if std::mem::take(&mut self.is_lost) {
                        return Some(Heard::Connected);
                    }
                    self.source.clock.sleep(reconnect_pause()).await;
                }
                Err(_) => return None,
            }
        }
    }
}

/// The messages of one answer, until it ends, breaks, falls silent or says what cannot be read.
pub(crate) fn messages<T: DeserializeOwned + Send + 'static>(response: Response) -> impl Stream<Item = T> + Send {
    let reader = Reader { chunks: response.bytes_stream().boxed(), decoder: Decoder::default(), kind: PhantomData };
    stream::unfold(reader, async |mut reader| reader.next().await.map(|message| (message, reader)))
}

struct Reader<T> {
    chunks: BoxStream<'static, reqwest::Result<Bytes>>,
    decoder: Decoder,
    kind: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Reader<T> {
    async fn next(&mut self) -> Option<T> {
        loop {
            if let Some(data) = self.decoder.ready.pop_front() {
                return serde_json::from_slice(&data).ok();
            }
            let chunk = tokio::time::timeout(SILENCE, self.chunks.next()).await.ok()??.ok()?;
            self.decoder.push(&chunk).ok()?;
        }
    }
}

/// An event is larger than [`MAX_EVENT_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TooLarge;

/// Takes a byte stream apart into the data of its events.
#[derive(Debug, Default)]
struct Decoder {
    line: Vec<u8>,
    data: Vec<u8>,
    ready: VecDeque<Vec<u8>>,
}

impl Decoder {
    fn push(&mut self, chunk: &[u8]) -> Result<(), TooLarge> {
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            self.end_of_line();
        }
        self.line.extend_from_slice(rest);
        if self.line.len() + self.data.len() > MAX_EVENT_BYTES { Err(TooLarge) } else { Ok(()) }
    }

    fn end_of_line(&mut self) {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        if line.is_empty() && !self.data.is_empty() {
            self.ready.push_back(std::mem::take(&mut self.data));
        } else if let Some(data) = line.strip_prefix(b"data:") {
            self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            self.data.push(b'\n');
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(chunks: &[&str]) -> Vec<String> {
        let mut decoder = Decoder::default();
        for chunk in chunks {
            decoder.push(chunk.as_bytes()).unwrap();
        }
        decoder.ready.into_iter().map(|data| String::from_utf8(data).unwrap().trim_end().to_owned()).collect()
    }

    #[test]
    fn events_are_taken_apart_wherever_the_chunks_end() {
        let text = ": hello\n\ndata: {\"a\":1}\n\nevent: x\r\ndata:{\"b\":\r\ndata: 2}\r\n\r\ndata: unfinished\n";
        let whole = decoded(&[text]);
        assert_eq!(whole, ["{\"a\":1}", "{\"b\":\n2}"]);
        for cut in 1..text.len() {
            assert_eq!(decoded(&[&text[..cut], &text[cut..]]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn an_event_without_end_is_given_up() {
        let mut decoder = Decoder::default();
        let chunk = vec![b'x'; MAX_EVENT_BYTES];
        assert_eq!(decoder.push(&chunk), Ok(()));
        assert_eq!(decoder.push(b"x"), Err(TooLarge));
    }
}
