//! MongoDB for tests: a database of one's own, and an eye on the commands that its driver sends.

use std::sync::{Arc, Mutex, PoisonError};

use ::mongodb::{
    bson::{Bson, Document},
    event::{EventHandler, command::CommandEvent},
    options::ClientOptions,
};

use crate::real;

/// The URL of a database in `TEST_MONGODB_URL` that nobody else uses; [`drop_database`] ends it.
#[allow(clippy::expect_used, reason = "for tests")]
pub fn database(prefix: &str) -> Option<String> {
    let url = real::url("TEST_MONGODB_URL")?;
    let (servers, options) = url.split_once("/?").expect("TEST_MONGODB_URL is mongodb://HOSTS/?OPTIONS");
    Some(format!("{servers}/{}?{options}", real::unique(prefix)))
}

/// Drops the database that a test's URL names.
#[allow(clippy::unwrap_used, reason = "for tests")]
pub async fn drop_database(url: &str) {
    messaging::mongodb::open(url, "test").await.unwrap().drop().await.unwrap();
}

/// The commands that a driver has sent.
#[derive(Debug, Clone, Default)]
pub struct Commands(Arc<Mutex<Vec<Document>>>);

impl Commands {
    /// Options for the URL, of a client whose commands are kept here.
    #[allow(clippy::unwrap_used, reason = "for tests")]
    pub async fn of(&self, url: &str) -> ClientOptions {
        let mut options = ClientOptions::parse(url).await.unwrap();
        let sent = self.0.clone();
        options.command_event_handler = Some(EventHandler::callback(move |event| {
            if let CommandEvent::Started(started) = event {
                sent.lock().unwrap_or_else(PoisonError::into_inner).push(started.command);
            }
        }));
        options
    }

    /// The commands to a collection, since the last time somebody asked.
    pub fn take(&self) -> Vec<Document> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a command to a sharded collection asks of every shard, since it does not name the shard key's value: the
/// command's name, and where it has one its comment. `None` where each of its statements goes to the shards of the keys
/// that it names.
pub fn scatter(command: &Document, shard_key: &str) -> Option<String> {
    let (name, _) = command.iter().next()?;
    let documents = |field: &str| -> Vec<&Document> {
        command.get_array(field).into_iter().flatten().filter_map(Bson::as_document).collect()
    };
    let filters: Vec<Option<&Document>> = match name.as_str() {
        "find" | "findAndModify" => {
            vec![command.get_document("filter").or_else(|_| command.get_document("query")).ok()]
        }
        "insert" => documents("documents").into_iter().map(Some).collect(),
        "update" => documents("updates").into_iter().map(|one| one.get_document("q").ok()).collect(),
        "delete" => documents("deletes").into_iter().map(|one| one.get_document("q").ok()).collect(),
        "aggregate" => {
            let first = documents("pipeline").into_iter().next();
            vec![first.and_then(|stage| stage.get_document("$match").ok())]
        }
        _ => vec![None],
    };
    let targeted = !filters.is_empty() && filters.iter().all(|filter| filter.is_some_and(|it| names(it, shard_key)));
    let comment = command.get_str("comment").map(|comment| format!(": {comment}")).unwrap_or_default();
    (!targeted).then(|| format!("{name}{comment}"))
}

/// A write that does not wait until a majority has it on its disks, or waits for that without end: the command.
pub fn unconfirmed(command: &Document) -> Option<&Document> {
    let (name, _) = command.iter().next()?;
    if !["insert", "update", "delete", "findAndModify"].contains(&name.as_str()) {
        return None;
    }
    let confirmed = command.get_document("writeConcern").is_ok_and(|concern| {
        let bounded = concern.contains_key("wtimeoutMS") || concern.contains_key("wtimeout");
        concern.get_str("w").is_ok_and(|w| w == "majority") && concern.get_bool("j").is_ok_and(|j| j) && bounded
    });
    (!confirmed).then_some(command)
}

/// Whether a filter gives the key's value, or a list of its values.
fn names(filter: &Document, shard_key: &str) -> bool {
    match filter.get(shard_key) {
        None => false,
        Some(Bson::Document(operators)) => operators.contains_key("$in") || operators.contains_key("$eq"),
        Some(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use ::mongodb::bson::doc;

    use super::*;

    #[test]
    fn a_write_is_confirmed_by_a_majoritys_disks_and_not_waited_for_without_end() {
        let confirmed = doc! { "insert": "c", "writeConcern": { "w": "majority", "j": true, "wtimeout": 5 } };
        assert_eq!(unconfirmed(&confirmed), None);
        assert_eq!(unconfirmed(&doc! { "find": "c" }), None);
        let others = [
            doc! { "insert": "c" },
            doc! { "update": "c", "writeConcern": { "w": "majority", "j": true } },
            doc! { "delete": "c", "writeConcern": { "w": 1, "j": true, "wtimeout": 5 } },
            doc! { "findAndModify": "c", "writeConcern": { "w": "majority", "wtimeout": 5 } },
        ];
        for command in &others {
            assert_eq!(unconfirmed(command), Some(command));
        }
    }

    #[test]
    fn a_command_is_targeted_where_each_of_its_statements_names_the_key() {
        let targeted = [
            doc! { "find": "c", "filter": { "key": 1, "other": { "$gt": 2 } } },
            doc! { "find": "c", "filter": { "key": { "$in": [1, 2] } } },
            doc! { "update": "c", "updates": [{ "q": { "key": 1 } }, { "q": { "key": 2 } }] },
            doc! { "delete": "c", "deletes": [{ "q": { "key": 1 } }] },
            doc! { "insert": "c", "documents": [{ "key": 1 }, { "key": 2 }] },
            doc! { "aggregate": "c", "pipeline": [{ "$match": { "key": 1 } }] },
        ];
        for command in &targeted {
            assert_eq!(scatter(command, "key"), None, "{command}");
        }
        let scattered = [
            doc! { "find": "c", "filter": { "other": 1 } },
            doc! { "find": "c", "filter": { "key": { "$gt": 1 } } },
            doc! { "find": "c" },
            doc! { "update": "c", "updates": [{ "q": { "key": 1 } }, { "q": { "other": 2 } }] },
            doc! { "insert": "c", "documents": [{ "other": 1 }] },
            doc! { "aggregate": "c", "pipeline": [{ "$group": { "_id": 1 } }, { "$match": { "key": 1 } }] },
            doc! { "count": "c", "query": { "key": 1 } },
        ];
        for command in &scattered {
            assert!(scatter(command, "key").is_some(), "{command}");
        }
        let commented = doc! { "find": "c", "filter": {}, "comment": "the sweep" };
        assert_eq!(scatter(&commented, "key").as_deref(), Some("find: the sweep"));
    }
}
