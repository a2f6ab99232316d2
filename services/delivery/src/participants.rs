//! The other services as the saga sees them: single commands go out in batches.

use std::time::Duration;

use chassis::Peer;
use contracts::commands::{
    CloseFlight, CloseOutcome, OpenFlight, OpenOutcome, PackageOutcome, RegisterPackage, ReleaseDrone, ReleaseOutcome,
    ReserveDrone, ReserveOutcome, WithdrawPackage,
};
use messaging::{Batcher, batch::Limits, outbox::chain};
use serde::{Serialize, de::DeserializeOwned};

/// How commands are gathered.
const COMMAND_LIMITS: Limits = Limits {
    // A request of a quarter megabyte, and a batch that a store writes in some milliseconds.
    max_batch: 256,
    // More than all sagas under way at once: nobody waits to enqueue.
    queue: 4_096,
    // While one is on its way the next is gathered; a slow one does not hold up all.
    concurrency: 4,
    // Nobody waits for a step of a saga, so that a busy second is a hundred requests at most.
    pace: Duration::from_millis(10),
};

/// Batchers to the participants of the saga.
#[derive(Clone)]
pub(crate) struct Participants {
    pub(crate) register: Batcher<RegisterPackage, PackageOutcome>,
    pub(crate) withdraw: Batcher<WithdrawPackage, PackageOutcome>,
    pub(crate) reserve: Batcher<ReserveDrone, ReserveOutcome>,
    pub(crate) release: Batcher<ReleaseDrone, ReleaseOutcome>,
    pub(crate) open: Batcher<OpenFlight, OpenOutcome>,
    pub(crate) close: Batcher<CloseFlight, CloseOutcome>,
}

/// The peers of this service.
pub(crate) struct Peers {
    pub(crate) package: Peer,
    pub(crate) fleet: Peer,
    pub(crate) tracking: Peer,
}

impl Participants {
    /// Batchers to `peers`; `spawn` runs their workers.
    pub(crate) fn new(peers: &Peers, tasks: &mut chassis::supervise::Tasks) -> Self {
        Self {
            register: batcher(&peers.package, "/commands/register", PackageOutcome::Unavailable, tasks),
            withdraw: batcher(&peers.package, "/commands/withdraw", PackageOutcome::Unavailable, tasks),
            reserve: batcher(&peers.fleet, "/commands/reserve", ReserveOutcome::Unavailable, tasks),
            release: batcher(&peers.fleet, "/commands/release", ReleaseOutcome::Unavailable, tasks),
            open: batcher(&peers.tracking, "/commands/open-flight", OpenOutcome::Unavailable, tasks),
            close: batcher(&peers.tracking, "/commands/close-flight", CloseOutcome::Unavailable, tasks),
        }
    }
}

fn batcher<C, O>(
    peer: &Peer,
    path: &'static str,
    unavailable: O,
    tasks: &mut chassis::supervise::Tasks,
) -> Batcher<C, O>
where
    C: Serialize + Send + Sync + 'static,
    O: DeserializeOwned + Clone + Send + Sync + 'static,
{
    let peer = peer.clone();
    let (batcher, worker) =
        Batcher::new(COMMAND_LIMITS, move |commands| say(peer.clone(), path, commands, unavailable.clone()));
    tasks.spawn(async move {
        worker.await;
        Ok(())
    });
    batcher
}

/// Says a batch; where the peer does not answer, the outcome of every command in it is unknown.
async fn say<C, O>(peer: Peer, path: &'static str, commands: Vec<C>, unavailable: O) -> Vec<O>
where
    C: Serialize + Send + Sync + 'static,
    O: DeserializeOwned + Clone + Send + Sync + 'static,
{
    let asked = commands.len();
    match peer.command(path, commands).await {
        Ok(outcomes) => outcomes,
        Err(error) => {
            tracing::warn!(peer = peer.name(), path, asked, error = %chain(&error), "commands without an answer");
            vec![unavailable; asked]
        }
    }
}
