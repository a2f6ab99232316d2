//! Who is calling, and what they may do: token verification, the development issuer, ownership rules; no I/O.
//!
//! Invariant: the same rules run at the gateway and again at the owning service.

mod issuer;
mod policy;
mod verifier;

pub use issuer::{DevIssuer, SigningKey};
pub use policy::{Action, Denied, allow};
pub use verifier::{TokenError, Verified, Verifier};

use contracts::{BaseId, CustomerId, DroneId, api::Role};
use serde::{Deserialize, Serialize};

/// The issuer's name in tokens of the development issuer.
pub const DEV_ISSUER: &str = "drone-delivery-dev";
/// The audience of every token.
pub const AUDIENCE: &str = "drone-delivery";

/// What a token says (RFC 7519 names).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// Who.
    pub sub: String,
    /// As what.
    pub role: Role,
    /// Issuer.
    pub iss: String,
    /// Audience.
    pub aud: String,
    /// Issued at, seconds since 1970.
    pub iat: i64,
    /// Ends at, seconds since 1970.
    pub exp: i64,
}

/// A verified caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Orders deliveries.
    Customer(CustomerId),
    /// Runs the system.
    Operator(String),
    /// One drone.
    Drone(DroneId),
    /// A base station and the drones based there.
    BaseStation(BaseId),
    /// One of our services, by name.
    Service(String),
}

impl Identity {
    /// The identity that a subject has in a role; `None` where the subject is not a legal id of that role.
    pub fn new(subject: &str, role: Role) -> Option<Self> {
        match role {
            Role::Customer => subject.parse().ok().map(Self::Customer),
            Role::Drone => subject.parse().ok().map(Self::Drone),
            Role::BaseStation => subject.parse().ok().map(Self::BaseStation),
            Role::Operator => subject.parse::<CustomerId>().ok().map(|_| Self::Operator(subject.to_owned())),
            Role::Service => subject.parse::<CustomerId>().ok().map(|_| Self::Service(subject.to_owned())),
        }
    }

    /// The role.
    pub fn role(&self) -> Role {
        match self {
            Self::Customer(_) => Role::Customer,
            Self::Operator(_) => Role::Operator,
            Self::Drone(_) => Role::Drone,
            Self::BaseStation(_) => Role::BaseStation,
            Self::Service(_) => Role::Service,
        }
    }
}
