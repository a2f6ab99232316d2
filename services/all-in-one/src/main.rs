//! Starts every service in one process.
fn main() {}
