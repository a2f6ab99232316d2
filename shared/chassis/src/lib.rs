//! What every service stands on: its Node, its start and end, its HTTP server and clients, its errors.
//!
//! Invariants:
//! - a service gets its door, log, clock, peers and shutdown from its Node and nowhere else;
//! - an error that leaves a service is problem+json, whatever went wrong;
//! - what a caller may take is bounded: connections, the time for a request's head and body, the body's size.

pub mod api_error;
pub mod auth;
mod breaker;
pub mod client;
pub mod config;
pub mod extract;
mod failover;
pub mod janitor;
pub mod node;
mod readiness;
pub mod serve;
pub mod stream;
pub mod supervise;

pub use api_error::ApiError;
pub use client::{Peer, PeerError};
pub use config::{Settings, main};
pub use extract::{Json, Path, Query};
pub use janitor::janitor;
pub use node::{Door, Node, Peers};
pub use readiness::Readiness;
pub use serve::serve;
pub use supervise::supervise;

use std::{
    ffi::OsStr,
    io::{IsTerminal, Write},
    process::ExitCode,
};

use anyhow::Context;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// Of every program that has a service in it: a fifth of the processor time went to the C library's allocator, whose arenas
/// suit many threads badly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is logged where `LOG` does not say it. Who loses a race for a commit to the lake goes again: the library calls
/// that an error, and what is one is told by who asked for the commit.
const DEFAULT_LOG: &str = "warn,deltalake_core::kernel::transaction=off";

/// Installs the TLS provider and the log format; first thing in every main. Repeating it does nothing. Fails where
/// `LOG` cannot be read.
pub fn init() -> anyhow::Result<()> {
    // Two providers are in the tree, so that one must be chosen. An error means that it was chosen already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let filter = log_filter(std::env::var_os("LOG").as_deref())?;
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|said| said.is_empty());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    // An error means that a subscriber is set, which a test does.
    let _ = subscriber.try_init();
    Ok(())
}

/// Tells whoever started the process; nobody can be told that standard error does not take it.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Says why the process ends.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    note(&format!("error: {error:#}"));
    ExitCode::FAILURE
}

/// What the variable asks for, if it is set.
fn log_filter(said: Option<&OsStr>) -> anyhow::Result<EnvFilter> {
    const EXPECTED: &str = "LOG: expected a level, or levels of modules, as in warn,fleet=debug";
    let Some(said) = said else { return Ok(EnvFilter::new(DEFAULT_LOG)) };
    let text = said.to_str().filter(|text| !text.trim().is_empty()).context(EXPECTED)?;
    for part in text.split(',').filter(|part| !part.contains(['=', '['])) {
        // Any other word would be taken for a module, and all others would log nothing.
        part.parse::<LevelFilter>().context(EXPECTED)?;
    }
    EnvFilter::try_new(text).context(EXPECTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_logged_only_where_nothing_else_is_asked_for() {
        let level = |said: Option<&str>| log_filter(said.map(OsStr::new)).unwrap().max_level_hint();
        assert_eq!(level(None), Some(LevelFilter::WARN));
        assert_eq!(level(Some("info")), Some(LevelFilter::INFO));
        assert_eq!(level(Some("warn,fleet=debug")), Some(LevelFilter::DEBUG));
        for unreadable in ["", " ", "verbose", "fleet=loud", "warn,fleet", "warn, fleet=debug]"] {
            let error = log_filter(Some(unreadable.as_ref())).unwrap_err().to_string();
            assert!(error.starts_with("LOG: "), "'{unreadable}': {error}");
        }
    }
}
