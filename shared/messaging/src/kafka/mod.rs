//! Kafka's side of the event log: its records, topics and producer. Reading by groups is not here yet, so that
//! `messaging::open` does not take a Kafka URL.

pub mod producer;
pub mod record;
