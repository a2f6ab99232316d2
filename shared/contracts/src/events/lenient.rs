//! How events read what the public API reads strictly: fields of a newer version are ignored, not refused.

use serde::Deserialize;

use crate::{
    Coordinate,
    api::{PackageSize, PackageSpec},
};

/// Reads a [`Coordinate`] of an event.
#[derive(Deserialize)]
#[serde(remote = "Coordinate")]
pub(crate) struct EventCoordinate {
    latitude: f64,
    longitude: f64,
}

/// Reads a [`PackageSpec`] of an event.
#[derive(Deserialize)]
#[serde(remote = "PackageSpec")]
pub(crate) struct EventPackageSpec {
    size: PackageSize,
    weight_kg: f64,
    #[serde(default)]
    tag: Option<String>,
    #[serde(default)]
    description: Option<String>,
}
