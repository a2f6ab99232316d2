//! Where a folder's system has its data: remembered in the folder, since what is under way in a store that is no longer
//! named would stay so for ever, and nobody would be told.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::{DataDir, Stores};

/// The folder's file of them.
const FILE: &str = "places.json";

/// The place of what lies in the folder itself, wherever that may be.
const EMBEDDED: &str = "embedded";

/// Where each part of a system has its data; without users and passwords.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Places(BTreeMap<String, String>);

impl Places {
    /// Those of a system with these stores, whose folder is `data`.
    pub fn of(stores: &Stores, data: &DataDir) -> Self {
        let embedded = Stores::embedded(data);
        let place = |(url, own): (&str, &str)| if url == own { EMBEDDED.to_owned() } else { place_of(url) };
        let both = stores.urls().into_iter().zip(embedded.urls());
        Self(both.map(|((part, url), (_, own))| (part.to_owned(), place((url, own)))).collect())
    }

    /// Refuses a folder whose system has its data elsewhere; one that remembers nothing may have them anywhere. Changes
    /// nothing.
    pub fn check(&self, data: &DataDir) -> anyhow::Result<()> {
        let Some(bytes) = data.kept(FILE)? else { return Ok(()) };
        let Self(kept) = serde_json::from_slice(&bytes).with_context(|| format!("{FILE} in the data folder"))?;
        for (part, place) in &self.0 {
            if let Some(before) = kept.get(part).filter(|before| *before != place) {
                bail!(
                    "{part} of this data folder's system is {before}, and now it would be {place}, without what is under \
                     way in the first. Name that one (TRACKING_STORE and the like, see --help), or give --data-dir \
                     another folder. If it is the same by another name, or if the data have moved, remove {FILE} from \
                     the folder"
                );
            }
        }
        Ok(())
    }

    /// What is elsewhere than in the folder, and in what: for a line that says where the data are.
    pub fn elsewhere(&self) -> impl Iterator<Item = String> + '_ {
        let elsewhere = self.0.iter().filter(|(_, place)| *place != EMBEDDED);
        elsewhere.map(|(part, place)| format!("{part} in {}", place.split_once(':').map_or("?", |(scheme, _)| scheme)))
    }

    /// Remembers them in the folder, once all of them are open; what is remembered stays.
    pub fn remember(&self, data: &DataDir) -> anyhow::Result<()> {
        if data.kept(FILE)?.is_none() {
            data.keep(FILE, &serde_json::to_vec_pretty(self)?)?;
        }
        Ok(())
    }
}

/// A URL without its user and its secrets; a path means the same wherever the next start is.
fn place_of(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        let (scheme, path) = url.split_at(url.find(':').map_or(0, |colon| colon + 1));
        return std::path::absolute(path).map_or_else(|_| url.to_owned(), |path| format!("{scheme}{}", path.display()));
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let is_secret = |setting: &str| {
        let name = setting.split('=').next().unwrap_or_default().to_lowercase();
        ["user", "password", "secret", "token", "authmechanismproperties"].iter().any(|word| name.contains(word))
    };
    let settings: Vec<_> = query.split('&').filter(|setting| !setting.is_empty() && !is_secret(setting)).collect();
    let mark = if settings.is_empty() { "" } else { "?" };
    format!("{scheme}://{hosts}{path}{mark}{}", settings.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreArgs;

    fn places(fleet: Option<&str>, data: &DataDir) -> Places {
        let args = StoreArgs { fleet_store: fleet.map(str::to_owned), ..StoreArgs::default() };
        Places::of(&args.with_folder(data), data)
    }

    #[test]
    fn a_folder_whose_data_are_elsewhere_is_refused_until_it_is_told_that_they_moved() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::create(folder.path()).unwrap();
        let first = places(Some("postgres://user:secret@one/fleet"), &data);
        assert_eq!(first.elsewhere().collect::<Vec<_>>(), ["fleet in postgres"]);
        first.check(&data).unwrap();
        assert_eq!(data.kept(FILE).unwrap(), None, "a start that fails is not remembered");
        first.remember(&data).unwrap();
        places(Some("postgres://user:changed@one/fleet"), &data).check(&data).unwrap();
        for other in [None, Some("postgres://user:secret@two/fleet")] {
            let other = places(other, &data);
            other.remember(&data).unwrap();
            let error = other.check(&data).unwrap_err().to_string();
            assert!(error.starts_with("fleet of this data folder's system is postgres://one/fleet, "), "{error}");
        }
        std::fs::remove_file(folder.path().join(FILE)).unwrap();
        places(None, &data).check(&data).unwrap();
    }

    #[test]
    fn what_lies_in_the_folder_is_embedded_by_whatever_name_and_wherever_the_folder_is() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        let data = DataDir::create(&old).unwrap();
        places(None, &data).remember(&data).unwrap();
        places(Some(&data.store("fleet")), &data).check(&data).unwrap();
        std::fs::rename(&old, &new).unwrap();
        let data = DataDir::open(&new).unwrap();
        places(None, &data).check(&data).unwrap();
        let error = places(Some("postgres://one/fleet"), &data).check(&data).unwrap_err().to_string();
        assert!(error.starts_with("fleet of this data folder's system is embedded"), "{error}");
    }

    #[test]
    fn a_place_tells_where_and_no_secret() {
        let told = [
            (
                "postgres://me:se@cret@one/db?user=me&password=s&options[search_path]=x",
                "postgres://one/db?options[search_path]=x",
            ),
            ("postgres://me:secret@one/db?application_name=a@b", "postgres://one/db?application_name=a@b"),
            ("mongodb://me:secret@a,b/package?tlsCertificateKeyFilePassword=s", "mongodb://a,b/package"),
            ("mongodb://a/x?authMechanismProperties=AWS_SESSION_TOKEN:s&w=1", "mongodb://a/x?w=1"),
            ("redis+cluster://:secret@a:1,b:2?prefix=x", "redis+cluster://a:1,b:2?prefix=x"),
            ("s3://one/x@y", "s3://one/x@y"),
            ("sqlite:/data/me@there/x.db", "sqlite:/data/me@there/x.db"),
        ];
        for (url, place) in told {
            assert_eq!(place_of(url), place);
        }
    }

    #[test]
    fn a_path_is_of_the_folder_in_which_it_was_said() {
        let here = std::env::current_dir().unwrap();
        let file = here.join("x.db");
        assert_eq!(place_of("sqlite:x.db"), format!("sqlite:{}", file.display()));
        assert_eq!(place_of("x.db"), file.display().to_string());
    }
}
