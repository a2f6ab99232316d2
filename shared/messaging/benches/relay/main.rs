//! The way from PostgreSQL's outbox to Kafka: how fast a backlog leaves, and how long one event takes to its consumer.
//!
//! Needs `TEST_POSTGRES_URL` and `TEST_KAFKA_URL`. Prints one line of JSON for each row of the table that
//! `load-tests/stores` makes.

mod drain;
mod latency;
mod place;

use clap::Parser;

/// How much is relayed.
#[derive(Debug, Clone, Parser)]
struct Settings {
    /// Events of the backlog, of about a kilobyte each.
    #[arg(long, default_value_t = 500_000)]
    backlog: usize,
    /// Events committed a second, where latency is measured.
    #[arg(long, default_value_t = 1_000)]
    per_second: usize,
    /// How long they come.
    #[arg(long, default_value_t = 30)]
    seconds: usize,
    /// What `cargo bench` says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "its only output")]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    println!("{}", drain::row(settings.backlog).await?);
    println!("{}", latency::row(settings.per_second, settings.seconds).await?);
    Ok(())
}
