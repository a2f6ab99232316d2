//! The services as processes of their own, two replicas of those that share their work, each the program that is deployed.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
};

use all_in_one::Stores;
use chassis::Peers;
use clap::ValueEnum;
use tokio::process::{Child, Command};

use crate::{
    process::{END, START, ended, last, terminate},
    world::within,
};

/// Set to `separate`, every system of these scenarios is the services' own programs, on real stores.
const SYSTEM_PROCESSES: &str = "SYSTEM_PROCESSES";

/// The services in the order of their start, with their replicas.
const REPLICAS: [(&str, usize); 7] =
    [("package", 2), ("fleet", 1), ("tracking", 2), ("history", 2), ("lookup", 1), ("delivery", 2), ("gateway", 1)];

/// What a program needs of the environment besides its own configuration, and what object stores are reached with.
const KEPT_VARIABLES: [&str; 5] = ["PATH", "HOME", "TMPDIR", "RUST_BACKTRACE", "LOG"];
const OBJECT_STORES: [&str; 2] = ["AWS_", "AZURE_"];

/// Whether the scenarios run on separate processes.
pub(crate) fn are_wanted() -> bool {
    match std::env::var(SYSTEM_PROCESSES).as_deref() {
        Ok("separate") => true,
        Ok("one") | Err(_) => false,
        Ok(other) => panic!("{SYSTEM_PROCESSES} is '{other}': expected separate or one"),
    }
}

struct Replica {
    service: &'static str,
    label: String,
    url: String,
    process: Child,
}

/// All services, each replica a process. Dropped, they are killed.
pub(crate) struct Separate {
    replicas: Vec<Replica>,
    folder: PathBuf,
}

impl Separate {
    /// Starts them; logs and the issuer's key, which is there already, are in `folder`.
    pub(crate) async fn start(folder: &Path, stores: &Stores) -> Self {
        let places: Vec<(&'static str, String, u16)> = REPLICAS
            .iter()
            .flat_map(|(service, count)| (1..=*count).map(move |number| (*service, format!("{service}-{number}"))))
            .zip(free_ports())
            .map(|((service, label), port)| (service, label, port))
            .collect();
        let peers: Vec<String> =
            places.iter().map(|(service, _, port)| format!("{service}=http://127.0.0.1:{port}")).collect();
        let environment = environment(folder, stores, &peers.join(","));
        let replicas = places.into_iter().map(|(service, label, port)| {
            let process = command(service, folder, &label)
                .envs(&environment)
                .env("LISTEN", format!("127.0.0.1:{port}"))
                .spawn()
                .unwrap_or_else(|error| panic!("{service} (cargo build --workspace makes it): {error}"));
            Replica { service, label, url: format!("http://127.0.0.1:{port}"), process }
        });
        let mut separate = Self { replicas: replicas.collect(), folder: folder.to_owned() };
        separate.until_live().await;
        separate
    }

    async fn until_live(&mut self) {
        let http = chassis::client::http_client().unwrap();
        let folder = &self.folder;
        for Replica { label, url, process, .. } in &mut self.replicas {
            within(START, &format!("{label} to live"), async || {
                if let Some(status) = process.try_wait().unwrap() {
                    panic!("{label} has ended with {status}:\n{}", said(folder, label));
                }
                http.get(format!("{url}/health/live")).send().await.ok().map(|_| ())
            })
            .await;
        }
    }

    /// Where the services are: the replicas of one with a separator between them.
    pub(crate) fn peers(&self) -> Peers {
        let mut peers: HashMap<&'static str, String> = HashMap::new();
        for (service, _) in REPLICAS {
            let replicas = self.replicas.iter().filter(|replica| replica.service == service);
            peers.insert(service, replicas.map(|replica| replica.url.as_str()).collect::<Vec<_>>().join("|"));
        }
        Peers(peers)
    }

    /// Ends them all as an orchestrator would.
    pub(crate) async fn stop(mut self) {
        for replica in &self.replicas {
            terminate(&replica.process).await;
        }
        for Replica { label, process, .. } in &mut self.replicas {
            let status = ended(process, END).await;
            assert!(status.success(), "SIGTERM ends {label} well: {status}\n{}", said(&self.folder, label));
        }
    }
}

impl Drop for Separate {
    /// What they wrote, for who looks into a failure.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for Replica { label, .. } in &self.replicas {
                println!("--- {label}:\n{}", said(&self.folder, label));
            }
        }
    }
}

/// Ports that nobody has taken: all are held until the last is found, so that none comes twice.
fn free_ports() -> Vec<u16> {
    let count = REPLICAS.iter().map(|(_, count)| count).sum();
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

fn environment(folder: &Path, stores: &Stores, peers: &str) -> HashMap<String, String> {
    let kept = std::env::vars().filter(|(name, _)| {
        KEPT_VARIABLES.contains(&name.as_str()) || OBJECT_STORES.iter().any(|prefix| name.starts_with(prefix))
    });
    let relay = stores.package_relay.to_possible_value().expect("every way of relaying has a name");
    let key = folder.join("dev-issuer.key");
    let own = [
        ("EVENT_LOG", stores.event_log.as_str()),
        ("DELIVERY_STORE", &stores.delivery),
        ("FLEET_STORE", &stores.fleet),
        ("PACKAGE_STORE", &stores.package),
        ("PACKAGE_RELAY", relay.get_name()),
        ("LOOKUP_STORE", &stores.lookup),
        ("TRACKING_STORE", &stores.tracking),
        ("LAKE", &stores.lake),
        ("DEV_ISSUER", "true"),
        ("DEV_ISSUER_KEY", key.to_str().unwrap()),
        ("PEERS", peers),
    ];
    kept.chain(own.map(|(name, value)| (name.to_owned(), value.to_owned()))).collect()
}

/// A service's program lies beside this package's own.
fn command(service: &str, folder: &Path, label: &str) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_all-in-one")).with_file_name(OsStr::new(service));
    let log = || File::options().create(true).append(true).open(folder.join(format!("{label}.log"))).unwrap();
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null()).stdout(log()).stderr(log()).kill_on_drop(true);
    command
}

/// What a replica wrote.
fn said(folder: &Path, label: &str) -> String {
    last(&std::fs::read_to_string(folder.join(format!("{label}.log"))).unwrap_or_default())
}
