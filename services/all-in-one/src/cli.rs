//! The command line.

use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use chassis::{fail, note};
use clap::{Args, Parser, Subcommand};
use contracts::{Clock, SystemClock, api::Role};
use tokio_util::sync::CancellationToken;

use crate::{
    DataDir, Places, StoreArgs,
    audit::{self, Ledger},
    progress::{self, Sagas, total_lag},
    remote,
    system::System,
};

/// How long the process may take to end after it was asked to.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(15);

/// After the simulator has ended, how long the lake and the lookup store may take to have everything.
const SETTLE_DEADLINE: chrono::Duration = chrono::Duration::seconds(60);

/// How often that is asked, and how often in a row it must be so.
const SETTLE_POLL: Duration = Duration::from_millis(250);
const SETTLED_POLLS: usize = 4;

/// A drone-delivery back end in one process: every service over loopback HTTP, on embedded stores in one folder, with
/// simulated drones and customers.
#[derive(Parser)]
#[command(name = "all-in-one", version, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything (the default).
    Run(RunArgs),
    /// Prove over the raw stores that nothing was lost, doubled or leaked.
    Audit(AuditArgs),
    /// Have dead letters of a running system published again.
    Redrive(RedriveArgs),
    /// Print a bearer token of the development issuer.
    Token(TokenArgs),
    /// Print the description of the HTTP API (OpenAPI 3.1, JSON).
    Openapi,
    /// Print the description of the events (AsyncAPI 3.0, JSON).
    Asyncapi,
    /// Run the simulator alone, against a running system.
    Simulate(simulator::Config),
}

#[derive(Args, Clone)]
struct RunArgs {
    /// The folder for stores, event log, lake and signing key.
    #[arg(long, env = "DATA_DIR", default_value = "data")]
    data_dir: PathBuf,
    /// The gateway's port on 127.0.0.1; 0 for any.
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,
    /// Without simulated drones and customers.
    #[arg(long)]
    no_simulator: bool,
    /// Write the progress line even where standard error is no terminal.
    #[arg(long)]
    progress: bool,
    #[command(flatten)]
    stores: StoreArgs,
    #[command(flatten)]
    simulator: simulator::Config,
}

#[derive(Args)]
struct AuditArgs {
    /// The folder to look into.
    #[arg(long, env = "DATA_DIR", default_value = "data")]
    data_dir: PathBuf,
    /// The ledger of 202s that a client wrote: one JSON object with "id" a line.
    #[arg(long)]
    accepted: Option<PathBuf>,
    #[command(flatten)]
    stores: StoreArgs,
}

#[derive(Args)]
struct RedriveArgs {
    /// Where the gateway answers.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The folder that holds the signing key.
    #[arg(long, env = "DATA_DIR", default_value = "data")]
    data_dir: PathBuf,
    /// The consumer whose dead letters; all unless given.
    #[arg(long)]
    consumer: Option<String>,
}

#[derive(Args)]
struct TokenArgs {
    /// The id of the customer, operator, drone or base station.
    #[arg(long)]
    subject: String,
    /// customer, operator, drone or base_station.
    #[arg(long)]
    role: Role,
    /// The folder that holds the signing key.
    #[arg(long, env = "DATA_DIR", default_value = "data")]
    data_dir: PathBuf,
}

/// The whole program.
pub fn main() -> ExitCode {
    if let Err(error) = chassis::init() {
        return fail(&error);
    }
    let line = CommandLine::try_parse().unwrap_or_else(|error| chassis::config::without_password(error).exit());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let result = runtime.block_on(async {
        match line.command.unwrap_or(Command::Run(line.run)) {
            Command::Run(args) => Box::pin(run(args)).await.map(|()| ExitCode::SUCCESS),
            Command::Audit(args) => Box::pin(run_audit(args)).await,
            Command::Redrive(args) => {
                let issuer = DataDir::open(&args.data_dir)?.issuer()?;
                print(&remote::redrive(&args.url, &issuer, args.consumer.as_deref()).await?)
            }
            Command::Token(args) => print(&token(&args)?),
            Command::Openapi => print(&serde_json::to_string_pretty(&gateway::openapi())?),
            Command::Asyncapi => print(&serde_json::to_string_pretty(&contracts::asyncapi::document()?)?),
            Command::Simulate(config) => Box::pin(simulate(config)).await.map(|()| ExitCode::SUCCESS),
        }
    });
    // Blocking work that was cut off by a deadline must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result.unwrap_or_else(|error| fail(&error))
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    match writeln!(std::io::stdout(), "{text}") {
        // Whoever read it has had enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        result => Ok(result.map(|()| ExitCode::SUCCESS)?),
    }
}

fn token(args: &TokenArgs) -> anyhow::Result<String> {
    if args.role == Role::Service || auth::Identity::new(&args.subject, args.role).is_none() {
        anyhow::bail!("--subject '{}' is not a legal id of that --role", args.subject);
    }
    let issuer = DataDir::create(&args.data_dir)?.issuer()?;
    let lifetime = chrono::Duration::hours(auth::DevIssuer::USER_TOKEN_HOURS);
    Ok(issuer.issue(&args.subject, args.role, SystemClock.now(), lifetime)?.0)
}

