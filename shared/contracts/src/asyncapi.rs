//! The description of the events, AsyncAPI 3.0, made from the types themselves.

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::events::{
    DeliveryRecord, DroneRecord, EventData, EventKind, FlightProgress, PARTITIONS, PackageRecord, PositionSample,
};

/// The whole document.
pub fn document() -> serde_json::Result<Value> {
    let mut parts = Parts::default();
    parts.topic::<DeliveryRecord>("What became of a delivery.")?;
    parts.topic::<PackageRecord>("What became of a package.")?;
    parts.topic::<DroneRecord>("What became of a drone and its reservation.")?;
    parts.topic::<FlightProgress>("How a flight goes.")?;
    parts.topic::<PositionSample>("Positions on the way, sampled every 5 s of flight.")?;
    Ok(json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Drone delivery events",
            "version": "1",
            "description": "CloudEvents 1.0, JSON data, Kafka binary mode: attributes in ce_* headers. \
                Events carry state; consumers keep the highest version and do not mind repetition or order.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": parts.channels,
        "operations": parts.operations,
        "components": {"messages": parts.messages, "schemas": parts.schemas},
    }))
}

#[derive(Default)]
struct Parts {
    channels: Map<String, Value>,
    operations: Map<String, Value>,
    messages: Map<String, Value>,
    schemas: Map<String, Value>,
}

impl Parts {
    fn topic<D: EventData + ToSchema>(&mut self, description: &str) -> serde_json::Result<()> {
        let topic = D::TOPIC.name();
        let schema = D::name().into_owned();
        self.add_schema(&schema, &D::schema())?;
        let mut nested = Vec::new();
        D::schemas(&mut nested);
        for (name, part) in nested {
            self.add_schema(&name, &part)?;
        }
        let mut channel_messages = Map::new();
        for kind in D::Kind::ALL {
            let name = kind.as_str();
            channel_messages.insert(name.to_owned(), json!({"$ref": format!("#/components/messages/{name}")}));
            let message = json!({
                "name": name,
                "contentType": "application/json",
                "headers": headers(name, D::SOURCE),
                "payload": {"$ref": format!("#/components/schemas/{schema}")},
                "bindings": {"kafka": {"key": {"type": "string", "format": "uuid"}}},
            });
            self.messages.insert(name.to_owned(), message);
        }
        let channel = json!({
            "address": topic,
            "description": description,
            "messages": channel_messages,
            "bindings": {"kafka": {"partitions": PARTITIONS}},
        });
        self.channels.insert(topic.to_owned(), channel);
        // A JSON pointer writes a dot as it is; only ~ and / need escaping, and no topic has them.
        let operation = json!({
            "action": "send",
            "summary": format!("{} publishes", D::SOURCE),
            "channel": {"$ref": format!("#/channels/{topic}")},
        });
        self.operations.insert(format!("publish.{topic}"), operation);
        Ok(())
    }

    fn add_schema(&mut self, name: &str, schema: &impl serde::Serialize) -> serde_json::Result<()> {
        self.schemas.insert(name.to_owned(), serde_json::to_value(schema)?);
        Ok(())
    }
}

fn headers(kind: &str, source: &str) -> Value {
    json!({
        "type": "object",
        "required": ["ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time"],
        "properties": {
            "ce_specversion": {"const": "1.0"},
            "ce_id": {"type": "string", "format": "uuid", "description": "the same for every copy of the event"},
            "ce_type": {"const": kind},
            "ce_source": {"const": source},
            "ce_time": {"type": "string", "format": "date-time", "description": "when it was committed"},
            "traceparent": {"type": "string", "description": "W3C trace context of the cause"},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    match (name.as_str(), field) {
                        ("$ref", Value::String(target)) => found.push(target.clone()),
                        _ => references(field, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_event_is_there() {
        let document = document().unwrap();
        let mut found = Vec::new();
        references(&document, &mut found);
        for target in found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target} leads nowhere");
        }
        let messages = document["components"]["messages"].as_object().unwrap();
        assert_eq!(messages.len(), 16);
        assert_eq!(document["channels"].as_object().unwrap().len(), 5);
    }
}
