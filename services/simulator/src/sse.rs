//! Reads server-sent events from chunks that may be cut anywhere.

/// The largest event that is taken in: a snapshot of a hundred thousand missions fits.
const MAX_EVENT_BYTES: usize = 64 << 20;

/// The sender does not speak the protocol, or says too much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadStream {
    /// An event past [`MAX_EVENT_BYTES`].
    #[error("an event is larger than {MAX_EVENT_BYTES} bytes")]
    TooLarge,
    /// Not UTF-8.
    #[error("an event is not UTF-8")]
    NotText,
}

/// What has been read of a stream so far.
#[derive(Debug, Default)]
pub(crate) struct EventReader {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a carriage return: a line feed now belongs to the same end of line.
    after_return: bool,
    begun: bool,
}

impl EventReader {
    /// Takes a chunk in and hands on the data of every event that it completes.
    pub(crate) fn push(&mut self, chunk: &[u8], mut on_event: impl FnMut(&str)) -> Result<(), BadStream> {
        let mut rest = chunk;
        while let Some((&byte, after)) = rest.split_first() {
            if std::mem::take(&mut self.after_return) && byte == b'\n' {
                rest = after;
                continue;
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let Some(end) = end else {
                self.line.extend_from_slice(rest);
                break;
            };
            self.line.extend_from_slice(&rest[..end]);
            self.after_return = rest[end] == b'\r';
            rest = &rest[end + 1..];
            self.end_line(&mut on_event)?;
        }
        if self.line.len() + self.data.len() > MAX_EVENT_BYTES { Err(BadStream::TooLarge) } else { Ok(()) }
    }

    fn end_line(&mut self, on_event: &mut impl FnMut(&str)) -> Result<(), BadStream> {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.begun, true) && line.starts_with(b"\xEF\xBB\xBF") {
            line.drain(..3);
        }
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                on_event(std::str::from_utf8(&self.data).map_err(|_| BadStream::NotText)?);
            }
            self.data.clear();
        } else if let Some(value) = field(&line, b"data") {
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value);
        }
        // The buffer goes back, so that a stream of small events allocates nothing.
        line.clear();
        self.line = line;
        Ok(())
    }
}

/// The value of the line, where it is one of that field.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(name)? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_in_chunks(stream: &[u8], size: usize) -> Vec<String> {
        let mut reader = EventReader::default();
        let mut events = Vec::new();
        for chunk in stream.chunks(size) {
            reader.push(chunk, |event| events.push(event.to_owned())).unwrap();
        }
        events
    }

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        let stream = "\u{feff}data: {\"a\":1}\n\n: keep alive\n\nevent: x\r\nid: 7\r\ndata: one\r\ndata:two\r\n\r\n\
                      retry: 5\n\ndata\rdata: é\r\rdatabase: no\n\ndata: unfinished\n";
        for size in 1..=stream.len() {
            let events = read_in_chunks(stream.as_bytes(), size);
            assert_eq!(events, ["{\"a\":1}", "one\ntwo", "\né"], "chunks of {size}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut reader = EventReader::default();
        let chunk = vec![b'x'; MAX_EVENT_BYTES / 2 + 1];
        assert_eq!(reader.push(&chunk, |_| {}), Ok(()));
        assert_eq!(reader.push(&chunk, |_| {}), Err(BadStream::TooLarge));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert_eq!(EventReader::default().push(b"data: \xff\n\n", |_| {}), Err(BadStream::NotText));
    }
}
