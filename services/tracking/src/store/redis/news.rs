//! What other instances say when they have changed something, and where this one has written: hints of where to look.

use std::{
    collections::BTreeSet,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use messaging::outbox::Bucket;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;

use super::keys::BUCKETS;
use crate::store::Elsewhere;

/// Flights kept until somebody asks; beyond that any may have changed.
const MAX_FLIGHTS: usize = 65_536;

#[derive(Default)]
struct Heard {
    elsewhere: Elsewhere,
    missions_elsewhere: bool,
    missions: BTreeSet<Bucket>,
    outboxes: BTreeSet<Bucket>,
}

/// Hints; a lost one costs time, never truth.
pub(super) struct News {
    /// This instance, in what it says.
    pub(super) origin: String,
    heard: Mutex<Heard>,
    /// Woken for the watchers of flights and missions.
    changed: Notify,
    /// Woken for the relay.
    relay: Notify,
}

impl News {
    pub(super) fn new() -> Self {
        let origin = format!("{:016x}", std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), "origin"));
        Self { origin, heard: Mutex::default(), changed: Notify::new(), relay: Notify::new() }
    }

    /// This instance has written there.
    pub(super) fn wrote(&self, bucket: Bucket, events: bool, missions: bool) {
        let mut heard = self.heard();
        if events {
            heard.outboxes.insert(bucket);
        }
        if missions {
            heard.missions.insert(bucket);
        }
    }

    /// Takes what the server says unasked.
    pub(super) fn hear(&self, push: &PushInfo) {
        match push.kind {
            PushKind::Message | PushKind::SMessage => {
                let [Value::BulkString(channel), Value::BulkString(words)] = &push.data[..] else { return };
                let read = bucket_of(channel).zip(std::str::from_utf8(words).ok());
                if read.and_then(|(bucket, words)| self.hear_words(bucket, words)).is_none() {
                    tracing::warn!("a message about a change cannot be read");
                    self.missed();
                }
            }
            // Whatever was said meanwhile was not heard; after a subscription nothing more is missed.
            PushKind::Disconnection | PushKind::Subscribe | PushKind::SSubscribe | PushKind::SUnsubscribe => {
                self.missed();
            }
            _ => {}
        }
    }

    fn hear_words(&self, bucket: Bucket, words: &str) -> Option<()> {
        let mut words = words.split(' ');
        if words.next()? == self.origin {
            return Some(());
        }
        let (events, missions) = (words.next()? == "1", words.next()? == "1");
        let mut heard = self.heard();
        for word in words {
            heard.elsewhere.flights.insert(word.parse().ok()?);
        }
        if heard.elsewhere.flights.len() > MAX_FLIGHTS {
            heard.elsewhere = Elsewhere { missed: true, ..Elsewhere::default() };
        }
        if missions {
            heard.missions.insert(bucket);
            heard.missions_elsewhere = true;
        }
        if events {
            heard.outboxes.insert(bucket);
        }
        drop(heard);
        self.changed.notify_one();
        if events {
            self.relay.notify_one();
        }
        Some(())
    }

    /// Anything may have changed.
    fn missed(&self) {
        let mut heard = self.heard();
        heard.elsewhere.missed = true;
        heard.outboxes.extend(0..BUCKETS);
        drop(heard);
        self.changed.notify_one();
        self.relay.notify_one();
    }

    /// See `Store::changed_elsewhere`.
    pub(super) async fn changed_elsewhere(&self) -> Elsewhere {
        loop {
            {
                let mut heard = self.heard();
                let missions = mem::take(&mut heard.missions_elsewhere);
                if missions || heard.elsewhere != Elsewhere::default() {
                    return mem::take(&mut heard.elsewhere);
                }
            }
            self.changed.notified().await;
        }
    }

    /// Returns once another instance has written to an outbox.
    pub(super) async fn outbox_written_elsewhere(&self) {
        self.relay.notified().await;
    }

    /// The buckets whose mission log was written to, as far as is known, since this was last asked.
    pub(super) fn take_missions(&self) -> BTreeSet<Bucket> {
        mem::take(&mut self.heard().missions)
    }

    /// Those of the buckets whose outbox was written to, as far as is known, since this was last asked.
    pub(super) fn take_outboxes(&self, of: &[Bucket]) -> BTreeSet<Bucket> {
        let mut heard = self.heard();
        let taken: BTreeSet<Bucket> = of.iter().copied().filter(|bucket| heard.outboxes.contains(bucket)).collect();
        heard.outboxes.retain(|bucket| !taken.contains(bucket));
        taken
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bucket in a channel's name, between its braces.
fn bucket_of(channel: &[u8]) -> Option<Bucket> {
    let channel = std::str::from_utf8(channel).ok()?;
    channel.split_once('{')?.1.split_once('}')?.0.parse().ok().filter(|bucket| *bucket < BUCKETS)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::fixtures::id;

    fn message(bucket: Bucket, words: &str) -> PushInfo {
        let channel = format!("blue:tracking:{{{bucket}}}:changes");
        let data = vec![Value::BulkString(channel.into_bytes()), Value::BulkString(words.as_bytes().to_vec())];
        PushInfo { kind: PushKind::SMessage, data }
    }

    #[test]
    fn what_others_say_is_kept_until_it_is_asked_for() {
        let news = News::new();
        news.hear(&message(7, &format!("another 1 0 {} {}", id(1), id(2))));
        news.hear(&message(8, &format!("another 0 1 {}", id(1))));
        let heard = news.changed_elsewhere().now_or_never().unwrap();
        assert_eq!(heard, Elsewhere { flights: [id(1), id(2)].into(), missed: false });
        assert!(news.changed_elsewhere().now_or_never().is_none());
        assert_eq!(news.take_missions(), BTreeSet::from([8]));
        assert!(news.outbox_written_elsewhere().now_or_never().is_some());
        assert_eq!(news.take_outboxes(&[6, 7]), BTreeSet::from([7]));
        assert!(news.take_outboxes(&[7]).is_empty() && news.take_missions().is_empty());
    }

    #[test]
    fn ones_own_words_are_no_news_and_what_was_not_heard_may_be_anything() {
        let news = News::new();
        news.hear(&message(7, &format!("{} 1 1 {}", news.origin, id(1))));
        assert!(news.changed_elsewhere().now_or_never().is_none());
        for lost in [PushInfo { kind: PushKind::Disconnection, data: Vec::new() }, message(7, "another 1 1 a-parrot")] {
            news.hear(&lost);
            assert!(news.changed_elsewhere().now_or_never().unwrap().missed);
            assert_eq!(news.take_outboxes(&[1, 2]), BTreeSet::from([1, 2]));
        }
    }
}
