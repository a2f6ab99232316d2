//! Tests of the whole service, and what all of fleet's tests make their things with.

mod consumer;
mod http;
mod instances;
mod line;
pub(crate) mod make;
mod silence;
