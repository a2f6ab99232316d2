//! The commands that speak to a running system.

use anyhow::{Context, bail};
use auth::DevIssuer;
use chassis::client::http_client;
use contracts::{Clock, SystemClock, api::Role};
use serde_json::{Value, json};

/// Has the dead letters of one consumer, or of all, published again; prints how many.
pub(crate) async fn redrive(url: &str, issuer: &DevIssuer, consumer: Option<&str>) -> anyhow::Result<String> {
    let (token, _) = issuer.issue("all-in-one", Role::Operator, SystemClock.now(), chrono::Duration::minutes(5))?;
    let consumers: Vec<&str> = match consumer {
        Some(consumer) => vec![consumer],
        None => messaging::dead_letters::GROUPS.to_vec(),
    };
    let http = http_client()?;
    let mut report = Vec::new();
    for consumer in consumers {
        let answer = http
            .post(format!("{url}/api/operations/dead-letters/redrive"))
            .bearer_auth(&token)
            .json(&json!({ "consumer": consumer }))
            .send()
            .await
            .with_context(|| format!("nothing answers at {url} (--url)"))?;
        let status = answer.status();
        let body: Value = answer.json().await.unwrap_or_default();
        if !status.is_success() {
            bail!("{consumer}: status {status}: {}", body["detail"].as_str().unwrap_or_default());
        }
        report.push(format!("{consumer}: {} published again", body["redriven"]));
    }
    Ok(report.join("\n"))
}
