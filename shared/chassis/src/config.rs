//! Starts one service as a process of its own, configured by the environment.

use std::{
    collections::HashMap, future::Future, io::Write as _, path::PathBuf, pin::pin, process::ExitCode, sync::Arc,
    time::Duration,
};

use anyhow::{Context, ensure};
use auth::{DevIssuer, SigningKey};
use clap::{
    Args, CommandFactory, FromArgMatches, Parser,
    error::{ContextKind, ContextValue},
};
use contracts::{Clock, Region, SystemClock};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    Door, Node, Peers,
    client::URL_SEPARATORS,
    fail, note,
    supervise::{self, telling},
};

/// How long a service may take to end after it was asked to: what its tasks may take, and as long again as an open
/// request may for what follows them. Below the 30 s after which the usual orchestrators kill.
const STOP_DEADLINE: Duration = supervise::DRAIN.saturating_add(Duration::from_secs(5));

/// How long blocking calls may go on after everything else ended: a file being synced, not a backlog.
const BLOCKING_DEADLINE: Duration = Duration::from_secs(2);

/// What the help says of the one variable that is not an option.
const AFTER_HELP: &str = "Every option can be given by the environment variable named beside it. \
    LOG sets what is logged (default: warn).";

/// What every service is configured by.
#[derive(Debug, Clone, Args)]
pub struct NodeConfig {
    /// Where to listen: host:port.
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:0", value_parser = parse_listen)]
    pub listen: String,
    /// The event log: embedded:PATH or kafka://host:port[,host:port][/prefix].
    #[arg(long, env = "EVENT_LOG", value_parser = parse_event_log)]
    pub event_log: String,
    /// The file that holds the development issuer's signing key.
    #[arg(long, env = "DEV_ISSUER_KEY")]
    pub dev_issuer_key: PathBuf,
    /// The region of this node.
    #[arg(long, env = "REGION", default_value = contracts::api::DEFAULT_REGION)]
    pub region: Region,
    /// Where the others are: name=URL, separated by commas; a name comes once for each of its replicas.
    #[arg(long, env = "PEERS", value_delimiter = ',', value_parser = parse_peer)]
    pub peers: Vec<(&'static str, String)>,
}

/// What a service is configured by, besides its node.
pub trait Settings: Args {
    /// The services that it calls.
    const PEERS: &'static [&'static str] = &[];

    /// What parsing cannot tell, without opening anything: an error names the variable.
    fn check(&self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// The names of the services that others call.
pub const SERVICES: [&str; 7] = ["gateway", "delivery", "package", "fleet", "tracking", "history", "lookup"];

fn parse_peer(text: &str) -> Result<(&'static str, String), String> {
    let (name, url) = text.split_once('=').ok_or("expected name=URL")?;
    let known = SERVICES.into_iter().find(|service| *service == name);
    let name = known.ok_or_else(|| format!("'{name}' is not one of {}", SERVICES.join(", ")))?;
    for replica in url.split(URL_SEPARATORS) {
        let parsed = Url::parse(replica).map_err(|error| format!("'{replica}' is not a URL: {error}"))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(format!("'{replica}' does not begin with http:// or https://"));
        }
    }
    Ok((name, url.to_owned()))
}

fn parse_listen(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("expected host:port")?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err("expected host:port".to_owned());
    }
    Ok(text.to_owned())
}

/// Takes the URL of an event log. Only the form: whether such a log can be opened is for [`messaging::open`] to say.
pub fn parse_event_log(text: &str) -> Result<String, String> {
    let formed = match text.split_once(':') {
        Some(("embedded", path)) => !path.is_empty(),
        Some(("kafka", place)) => place.strip_prefix("//").is_some_and(|place| {
            let servers = place.split_once('/').map_or(place, |(servers, _prefix)| servers);
            servers.split(',').all(|server| parse_listen(server).is_ok())
        }),
        _ => false,
    };
    if formed {
        Ok(text.to_owned())
    } else {
        Err("expected embedded:PATH or kafka://host:port[,host:port][/prefix]".to_owned())
    }
}

/// Takes the URL of a store whose scheme is one of these: only the form, the rest is for who opens it to say.
pub fn store_url(schemes: &'static [&'static str]) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync {
    move |text| match text.split_once(':') {
        Some((scheme, place)) if schemes.contains(&scheme) && !place.trim_start_matches('/').is_empty() => {
            Ok(text.to_owned())
        }
        // Not the text itself: it may hold a password.
        _ => Err(format!("expected a URL that begins with one of {}:", schemes.join(":, "))),
    }
}

/// The error as it is, but for the user and the password of a refused URL, which it would show.
pub fn without_password(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else { return error };
    if let Some((before, place)) = value.rsplit_once('@') {
        let scheme = before.find("://").map_or("", |end| &before[..end + 3]);
        let shown = ContextValue::String(format!("{scheme}...@{place}"));
        error.insert(ContextKind::InvalidValue, shown);
    }
    error
}

