//! Tells the other processes on a database which deliveries a transaction has changed, and hears what they tell.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use contracts::DeliveryId;
use messaging::{
    postgres::{Heard, Hearing, MAX_WORD},
    sql::Engine,
};
use tokio::sync::Notify;

use super::write::id_of;
use crate::store::{Change, Elsewhere};

/// The channel on which changes are told.
pub(super) const CHANNEL: &str = "changes";

/// Ids in one notification: with a blank and 36 bytes each they stay well below `messaging::postgres::MAX_WORD`, and a
/// full batch of changes is two notifications.
const IDS_IN_A_WORD: usize = 200;
const _: () = assert!(32 + IDS_IN_A_WORD * (36 + 1) <= MAX_WORD, "a full word, its origin included, is short enough");

/// Both ends of the channel.
pub(super) struct News {
    /// This process, in what it says: what it has changed itself is no news to it.
    origin: Mutex<String>,
    /// None on an engine without notifications.
    hearing: Option<Hearing>,
    /// The deliveries of transactions of which nobody knows whether they were committed, until they are told as news.
    doubtful: Mutex<HashSet<DeliveryId>>,
    in_doubt: Notify,
}

impl News {
    pub(super) fn new(engine: &Engine) -> Self {
        Self::with(some_name(), engine.hearing(CHANNEL))
    }

    fn with(origin: String, hearing: Option<Hearing>) -> Self {
        Self { origin: Mutex::new(origin), hearing, doubtful: Mutex::default(), in_doubt: Notify::new() }
    }

    /// What to say of these changes.
    pub(super) fn words(&self, changes: &[&Change]) -> Vec<String> {
        if self.hearing.is_none() {
            return Vec::new();
        }
        let origin = self.origin();
        let word = |part: &[&Change]| {
            let mut word = origin.clone();
            for change in part {
                word.push(' ');
                word.push_str(&change.delivery.record.delivery_id.to_string());
            }
            word
        };
        changes.chunks(IDS_IN_A_WORD).map(word).collect()
    }

    /// After a transaction of which nobody knows whether it was committed. It counts as news, since it may be already; and
    /// should it be later, then under a name that is no longer this process's.
    pub(super) fn doubt(&self, changes: &[Change]) {
        *self.origin.lock().unwrap_or_else(PoisonError::into_inner) = some_name();
        let ids = changes.iter().map(|change| change.delivery.record.delivery_id);
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
        self.in_doubt.notify_one();
    }

    fn origin(&self) -> String {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// See `Store::changed_elsewhere`.
    pub(super) async fn next(&self) -> Result<Elsewhere, sqlx::Error> {
        loop {
            let heard = tokio::select! {
                heard = self.hear() => heard?,
                () = self.in_doubt.notified() => {
                    let doubtful = std::mem::take(&mut *self.doubtful.lock().unwrap_or_else(PoisonError::into_inner));
                    return Ok(Elsewhere::Changed(doubtful));
                }
            };
            let Heard::Said(words) = heard else { return Ok(Elsewhere::Missed) };
            let mut changed = HashSet::new();
            for word in &words {
                if !self.read(word, &mut changed) {
                    tracing::warn!(word, "a notification of changes cannot be read");
                    return Ok(Elsewhere::Missed);
                }
            }
            if !changed.is_empty() {
                return Ok(Elsewhere::Changed(changed));
            }
        }
    }

    async fn hear(&self) -> Result<Heard, sqlx::Error> {
        match &self.hearing {
            Some(hearing) => hearing.next().await,
            None => std::future::pending().await,
        }
    }

    /// Adds what another process has changed; false where the word is not one of ours.
    fn read(&self, word: &str, changed: &mut HashSet<DeliveryId>) -> bool {
        let mut parts = word.split(' ');
        if parts.next() == Some(&*self.origin()) {
            return true;
        }
        for part in parts {
            let Ok(id) = id_of(part) else { return false };
            changed.insert(id);
        }
        true
    }
}

fn some_name() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::store::contract::samples::{id, new};

    fn deaf() -> News {
        News::with("me".to_owned(), None)
    }

    #[tokio::test]
    async fn what_a_doubtful_transaction_may_have_changed_is_news_at_once() {
        let news = deaf();
        assert!(futures::poll!(std::pin::pin!(news.next())).is_pending());
        news.doubt(&[new(7), new(8)]);
        news.doubt(&[new(9)]);
        assert_eq!(news.next().await.unwrap(), Elsewhere::Changed([id(7), id(8), id(9)].into()));
        assert!(futures::poll!(std::pin::pin!(news.next())).is_pending());
    }

    #[test]
    fn ones_own_changes_are_no_news_and_an_odd_word_is_refused() {
        let news = deaf();
        let mut changed = HashSet::new();
        assert!(news.read(&format!("me {}", id(7)), &mut changed) && changed.is_empty());
        assert!(news.read(&format!("another {0} {0}", id(7)), &mut changed));
        assert_eq!(changed, HashSet::from([id(7)]));
        assert!(!news.read("another paper", &mut changed));
    }

    #[test]
    fn ones_own_change_is_news_where_it_comes_after_the_doubt() {
        let news = deaf();
        let mut changed = HashSet::new();
        news.doubt(&[new(7)]);
        assert!(news.read(&format!("me {}", id(7)), &mut changed));
        assert_eq!(changed, HashSet::from([id(7)]));
    }
}
