//! The gateway from outside: real HTTP to it, and stand-ins behind it that record what they are asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod bodies;
mod deliveries;
mod description;
mod history;
mod operations;
mod roles;
mod stage;
mod streams;
mod telemetry;
mod validation;
