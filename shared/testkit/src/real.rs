//! The real stores of tests: where `infra/local/up` says they are. Without them a test says that it was skipped, or fails
//! where `REQUIRE_REAL_STORES=1` says that they must be there.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use contracts::{Clock, SystemClock};
use tempfile::TempDir;

/// The environment variable that turns a skip into a failure.
pub const REQUIRED: &str = "REQUIRE_REAL_STORES";

/// The URL in the environment variable `name`; none where it is not set, after a word on standard error.
#[allow(clippy::panic, clippy::print_stderr, reason = "for tests")]
pub fn url(name: &str) -> Option<String> {
    let url = std::env::var(name).ok().filter(|url| !url.is_empty());
    if url.is_none() {
        let hint = "start the real stores: eval \"$(infra/local/up)\"";
        assert!(std::env::var(REQUIRED).as_deref() != Ok("1"), "{name} is not set, and {REQUIRED}=1; {hint}");
        eprintln!("skipped: {name} is not set; {hint}");
    }
    url
}

/// A name that no other test uses, fit for a schema, a database, a topic or a key's prefix.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}_{}", SystemClock.new_id().simple())
}

/// The URL of a fresh, empty schema in `TEST_POSTGRES_URL`'s database.
#[allow(clippy::unwrap_used, reason = "for tests")]
pub async fn postgres() -> Option<String> {
    let url = url("TEST_POSTGRES_URL")?;
    let schema = unique("t");
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(&url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("create schema {schema}"))).execute(&pool).await.unwrap();
    pool.close().await;
    let separator = if url.contains('?') { '&' } else { '?' };
    Some(format!("{url}{separator}options[search_path]={schema}"))
}

/// Where one's own services look for ports: above those of the shared ones, below those that Linux hands out to clients.
const OWN_PORTS: std::ops::Range<u16> = 28_000..32_000;

/// Ports of one set of services, as `infra/local/up` says.
const PORTS: u16 = 80;

/// A backing service of one test's own, which it may kill. It ends with this.
pub struct Own {
    /// Where it is.
    pub url: String,
    part: &'static str,
    folder: TempDir,
    tools: PathBuf,
}

impl Own {
    /// Starts `part` as `infra/local/up --only part` does; `variable` is the one that names its URL. None where the real
    /// stores of this run do not come from there.
    #[allow(clippy::unwrap_used, reason = "for tests")]
    pub async fn start(part: &'static str, variable: &str) -> Option<Self> {
        let shared = PathBuf::from(url("LOCAL_DATA")?);
        // The same tools: installing them anew takes minutes.
        let tools = std::env::var_os("LOCAL_TOOLS").map(PathBuf::from);
        let tools = tools.unwrap_or_else(|| std::fs::read_to_string(shared.join("tools")).unwrap().trim().into());
        let mut own = Self { url: String::new(), part, folder: tempfile::tempdir().unwrap(), tools };
        let told = own.run("up", &["--only", part], Some(free_ports())).await;
        let url = told.lines().find_map(|line| line.strip_prefix(&format!("export {variable}=")));
        url.unwrap().trim_matches('\'').clone_into(&mut own.url);
        Some(own)
    }

    /// Ends it without a word to it: SIGKILL.
    pub async fn kill(&self) {
        self.run("part", &["kill", self.part], None).await;
    }

    /// Ends one node of it like that, as `infra/local/status` names it.
    pub async fn kill_node(&self, name: &str) {
        self.run("part", &["kill", name], None).await;
    }

    /// Has a node keep its connections and answer nothing, as after a break in the network.
    pub async fn freeze_node(&self, name: &str) {
        self.run("part", &["freeze", name], None).await;
    }

    /// Has a frozen node go on.
    pub async fn thaw_node(&self, name: &str) {
        self.run("part", &["thaw", name], None).await;
    }

    /// Starts it again on the data that it has, and waits until it answers.
    pub async fn start_again(&self) {
        self.run("part", &["start", self.part], None).await;
    }

    #[allow(clippy::unwrap_used, reason = "for tests")]
    async fn run(&self, command: &str, arguments: &[&str], ports: Option<u16>) -> String {
        let mut command = self.command(command);
        command.args(arguments).envs(ports.map(|base| ("LOCAL_PORT_BASE", base.to_string())));
        let done = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../infra/local").join(name));
        command
            .env("LOCAL_DATA", self.folder.path().join("data"))
            .env("LOCAL_TOOLS", &self.tools)
            .env_remove("LOCAL_PORT_BASE");
        command
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.command("down").output());
    }
}

/// The first of a set of ports that nobody uses.
#[allow(clippy::unwrap_used, reason = "for tests")]
fn free_ports() -> u16 {
    let sets: Vec<u16> = OWN_PORTS.step_by(usize::from(PORTS)).collect();
    // Not all tests that look at the same time look at the same place.
    let start = SystemClock.new_id().as_u128() as usize % sets.len();
    let free = |base: &u16| (*base..*base + PORTS).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    sets[start..].iter().chain(&sets[..start]).copied().find(free).unwrap()
}
