//! Old events meet new readers and new events old readers: every event against its golden files in `v1/`.
//!
//! The golden files are never edited once released. A new optional field comes with a new example beside the old ones
//! (`<EventName>.<what>.json`); a field that is removed, renamed, retyped or newly required fails a test here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what it needs by failing")]

use std::{collections::BTreeMap, fs, path::PathBuf};

use contracts::{
    Timestamp,
    events::{
        CloudEvent, DeliveryRecord, DroneRecord, Event, EventData, EventKind, FlightProgress, PackageRecord,
        PositionSample, Topic, UNDECODABLE,
    },
};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

/// Runs a generic check for the data of every topic.
macro_rules! for_every_topic {
    ($check:ident) => {
        $check::<DeliveryRecord>();
        $check::<PackageRecord>();
        $check::<DroneRecord>();
        $check::<FlightProgress>();
        $check::<PositionSample>();
    };
}

fn folder(topic: Topic) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("v1").join(topic.name())
}

/// The golden files of a kind, by name.
fn golden(topic: Topic, kind: &str) -> BTreeMap<String, Value> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder(topic)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.split('.').next() == Some(kind) {
            files.insert(name, serde_json::from_slice(&fs::read(entry.path()).unwrap()).unwrap());
        }
    }
    files
}

fn cloud_event(topic: Topic, kind: &str, data: &Value) -> CloudEvent {
    CloudEvent {
        id: Uuid::nil(),
        topic: topic.name().to_owned(),
        key: "key".to_owned(),
        kind: kind.to_owned(),
        source: "test".to_owned(),
        time: Timestamp::UNIX_EPOCH,
        traceparent: None,
        data: serde_json::to_vec(data).unwrap(),
    }
}

fn decode<D: EventData>(kind: &str, data: &Value) -> Result<Event<D>, String> {
    match Event::<D>::decode(&cloud_event(D::TOPIC, kind, data)) {
        Ok(Some(event)) => Ok(event),
        Ok(None) => Err(format!("{kind} is not known")),
        Err(error) => Err(error.source.to_string()),
    }
}

/// The first place where `new` lacks what `old` says, or says it otherwise. More is fine.
fn lacks(old: &Value, new: &Value, path: &str) -> Option<String> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => old.iter().find_map(|(name, old)| {
            let path = format!("{path}.{name}");
            new.get(name).map_or_else(|| Some(format!("{path} is gone")), |new| lacks(old, new, &path))
        }),
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            old.iter().zip(new).enumerate().find_map(|(n, (old, new))| lacks(old, new, &format!("{path}[{n}]")))
        }
        _ if old == new => None,
        _ => Some(format!("{path} was {old}, is {new}")),
    }
}

/// Where every object of a value lies.
fn objects(value: &Value, pointer: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.push(pointer.to_owned());
            for (name, value) in fields {
                objects(value, &format!("{pointer}/{name}"), found);
            }
        }
        Value::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                objects(item, &format!("{pointer}/{number}"), found);
            }
        }
        _ => {}
    }
}

fn fields_of(value: &Value, pointer: &str) -> Vec<String> {
    value.pointer(pointer).and_then(Value::as_object).unwrap().keys().cloned().collect()
}

fn every_kind_has_its_files_of<D: EventData>() {
    let mut expected = Vec::new();
    for kind in D::Kind::ALL {
        expected.push(format!("{}.json", kind.as_str()));
        expected.push(format!("{}.minimal.json", kind.as_str()));
    }
    for name in expected {
        assert!(folder(D::TOPIC).join(&name).is_file(), "{}/{name} is missing", D::TOPIC.name());
    }
    for entry in fs::read_dir(folder(D::TOPIC)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let kind = name.split('.').next().unwrap();
        assert!(D::Kind::parse(kind).is_some(), "{}/{name} is of no kind: was one removed?", D::TOPIC.name());
    }
}

