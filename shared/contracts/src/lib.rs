//! What the services say to each other and to the world: ids, stages, events, commands, HTTP DTOs, time; no I/O.
//!
//! Invariants:
//! - nothing here opens a file or a socket;
//! - an event's schema in `v1/` only ever gains optional fields (see `tests/compatibility.rs`).

pub mod api;
pub mod asyncapi;
pub mod clock;
pub mod commands;
pub mod events;
pub mod flight;
pub mod geo;
pub mod ids;
pub mod stage;

pub use clock::{Clock, SystemClock};
pub use geo::Coordinate;
pub use ids::{BaseId, CustomerId, DeliveryId, DroneId, Region};
pub use stage::Stage;

/// A point in time, always UTC, RFC 3339 on the wire.
pub type Timestamp = chrono::DateTime<chrono::Utc>;
