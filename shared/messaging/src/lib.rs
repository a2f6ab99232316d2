//! How services hear of each other: the event log, outbox relays, consumers and dead letters.
//!
//! Invariants:
//! - what `publish` has answered is on disk;
//! - a consumer's offset is committed only after its effects;
//! - a relay deletes from an outbox only what the log has acknowledged.

pub mod abort;
pub mod batch;
pub mod consumer;
pub mod dead_letters;
pub mod embedded;
pub mod kafka;
pub mod keys;
mod log;
pub mod mongodb;
pub mod outbox;
mod pace;
pub mod postgres;
pub mod sql;
pub mod sqlite;

pub use abort::abort_point;
pub use batch::{Batcher, BatcherClosed};
pub use consumer::{Consumer, HandleError, Handler};
pub use log::{Delivered, EventLog, GroupLag, LogError, Offset, Subscription, UNDECODABLE, open};
pub use pace::Pace;