/// The replicas of a service are joined: [`crate::Peer`] takes them apart.
fn joined(peers: &[(&'static str, String)]) -> HashMap<&'static str, String> {
    let mut joined = HashMap::<&'static str, String>::new();
    for (name, url) in peers {
        let urls = joined.entry(*name).or_default();
        if !urls.is_empty() {
            urls.push(',');
        }
        urls.push_str(url);
    }
    joined
}

#[derive(Debug, Parser)]
struct CommandLine<C: Settings> {
    /// Check the configuration, say "ok" and end; nothing is opened.
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    node: NodeConfig,
    #[command(flatten)]
    service: C,
}

fn command<C: Settings>(service: &'static str) -> clap::Command {
    // The first line is set last: otherwise it is that of whichever options were added last.
    let command = CommandLine::<C>::command().name(service).about(format!("The {service} service"));
    command.after_help(AFTER_HELP).mut_args(|option| {
        let Some(variable) = option.get_env().map(|variable| variable.to_string_lossy().into_owned()) else {
            return option;
        };
        // An error says the value's name, which is thus the variable's. A value may hold a password: it is not shown.
        let option = option.hide_env_values(true);
        if option.get_action().takes_values() { option.value_name(variable) } else { option }
    })
}

/// What parsing cannot tell, without opening anything.
fn check<C: Settings>(config: &CommandLine<C>) -> anyhow::Result<()> {
    let key = &config.node.dev_issuer_key;
    ensure!(key.is_file(), "DEV_ISSUER_KEY: there is no file {}", key.display());
    for needed in C::PEERS {
        let is_there = config.node.peers.iter().any(|(name, _)| name == needed);
        ensure!(is_there, "PEERS: '{needed}' is missing; it calls {}", C::PEERS.join(", "));
    }
    config.service.check()
}

/// Runs a service until SIGINT or SIGTERM; the whole of a service's `main`.
pub fn main<C, F, Fut>(service: &'static str, run: F) -> ExitCode
where
    C: Settings,
    F: FnOnce(C, Node) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    start(service, run).map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn start<C, F, Fut>(service: &'static str, run: F) -> anyhow::Result<()>
where
    C: Settings,
    F: FnOnce(C, Node) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    crate::init()?;
    let matches = command::<C>(service).try_get_matches().unwrap_or_else(|error| without_password(error).exit());
    let config = CommandLine::<C>::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    check(&config)?;
    if config.check_config {
        return Ok(writeln!(std::io::stdout(), "ok")?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let node = node(service, &config.node, shutdown.clone()).await?;
        let (address, opened) = (node.door.address()?, node.door.opened());
        let run = telling(run(config.service, node), opened, || note(&format!("{service} serves at http://{address}")));
        until_stopped(run, asked_to_stop(), &shutdown, STOP_DEADLINE).await
    });
    runtime.shutdown_timeout(BLOCKING_DEADLINE);
    result
}

/// Runs until `stop` has come, and then at most `deadline` more.
async fn until_stopped(
    run: impl Future<Output = anyhow::Result<()>>,
    stop: impl Future<Output = ()>,
    shutdown: &CancellationToken,
    deadline: Duration,
) -> anyhow::Result<()> {
    let mut run = pin!(run);
    tokio::select! {
        result = &mut run => return result,
        () = stop => shutdown.cancel(),
    }
    tokio::time::timeout(deadline, run).await.unwrap_or_else(|_| {
        tracing::warn!("the service did not end in time and is cut off");
        Ok(())
    })
}

async fn node(service: &'static str, config: &NodeConfig, shutdown: CancellationToken) -> anyhow::Result<Node> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let door =
        Door::bind(&config.listen).await.with_context(|| format!("LISTEN: cannot listen on {}", config.listen))?;
    let log = messaging::open(&config.event_log, clock.clone()).await.context("EVENT_LOG cannot be opened")?;
    let key = std::fs::read(&config.dev_issuer_key)
        .with_context(|| format!("DEV_ISSUER_KEY: cannot read {}", config.dev_issuer_key.display()))?;
    let issuer = DevIssuer::new(&SigningKey::from_bytes(key)?)?;
    Ok(Node {
        service,
        instance: format!("{service}-{}", clock.new_id()),
        door,
        log,
        shutdown,
        peers: Peers(joined(&config.peers)),
        clock,
        verifier: issuer.verifier(),
        issuer,
        region: config.region.clone(),
    })
}

/// Returns at the first SIGINT or SIGTERM.
pub async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals end the process by themselves.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Args)]
    struct Own {
        /// The store.
        #[arg(long, env = "CHASSIS_TEST_STORE")]
        store: u16,
        /// Another.
        #[arg(long, env = "CHASSIS_TEST_URL", value_parser = store_url(&["sqlite", "redis"]))]
        url: Option<String>,
    }

    impl Settings for Own {
        const PEERS: &'static [&'static str] = &["fleet", "lookup"];

        fn check(&self) -> anyhow::Result<()> {
            ensure!(self.store != 3, "CHASSIS_TEST_STORE: nobody has three");
            Ok(())
        }
    }

    fn parse(options: &[&str]) -> Result<CommandLine<Own>, clap::Error> {
        let given = ["test", "--event-log=embedded:x", "--dev-issuer-key=Cargo.toml", "--store=1"];
        let command = command::<Own>("test").args_override_self(true);
        let matches = command.try_get_matches_from(given.iter().chain(options))?;
        CommandLine::from_arg_matches(&matches)
    }

    #[test]
    fn the_help_names_every_variable() {
        let help = command::<Own>("test").render_long_help().to_string();
        let variables = ["LISTEN", "EVENT_LOG", "DEV_ISSUER_KEY", "REGION", "PEERS", "CHASSIS_TEST_STORE"];
        for variable in variables {
            assert!(help.contains(&format!("[env: {variable}]")), "{variable} is not in\n{help}");
        }
        assert!(help.starts_with("The test service") && help.contains("LOG sets"), "{help}");
    }

    #[test]
    fn an_error_names_its_variable() {
        let bad = [
            ("--listen=8080", "LISTEN"),
            ("--listen=localhost:99999", "LISTEN"),
            ("--event-log=embedded:", "EVENT_LOG"),
            ("--event-log=redis://x:1", "EVENT_LOG"),
            ("--event-log=kafka://broker", "EVENT_LOG"),
            ("--peers=fleet", "PEERS"),
            ("--peers=drones=http://x", "PEERS"),
            ("--peers=fleet=ftp://x", "PEERS"),
            ("--peers=fleet=http://x,http://y", "PEERS"),
            ("--store=many", "CHASSIS_TEST_STORE"),
            ("--url=mysql://secret@x", "CHASSIS_TEST_URL"),
            ("--url=redis://", "CHASSIS_TEST_URL"),
            ("--url=store.db", "CHASSIS_TEST_URL"),
        ];
        for (option, variable) in bad {
            let error = parse(&[option]).unwrap_err().to_string();
            assert!(error.contains(variable), "{option}: {error}");
        }
        let refused = without_password(parse(&["--url=mysql://me:se@cret@place:1/x"]).unwrap_err()).to_string();
        assert!(refused.contains("mysql://...@place:1/x") && !refused.contains("cret"), "{refused}");
        let missing = command::<Own>("test").try_get_matches_from(["test"]).unwrap_err().to_string();
        assert!(missing.contains("EVENT_LOG") && missing.contains("DEV_ISSUER_KEY"), "{missing}");
        assert!(missing.contains("CHASSIS_TEST_STORE"), "{missing}");
    }

    #[test]
    fn a_check_finds_what_parsing_does_not() {
        let peers = "--peers=fleet=http://a,lookup=http://b";
        let good = parse(&["--check-config", "--event-log=kafka://a:1,b:2/prefix", peers]).unwrap();
        assert!(good.check_config && good.service.store == 1);
        check(&good).unwrap();
        let bad = [
            ([peers, "--dev-issuer-key=no/such/file"], "DEV_ISSUER_KEY: "),
            (["--peers=fleet=http://a", "--region=there"], "PEERS: 'lookup' is missing"),
            ([peers, "--store=3"], "CHASSIS_TEST_STORE: "),
        ];
        for (options, words) in bad {
            let error = check(&parse(&options).unwrap()).unwrap_err().to_string();
            assert!(error.starts_with(words), "{options:?}: {error}");
        }
    }

    #[tokio::test]
    async fn that_it_serves_is_told_once_it_does_and_not_where_it_fails_before() {
        let door = Door::bind("127.0.0.1:0").await.unwrap();
        let (opened, told) = (door.opened(), std::cell::Cell::new(false));
        let failing = async { anyhow::bail!("no store") };
        telling(failing, door.opened(), || told.set(true)).await.unwrap_err();
        assert!(!told.get());
        let shutdown = CancellationToken::new();
        let serving = crate::serve(door, axum::Router::new(), crate::Readiness::new(), shutdown.clone());
        let tell = || {
            told.set(true);
            shutdown.cancel();
        };
        telling(serving, opened, tell).await.unwrap();
        assert!(told.get());
    }

    #[test]
    fn a_name_may_come_once_for_each_replica() {
        let peers = "--peers=fleet=http://a:1,delivery=http://b:1,fleet=http://c:1|http://d:1";
        let peers = joined(&parse(&[peers]).unwrap().node.peers);
        assert_eq!(peers["fleet"], "http://a:1,http://c:1|http://d:1");
        assert_eq!(peers["delivery"], "http://b:1");
    }

    #[tokio::test]
    async fn a_stop_is_waited_for_but_not_for_ever() {
        let shutdown = CancellationToken::new();
        let orderly = async {
            shutdown.cancelled().await;
            anyhow::bail!("the result of its end")
        };
        let ended = until_stopped(orderly, async {}, &shutdown, STOP_DEADLINE).await;
        assert!(ended.is_err(), "what the end came to is passed on");
        let stuck = std::future::pending();
        until_stopped(stuck, async {}, &shutdown, Duration::from_millis(1)).await.unwrap();
    }
}
