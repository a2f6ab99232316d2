//! Starts every service in one process over loopback HTTP, on embedded stores in one folder or on the stores that
//! URLs name; and the tools around it.
//!
//! Invariants:
//! - no second code path for "local": services talk HTTP here as they do anywhere;
//! - one process a folder: a lock says so.

pub mod audit;
mod cli;
mod data_dir;
mod places;
mod progress;
mod remote;
mod stores;
pub mod system;

pub use cli::main;
pub use data_dir::{DataDir, DataDirError, Lock};
pub use places::Places;
pub use stores::{StoreArgs, Stores};
