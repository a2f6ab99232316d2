//! Roles, and the development issuer's bodies.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who may do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Orders deliveries and sees their own.
    Customer,
    /// Runs the system.
    Operator,
    /// One drone: itself only.
    Drone,
    /// The drones based there.
    BaseStation,
    /// One of our services, speaking for itself.
    Service,
}

impl FromStr for Role {
    type Err = crate::ids::InvalidId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "customer" => Ok(Self::Customer),
            "operator" => Ok(Self::Operator),
            "drone" => Ok(Self::Drone),
            "base_station" => Ok(Self::BaseStation),
            _ => Err(crate::ids::InvalidId { expected: "customer, operator, drone or base_station" }),
        }
    }
}

/// `POST /api/dev/token`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// The customer's, operator's, drone's or base station's id.
    pub subject: String,
    /// customer, operator, drone or base_station.
    pub role: Role,
}

/// The answer to `POST /api/dev/token`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenAnswer {
    /// A bearer token.
    pub token: String,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}
