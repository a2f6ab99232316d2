//! What the event log, consumers and relays promise, tested from outside.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what it needs by failing")]

mod consumer;
mod embedded;
mod engine;
mod hanging;
mod kafka;
mod log_contract;
mod on_postgres;
mod outbox;
