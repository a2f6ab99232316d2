//! What `benches/ingest.rs` drives: the store behind its queue, without the HTTP side.

use std::{future::Future, sync::Arc};

use contracts::{
    Clock,
    commands::{PackageOutcome, RegisterPackage},
};

use crate::{
    domain::Command,
    store::{self, Ingest},
};

/// The way of register commands into a store.
#[derive(Clone)]
pub struct Ingestion(Ingest);

impl Ingestion {
    /// Opens the store that a URL names, and gives the worker that must run for it; the worker ends once all copies of
    /// this are gone. Nothing relays the store's events: they stay where they are.
    pub async fn open(
        url: &str,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<(Self, impl Future<Output = ()> + Send + 'static)> {
        let opened = store::open(url, store::Relaying::Poll, clock).await?;
        let (ingest, worker) = store::ingest(opened.store, opened.writers);
        Ok((Self(ingest), worker))
    }

    /// One request of the saga: commands that share it, and an outcome for each, or the first failure.
    pub async fn register(&self, commands: Vec<RegisterPackage>) -> anyhow::Result<Vec<PackageOutcome>> {
        let applied = self.0.call(commands.into_iter().map(Command::Register).collect()).await?;
        Ok(applied.into_iter().collect::<Result<_, _>>()?)
    }
}
