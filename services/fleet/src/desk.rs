//! The desk in front of the fleet: concurrent requests share transactions.

use std::{future::Future, sync::Arc, time::Duration};

use chassis::supervise::Tasks;
use contracts::commands::{ReleaseDrone, ReleaseOutcome, ReportOutcome, ReserveDrone, ReserveOutcome};
use messaging::{Batcher, BatcherClosed, batch::Limits};

use crate::{
    domain::{Drone, Registration},
    fleet::{Fleet, RegisterError},
    reports::Report,
};

/// Requests in one batch and in the queue: a request may hold hundreds of commands, and every transaction is bounded by
/// itself. One batch at a time, since the store has one writer.
const REQUESTS: Limits = Limits { max_batch: 64, queue: 256, concurrency: 1, pace: Duration::ZERO };

/// Requests with reports: up to ten thousand reports each, so that fewer may wait in memory.
///
/// Paced: a transaction for all bases together writes a page of drones once, and not once for each base. A drone's
/// position in the store is a hint to whom to offer what, and may be this much older.
const REPORT_REQUESTS: Limits = Limits { max_batch: 64, queue: 128, concurrency: 1, pace: Duration::from_millis(100) };

/// Registrations come one by one, by the thousand when a fleet starts.
const REGISTRATIONS: Limits = Limits { max_batch: 256, queue: 1_024, concurrency: 1, pace: Duration::ZERO };

type Requests<C, O> = Batcher<Vec<C>, Vec<O>>;

/// Where requests queue. Its workers end once all handles are gone.
#[derive(Clone)]
pub(crate) struct Desk {
    reserve: Requests<ReserveDrone, ReserveOutcome>,
    release: Requests<ReleaseDrone, ReleaseOutcome>,
    report: Requests<Report, ReportOutcome>,
    register: Batcher<Registration, Result<Drone, RegisterError>>,
}

impl Desk {
    /// A desk whose workers run among `tasks`.
    pub(crate) fn open(fleet: &Arc<Fleet>, tasks: &mut Tasks) -> Self {
        let at = fleet.clone();
        let reserve = requests(REQUESTS, tasks, move |commands| {
            let fleet = at.clone();
            async move { fleet.reserve(&commands).await }
        });
        let at = fleet.clone();
        let release = requests(REQUESTS, tasks, move |commands| {
            let fleet = at.clone();
            async move { fleet.release(&commands).await }
        });
        let at = fleet.clone();
        let report = requests(REPORT_REQUESTS, tasks, move |reports| {
            let fleet = at.clone();
            async move { fleet.report(&reports).await }
        });
        let at = fleet.clone();
        let (register, worker) = Batcher::new(REGISTRATIONS, move |batch: Vec<Registration>| {
            let fleet = at.clone();
            async move { fleet.register(&batch).await }
        });
        tasks.spawn(ended(worker));
        Self { reserve, release, report, register }
    }

    /// See [`Fleet::reserve`].
    pub(crate) async fn reserve(&self, commands: Vec<ReserveDrone>) -> Result<Vec<ReserveOutcome>, BatcherClosed> {
        self.reserve.call(commands).await
    }

    /// See [`Fleet::release`].
    pub(crate) async fn release(&self, commands: Vec<ReleaseDrone>) -> Result<Vec<ReleaseOutcome>, BatcherClosed> {
        self.release.call(commands).await
    }

    /// See [`Fleet::report`].
    pub(crate) async fn report(&self, reports: Vec<Report>) -> Result<Vec<ReportOutcome>, BatcherClosed> {
        self.report.call(reports).await
    }

    /// See [`Fleet::register`].
    pub(crate) async fn register(&self, registration: Registration) -> Result<Drone, RegisterError> {
        self.register.call(registration).await.unwrap_or(Err(RegisterError::Unavailable))
    }
}

async fn ended(worker: impl Future<Output = ()>) -> anyhow::Result<()> {
    worker.await;
    Ok(())
}

/// A batcher of requests that each hold commands: their commands are done together.
fn requests<C, O, F, Fut>(limits: Limits, tasks: &mut Tasks, run: F) -> Requests<C, O>
where
    C: Send + 'static,
    O: Send + 'static,
    F: Fn(Vec<C>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Vec<O>> + Send + 'static,
{
    let (batcher, worker) = Batcher::new(limits, move |requests: Vec<Vec<C>>| {
        let run = run.clone();
        async move {
            let sizes: Vec<_> = requests.iter().map(Vec::len).collect();
            let mut outcomes = run(requests.into_iter().flatten().collect()).await.into_iter();
            sizes.into_iter().map(|size| outcomes.by_ref().take(size).collect()).collect()
        }
    });
    tasks.spawn(ended(worker));
    batcher
}
