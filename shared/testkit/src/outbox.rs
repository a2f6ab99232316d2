//! What tests ask of every outbox: what lies in it, and that replicas share it.

use std::collections::BTreeSet;

use contracts::{Clock, SystemClock, Timestamp};
use messaging::outbox::{Bucket, OutboxRow, OutboxSource};

/// Everything that waits in an outbox, in its order; leases all of it for a moment, so no relay may run beside it.
#[allow(clippy::unwrap_used, reason = "for tests")]
pub async fn pending(outbox: &dyn OutboxSource) -> Vec<OutboxRow> {
    let now = SystemClock.now();
    let buckets = outbox.lease("test", now, now + chrono::Duration::hours(1)).await.unwrap();
    let rows = outbox.read(&buckets, 100_000).await.unwrap();
    outbox.lease("test", now, Timestamp::UNIX_EPOCH).await.unwrap();
    rows
}

/// The part of the outbox's contract that is about leases; on an outbox that nobody has leased yet. `shared` is false
/// for an engine whose outbox is one bucket.
#[allow(clippy::unwrap_used, reason = "for tests")]
pub async fn shares_its_buckets(outbox: &dyn OutboxSource, shared: bool) {
    let start = SystemClock.now();
    let at = |seconds| start + chrono::Duration::seconds(seconds);
    let lease = async |owner: &str, now: i64, until: i64| -> BTreeSet<Bucket> {
        outbox.lease(owner, at(now), at(until)).await.unwrap().into_iter().collect()
    };
    let all = lease("one", 0, 5).await;
    assert!(!all.is_empty(), "a lonely relay has everything");
    assert_eq!(lease("two", 1, 6).await, BTreeSet::new(), "what is held is not given to another");
    let (one, two) = (lease("one", 2, 7).await, lease("two", 2, 7).await);
    if shared {
        assert!(one.len().abs_diff(two.len()) <= 1, "fair shares: {} and {}", one.len(), two.len());
        assert!(one.is_disjoint(&two));
        assert_eq!(one.union(&two).copied().collect::<BTreeSet<_>>(), all);
        assert_eq!(lease("one", 4, 9).await, one, "a renewal keeps what one has");
    } else {
        assert_eq!((one, two), (all.clone(), BTreeSet::new()));
        assert_eq!(lease("one", 4, 9).await, all);
    }
    // One is gone without a word: its lease ends at 9.
    assert!(!lease("two", 6, 8).await.is_superset(&all));
    assert_eq!(lease("two", 10, 15).await, all, "what a lost relay had is taken over when its lease ends");
    assert_eq!(lease("three", 11, 16).await, BTreeSet::new());
    // Two gives everything up.
    assert_eq!(outbox.lease("two", at(11), Timestamp::UNIX_EPOCH).await.unwrap(), [] as [Bucket; 0]);
    assert_eq!(lease("three", 11, 16).await, all, "what was given up is free at once");
}
