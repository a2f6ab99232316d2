//! What a service says of itself at `/health/ready`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Problem;

/// Whether requests are worth sending there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// All it depends on is there.
    Ready,
    /// It does its work, but something that it can do without for a while is away.
    Degraded,
    /// It can do nothing.
    NotReady,
}

/// Whether something that a service depends on is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DependencyStatus {
    /// It answers.
    Up,
    /// It does not, or not in time.
    Down,
}

/// Something that a service depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dependency {
    /// `store`, `event_log`, or another service's name.
    pub name: String,
    /// Whether it is there.
    pub status: DependencyStatus,
    /// What is wrong with it, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The answer of a service that takes requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// The worst that its dependencies make of it.
    pub status: HealthStatus,
    /// Each of them.
    pub dependencies: Vec<Dependency>,
}

/// The answer, with status 503, of one that does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotReadyProblem {
    /// The problem.
    #[serde(flatten)]
    pub problem: Problem,
    /// Each of its dependencies.
    pub dependencies: Vec<Dependency>,
}
