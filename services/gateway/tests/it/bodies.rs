//! Good bodies, to be answered by stand-ins or spoilt by tests.

use serde_json::{Value, json};

pub(crate) const DELIVERY: &str = "0198c5a0-0000-7000-8000-000000000001";
pub(crate) const DRONE: &str = "0198c5a0-0000-7000-8000-00000000000d";

/// What a customer asks for.
pub(crate) fn wish() -> Value {
    json!({
        "pickup": {"latitude": 48.85, "longitude": 2.35}, "dropoff": {"latitude": 48.86, "longitude": 2.34},
        "package": {"size": "small", "weight_kg": 0.5},
    })
}

/// A drone to register.
pub(crate) fn drone() -> Value {
    let place = json!({"latitude": 48.85, "longitude": 2.35});
    json!({
        "base_id": "north", "base_position": place, "position": place, "battery": 1.0,
        "payload_kg": 4.0, "range_m": 20000.0, "speed_mps": 20.0,
    })
}

/// A drone of the fleet.
pub(crate) fn fleet_drone() -> Value {
    let place = json!({"latitude": 48.85, "longitude": 2.35});
    json!({
        "drone_id": DRONE, "base_id": "north", "position": place, "battery": 0.75, "base_position": place,
        "airframe": {"payload_kg": 4.0, "range_m": 20000.0, "speed_mps": 20.0}, "status": "reserved",
        "delivery_id": DELIVERY,
    })
}

/// A delivery of alice in some stage.
pub(crate) fn record(id: &str, stage: &str, version: u64) -> Value {
    let mut record = json!({
        "delivery_id": id, "customer_id": "alice", "home_region": "region-a", "version": version, "stage": stage,
        "attempt": 1, "pickup": {"latitude": 48.85, "longitude": 2.35},
        "dropoff": {"latitude": 48.86, "longitude": 2.34}, "package": {"size": "small", "weight_kg": 0.5},
        "expedited": false, "confirmation": "none", "requested_at": "2026-01-01T00:00:00Z",
        "deadline": "2026-01-01T00:30:00Z", "updated_at": "2026-01-01T00:01:00Z",
        "stages": [{"stage": "Requested", "attempt": 1, "at": "2026-01-01T00:00:00Z"}],
    });
    if stage != "Requested" {
        record["drone"] = json!({
            "drone_id": DRONE, "base_id": "north", "battery": 1.0, "position": {"latitude": 48.85, "longitude": 2.35},
            "airframe": {"payload_kg": 4.0, "range_m": 20000.0, "speed_mps": 20.0},
        });
    }
    if ["Completed", "Cancelled", "Rejected", "Failed"].contains(&stage) {
        record["finished_at"] = json!("2026-01-01T00:20:00Z");
    }
    record
}

/// The flight of [`record`].
pub(crate) fn flight(latitude: f64) -> Value {
    json!({
        "delivery_id": DELIVERY, "attempt": 1, "customer_id": "alice", "home_region": "region-a", "drone_id": DRONE,
        "base_id": "north", "stage": "HeadedToPickup", "eta": "2026-01-01T00:12:00Z",
        "stages": [{"stage": "HeadedToPickup", "at": "2026-01-01T00:02:00Z"}],
        "last": {"position": {"latitude": latitude, "longitude": 2.35}, "battery": 0.8,
            "at": "2026-01-01T00:03:00Z", "sequence": 7},
    })
}

/// The package of [`record`].
pub(crate) fn package() -> Value {
    json!({
        "delivery_id": DELIVERY, "attempt": 1, "customer_id": "alice", "home_region": "region-a",
        "state": "Registered", "package": {"size": "small", "weight_kg": 0.5},
        "registered_at": "2026-01-01T00:00:01Z", "updated_at": "2026-01-01T00:00:01Z",
    })
}

/// The timeline of [`record`].
pub(crate) fn timeline() -> Value {
    json!({"delivery_id": DELIVERY, "customer_id": "alice", "saga_definition": 1, "stages": [], "steps": [
        {"step": "register_package", "attempt": 1, "outcome": "done", "at": "2026-01-01T00:00:01Z", "tries": 1}]})
}

/// The mission of [`record`], of a drone of some base.
pub(crate) fn mission(base: &str) -> Value {
    json!({
        "delivery_id": DELIVERY, "drone_id": DRONE, "base_id": base, "attempt": 1,
        "pickup": {"latitude": 48.85, "longitude": 2.35}, "dropoff": {"latitude": 48.86, "longitude": 2.34},
        "weight_kg": 0.5, "confirmation": "none", "stage": "Scheduled",
    })
}

/// The recall of [`mission`].
pub(crate) fn recalled(base: &str) -> Value {
    json!({"type": "recalled", "delivery_id": DELIVERY, "drone_id": DRONE, "base_id": base, "attempt": 1})
}

/// Where fleet says that [`DRONE`] is based.
pub(crate) fn based_at(base: &str) -> Value {
    json!([{"drone_id": DRONE, "base_id": base}])
}

/// `base` with each of the changes: a path with dots, and what to put there; null takes it away.
pub(crate) fn spoilt(base: &Value, path: &str, value: Value) -> Value {
    let mut body = base.clone();
    let (parents, name) = path.rsplit_once('.').map_or(("", path), |(parents, name)| (parents, name));
    let mut place = &mut body;
    for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
        place = &mut place[parent];
    }
    let fields = place.as_object_mut().unwrap();
    if value.is_null() {
        fields.remove(name);
    } else {
        fields.insert(name.to_owned(), value);
    }
    body
}
