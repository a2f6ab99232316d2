//! Named abort points: places between two durable effects where a test can end the process.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// The environment variable that names the point: `NAME` or `NAME:N` for its N-th passing.
pub const ABORT_AT: &str = "ABORT_AT";

struct Armed {
    name: String,
    passings_left: AtomicU64,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Ends the process at once, as a kill would, if the environment says so for this point; otherwise does nothing.
pub fn abort_point(name: &'static str) {
    let armed = ARMED.get_or_init(|| std::env::var(ABORT_AT).ok().map(|text| parse(&text)));
    let Some(armed) = armed else { return };
    if armed.name == name && armed.passings_left.fetch_sub(1, Ordering::SeqCst) == 1 {
        tracing::error!(point = name, "aborting, as {ABORT_AT} says");
        std::process::abort();
    }
}

fn parse(text: &str) -> Armed {
    let (name, count) = text.split_once(':').unwrap_or((text, "1"));
    Armed { name: name.to_owned(), passings_left: AtomicU64::new(count.parse().unwrap_or(1)) }
}