#[test]
fn every_kind_has_its_golden_files_and_every_file_its_kind() {
    for_every_topic!(every_kind_has_its_files_of);
    for topic in Topic::ALL {
        assert!(folder(topic).is_dir(), "{} is not checked", topic.name());
    }
}

fn old_events_are_read_of<D: EventData>() {
    for kind in D::Kind::ALL {
        for (file, data) in golden(D::TOPIC, kind.as_str()) {
            let event = decode::<D>(kind.as_str(), &data).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert_eq!(event.kind, *kind, "{file}");
        }
    }
}

#[test]
fn an_old_event_is_read_by_todays_reader() {
    for_every_topic!(old_events_are_read_of);
}

fn old_readers_understand_of<D: EventData>() {
    for kind in D::Kind::ALL {
        for (file, old) in golden(D::TOPIC, kind.as_str()) {
            let event = decode::<D>(kind.as_str(), &old).unwrap().encode();
            let new: Value = serde_json::from_slice(&event.data).unwrap();
            assert_eq!(lacks(&old, &new, ""), None, "{file}");
            assert_eq!((event.topic.as_str(), event.kind.as_str()), (D::TOPIC.name(), kind.as_str()));
            assert_eq!(Value::from(event.key), *key_field::<D>(&old), "{file}: the key is the aggregate's id");
        }
    }
}

fn key_field<D: EventData>(data: &Value) -> &Value {
    if D::TOPIC == Topic::Fleet { &data["drone_id"] } else { &data["delivery_id"] }
}

#[test]
fn todays_event_has_every_field_that_an_old_reader_knows() {
    for_every_topic!(old_readers_understand_of);
}

fn minimal_is_minimal_of<D: EventData>() {
    for kind in D::Kind::ALL {
        let file = format!("{}.minimal.json", kind.as_str());
        let minimal = &golden(D::TOPIC, kind.as_str())[&file];
        let mut places = Vec::new();
        objects(minimal, "", &mut places);
        for place in places {
            for field in fields_of(minimal, &place) {
                let mut less = minimal.clone();
                less.pointer_mut(&place).and_then(Value::as_object_mut).unwrap().remove(&field);
                let read = decode::<D>(kind.as_str(), &less);
                assert!(read.is_err(), "{file}: {place}/{field} is optional: leave it out");
            }
        }
    }
}

#[test]
fn a_minimal_example_has_only_what_is_required() {
    for_every_topic!(minimal_is_minimal_of);
}

fn unknown_fields_are_ignored_of<D: EventData + PartialEq>() {
    for kind in D::Kind::ALL {
        for (file, data) in golden(D::TOPIC, kind.as_str()) {
            let known = decode::<D>(kind.as_str(), &data).unwrap();
            let mut places = Vec::new();
            objects(&data, "", &mut places);
            for place in places {
                let mut more = data.clone();
                let fields = more.pointer_mut(&place).and_then(Value::as_object_mut).unwrap();
                fields.insert("from_the_future".to_owned(), serde_json::json!({"deep": [1, null]}));
                let read = decode::<D>(kind.as_str(), &more);
                let read = read.unwrap_or_else(|error| panic!("{file}: a new field at '{place}': {error}"));
                assert_eq!(read, known, "{file}: a new field at '{place}'");
            }
        }
    }
}

#[test]
fn an_old_reader_ignores_fields_that_it_does_not_know() {
    for_every_topic!(unknown_fields_are_ignored_of);
}

fn an_unknown_kind_is_skipped_of<D: EventData>() {
    for data in [Value::Null, golden(D::TOPIC, D::Kind::ALL[0].as_str()).into_values().next().unwrap()] {
        let event = cloud_event(D::TOPIC, "PaintedInBrightColours", &data);
        assert!(Event::<D>::decode(&event).unwrap().is_none());
    }
}

#[test]
fn an_old_reader_skips_a_kind_that_it_does_not_know() {
    for_every_topic!(an_unknown_kind_is_skipped_of);
}