/// Cancels `shutdown` when the process is asked to stop.
async fn stop_when_asked(shutdown: CancellationToken) {
    chassis::config::asked_to_stop().await;
    note("stopping");
    shutdown.cancel();
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let started = clock.now();
    let data = DataDir::create(&args.data_dir)?;
    let _lock = data.lock()?;
    let stores = args.stores.with_folder(&data);
    let places = Places::of(&stores, &data);
    places.check(&data)?;
    let shutdown = CancellationToken::new();
    let system = System::start(&data, &stores, args.port, clock.clone(), shutdown.clone()).await?;
    let url = system.url();
    let mut where_from = vec![args.data_dir.display().to_string()];
    where_from.extend(places.elsewhere());
    let serving = {
        let (clock, url, data) = (clock.clone(), url.clone(), data.clone());
        move || {
            let seconds = (clock.now() - started).as_seconds_f64();
            note(&format!("serving at {url} after {seconds:.2} s, data in {}", where_from.join(", ")));
            if let Err(error) = places.remember(&data) {
                note(&format!("the data folder does not remember where its stores are: {error:#}"));
            }
        }
    };

    let delivery = peer_of(&system, "delivery", clock.clone())?;
    let log = system.log.clone();
    let mut tasks = tokio::task::JoinSet::new();
    if progress::wanted(args.progress) {
        tasks.spawn(progress::run(delivery.clone(), log.clone(), clock.clone(), shutdown.clone()));
    }
    let simulation = Box::pin(async {
        if args.no_simulator {
            shutdown.cancelled().await;
            return anyhow::Ok(None);
        }
        let config = simulator::Config { gateway_url: url.clone(), ..args.simulator.clone() };
        let counts = Arc::new(simulator::Progress::default());
        let summary = simulator::run(config, clock.clone(), shutdown.child_token(), counts).await?;
        tokio::select! {
            settled = settle(&delivery, &*log, &*clock) => {
                if let Err(left) = settled {
                    note(&left);
                }
                Ok(Some(summary))
            }
            // Asked to stop, or a service has failed: nothing will settle, and its error says more than a summary.
            () = shutdown.cancelled() => Ok(None),
        }
    });
    let serving = system.run(serving);
    tokio::pin!(serving, simulation);
    let result = tokio::select! {
        result = &mut serving => return result,
        () = stop_when_asked(shutdown.clone()) => {
            // The simulator writes its ledger to the end, while the services drain.
            let _ = tokio::time::timeout(SHUTDOWN_DEADLINE, &mut simulation).await;
            Ok(())
        }
        summary = &mut simulation => match summary {
            Ok(Some(summary)) => print(&serde_json::to_string_pretty(&summary)?).map(|_| ()),
            Ok(None) => Ok(()),
            Err(error) => Err(error.context("the simulator failed")),
        },
    };
    shutdown.cancel();
    match tokio::time::timeout(SHUTDOWN_DEADLINE, serving).await {
        Ok(ended) => result.and(ended),
        Err(_) => {
            note("some services did not end in time and are cut off; nothing accepted is lost");
            result
        }
    }
}

fn peer_of(system: &System, name: &'static str, clock: Arc<dyn Clock>) -> anyhow::Result<chassis::Peer> {
    let url = system.peers.0.get(name).context("every service has a URL")?;
    chassis::Peer::new(name, url, "all-in-one", system.issuer.clone(), clock)
}

/// Waits until every delivery is over and every consumer has caught up, within a bound; or else says what is left.
async fn settle(delivery: &chassis::Peer, log: &dyn messaging::EventLog, clock: &dyn Clock) -> Result<(), String> {
    let deadline = clock.now() + SETTLE_DEADLINE;
    let mut quiet_polls = 0;
    loop {
        let open = Sagas::ask(delivery).await.map(|sagas| sagas.open);
        let lag = total_lag(log).await;
        // More than once, since between an outbox and the log an event is in neither count.
        quiet_polls = if open == Some(0) && lag == Some(0) { quiet_polls + 1 } else { 0 };
        if quiet_polls >= SETTLED_POLLS {
            return Ok(());
        }
        if clock.now() >= deadline {
            let count = |count: Option<u64>| count.map_or("?".to_owned(), |count| count.to_string());
            return Err(format!(
                "not all is at rest: {} deliveries open, {} events not handled yet; they go on at the next start",
                count(open),
                count(lag)
            ));
        }
        clock.sleep(SETTLE_POLL).await;
    }
}

async fn simulate(config: simulator::Config) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let shutdown = CancellationToken::new();
    let counts = Arc::new(simulator::Progress::default());
    let simulation = Box::pin(simulator::run(config, clock, shutdown.clone(), counts));
    tokio::pin!(simulation);
    let summary = tokio::select! {
        summary = &mut simulation => summary?,
        () = stop_when_asked(shutdown) => simulation.await?,
    };
    print(&serde_json::to_string_pretty(&summary)?).map(|_| ())
}

async fn run_audit(args: AuditArgs) -> anyhow::Result<ExitCode> {
    let data = DataDir::open(&args.data_dir)?;
    let _lock = data.lock().context("an audit needs the stores at rest")?;
    let stores = args.stores.with_folder(&data);
    Places::of(&stores, &data).check(&data)?;
    let ledger = match &args.accepted {
        Some(path) => Some(read_ledger(path)?),
        None => None,
    };
    if args.stores.delivery_store.is_none() && !data.has_store("delivery") {
        anyhow::bail!("there is nothing to audit in this folder: it has no delivery store");
    }
    let report = audit::audit(&stores, ledger).await?;
    print(&report.to_string())?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read_ledger(path: &Path) -> anyhow::Result<Ledger> {
    let file = OpenOptions::new()
        .read(true)
        .open(path)
        .with_context(|| format!("--accepted: {} cannot be read", path.display()))?;
    Ledger::read(std::io::BufReader::new(file)).with_context(|| format!("--accepted: {}", path.display()))
}

#[cfg(test)]
mod configuration;
