//! The progress line: what the system does, once a second.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    sync::Arc,
    time::Duration,
};

use chassis::{Peer, client::CALL_DEADLINE};
use contracts::Clock;
use messaging::EventLog;
use reqwest::Method;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// How often.
const INTERVAL: Duration = Duration::from_secs(1);

/// What delivery says of its sagas.
#[derive(Debug, Default, Clone, Deserialize)]
pub(crate) struct Sagas {
    /// Deliveries that are not over.
    pub(crate) open: u64,
    /// Events committed since the process started, by kind.
    pub(crate) since_start: BTreeMap<String, u64>,
}

impl Sagas {
    /// Asks delivery.
    pub(crate) async fn ask(delivery: &Peer) -> Option<Self> {
        let request = delivery.request(Method::GET, "/operations/sagas").timeout(CALL_DEADLINE);
        delivery.fetch(request).await.ok()
    }

    fn count(&self, kind: &str) -> u64 {
        self.since_start.get(kind).copied().unwrap_or(0)
    }
}

/// Records that no consumer group has processed yet, without dead letters that wait for a redrive.
pub(crate) async fn total_lag(log: &dyn EventLog) -> Option<u64> {
    let lags = log.lag().await.ok()?;
    Some(lags.iter().filter(|lag| !lag.group.ends_with(".redrive")).map(messaging::GroupLag::lag).sum())
}

/// Whether somebody looks: the line is for terminals, unless it is asked for.
pub(crate) fn wanted(always: bool) -> bool {
    always || std::io::stderr().is_terminal()
}

/// Writes the line until `shutdown`.
pub(crate) async fn run(delivery: Peer, log: Arc<dyn EventLog>, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    let terminal = std::io::stderr().is_terminal();
    let mut before = Sagas::default();
    let mut asked_at = clock.now();
    loop {
        tokio::select! {
            () = clock.sleep(INTERVAL) => {}
            () = shutdown.cancelled() => break,
        }
        let Some(now) = Sagas::ask(&delivery).await else { continue };
        let lag = total_lag(&*log).await.unwrap_or(0);
        let at = clock.now();
        let seconds = (at - asked_at).as_seconds_f64().max(0.001);
        let line = line(&before, &now, lag, seconds);
        let mut out = std::io::stderr();
        // Nobody can be told that standard error does not take the line.
        let _ = if terminal { write!(out, "\r\x1b[2K{line}") } else { writeln!(out, "{line}") };
        let _ = out.flush();
        (before, asked_at) = (now, at);
    }
    if terminal {
        let _ = writeln!(std::io::stderr());
    }
}

fn line(before: &Sagas, now: &Sagas, lag: u64, seconds: f64) -> String {
    let part = |label: &str, kind: &str| {
        let (count, earlier) = (now.count(kind), before.count(kind));
        let rate = count.saturating_sub(earlier) as f64 / seconds;
        format!("{label} {count} ({rate:.0}/s)")
    };
    format!(
        "{} | in flight {} | {} | {} | cancelled {} | rejected {} | lag {lag}",
        part("accepted", "DeliveryRequested"),
        now.open,
        part("completed", "DeliveryCompleted"),
        part("failed", "DeliveryFailed"),
        now.count("DeliveryCancelled"),
        now.count("DeliveryRejected"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_totals_and_rates() {
        let mut now = Sagas { open: 3, ..Sagas::default() };
        now.since_start.insert("DeliveryRequested".to_owned(), 30);
        now.since_start.insert("DeliveryCompleted".to_owned(), 20);
        let text = line(&Sagas::default(), &now, 7, 2.0);
        assert!(text.contains("accepted 30 (15/s)"), "{text}");
        assert!(text.contains("in flight 3"), "{text}");
        assert!(text.contains("completed 20 (10/s)"), "{text}");
        assert!(text.contains("lag 7"), "{text}");
    }
}
