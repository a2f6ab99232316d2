//! Turns concurrent single requests into batches: what waits while one batch is under way becomes the next one.

use std::{future::Future, time::Duration};

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot};

use crate::Pace;

/// How a batcher behaves. All bounds are the caller's to name.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most items in one batch.
    pub max_batch: usize,
    /// The most items waiting; past that, callers wait to enqueue.
    pub queue: usize,
    /// The most batches under way at once.
    pub concurrency: usize,
    /// The least time between the starts of two batches. An item that comes after a quiet spell starts one at once; in
    /// a busy one, what a batch costs is shared by all that come within this time.
    pub pace: Duration,
}

/// The batcher's worker has ended: the service is shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("shutting down")]
pub struct BatcherClosed;

struct Job<I, O> {
    item: I,
    answer: oneshot::Sender<O>,
}

/// A handle to enqueue items; cheap to clone. The worker ends once all handles are gone.
pub struct Batcher<I, O> {
    queue: mpsc::Sender<Job<I, O>>,
}

impl<I, O> Clone for Batcher<I, O> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<I: Send + 'static, O: Send + 'static> Batcher<I, O> {
    /// A handle, and the worker that the caller must run (on its own JoinSet). `run` answers one output for each item,
    /// in order.
    pub fn new<F, Fut>(limits: Limits, run: F) -> (Self, impl Future<Output = ()> + Send + 'static)
    where
        F: Fn(Vec<I>) -> Fut + Send + 'static,
        Fut: Future<Output = Vec<O>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(limits.queue);
        (Self { queue: sender }, work(receiver, limits, run))
    }

    /// Has `item` done with whatever else is waiting.
    pub async fn call(&self, item: I) -> Result<O, BatcherClosed> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(Job { item, answer }).await.map_err(|_| BatcherClosed)?;
        answered.await.map_err(|_| BatcherClosed)
    }
}

async fn work<I, O, F, Fut>(mut queue: mpsc::Receiver<Job<I, O>>, limits: Limits, run: F)
where
    F: Fn(Vec<I>) -> Fut,
    Fut: Future<Output = Vec<O>>,
{
    let mut under_way = FuturesUnordered::new();
    let mut jobs = Vec::new();
    let mut pace = Pace::new(limits.pace);
    let mut may_start = true;
    loop {
        tokio::select! {
            () = pace.next(), if !may_start => may_start = true,
            received = queue.recv_many(&mut jobs, limits.max_batch),
                if may_start && under_way.len() < limits.concurrency =>
            {
                if received == 0 {
                    break;
                }
                may_start = false;
                let (items, answers): (Vec<I>, Vec<_>) = jobs.drain(..).map(|job| (job.item, job.answer)).unzip();
                let done = run(items);
                under_way.push(async move { reply(answers, done.await) });
            }
            Some(()) = under_way.next() => {}
        }
    }
    while under_way.next().await.is_some() {}
}

fn reply<O>(answers: Vec<oneshot::Sender<O>>, outputs: Vec<O>) {
    debug_assert_eq!(answers.len(), outputs.len(), "one output for each item");
    for (answer, output) in answers.into_iter().zip(outputs) {
        // A caller that gave up does not want its answer.
        let _ = answer.send(output);
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn what_waits_becomes_one_batch_and_each_gets_its_own_answer() {
        let (sizes_in, mut sizes) = mpsc::channel(100);
        let limits = Limits { max_batch: 64, queue: 128, concurrency: 1, pace: Duration::ZERO };
        let (batcher, worker) = Batcher::new(limits, move |items: Vec<u32>| {
            let sizes_in = sizes_in.clone();
            async move {
                sizes_in.send(items.len()).await.unwrap();
                tokio::task::yield_now().await;
                items.into_iter().map(|item| item * 2).collect()
            }
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(worker);
        let calls = (0..100u32).map(|item| batcher.call(item));
        let answers = futures::future::join_all(calls).await;
        for (item, answer) in (0..100).zip(answers) {
            assert_eq!(answer, Ok(item * 2));
        }
        drop(batcher);
        tasks.join_next().await;
        let mut batches = Vec::new();
        while let Some(size) = sizes.recv().await {
            batches.push(size);
        }
        assert_eq!(batches.iter().sum::<usize>(), 100);
        assert!(batches.len() < 20, "{batches:?}");
    }
}
