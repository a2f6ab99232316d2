//! How replicas share the buckets of an outbox: each takes its part, and gives up what is more than that.

use contracts::Timestamp;

use super::Bucket;

/// Who reads a bucket, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The bucket.
    pub bucket: Bucket,
    /// The reader that leased it last; empty where nobody did.
    pub owner: String,
    /// Until when.
    pub until: Timestamp,
}

/// Which buckets `owner`, one of `members` live relays, shall read from `now` on: its own first, then those that nobody
/// holds, and never more than its share, so that a relay that has just come finds some free at the next renewals.
pub fn fair_share(leases: &[Lease], owner: &str, members: usize, now: Timestamp) -> Vec<Bucket> {
    let share = leases.len().div_ceil(members.max(1));
    let own = leases.iter().filter(|lease| lease.owner == owner);
    let free = leases.iter().filter(|lease| lease.owner != owner && lease.until < now);
    own.chain(free).take(share).map(|lease| lease.bucket).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + chrono::Duration::seconds(second)
    }

    fn lease(bucket: Bucket, owner: &str, until: i64) -> Lease {
        Lease { bucket, owner: owner.to_owned(), until: at(until) }
    }

    #[test]
    fn a_lonely_relay_takes_everything_that_is_free() {
        let leases = [lease(0, "", 0), lease(1, "gone", 5), lease(2, "other", 20), lease(3, "me", 12)];
        assert_eq!(fair_share(&leases, "me", 1, at(10)), [3, 0, 1]);
    }

    #[test]
    fn who_has_more_than_a_fair_share_keeps_only_that() {
        let leases: Vec<_> = (0..5).map(|bucket| lease(bucket, "me", 20)).collect();
        assert_eq!(fair_share(&leases, "me", 2, at(10)), [0, 1, 2]);
        assert_eq!(fair_share(&leases, "new", 2, at(10)), [] as [Bucket; 0]);
    }
}
