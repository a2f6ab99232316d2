//! How topics and groups are called on a cluster: with the prefix of a system, so that several can share one.

use std::sync::Arc;

use crate::LogError;

/// The names of one system's topics and groups.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// Empty, or with its dot.
    prefix: Arc<str>,
}

impl Names {
    /// The names under `prefix`; plain ones where it is empty.
    pub(super) fn new(prefix: &str) -> Result<Self, LogError> {
        // No dot, so that no system's prefix begins another's.
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if !prefix.chars().all(fits) {
            return Err(LogError::unavailable(format!(
                "'{prefix}' is not a topic prefix: letters, digits, '_' and '-' may be in it"
            )));
        }
        Ok(Self { prefix: if prefix.is_empty() { "".into() } else { format!("{prefix}.").into() } })
    }

    /// What the cluster calls a topic or a group of ours.
    pub(super) fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// What we call a topic or a group of the cluster; none where it is not ours.
    pub(super) fn ours<'a>(&self, full: &'a str) -> Option<&'a str> {
        // The cluster's own topics are named like that.
        full.strip_prefix(&*self.prefix).filter(|_| !full.starts_with("__"))
    }
}

/// The brokers and the names of `HOST:PORT[,HOST:PORT][/TOPIC_PREFIX]`.
pub(super) fn parse(address: &str) -> Result<(&str, Names), LogError> {
    let (brokers, prefix) = address.split_once('/').unwrap_or((address, ""));
    let named = |broker: &str| {
        broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    if !brokers.split(',').all(named) {
        return Err(LogError::unavailable(format!("'{brokers}' is not a list of brokers HOST:PORT[,HOST:PORT]")));
    }
    Ok((brokers, Names::new(prefix)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_brokers_and_perhaps_a_prefix() {
        let (brokers, names) = parse("one:9092,two:9093/blue").unwrap();
        assert_eq!(brokers, "one:9092,two:9093");
        assert_eq!(names.full("delivery.events"), "blue.delivery.events");
        assert_eq!(names.ours("blue.delivery.events"), Some("delivery.events"));
        assert_eq!(names.ours("bluer.delivery.events"), None);
        let (_, plain) = parse("one:9092").unwrap();
        assert_eq!(
            (plain.full("a"), plain.ours("a"), plain.ours("__consumer_offsets")),
            ("a".to_owned(), Some("a"), None)
        );
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for wrong in ["", "host", "host:", ":1", "host:1,", "host:70000", "host:1/a.b", "host:1/a/b", "host:1/a b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
