//! One delivery's answer, merged from what delivery, tracking, package and fleet say.

use contracts::{
    api::DeliveryView,
    commands::FleetDrone,
    events::{DeliveryRecord, FlightProgress, PackageRecord},
};

/// What a service other than delivery had to say.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part<T> {
    /// This.
    Known(T),
    /// That there is no such thing, or nobody had to ask.
    Absent,
    /// Nothing in time.
    Missing,
}

impl<T> Part<T> {
    fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Absent | Self::Missing => None,
        }
    }

    fn is_missing(&self) -> bool {
        matches!(self, Self::Missing)
    }
}

/// What the others know of a delivery in flight.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parts {
    /// From tracking.
    pub(crate) flight: Part<FlightProgress>,
    /// From package.
    pub(crate) package: Part<PackageRecord>,
    /// From fleet.
    pub(crate) drone: Part<FleetDrone>,
}

impl Parts {
    /// Nobody was asked.
    pub(crate) const NONE: Self = Self { flight: Part::Absent, package: Part::Absent, drone: Part::Absent };
}

/// The delivery as its owner sees it. Stage and attempt are delivery's alone; a flight of another attempt and a drone
/// that is no longer the delivery's add nothing.
pub(crate) fn view(record: &DeliveryRecord, parts: &Parts) -> DeliveryView {
    let mut view = DeliveryView::from(record);
    if record.stage.is_terminal() {
        return view;
    }
    let flight = parts.flight.known().filter(|flight| flight.attempt == record.attempt);
    let last = flight.and_then(|flight| flight.last);
    view.position = last.map(|fix| fix.position);
    view.eta = flight.and_then(|flight| flight.eta);
    if let (Some(package), Some(known)) = (view.package.as_mut(), parts.package.known()) {
        package.state = Some(known.state);
    }
    if let Some(drone) = view.drone.as_mut() {
        let known = parts.drone.known().filter(|known| {
            let is_held_by_another = known.delivery_id.is_some_and(|holder| holder != record.delivery_id);
            known.drone_id == drone.drone_id && !is_held_by_another
        });
        drone.battery = known.map(|known| known.battery).or(last.map(|fix| fix.battery));
    }
    let missing = [
        ("tracking", parts.flight.is_missing()),
        ("package", parts.package.is_missing()),
        ("fleet", parts.drone.is_missing()),
    ];
    view.degraded = missing.into_iter().filter(|(_, missing)| *missing).map(|(name, _)| name.to_owned()).collect();
    view
}

#[cfg(test)]
mod tests {
    use contracts::{Stage, events::PackageState};
    use serde_json::json;

    use super::*;

    const DRONE: &str = "0198c5a0-0000-7000-8000-00000000000d";
    const DELIVERY: &str = "0198c5a0-0000-7000-8000-000000000001";

    fn record(stage: Stage) -> DeliveryRecord {
        let airframe = json!({"payload_kg": 4.0, "range_m": 20000.0, "speed_mps": 20.0});
        serde_json::from_value(json!({
            "delivery_id": DELIVERY, "customer_id": "alice", "home_region": "region-a", "version": 3, "stage": stage,
            "attempt": 2, "pickup": {"latitude": 1.0, "longitude": 1.0}, "dropoff": {"latitude": 1.1, "longitude": 1.0},
            "package": {"size": "small", "weight_kg": 0.5}, "expedited": false, "confirmation": "none",
            "requested_at": "2026-01-01T00:00:00Z", "deadline": "2026-01-01T00:30:00Z",
            "updated_at": "2026-01-01T00:01:00Z", "stages": [],
            "drone": {"drone_id": DRONE, "base_id": "north", "airframe": airframe,
                "position": {"latitude": 1.0, "longitude": 1.0}, "battery": 1.0},
        }))
        .unwrap()
    }

    fn flight(attempt: u32) -> FlightProgress {
        serde_json::from_value(json!({
            "delivery_id": DELIVERY, "attempt": attempt, "customer_id": "alice", "home_region": "region-a",
            "drone_id": DRONE, "base_id": "north", "stage": "Completed", "stages": [],
            "last": {"position": {"latitude": 1.05, "longitude": 1.0}, "battery": 0.6,
                "at": "2026-01-01T00:02:00Z", "sequence": 9},
            "eta": "2026-01-01T00:10:00Z",
        }))
        .unwrap()
    }

    #[test]
    fn a_flight_adds_position_eta_and_battery_but_never_the_stage() {
        let parts = Parts { flight: Part::Known(flight(2)), ..Parts::NONE };
        let view = view(&record(Stage::HeadedToPickup), &parts);
        assert_eq!(view.stage, Stage::HeadedToPickup);
        assert_eq!(view.position.unwrap().latitude, 1.05);
        assert!(view.eta.is_some());
        assert_eq!(view.drone.unwrap().battery, Some(0.6));
        assert!(view.degraded.is_empty());
    }

    #[test]
    fn a_flight_of_another_attempt_adds_nothing() {
        let parts = Parts { flight: Part::Known(flight(1)), ..Parts::NONE };
        let view = view(&record(Stage::Scheduled), &parts);
        assert_eq!((view.position, view.eta), (None, None));
        assert_eq!(view.drone.unwrap().battery, None);
    }

    #[test]
    fn a_drone_that_flies_for_another_delivery_adds_nothing() {
        let place = json!({"latitude": 1.0, "longitude": 1.0});
        let airframe = json!({"payload_kg": 4.0, "range_m": 20000.0, "speed_mps": 20.0});
        let mut drone: FleetDrone = serde_json::from_value(json!({
            "drone_id": DRONE, "base_id": "north", "position": place, "battery": 0.7, "airframe": airframe,
            "base_position": place, "status": "reserved", "delivery_id": DELIVERY,
        }))
        .unwrap();
        let battery = |drone: &FleetDrone| {
            let parts = Parts { drone: Part::Known(drone.clone()), ..Parts::NONE };
            view(&record(Stage::Scheduled), &parts).drone.unwrap().battery
        };
        assert_eq!(battery(&drone), Some(0.7));
        drone.delivery_id = Some(contracts::DeliveryId(uuid::Uuid::nil()));
        assert_eq!(battery(&drone), None);
    }

    #[test]
    fn what_is_missing_is_named_and_what_is_absent_is_not() {
        let missing = Parts { flight: Part::Missing, package: Part::Missing, drone: Part::Missing };
        let degraded = view(&record(Stage::Scheduled), &missing);
        assert_eq!(degraded.degraded, ["tracking", "package", "fleet"]);
        assert_eq!(degraded.package.unwrap().state, None);
        assert!(degraded.drone.is_some());
        assert!(view(&record(Stage::Scheduled), &Parts::NONE).degraded.is_empty());
    }

    #[test]
    fn the_packages_state_comes_from_package() {
        let package = serde_json::from_value(json!({
            "delivery_id": DELIVERY, "attempt": 1, "customer_id": "alice", "home_region": "region-a",
            "state": "Registered", "package": {"size": "small", "weight_kg": 0.5},
            "registered_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        }))
        .unwrap();
        let parts = Parts { package: Part::Known(package), ..Parts::NONE };
        let view = view(&record(Stage::Scheduled), &parts);
        assert_eq!(view.package.unwrap().state, Some(PackageState::Registered));
    }

    #[test]
    fn a_delivery_that_is_over_needs_nobody_else() {
        let missing = Parts { flight: Part::Known(flight(2)), package: Part::Missing, drone: Part::Missing };
        let view = view(&record(Stage::Failed), &missing);
        assert_eq!(view.position, None);
        assert!(view.degraded.is_empty());
    }
}
