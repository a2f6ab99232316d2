//! What every service stands on: its Node, its start and end, its HTTP server and clients, its errors.
//!
//! Invariants:
//! - a service gets listener, log, clock, peers and shutdown from its Node and nowhere else;
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
pub use config::main;
pub use extract::{Json, Path, Query};
pub use janitor::janitor;
pub use node::{Node, Peers};
pub use readiness::Readiness;
pub use serve::serve;
pub use supervise::supervise;

/// Installs the TLS provider and the log format; first thing in every main. Repeating it does nothing.
pub fn init() {
    // Two providers are in the tree, so that one must be chosen. An error means that it was chosen already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let filter = tracing_subscriber::EnvFilter::try_from_env("LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    // An error means that a subscriber is set, which a test does.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
