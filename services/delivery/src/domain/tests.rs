//! Domain tests.
