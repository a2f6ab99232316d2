//! The public API: one place where customers, operators, drones and base stations ask, and nothing of its own to keep.
//!
//! Invariants:
//! - nothing is stored here: every answer is made from what the owning services say now. Where drones are based is
//!   remembered, to let reports of them through and never to refuse one;
//! - nobody reads or changes what is not theirs. The owner judges it by the caller's own token, and it is judged here,
//!   too: what is to be changed by what its owner says of it before, and every answer by whose it says it is, before it
//!   is shown. An owner that answers with what is somebody else's is at fault: that is not shown, and logged;
//! - a delivery that is somebody else's is answered byte for byte like one that does not exist;
//! - 404 is said only when everybody who might know has answered; silence is 503;
//! - no stream outlives the token that opened it, and no caller takes the streams of the others.

mod aggregate;
mod bases;
mod domain;
mod http;
mod upstream;

use chassis::{Node, supervise::Tasks};

pub use http::openapi;

/// What the gateway is configured by.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Config {
    /// Whether `POST /api/dev/token` gives a token to whoever asks: for development and the demo only, and off
    /// unless it is asked for.
    #[arg(long, env = "DEV_ISSUER", default_value_t = false, action = clap::ArgAction::Set)]
    pub dev_issuer: bool,
}

impl chassis::Settings for Config {
    const PEERS: &'static [&'static str] = &["delivery", "package", "fleet", "tracking", "history", "lookup"];
}

/// Serves the public API until the node's shutdown.
pub async fn run(config: Config, node: Node) -> anyhow::Result<()> {
    let gateway = http::Gateway::new(&node)?;
    let readiness = gateway.readiness();
    let router = http::router(gateway, &config);
    let mut tasks = Tasks::new();
    tasks.spawn(chassis::serve(node.door, router, readiness, node.shutdown.clone()));
    chassis::supervise("gateway", tasks, node.shutdown).await
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn configured(arguments: &[&str]) -> Config {
        // Whatever the environment of the test says.
        let command = Config::augment_args(Command::new("gateway"))
            .mut_arg("dev_issuer", |arg| arg.env(clap::builder::Resettable::Reset));
        let matches = command.no_binary_name(true).try_get_matches_from(arguments).unwrap();
        Config::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn tokens_for_everybody_are_off_unless_asked_for() {
        assert!(!configured(&[]).dev_issuer && !Config::default().dev_issuer);
        assert!(configured(&["--dev-issuer", "true"]).dev_issuer);
    }
}