fn a_record_that_is_no_event_is_not_skipped_of<D: EventData>() {
    let data = golden(D::TOPIC, D::Kind::ALL[0].as_str()).into_values().next().unwrap();
    assert!(Event::<D>::decode(&cloud_event(D::TOPIC, UNDECODABLE, &data)).is_err());
}

#[test]
fn a_record_that_is_no_event_is_at_fault() {
    for_every_topic!(a_record_that_is_no_event_is_not_skipped_of);
}

/// Walks a schema beside examples of it; `definitions` are what its references name.
struct Coverage {
    definitions: BTreeMap<String, Value>,
    /// Fields that no example has.
    missing: Vec<String>,
    /// For each enumeration the names that no example has yet.
    unused: BTreeMap<String, Vec<Value>>,
}

impl Coverage {
    fn walk(&mut self, schema: &Value, examples: &[&Value], path: &str) {
        if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
            let definition = self.definitions.get(name).cloned();
            let definition = definition.unwrap_or_else(|| panic!("no schema of {name}"));
            if let Some(names) = definition["enum"].as_array() {
                let unused = self.unused.entry(name.to_owned()).or_insert_with(|| names.clone());
                unused.retain(|name| !examples.contains(&name));
            }
            return self.walk(&definition, examples, path);
        }
        for branches in ["allOf", "oneOf", "anyOf"] {
            for branch in schema[branches].as_array().into_iter().flatten() {
                let is_null = branch["type"] == "null";
                if !is_null {
                    self.walk(branch, examples, path);
                }
            }
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            let values: Vec<&Value> = examples.iter().filter_map(|example| example.get(name)).collect();
            if values.is_empty() {
                self.missing.push(path);
            } else {
                self.walk(property, &values, &path);
            }
        }
        if schema["items"].is_object() {
            let items: Vec<&Value> = examples.iter().filter_map(|example| example.as_array()).flatten().collect();
            self.walk(&schema["items"], &items, &format!("{path}[]"));
        }
    }

    fn of<D: ToSchema>(examples: &[&Value]) -> Self {
        let mut named = Vec::new();
        D::schemas(&mut named);
        let json = |schema| serde_json::to_value(schema).unwrap();
        let definitions = named.into_iter().map(|(name, schema)| (name, json(schema))).collect();
        let mut coverage = Self { definitions, missing: Vec::new(), unused: BTreeMap::new() };
        coverage.walk(&json(D::schema()), examples, "");
        coverage
    }
}

fn every_field_has_an_example_of<D: EventData + ToSchema>() {
    for kind in D::Kind::ALL {
        let files = golden(D::TOPIC, kind.as_str());
        let examples: Vec<&Value> = files.values().collect();
        let missing = Coverage::of::<D>(&examples).missing;
        assert!(missing.is_empty(), "{}: add a golden file that has {missing:?}", kind.as_str());
    }
}

#[test]
fn every_field_of_todays_events_is_in_some_golden_file() {
    for_every_topic!(every_field_has_an_example_of);
}

fn every_name_has_an_example_of<D: EventData + ToSchema>() {
    let mut files = Vec::new();
    for kind in D::Kind::ALL {
        files.extend(golden(D::TOPIC, kind.as_str()).into_values());
    }
    let mut unused = Coverage::of::<D>(&files.iter().collect::<Vec<_>>()).unused;
    if matches!(D::TOPIC, Topic::Tracking | Topic::Positions) {
        // Of all stages, only those of a flight.
        unused.remove("Stage");
    }
    unused.retain(|_, names| !names.is_empty());
    assert!(unused.is_empty(), "{}: add a golden file that has {unused:?}", D::TOPIC.name());
}

#[test]
fn every_name_that_events_may_carry_is_in_some_golden_file() {
    for_every_topic!(every_name_has_an_example_of);
}
