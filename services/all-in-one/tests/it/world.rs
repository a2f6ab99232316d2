//! A whole system in a folder of its own, in this process or as separate ones: to be started, settled, started anew and
//! audited.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use all_in_one::{
    DataDir, Lock, Stores,
    audit::{Ledger, audit},
    system::System,
};
use chassis::Peers;
use contracts::{Clock, Coordinate, DeliveryId, DroneId, SystemClock, api::Role};
use messaging::EventLog;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    api::User,
    clock::JumpClock,
    separate::{self, Separate},
    stores,
};

/// Where packages wait.
pub(crate) const PICKUP: Coordinate = Coordinate { latitude: 48.850, longitude: 2.350 };
/// Where they go: some 1.1 km north.
pub(crate) const DROPOFF: Coordinate = Coordinate { latitude: 48.860, longitude: 2.350 };

/// Questions in a row that must find everything at rest: between an outbox and the log, or between the log and a
/// consumer's first look, an event is nowhere for a moment.
const QUIET_POLLS: usize = 5;

/// The same on the real engines, whose outboxes are not looked into: a relay looks by itself every half second.
const QUIET_POLLS_OF_REAL_STORES: usize = 20;

/// How long that may take: the leases of a killed process end within ten seconds.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);

/// The same for separate processes, for which no clock of ours shortens the minute within which the lake notes that it has
/// passed records that are no rows.
const SETTLE_PATIENCE_OF_PROCESSES: Duration = Duration::from_secs(120);

/// What each question puts the clock forward by, so that nobody waits for the lake's next commit.
const QUIET_STEP: Duration = Duration::from_millis(500);

/// A running system and what a test knows of it.
pub(crate) struct World {
    pub(crate) clock: Arc<JumpClock>,
    pub(crate) http: reqwest::Client,
    pub(crate) data: DataDir,
    pub(crate) stores: Stores,
    /// Dropped before the folder, which it uses to its end.
    running: Option<Running>,
    folder: TempDir,
    tokens: tokio::sync::Mutex<HashMap<(String, Role), String>>,
    accepted: Mutex<Vec<DeliveryId>>,
    sequence: AtomicU64,
}

struct Running {
    log: Arc<dyn EventLog>,
    peers: Peers,
    issuer: auth::DevIssuer,
    serving: Serving,
    _lock: Lock,
}

enum Serving {
    InThisProcess { shutdown: CancellationToken, serving: JoinSet<anyhow::Result<()>> },
    Separately(Separate),
}

impl World {
    /// A system on empty stores.
    pub(crate) async fn new() -> Self {
        chassis::init().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::create(folder.path()).unwrap();
        let stores = stores::fresh(&data).await;
        let mut world = Self {
            clock: Arc::new(JumpClock::new()),
            http: chassis::client::http_client().unwrap(),
            data,
            stores,
            folder,
            running: None,
            tokens: tokio::sync::Mutex::default(),
            accepted: Mutex::default(),
            sequence: AtomicU64::new(1),
        };
        world.start().await;
        world
    }

    async fn start(&mut self) {
        let lock = self.data.lock().unwrap();
        self.running = Some(if separate::are_wanted() {
            assert!(stores::are_real(), "separate processes share real stores: SYSTEM_STORES=real");
            let issuer = self.data.issuer().unwrap();
            let log = messaging::open(&self.stores.event_log, self.clock.clone()).await.unwrap();
            let separate = Separate::start(self.path(), &self.stores).await;
            Running { log, peers: separate.peers(), issuer, serving: Serving::Separately(separate), _lock: lock }
        } else {
            self.start_in_this_process(lock).await
        });
    }

