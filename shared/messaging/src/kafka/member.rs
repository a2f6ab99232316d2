//! A member of a consumer group as the client library has it: its partitions come and go by callbacks.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use rdkafka::{
    ClientContext, TopicPartitionList,
    consumer::{
        BaseConsumer, Consumer, ConsumerContext, Rebalance, StreamConsumer, stream_consumer::StreamPartitionQueue,
    },
    error::{KafkaError, RDKafkaErrorCode},
};

use super::client;
use crate::LogError;

/// The consumer of a member.
pub(super) type Member = StreamConsumer<Context>;

/// The records of one partition, apart from all others: so a busy one does not hold up the rest, and what happens to the
/// group is heard whether or not anybody takes records.
pub(super) type Queue = StreamPartitionQueue<Context>;

/// What a rebalance has done.
pub(super) enum Change {
    /// The member has joined; partitions are its from now on, perhaps none.
    Given(Vec<(String, i32, Option<Queue>)>),
    /// Partitions are no longer its.
    Taken(Vec<(String, i32)>),
}

/// What the callbacks of a member tell it.
#[derive(Default)]
pub(super) struct Context {
    changes: Mutex<Vec<Change>>,
    /// Set right after it was made; weak, so that who drops the member ends it.
    member: OnceLock<Weak<Member>>,
}

/// Joins a group.
pub(super) fn join(brokers: &str, group: &str, topics: &[&str]) -> Result<Arc<Member>, KafkaError> {
    let member: Member = client(brokers)
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Members keep what they have while others come and go.
        .set("partition.assignment.strategy", "cooperative-sticky")
        // The least that brokers allow: the partitions of a member that was killed move on after this and a heartbeat.
        .set("session.timeout.ms", "6000")
        // Also how soon a member hears that another has joined.
        .set("heartbeat.interval.ms", "1000")
        // A member that has not come back for more within two minutes (no batch takes that long, unless its store is
        // away) leaves its partitions to those that do; it joins again when it comes back.
        .set("max.poll.interval.ms", "120000")
        // Read ahead: some batches of each partition, a few megabytes in all, for a dozen groups in a process.
        .set("queued.min.messages", "1000")
        .set("queued.max.messages.kbytes", "4096")
        .create_with_context(Context::default())?;
    let member = Arc::new(member);
    // Nobody else can have set it.
    let _ = member.context().member.set(Arc::downgrade(&member));
    member.subscribe(topics)?;
    Ok(member)
}

impl Context {
    pub(super) fn changed(&self) -> bool {
        !self.changes.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What has changed since the last call, in order.
    pub(super) fn changes(&self) -> Vec<Change> {
        std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, change: Change) {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push(change);
    }
}

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "a consumer of the event log");
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => {
                // None while it is ending.
                let member = self.member.get().and_then(Weak::upgrade);
                // Before it is assigned: no record goes into the common queue.
                let queue = |topic: &str, partition| member.as_ref()?.split_partition_queue(topic, partition);
                let given = places(partitions).map(|(topic, at)| (queue(&topic, at), topic, at));
                self.push(Change::Given(given.map(|(queue, topic, at)| (topic, at, queue)).collect()));
            }
            Rebalance::Revoke(partitions) => self.push(Change::Taken(places(partitions).collect())),
            Rebalance::Error(error) => tracing::warn!(%error, "a consumer group could not rebalance"),
        }
    }
}

fn places(partitions: &TopicPartitionList) -> impl Iterator<Item = (String, i32)> {
    partitions.elements().into_iter().map(|element| (element.topic().to_owned(), element.partition()))
}

/// Whether an error says that the group is not, or is no longer, as the member knew it: to be asked again when it has
/// settled, for what is this member's then.
pub(super) fn is_rebalancing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::RebalanceInProgress
                | Code::IllegalGeneration
                | Code::UnknownMemberId
                | Code::AssignmentLost
                | Code::FencedInstanceId
        )
    )
}

/// Whether an error says to ask again soon: a partition has just been made, or finds another leader.
pub(super) fn is_moving(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::NotCoordinator
                | Code::CoordinatorNotAvailable
                | Code::CoordinatorLoadInProgress
                | Code::WaitingForCoordinator
        )
    )
}

/// What an error that came instead of a record means for the caller: nothing where the client mends it by itself (a
/// broker that is away, a leader that moves), else that the member had better be made anew.
pub(super) fn judge(error: KafkaError) -> Result<(), LogError> {
    use RDKafkaErrorCode as Code;
    let mended = !matches!(error, KafkaError::MessageConsumptionFatal(_))
        && !matches!(
            error.rdkafka_error_code(),
            Some(
                Code::UnknownTopicOrPartition
                    | Code::UnknownTopic
                    | Code::UnknownPartition
                    | Code::TopicAuthorizationFailed
                    | Code::GroupAuthorizationFailed
                    | Code::Fatal
            )
        );
    if mended {
        tracing::warn!(%error, "a consumer of the event log goes on");
        return Ok(());
    }
    Err(LogError::unavailable(error))
}
