//! The stages of a delivery and their order.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A delivery's stage, spelled like this on the wire. `delivery` alone decides it; the same words name the progress
/// of a flight in `tracking`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Stage {
    /// Accepted, durable; no drone yet.
    Requested,
    /// A drone is reserved and the flight is open.
    Scheduled,
    /// The drone flies to the pickup.
    HeadedToPickup,
    /// The package is on board.
    HeadedToDropoff,
    /// Dropped off.
    Completed,
    /// Called off before HeadedToDropoff.
    Cancelled,
    /// Never scheduled.
    Rejected,
    /// Broken off after it was scheduled.
    Failed,
}

impl Stage {
    /// Every stage, in the order of the lifecycle.
    pub const ALL: [Self; 8] = [
        Self::Requested,
        Self::Scheduled,
        Self::HeadedToPickup,
        Self::HeadedToDropoff,
        Self::Completed,
        Self::Cancelled,
        Self::Rejected,
        Self::Failed,
    ];

    /// True for the stages that nothing leaves.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled | Self::Rejected | Self::Failed)
    }

    /// How far along the happy path; the terminal stages share the last rank.
    pub const fn rank(self) -> u8 {
        match self {
            Self::Requested => 0,
            Self::Scheduled => 1,
            Self::HeadedToPickup => 2,
            Self::HeadedToDropoff => 3,
            Self::Completed | Self::Cancelled | Self::Rejected | Self::Failed => 4,
        }
    }

    /// The stages that a drone reports: those of a flight.
    pub const fn is_flight(self) -> bool {
        matches!(self, Self::HeadedToPickup | Self::HeadedToDropoff | Self::Completed)
    }

    /// The stage's name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "Requested",
            Self::Scheduled => "Scheduled",
            Self::HeadedToPickup => "HeadedToPickup",
            Self::HeadedToDropoff => "HeadedToDropoff",
            Self::Completed => "Completed",
            Self::Cancelled => "Cancelled",
            Self::Rejected => "Rejected",
            Self::Failed => "Failed",
        }
    }

    /// The stage of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.as_str() == name)
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
