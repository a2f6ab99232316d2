//! The system tests: everything in one process, or as the real binary, seen through the public API and then audited.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says what it needs by failing"
)]

mod api;
mod clock;
mod drones;
mod process;
mod scenarios;
mod second;
mod separate;
mod stores;
mod world;
