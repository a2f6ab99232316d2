//! Drones that fly and customers that order, for the demo and for load, through the public API alone.
//!
//! Invariants:
//! - no state outlives a run: after a restart the fleet and the missions say where every drone goes on;
//! - ordering is an open loop: an order is due when the schedule says so, whatever became of the earlier ones;
//! - only a 202 counts as accepted, and each one is in the ledger;
//! - reports are level-triggered: a drone repeats its stage until its mission has gone, so a lost report costs a second.

mod backoff;
mod city;
mod cli;
mod config;
mod drones;
mod gateway;
mod orders;
mod progress;
mod random;
mod run;
mod sse;
mod summary;

pub use city::generate as generate_city;
pub use cli::main;
pub use config::{Config, InvalidConfig, parse_duration};
pub use progress::{Histogram, Progress};
pub use run::run;
pub use summary::Summary;
