//! Package ingestion against raw `insert_many`: the same documents, batches, callers and write concern, in turns.
//!
//! Needs `TEST_MONGODB_URL`. Prints one line of JSON for each row of the table that `load-tests/stores` makes.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use contracts::{
    Clock, CustomerId, SystemClock,
    api::{PackageSize, PackageSpec, default_region},
    commands::{PackageOutcome, RegisterPackage},
};
use futures::TryStreamExt;
use mongodb::{
    Collection, Database,
    bson::{RawDocumentBuf, doc},
};
use package::bench::Ingestion;
use serde_json::json;
use testkit::mongodb::{database, drop_database};
use tokio::task::JoinSet;

/// The collections of the store, in the order in which a batch writes them.
const COLLECTIONS: [&str; 2] = ["contents", "packages"];

/// What a customer may say of a package at most, and a bit less: the bulky part.
const DESCRIPTION_BYTES: usize = 400;

/// How much is written, and how.
#[derive(Debug, Clone, Parser)]
struct Settings {
    /// Packages of one turn.
    #[arg(long, default_value_t = 40_000)]
    packages: usize,
    /// Packages of one request; the saga's commands come in at most 512.
    #[arg(long, default_value_t = 500)]
    batch: usize,
    /// Requests under way at once.
    #[arg(long, default_value_t = 8)]
    callers: usize,
    /// Turns of each side; the table has the medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What `cargo bench` says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    for described in [false, true] {
        row(&settings, described).await?;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "its only output")]
async fn row(settings: &Settings, described: bool) -> anyhow::Result<()> {
    let (mut ours, mut raw, mut indexed) = (Vec::new(), Vec::new(), Vec::new());
    let mut bytes = [0; COLLECTIONS.len()];
    // The first turn warms both sides up.
    for round in 0..=settings.rounds {
        let store = database("bench").context("TEST_MONGODB_URL is not set")?;
        let seconds = ingest(settings, &store, described).await?;
        let written = written(settings, &store).await?;
        bytes = std::array::from_fn(|place| written[place].iter().flatten().map(|it| it.as_bytes().len()).sum());
        drop_database(&store).await;
        let bare = insert(settings, written.clone(), false).await?;
        let with_indexes = insert(settings, written, true).await?;
        if round > 0 {
            ours.push(rate(settings, seconds));
            raw.push(rate(settings, bare));
            indexed.push(rate(settings, with_indexes));
        }
    }
    let per_package = |place: usize| bytes[place] / settings.packages;
    let line = json!({
        "row": if described { "ingest with contents" } else { "ingest" },
        "ours": median(&mut ours),
        "raw": median(&mut raw),
        "raw_with_indexes": median(&mut indexed),
        "contents_bytes": per_package(0),
        "package_bytes": per_package(1),
        "packages": settings.packages,
        "batch": settings.batch,
        "callers": settings.callers,
        "rounds": settings.rounds,
    });
    println!("{line}");
    Ok(())
}

