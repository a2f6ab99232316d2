//! The system tests: everything in one process, or as the real binary, seen through the public API and then audited.

mod api;
mod clock;
mod drones;
mod process;
mod scenarios;
mod stores;
mod world;
