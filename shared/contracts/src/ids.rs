//! Newtype ids: a delivery's id can never be passed where a drone's is meant.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be {expected}")]
pub struct InvalidId {
    /// What would have been accepted.
    pub expected: &'static str,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        #[schema(value_type = String, format = Uuid)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::parse_str(text).map(Self).map_err(|_| InvalidId { expected: "a UUID" })
            }
        }
    };
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ToSchema)]
        #[serde(transparent)]
        #[schema(value_type = String, pattern = "^[A-Za-z0-9._@-]{1,64}$")]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
                if (1..=64).contains(&text.len()) && text.bytes().all(legal) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidId { expected: "1 to 64 letters, digits, '.', '_', '@' or '-'" })
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

uuid_id!(
    /// A delivery, and the package it carries. UUIDv7: ids are ordered by the time of the request.
    DeliveryId
);
uuid_id!(
    /// A drone.
    DroneId
);
name_id!(
    /// A customer: the subject of their token.
    CustomerId
);
name_id!(
    /// A base station: the subject of its token.
    BaseId
);
name_id!(
    /// The region that owns a delivery.
    Region
);

impl DeliveryId {
    /// The key under which this delivery's events are published.
    pub fn key(&self) -> String {
        self.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_on_the_way_in() {
        assert!("alice@example.org".parse::<CustomerId>().is_ok());
        assert!("".parse::<CustomerId>().is_err());
        assert!("a b".parse::<CustomerId>().is_err());
        assert!("x".repeat(65).parse::<BaseId>().is_err());
        assert!(serde_json::from_str::<CustomerId>("\"a'b\"").is_err());
    }
}