fn rate(settings: &Settings, seconds: f64) -> f64 {
    settings.packages as f64 / seconds
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Registers fresh packages in the store at `url`: in how many seconds.
async fn ingest(settings: &Settings, url: &str, described: bool) -> anyhow::Result<f64> {
    let (ingestion, worker) = Ingestion::open(url, Arc::new(SystemClock)).await?;
    let requests = requests(settings, described)?;
    let mut working = JoinSet::new();
    working.spawn(worker);
    let started = Instant::now();
    let mut callers = JoinSet::new();
    for requests in shares(requests, settings.callers) {
        let ingestion = ingestion.clone();
        callers.spawn(async move {
            for commands in requests {
                let outcomes = ingestion.register(commands).await?;
                ensure!(outcomes.iter().all(|outcome| *outcome == PackageOutcome::Done), "{outcomes:?}");
            }
            Ok(())
        });
    }
    finish(callers).await?;
    let seconds = started.elapsed().as_secs_f64();
    drop(ingestion);
    working.join_all().await;
    Ok(seconds)
}

fn requests(settings: &Settings, described: bool) -> anyhow::Result<Vec<Vec<RegisterPackage>>> {
    let customer_id: CustomerId = "0198a1b2-customer-of-the-benchmark".parse()?;
    let command = |number: usize| RegisterPackage {
        delivery_id: SystemClock.new_delivery_id(),
        attempt: 1,
        fence: 1,
        step_deadline: SystemClock.now() + chrono::Duration::hours(1),
        customer_id: customer_id.clone(),
        home_region: default_region(),
        package: PackageSpec {
            size: PackageSize::Medium,
            weight_kg: 1.25,
            tag: described.then(|| format!("order {number}")),
            description: described.then(|| format!("{number:0DESCRIPTION_BYTES$}")),
        },
    };
    let commands: Vec<_> = (0..settings.packages).map(command).collect();
    Ok(commands.chunks(settings.batch).map(<[_]>::to_vec).collect())
}

/// What the store at `url` holds of each collection, as it holds it.
async fn written(settings: &Settings, url: &str) -> anyhow::Result<Vec<Vec<Vec<RawDocumentBuf>>>> {
    let from = messaging::mongodb::open(url, "").await?;
    let mut collections = Vec::new();
    for name in COLLECTIONS {
        let documents: Vec<_> = from.collection(name).find(doc! {}).await?.try_collect().await?;
        collections.push(documents.chunks(settings.batch).map(<[_]>::to_vec).collect());
    }
    Ok(collections)
}

/// Inserts the same documents into fresh collections, bare or with the store's indexes and schema: in how many seconds.
async fn insert(
    settings: &Settings,
    mut collections: Vec<Vec<Vec<RawDocumentBuf>>>,
    indexed: bool,
) -> anyhow::Result<f64> {
    let url = database("bench").context("TEST_MONGODB_URL is not set")?;
    // Journaled by a majority, as all stores do it.
    let into = messaging::mongodb::open(&url, "").await?;
    if indexed {
        drop(Ingestion::open(&url, Arc::new(SystemClock)).await?);
    } else {
        create(&into).await?;
    }
    let mut requests =
        collections.pop().unwrap_or_default().into_iter().map(|packages| vec![(1, packages)]).collect::<Vec<_>>();
    for (request, contents) in requests.iter_mut().zip(collections.pop().unwrap_or_default()) {
        request.insert(0, (0, contents));
    }
    let started = Instant::now();
    let mut callers = JoinSet::new();
    for requests in shares(requests, settings.callers) {
        let into = COLLECTIONS.map(|name| into.collection::<RawDocumentBuf>(name));
        callers.spawn(async move {
            for (collection, documents) in requests.into_iter().flatten() {
                insert_many(&into[collection], documents).await?;
            }
            Ok(())
        });
    }
    finish(callers).await?;
    let seconds = started.elapsed().as_secs_f64();
    drop_database(&url).await;
    Ok(seconds)
}

async fn create(database: &Database) -> anyhow::Result<()> {
    for name in COLLECTIONS {
        database.create_collection(name).await?;
    }
    Ok(())
}

async fn insert_many(into: &Collection<RawDocumentBuf>, documents: Vec<RawDocumentBuf>) -> anyhow::Result<()> {
    let expected = documents.len();
    let inserted = into.insert_many(documents).ordered(false).await?.inserted_ids.len();
    ensure!(inserted == expected, "{inserted} of {expected}");
    Ok(())
}

/// Deals requests out to callers.
fn shares<T>(requests: Vec<T>, callers: usize) -> Vec<Vec<T>> {
    let mut shares: Vec<Vec<T>> = (0..callers).map(|_| Vec::new()).collect();
    for (number, request) in requests.into_iter().enumerate() {
        shares[number % callers].push(request);
    }
    shares
}

async fn finish(mut callers: JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(())
}
