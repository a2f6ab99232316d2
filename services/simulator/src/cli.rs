//! The simulator's command line: `simulator run` against a gateway, `simulator city` to draw the map.

use std::{
    ffi::OsStr,
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args as _, FromArgMatches as _, Parser, Subcommand};
use contracts::{Clock as _, SystemClock};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{Config, Progress};

/// How often the progress is said.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Drones that fly and customers that order, through the gateway's public API
#[derive(Debug, Parser)]
#[command(name = "simulator", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fly and order (the default)
    Run(#[command(flatten)] Config),
    /// Make the city's map as GeoJSON
    City {
        /// The same seed makes the same city
        #[arg(long, default_value_t = 7)]
        seed: u64,
        /// Where to write it; to the standard output unless given
        #[arg(long)]
        out: Option<PathBuf>,
    },
}

/// What the program does; the status says whether it went well.
pub fn main() -> ExitCode {
    let Err(error) = execute(parse()) else { return ExitCode::SUCCESS };
    // Where even that cannot be written there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::FAILURE
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::City { seed, out } => draw_city(seed, out),
        Command::Run(config) => {
            let filter = log_filter(std::env::var_os("RUST_LOG").as_deref())?;
            let colours =
                std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|said| said.is_empty());
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(run(config))
        }
    }
}

/// What `RUST_LOG` asks for, if it is set.
fn log_filter(said: Option<&OsStr>) -> anyhow::Result<EnvFilter> {
    const EXPECTED: &str = "RUST_LOG: expected a level, or levels of modules, as in warn,simulator=debug";
    let Some(said) = said else { return Ok(EnvFilter::new("info")) };
    let text = said.to_str().filter(|text| !text.trim().is_empty()).context(EXPECTED)?;
    EnvFilter::try_new(text).context(EXPECTED)
}

/// `run` may be left out: then all options are its own.
fn parse() -> Command {
    let first = std::env::args().nth(1);
    let named = ["run", "city", "help", "--help", "-h", "--version", "-V"];
    if first.as_deref().is_some_and(|first| named.contains(&first)) {
        return CommandLine::parse().command;
    }
    let matches = Config::augment_args(clap::Command::new("simulator")).get_matches();
    Command::Run(Config::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
}

fn draw_city(seed: u64, out: Option<PathBuf>) -> anyhow::Result<()> {
    let map = crate::generate_city(seed);
    match out {
        Some(path) => std::fs::write(&path, map).with_context(|| format!("{} cannot be written", path.display())),
        None => std::io::stdout().write_all(map.as_bytes()).context("the map cannot be written"),
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let progress = Arc::new(Progress::default());
    let mut companions = JoinSet::new();
    companions.spawn(cancel_on_signal(shutdown.clone()));
    companions.spawn(say_progress(Arc::clone(&progress)));
    let summary = crate::run(config, Arc::new(SystemClock), shutdown, progress).await?;
    companions.shutdown().await;
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&summary)?)?;
    Ok(())
}

async fn cancel_on_signal(shutdown: CancellationToken) {
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
    shutdown.cancel();
}

async fn say_progress(progress: Arc<Progress>) {
    loop {
        SystemClock.sleep(PROGRESS_EVERY).await;
        tracing::info!(
            accepted = progress.accepted.load(Relaxed),
            refused = progress.refused.load(Relaxed),
            errors = progress.errors.load(Relaxed),
            missions = progress.missions.load(Relaxed),
            flown = progress.flown.load(Relaxed),
            reports = progress.reports_accepted.load(Relaxed),
            p99_ms = progress.post_latency.quantile(0.99).as_millis() as u64,
            "progress"
        );
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::LevelFilter;

    use super::*;

    #[test]
    fn the_default_is_logged_only_where_nothing_else_is_asked_for() {
        let level = |said: Option<&str>| log_filter(said.map(OsStr::new)).unwrap().max_level_hint();
        assert_eq!((level(None), level(Some("warn"))), (Some(LevelFilter::INFO), Some(LevelFilter::WARN)));
        for unreadable in ["", "simulator=loud"] {
            let error = log_filter(Some(unreadable.as_ref())).unwrap_err().to_string();
            assert!(error.starts_with("RUST_LOG: "), "'{unreadable}': {error}");
        }
    }
}
