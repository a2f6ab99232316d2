//! The gateway's pure rules: how answers of several services become one.

pub(crate) mod history;
pub(crate) mod telemetry;
pub(crate) mod view;
