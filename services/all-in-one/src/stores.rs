//! Where the services of this process keep their data: in the data folder, or in the stores that URLs name.

use chassis::config::{parse_event_log, store_url};
use clap::Args;

use crate::DataDir;

/// URLs of stores in place of the embedded ones in the data folder.
#[derive(Debug, Clone, Default, Args)]
pub struct StoreArgs {
    /// The event log's URL; embedded in the data folder unless given.
    #[arg(long, env = "EVENT_LOG", value_parser = parse_event_log)]
    pub event_log: Option<String>,
    /// The URL of delivery's store; embedded unless given.
    #[arg(long, env = "DELIVERY_STORE", value_parser = store_url(&delivery::STORE_SCHEMES))]
    pub delivery_store: Option<String>,
    /// The URL of package's store; embedded unless given.
    #[arg(long, env = "PACKAGE_STORE", value_parser = store_url(&package::STORE_SCHEMES))]
    pub package_store: Option<String>,
    /// How events leave package's store: by polling it, or by its change stream (MongoDB only).
    #[arg(long, env = "PACKAGE_RELAY", value_enum, default_value_t)]
    pub package_relay: package::Relaying,
    /// The URL of fleet's store; embedded unless given.
    #[arg(long, env = "FLEET_STORE", value_parser = store_url(&fleet::STORE_SCHEMES))]
    pub fleet_store: Option<String>,
    /// The URL of tracking's store; embedded unless given.
    #[arg(long, env = "TRACKING_STORE", value_parser = store_url(&tracking::STORE_SCHEMES))]
    pub tracking_store: Option<String>,
    /// The URL of lookup's store; embedded unless given.
    #[arg(long, env = "LOOKUP_STORE", value_parser = store_url(&lookup::STORE_SCHEMES))]
    pub lookup_store: Option<String>,
    /// The lake's URL; a folder in the data folder unless given.
    #[arg(long, env = "LAKE", value_parser = history::parse_lake)]
    pub lake: Option<String>,
}

/// The URL of every store of a system.
#[derive(Debug, Clone)]
pub struct Stores {
    /// The event log.
    pub event_log: String,
    /// delivery's.
    pub delivery: String,
    /// package's.
    pub package: String,
    /// How events leave it.
    pub package_relay: package::Relaying,
    /// fleet's.
    pub fleet: String,
    /// tracking's.
    pub tracking: String,
    /// lookup's.
    pub lookup: String,
    /// history's.
    pub lake: String,
}

impl StoreArgs {
    /// What was named, and for the rest what lies in the folder.
    pub fn with_folder(&self, data: &DataDir) -> Stores {
        let store = |named: &Option<String>, service| named.clone().unwrap_or_else(|| data.store(service));
        Stores {
            event_log: self.event_log.clone().unwrap_or_else(|| data.event_log()),
            delivery: store(&self.delivery_store, "delivery"),
            package: store(&self.package_store, "package"),
            package_relay: self.package_relay,
            fleet: store(&self.fleet_store, "fleet"),
            tracking: store(&self.tracking_store, "tracking"),
            lookup: store(&self.lookup_store, "lookup"),
            lake: self.lake.clone().unwrap_or_else(|| data.lake()),
        }
    }
}

impl Stores {
    /// All embedded, in the folder.
    pub fn embedded(data: &DataDir) -> Self {
        StoreArgs::default().with_folder(data)
    }

    /// Every part's name and URL.
    pub(crate) fn urls(&self) -> [(&'static str, &str); 7] {
        [
            ("event log", &self.event_log),
            ("delivery", &self.delivery),
            ("package", &self.package),
            ("fleet", &self.fleet),
            ("tracking", &self.tracking),
            ("lookup", &self.lookup),
            ("lake", &self.lake),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_used_and_the_rest_is_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::create(folder.path()).unwrap();
        let url = "mongodb://127.0.0.1/lookup".to_owned();
        let args = StoreArgs { lookup_store: Some(url.clone()), ..StoreArgs::default() };
        let stores = args.with_folder(&data);
        assert_eq!((stores.lookup, stores.fleet), (url, data.store("fleet")));
    }
}
