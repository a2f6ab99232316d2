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
    /// There is a transaction of which nobody knows whether it was committed.
    doubt: Notify,
}

impl News {
    pub(super) fn new(engine: &Engine) -> Self {
        Self { origin: Mutex::new(some_name()), hearing: engine.hearing(CHANNEL), doubt: Notify::new() }
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

    /// By another name from now on, after a transaction of which nobody knows whether it was committed: should it be, it is
    /// news. On an engine that notifies nobody, anything may be.
    pub(super) fn begin_anew(&self) {
        *self.origin.lock().unwrap_or_else(PoisonError::into_inner) = some_name();
        self.doubt.notify_one();
    }

    fn origin(&self) -> String {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// See `Store::changed_elsewhere`.
    pub(super) async fn next(&self) -> Result<Elsewhere, sqlx::Error> {
        let Some(hearing) = &self.hearing else {
            self.doubt.notified().await;
            return Ok(Elsewhere::Missed);
        };
        loop {
            let Heard::Said(words) = hearing.next().await? else { return Ok(Elsewhere::Missed) };
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

    fn deaf() -> News {
        News { origin: Mutex::new("me".to_owned()), hearing: None, doubt: Notify::new() }
    }

    #[tokio::test]
    async fn where_nobody_notifies_a_doubtful_commit_may_be_anything() {
        let news = deaf();
        assert!(futures::poll!(std::pin::pin!(news.next())).is_pending());
        news.begin_anew();
        assert_eq!(news.next().await.unwrap(), Elsewhere::Missed);
    }

    #[test]
    fn ones_own_changes_are_no_news_and_an_odd_word_is_refused() {
        let news = deaf();
        let mut changed = HashSet::new();
        let id = DeliveryId(uuid::Uuid::from_u128(7));
        assert!(news.read(&format!("me {id}"), &mut changed) && changed.is_empty());
        assert!(news.read(&format!("another {id} {id}"), &mut changed));
        assert_eq!(changed, HashSet::from([id]));
        assert!(!news.read("another paper", &mut changed));
    }

    #[test]
    fn ones_own_change_is_news_once_nobody_knows_what_became_of_it() {
        let news = deaf();
        let (mut changed, id) = (HashSet::new(), DeliveryId(uuid::Uuid::from_u128(7)));
        news.begin_anew();
        assert!(news.read(&format!("me {id}"), &mut changed));
        assert_eq!(changed, HashSet::from([id]));
    }
}
