//! The real binary as a process of its own: the system, and the simulator that loads it.

use std::{
    fs::File,
    io::BufReader,
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use all_in_one::{DataDir, Stores, audit::Ledger};
use contracts::{Clock, DeliveryId, SystemClock, api::Role};
use reqwest::Method;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{
    stores,
    world::{audit_is_clean, within},
};

/// How long a start may take on a loaded machine.
pub(crate) const START: Duration = Duration::from_secs(60);

/// How long an asked or aborted process may take to end: its own deadline is 15 s.
pub(crate) const END: Duration = Duration::from_secs(30);

/// Longer than what ordering, flying and a restart take together.
const RUN: Duration = Duration::from_secs(120);

/// The signal of an abort, and that of a kill.
pub(crate) const ABORTED: i32 = 6;
pub(crate) const KILLED: i32 = 9;

/// The binary, with none of the options that the environment may hold.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_all-in-one"));
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    for variable in ["DATA_DIR", "PORT", "ABORT_AT", "GATEWAY_URL"] {
        command.env_remove(variable);
    }
    command
}

/// A data folder, the port that every process on it serves at, and what they wrote to standard error.
pub(crate) struct Site {
    pub(crate) folder: TempDir,
    port: u16,
    http: reqwest::Client,
}

impl Site {
    pub(crate) fn new() -> Self {
        chassis::init().unwrap();
        // Free now, and nobody else's as long as tests take ports of the system's choice only at their start.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { folder: tempfile::tempdir().unwrap(), port, http: chassis::client::http_client().unwrap() }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn ledger(&self) -> PathBuf {
        self.folder.path().join("accepted.ndjson")
    }

    /// What the processes wrote to standard error, for when something went wrong.
    pub(crate) fn said(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        let (system, simulator) = (read("system.log"), read("simulator.log"));
        format!("--- the system:\n{}\n--- the simulator:\n{}", last(&system), last(&simulator))
    }

    fn log_file(&self, name: &str) -> File {
        File::options().create(true).append(true).open(self.folder.path().join(name)).unwrap()
    }

    /// Starts the system; `abort_at` is where it shall end.
    pub(crate) fn start(&self, abort_at: Option<&str>) -> Child {
        let (data, port) = (self.data(), self.port.to_string());
        let mut command = program(&["run", "--no-simulator", "--port", &port, "--data-dir", data.to_str().unwrap()]);
        if let Some(point) = abort_at {
            command.env(messaging::abort::ABORT_AT, point);
        }
        command.stdout(Stdio::null()).stderr(self.log_file("system.log")).spawn().unwrap()
    }

    /// Waits until the gateway takes requests.
    pub(crate) async fn is_ready(&self) {
        let ready = format!("{}/health/ready", self.url());
        within(START, "the system is ready", async || {
            let answer = self.http.get(&ready).timeout(Duration::from_secs(2)).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    /// Starts a simulator: drones that fly sixty times as fast as real ones, and customers that order for so long.
    pub(crate) fn simulate(&self, seconds: u64, per_second: u64, seed: u64) -> Child {
        let (url, ledger) = (self.url(), self.ledger());
        let (seconds, per_second, seed) = (seconds.to_string(), per_second.to_string(), seed.to_string());
        let mut command = program(&["simulate", "--url", &url, "--accepted", ledger.to_str().unwrap()]);
        command.args(["--duration", &seconds, "--orders-per-second", &per_second, "--seed", &seed]);
        command.args(["--time-scale", "60", "--drones", "60", "--customers", "20", "--drain", "60s"]);
        command.args(["--misbehave", "0", "--cancel-share", "0.1", "--handover-seconds", "45"]);
        command.stdout(Stdio::null()).stderr(self.log_file("simulator.log")).spawn().unwrap()
    }

    /// Asks the gateway in a role; none where it does not answer.
    pub(crate) async fn ask(
        &self,
        subject: &str,
        role: Role,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Option<(u16, Value)> {
        let issuer = DataDir::open(&self.data()).ok()?.issuer().ok()?;
        let (token, _) = issuer.issue(subject, role, SystemClock.now(), chrono::Duration::hours(1)).unwrap();
        let mut request = self.http.request(method, format!("{}{path}", self.url())).bearer_auth(token);
        if !body.is_null() {
            // The same key for the same body: asked again, it is the same delivery.
            request = request.header("idempotency-key", "asked-by-hand").json(body);
        }
        let answer = request.timeout(Duration::from_secs(5)).send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.json().await.ok()?))
    }

    /// Waits until every delivery is over, every event relayed and every consumer at the end of its topics.
    pub(crate) async fn settle(&self) {
        let mut quiet = 0;
        within(RUN, "everything at rest", async || {
            let at_rest = self.is_at_rest().await.unwrap_or(false);
            quiet = if at_rest { quiet + 1 } else { 0 };
            (quiet >= 5).then_some(())
        })
        .await;
    }

    async fn is_at_rest(&self) -> Option<bool> {
        let get = async |path| Some(self.ask("olga", Role::Operator, Method::GET, path, &Value::Null).await?.1);
        let sagas = get("/api/operations/sagas").await?;
        let lags = get("/api/operations/lag").await?;
        let behind =
            |item: &&Value| !item["group"].as_str().unwrap_or_default().ends_with(".redrive") && item["lag"] != 0;
        let behind = lags["items"].as_array()?.iter().filter(behind).count();
        Some(sagas["open"] == 0 && behind == 0 && stores::outboxes_are_empty(&self.data()).await)
    }

    /// Stops the system as an operator would, and proves the promises over what it leaves.
    pub(crate) async fn stop_and_audit(&self, mut system: Child, more: &[DeliveryId]) {
        terminate(&system).await;
        let status = ended(&mut system, END).await;
        assert!(status.success(), "SIGTERM ends it well: {status}\n{}", self.said());
        let mut accepted = self.accepted();
        accepted.extend_from_slice(more);
        assert!(!accepted.is_empty(), "nothing was accepted\n{}", self.said());
        audit_is_clean(&Stores::embedded(&DataDir::open(&self.data()).unwrap()), accepted).await;
    }

    /// What the simulator's customers were promised.
    pub(crate) fn accepted(&self) -> Vec<DeliveryId> {
        let Ok(file) = File::open(self.ledger()) else { return Vec::new() };
        Ledger::read(BufReader::new(file)).unwrap().accepted
    }
}

/// The end of a long text.
pub(crate) fn last(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Waits for the end of a process.
pub(crate) async fn ended(child: &mut Child, patience: Duration) -> ExitStatus {
    let ended = tokio::time::timeout(patience, child.wait()).await;
    ended.expect("the process ends in time").unwrap()
}

/// Waits for the end of a simulator's run.
pub(crate) async fn finished(simulator: &mut Child, site: &Site) {
    let status = ended(simulator, RUN).await;
    assert!(status.success(), "the simulator: {status}\n{}", site.said());
}

/// Waits until an armed abort point has ended the system.
pub(crate) async fn aborted(system: &mut Child, point: &str, site: &Site) {
    match tokio::time::timeout(END, system.wait()).await {
        Ok(status) => {
            let status = status.unwrap();
            assert_eq!(status.signal(), Some(ABORTED), "{point}: {status}\n{}", site.said());
        }
        Err(_) => panic!("{point} was not passed\n{}", site.said()),
    }
}

/// SIGTERM.
pub(crate) async fn terminate(child: &Child) {
    let id = child.id().expect("the process runs").to_string();
    let sent = Command::new("kill").args(["-TERM", &id]).status().await.unwrap();
    assert!(sent.success());
}

/// A file under a folder of the test's own.
pub(crate) fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}
