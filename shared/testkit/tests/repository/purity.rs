//! Inside a service each concern has its one place: rules, HTTP, subscriptions, engines.

use crate::{assert_none, tree};

/// Whether the code names that crate: `name::` as a whole word, or `use name;`.
pub(crate) fn mentions(line: &str, name: &str) -> bool {
    let mut rest = line;
    while let Some(at) = rest.find(name) {
        let before = rest[..at].chars().next_back();
        let after = &rest[at + name.len()..];
        let starts = before.is_none_or(|last| !last.is_alphanumeric() && !matches!(last, '_' | ':' | '"' | '.' | '/'));
        let imported = line.trim_start().starts_with("use ") && (after.starts_with(';') || after.starts_with(" as "));
        if starts && (after.starts_with("::") || imported) {
            return true;
        }
        rest = after;
    }
    false
}

/// Whether a path inside a service's sources is that concern's file or lies in its folder.
fn belongs_to(path: &str, concern: &str) -> bool {
    path.strip_prefix(concern).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// The lines of services' product code for which `is_fault` holds, given the service and the path inside it.
fn faults(is_fault: impl Fn(&str, &str, &str) -> bool) -> Vec<String> {
    let mut offenders = Vec::new();
    for file in tree::rust_files() {
        let Some((service, path)) = file.of_service() else { continue };
        for (number, line) in file.product_lines() {
            if is_fault(service, path, line) {
                offenders.push(file.at(number, line));
            }
        }
    }
    offenders
}

#[test]
fn a_domain_is_pure() {
    const IMPURE: &[&str] =
        &["axum", "hyper", "tokio", "tokio_util", "sqlx", "reqwest", "object_store", "messaging", "rand", "tracing"];
    let offenders =
        faults(|_, path, line| belongs_to(path, "domain") && IMPURE.iter().any(|name| mentions(line, name)));
    assert_none("domain.rs holds rules: no I/O, no randomness, no logs", &offenders);
}

#[test]
fn time_and_ids_are_arguments_of_a_domain() {
    const SOURCES: &[&str] =
        &["Utc::now", "Instant::now", "SystemTime::now", "now_v7", "new_v4", "dyn Clock", ".new_id("];
    let offenders =
        faults(|_, path, line| belongs_to(path, "domain") && SOURCES.iter().any(|source| line.contains(source)));
    assert_none("domain.rs is told the time and the ids", &offenders);
}

#[test]
fn only_events_subscribes() {
    const SUBSCRIBES: &[&str] = &["Handler for ", "HandleError", "Subscription", "log.subscribe("];
    let offenders =
        faults(|_, path, line| !belongs_to(path, "events") && SUBSCRIBES.iter().any(|mark| line.contains(mark)));
    assert_none("events.rs is the only subscriber", &offenders);
}

#[test]
fn a_consumer_is_wired_where_the_service_starts() {
    let offenders = faults(|_, path, line| {
        let wires = path == "lib.rs" || belongs_to(path, "events");
        !wires && (line.contains("Consumer {") || line.contains("Consumer::"))
    });
    assert_none("a consumer is started by events.rs, or by lib.rs, which wires it", &offenders);
}

#[test]
fn only_http_knows_status_codes() {
    // The simulator serves nothing: to it a status is another system's answer.
    let offenders = faults(|service, path, line| {
        service != "simulator" && !belongs_to(path, "http") && line.contains("StatusCode")
    });
    assert_none("http.rs is the only mapping of errors to statuses", &offenders);
}

#[test]
fn only_a_store_knows_its_engine() {
    // all-in-one's audit reads every store at rest, past its owner; that is its purpose.
    const ENGINES: &[&str] = &["sqlx", "object_store", "deltalake_core", "parquet", "mongodb", "redis"];
    let offenders = faults(|service, path, line| {
        let keeps = belongs_to(path, "store") || belongs_to(path, "lake") || service == "all-in-one";
        !keeps && ENGINES.iter().any(|engine| mentions(line, engine))
    });
    assert_none("an engine is named only in store/ (and history's lake/)", &offenders);
}

#[test]
fn main_only_wires() {
    let mut offenders = Vec::new();
    for file in tree::rust_files() {
        let Some((service, "main.rs")) = file.of_service() else { continue };
        // The simulator's has a command line of its own.
        let limit = if service == "simulator" { 120 } else { 20 };
        let lines = file.product_lines().len();
        if lines > limit {
            offenders.push(format!("{}: {lines} lines", file.path));
        }
    }
    assert_none("main.rs is a table of contents; logic starts in the library", &offenders);
}

#[test]
fn a_crate_is_mentioned_by_whole_word() {
    assert!(mentions("use axum::Router;", "axum"));
    assert!(mentions("    let x = tokio::sync::Mutex::new(());", "tokio"));
    assert!(mentions("use sqlx;", "sqlx"));
    assert!(!mentions("use tokio_util::sync;", "tokio"));
    assert!(!mentions("let auth = auth.clone();", "auth"));
    assert!(!mentions("use chassis::auth::Caller;", "auth"));
}
