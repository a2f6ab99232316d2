//! Where the services of this process keep their data: in the data folder, or in the stores that URLs name.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use chassis::config::{parse_event_log, store_url, without_user};
use clap::Args;

use crate::DataDir;

/// The folder's file of where everything is.
const PLACES: &str = "places.json";

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

    /// Remembers in the folder where its system has its data, and refuses a folder whose system had them elsewhere:
    /// what is under way there would stay so for ever, and nobody would be told.
    pub fn remember(&self, data: &DataDir) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec_pretty(&self.places())?;
        self.compare(&data.keep(PLACES, &bytes)?)
    }

    /// Refuses a folder whose system had its data elsewhere; of one that says nothing all is taken.
    pub fn recall(&self, data: &DataDir) -> anyhow::Result<()> {
        data.kept(PLACES)?.map_or(Ok(()), |kept| self.compare(&kept))
    }

    fn compare(&self, kept: &[u8]) -> anyhow::Result<()> {
        let kept: BTreeMap<String, String> =
            serde_json::from_slice(kept).with_context(|| format!("{PLACES} in the data folder cannot be read"))?;
        for (part, place) in self.places() {
            if let Some(before) = kept.get(part).filter(|before| **before != place) {
                bail!(
                    "this data folder's {part} was {before}, and would now be {place}: deliveries that are open there \
                     would never end. Name the former one, or give --data-dir another folder; if the data have moved, \
                     remove {PLACES} from the folder"
                );
            }
        }
        Ok(())
    }

    /// Where the data of each part are: without passwords, and wherever the folder itself may be.
    fn places(&self) -> BTreeMap<&'static str, String> {
        let place = |url: &Option<String>| url.as_deref().map_or_else(|| "embedded".to_owned(), without_user);
        self.all().into_iter().map(|(part, url)| (part, place(url))).collect()
    }

    /// The schemes of the stores that were named, for a line that says where the data are: a URL may hold a password.
    pub fn named(&self) -> Vec<String> {
        let scheme = |url: &str| url.split_once(':').map_or("?", |(scheme, _)| scheme).to_owned();
        let named = self.all().into_iter().filter_map(|(name, url)| url.as_deref().map(|url| (name, scheme(url))));
        named.map(|(name, scheme)| format!("{name} in {scheme}")).collect()
    }

    fn all(&self) -> [(&'static str, &Option<String>); 7] {
        [
            ("event log", &self.event_log),
            ("delivery", &self.delivery_store),
            ("package", &self.package_store),
            ("fleet", &self.fleet_store),
            ("tracking", &self.tracking_store),
            ("lookup", &self.lookup_store),
            ("lake", &self.lake),
        ]
    }
}

impl Stores {
    /// All embedded, in the folder.
    pub fn embedded(data: &DataDir) -> Self {
        StoreArgs::default().with_folder(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_used_and_the_rest_is_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::create(folder.path()).unwrap();
        let url = "mongodb://user:secret@127.0.0.1/lookup".to_owned();
        let args = StoreArgs { lookup_store: Some(url.clone()), ..StoreArgs::default() };
        let stores = args.with_folder(&data);
        assert_eq!((stores.lookup, stores.fleet), (url, data.store("fleet")));
        assert_eq!(args.named(), ["lookup in mongodb"], "and no password is told");
    }

    #[test]
    fn a_folder_whose_data_were_elsewhere_is_refused_until_it_is_told_that_they_moved() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::create(folder.path()).unwrap();
        let on = |url: &str| StoreArgs { fleet_store: Some(url.to_owned()), ..StoreArgs::default() };
        let first = on("postgres://user:secret@one/fleet");
        first.recall(&data).unwrap();
        first.remember(&data).unwrap();
        on("postgres://user:changed@one/fleet").remember(&data).unwrap();
        for other in [StoreArgs::default(), on("postgres://user:secret@two/fleet")] {
            for refused in [other.remember(&data), other.recall(&data)] {
                let error = refused.unwrap_err().to_string();
                assert!(error.contains("fleet was postgres://one/fleet") && !error.contains("secret"), "{error}");
            }
        }
        std::fs::remove_file(folder.path().join(PLACES)).unwrap();
        StoreArgs::default().remember(&data).unwrap();
        first.recall(&data).unwrap_err();
    }
}
