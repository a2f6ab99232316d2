//! What must hold of the repository as a whole: names, layers, sizes, and above all what must not be there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what it needs by failing")]

mod layers;
mod members;
mod purity;
mod text;
mod tree;

/// Fails with every offender on a line of its own, and with the rule that they break.
#[track_caller]
fn assert_none(rule: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{rule}; {} offend:\n  {}\n", offenders.len(), offenders.join("\n  "));
}
