//! The ledger of 202s that a client outside the system wrote.

use std::io::BufRead;

use anyhow::Context;
use contracts::DeliveryId;
use serde::Deserialize;

/// What a client was promised.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// The accepted ids, in order; a client that was answered the same 202 twice wrote it twice.
    pub accepted: Vec<DeliveryId>,
    /// A last line without its end: the client was killed while it wrote.
    pub torn: bool,
}

#[derive(Deserialize)]
struct Line {
    id: DeliveryId,
}

impl Ledger {
    /// Reads a ledger: one JSON object with `id` a line.
    pub fn read(mut lines: impl BufRead) -> anyhow::Result<Self> {
        let mut ledger = Self::default();
        let mut text = String::new();
        for number in 1.. {
            text.clear();
            if lines.read_line(&mut text)? == 0 {
                break;
            }
            if text.trim().is_empty() {
                continue;
            }
            match serde_json::from_str::<Line>(&text) {
                Ok(line) => ledger.accepted.push(line.id),
                Err(_) if !text.ends_with('\n') => ledger.torn = true,
                Err(error) => return Err(error).with_context(|| format!("line {number}")),
            }
        }
        Ok(ledger)
    }
}
