//! The delivery service as its callers meet it: over HTTP and the event log, with its peers as small fakes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what it needs by failing")]

mod accepting;
mod cancelling;
mod events;
mod instances;
mod mending;
mod peers;
mod running;
mod scheduling;
mod streams;
