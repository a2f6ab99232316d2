//! How replicas share the buckets of an outbox: each takes its part, and gives up what is more than that.

use contracts::Timestamp;
use serde::{Deserialize, Serialize};

use super::Bucket;

/// Who reads a bucket, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// The bucket.
    pub(super) bucket: Bucket,
    /// The reader that leased it last; empty where nobody did.
    pub(super) owner: String,
    /// Until when.
    pub(super) until: Timestamp,
}

/// Which buckets `owner`, one of `members` live relays, shall read from `now` on: its own first, then those that nobody
/// holds, and never more than its share, so that a relay that has just come finds some free at the next renewals.
pub(super) fn fair_share(leases: &[Lease], owner: &str, members: usize, now: Timestamp) -> Vec<Bucket> {
    let share = leases.len().div_ceil(members.max(1));
    let own = leases.iter().filter(|lease| lease.owner == owner);
    let free = leases.iter().filter(|lease| lease.owner != owner && lease.until < now);
    own.chain(free).take(share).map(|lease| lease.bucket).collect()
}

/// The leases of all buckets, and the relays that asked for some lately: for a store that keeps them as one document,
/// read, renewed, and written if nobody else has written it meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    buckets: Vec<Lease>,
    members: Vec<(String, Timestamp)>,
}

impl Leases {
    /// Nobody has leased any of so many buckets.
    pub fn free(buckets: Bucket) -> Self {
        let nobody = |bucket| Lease { bucket, owner: String::new(), until: Timestamp::UNIX_EPOCH };
        Self { buckets: (0..buckets).map(nobody).collect(), members: Vec::new() }
    }

    /// Gives `owner` its fair share until then, or takes everything from it where that is over; what it has now.
    pub fn renew(&mut self, owner: &str, now: Timestamp, until: Timestamp) -> Vec<Bucket> {
        self.members.retain(|(member, until)| member != owner && *until >= now);
        let stays = until >= now;
        if stays {
            self.members.push((owner.to_owned(), until));
        }
        let held = if stays { fair_share(&self.buckets, owner, self.members.len(), now) } else { Vec::new() };
        for lease in &mut self.buckets {
            if held.contains(&lease.bucket) {
                (lease.owner, lease.until) = (owner.to_owned(), until);
            } else if lease.owner == owner {
                (lease.owner, lease.until) = (String::new(), Timestamp::UNIX_EPOCH);
            }
        }
        held
    }
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

    #[test]
    fn who_comes_gets_its_share_at_the_next_renewal_and_who_leaves_frees_it() {
        let mut leases = Leases::free(4);
        assert_eq!(leases.renew("one", at(1), at(5)), [0, 1, 2, 3]);
        assert_eq!(leases.renew("two", at(1), at(6)), [] as [Bucket; 0]);
        assert_eq!(leases.renew("one", at(2), at(7)), [0, 1]);
        assert_eq!(leases.renew("two", at(2), at(7)), [2, 3]);
        assert_eq!(leases.renew("one", at(3), Timestamp::UNIX_EPOCH), [] as [Bucket; 0]);
        assert_eq!(leases.renew("two", at(3), at(8)), [2, 3, 0, 1]);
    }
}