    async fn start_in_this_process(&self, lock: Lock) -> Running {
        let shutdown = CancellationToken::new();
        let system = System::start(&self.data, &self.stores, 0, self.clock.clone(), shutdown.clone()).await.unwrap();
        let (log, peers, issuer) = (system.log.clone(), system.peers.clone(), system.issuer.clone());
        let (tell, told) = oneshot::channel();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            // Whoever waits for it has given up where it is not heard.
            let ended = system.run(|| _ = tell.send(())).await;
            if let Err(error) = &ended {
                println!("the system has failed: {error:#}");
            }
            ended
        });
        told.await.expect("the system serves");
        Running { log, peers, issuer, serving: Serving::InThisProcess { shutdown, serving }, _lock: lock }
    }

    async fn stop(&mut self) {
        match self.running.take().expect("the system runs").serving {
            Serving::InThisProcess { shutdown, mut serving } => {
                shutdown.cancel();
                while let Some(ended) = serving.join_next().await {
                    ended.unwrap().unwrap();
                }
            }
            Serving::Separately(processes) => processes.stop().await,
        }
    }

    /// Stops the system and starts it again on the same folder.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the system runs")
    }

    pub(crate) fn url(&self) -> &str {
        self.service_url("gateway")
    }

    /// Where a service answers the others: its first replica.
    pub(crate) fn service_url(&self, service: &str) -> &str {
        let replicas = &self.running().peers.0[service];
        replicas.split(chassis::client::URL_SEPARATORS).next().unwrap_or(replicas)
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.running().peers
    }

    pub(crate) fn issuer(&self) -> &auth::DevIssuer {
        &self.running().issuer
    }

    pub(crate) fn log(&self) -> &Arc<dyn EventLog> {
        &self.running().log
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Somebody, with a token of the development issuer.
    pub(crate) async fn user(&self, subject: &str, role: Role) -> User<'_> {
        let mut tokens = self.tokens.lock().await;
        let known = tokens.get(&(subject.to_owned(), role)).cloned();
        let token = match known {
            Some(token) => token,
            None => {
                let wish = json!({"subject": subject, "role": role});
                let request = self.http.post(format!("{}/api/dev/token", self.url())).json(&wish);
                let answer: Value = request.send().await.unwrap().json().await.unwrap();
                let token = answer["token"].as_str().unwrap_or_else(|| panic!("no token: {answer}")).to_owned();
                tokens.insert((subject.to_owned(), role), token.clone());
                token
            }
        };
        User { world: self, token }
    }

    pub(crate) async fn customer(&self, name: &str) -> User<'_> {
        self.user(name, Role::Customer).await
    }

    pub(crate) async fn operator(&self) -> User<'_> {
        self.user("olga", Role::Operator).await
    }

    /// A drone's id that nothing else has.
    pub(crate) fn new_drone(&self) -> DroneId {
        DroneId(self.clock.new_id())
    }

    /// The number of a drone's next report: grows for all drones together.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::SeqCst)
    }

    /// Notes a 202: the audit wants to find it.
    pub(crate) fn note_accepted(&self, id: DeliveryId) {
        self.accepted.lock().unwrap().push(id);
    }

    /// Waits until every delivery is over, every event relayed and every consumer at the end of its topics.
    pub(crate) async fn settle(&self) {
        let operator = self.operator().await;
        let (mut quiet, mut told) = (0, String::new());
        let patience = if self.has_replicas() { SETTLE_PATIENCE_OF_PROCESSES } else { SETTLE_PATIENCE };
        within(patience, "everything at rest", async || {
            let open = operator.get("/api/operations/sagas").await.body["open"].clone();
            let lags = lags(&**self.log()).await;
            let at_rest =
                open == 0 && (stores::are_real() || stores::outboxes_are_empty(self.path()).await) && lags.is_empty();
            // Seen where it never comes to rest.
            let now = format!("open: {open}, lags: {lags:?}");
            if now != told {
                println!("{now}");
                told = now;
            }
            quiet = if at_rest { quiet + 1 } else { 0 };
            if open == 0 && !self.has_replicas() {
                self.clock.jump(QUIET_STEP);
            }
            let enough = if stores::are_real() { QUIET_POLLS_OF_REAL_STORES } else { QUIET_POLLS };
            (quiet >= enough).then_some(())
        })
        .await;
    }

    /// Whether it is separate processes, some services twice: who joins a group may handle again what others have not
    /// committed.
    pub(crate) fn has_replicas(&self) -> bool {
        matches!(self.running().serving, Serving::Separately(_))
    }

    /// Lets time pass: in an instant where the system is in this process and hears this clock.
    pub(crate) async fn pass(&self, time: Duration) {
        if self.has_replicas() {
            SystemClock.sleep(time).await;
        } else {
            self.clock.jump(time);
        }
    }

    /// Waits for rest, stops the system, and proves the promises over the raw stores.
    pub(crate) async fn audit(mut self) {
        self.settle().await;
        self.stop().await;
        let accepted = self.accepted.lock().unwrap().clone();
        audit_is_clean(&self.stores, accepted).await;
    }
}

/// Proves the promises over the raw stores of a system that is stopped and at rest.
pub(crate) async fn audit_is_clean(stores: &Stores, accepted: Vec<DeliveryId>) {
    let report = audit(stores, Some(Ledger { accepted, torn: false })).await.unwrap();
    assert!(report.is_clean(), "{report}");
}

/// What consumers have yet to process.
async fn lags(log: &dyn EventLog) -> Vec<messaging::GroupLag> {
    let mut lags = log.lag().await.unwrap();
    lags.retain(|lag| !lag.group.ends_with(".redrive") && lag.lag() > 0);
    lags
}

/// Polls like [`testkit::until`], for as long as the caller says: for whole runs of the simulator.
pub(crate) async fn within<T>(patience: Duration, what: &str, mut question: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = SystemClock.now() + patience;
    loop {
        if let Some(answer) = question().await {
            return answer;
        }
        assert!(SystemClock.now() < deadline, "still waiting for: {what}");
        SystemClock.sleep(Duration::from_millis(50)).await;
    }
}
