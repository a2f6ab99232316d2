//! Names in Kafka: those of topics and groups, behind the prefix that the log's URL may give.

/// Puts the prefix before names and takes it off again.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// Empty, or it ends in a dot.
    prefix: String,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}.") } }
    }

    /// A name as Kafka knows it.
    pub(super) fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A name as the log's users know it.
    pub(super) fn short<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(&self.prefix).unwrap_or(name)
    }

    /// Whether it is one of this log's.
    pub(super) fn owns(&self, name: &str) -> bool {
        name.starts_with(&self.prefix)
    }
}
