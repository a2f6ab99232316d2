//! The public API: one place where customers, operators, drones and base stations ask, and nothing of its own to keep.
//!
//! Invariants:
//! - nothing is stored here: every answer is made from what the owning services say now;
//! - nobody reads or changes what is not theirs: checked here, and again by the owner, with the caller's own token;
//! - a delivery that is somebody else's is answered byte for byte like one that does not exist;
//! - 404 is said only when everybody who might know has answered; silence is 503.

mod aggregate;
mod domain;
mod http;
mod upstream;

use chassis::{Node, supervise::Tasks};

pub use http::openapi;

/// What the gateway is configured by.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Whether `POST /api/dev/token` gives a token to whoever asks: for development and the demo only.
    #[arg(long, env = "DEV_ISSUER", default_value_t = true, action = clap::ArgAction::Set)]
    pub dev_issuer: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { dev_issuer: true }
    }
}

/// Serves the public API until the node's shutdown.
pub async fn run(config: Config, node: Node) -> anyhow::Result<()> {
    let router = http::router(http::Gateway::new(&node)?, &config);
    let mut tasks = Tasks::new();
    tasks.spawn(chassis::serve(node.listener, router, node.shutdown.clone()));
    chassis::supervise("gateway", tasks, node.shutdown).await
}
