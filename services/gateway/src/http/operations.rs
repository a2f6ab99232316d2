//! What an operator looks after: sagas, consumers' lag, dead letters, drones that have failed.

use std::{collections::BTreeMap, time::Duration};

use auth::Action;
use axum::extract::State;
use chassis::{ApiError, Json, Path, Query};
use contracts::{DroneId, api::Problem, commands::FleetDrone};
use messaging::dead_letters::{self, DeadLetter, GROUPS};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{
    Gateway,
    request::{Strict, User, page_size},
};

/// How long reading or redriving dead letters may take: a redrive of thousands is a matter of seconds, and what it
/// has not done when the time is up, the next one does.
const DEAD_LETTERS_DEADLINE: Duration = Duration::from_secs(30);

/// How far one consumer is behind on one topic.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TopicLag {
    /// The consumer group.
    group: String,
    /// The topic.
    topic: String,
    /// Records that it has processed, over all partitions.
    committed: u64,
    /// Records that there are.
    end: u64,
    /// Records that it has yet to process.
    lag: u64,
}

/// Every consumer's lag.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Lags {
    /// By group and topic.
    items: Vec<TopicLag>,
}

/// Dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeadLetters {
    /// The oldest of each consumer that wait for a redrive.
    items: Vec<DeadLetter>,
}

/// Whose dead letters.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct DeadLetterParameters {
    /// Of one consumer; of all unless given.
    consumer: Option<String>,
    /// At most this many of each consumer.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<usize>,
}

/// `POST /api/operations/dead-letters/redrive`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Redrive {
    /// delivery, package, fleet, tracking, history or lookup.
    consumer: String,
}

/// The answer to a redrive.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Redriven {
    /// Events that were published again.
    redriven: u64,
}

/// The sagas that are under way, by step, and the deliveries whose end is being decided.
#[utoipa::path(
    get, path = "/api/operations/sagas", tag = "operations", operation_id = "getSagas",
    responses((status = 200, description = "The open sagas.", body = Object))
)]
pub(super) async fn sagas(State(gateway): State<Gateway>, user: User) -> Result<Json<Value>, ApiError> {
    user.may(&Action::Operate)?;
    let delivery = &gateway.services.delivery;
    Ok(Json(delivery.fetch(delivery.request_as(&user.token, Method::GET, "/operations/sagas")).await?))
}

/// How far every consumer is behind.
#[utoipa::path(
    get, path = "/api/operations/lag", tag = "operations", operation_id = "getLag",
    responses((status = 200, description = "By consumer group and topic.", body = Lags))
)]
pub(super) async fn lag(State(gateway): State<Gateway>, user: User) -> Result<Json<Lags>, ApiError> {
    user.may(&Action::Operate)?;
    let partitions = gateway.log.lag().await.map_err(|error| ApiError::unavailable(&error))?;
    let mut topics: BTreeMap<(String, String), TopicLag> = BTreeMap::new();
    for partition in partitions {
        let lag = partition.lag();
        let (group, topic) = (partition.group, partition.topic);
        let sum = topics.entry((group.clone(), topic.clone())).or_insert(TopicLag {
            group,
            topic,
            committed: 0,
            end: 0,
            lag: 0,
        });
        sum.committed += partition.committed;
        sum.end += partition.end;
        sum.lag += lag;
    }
    Ok(Json(Lags { items: topics.into_values().collect() }))
}

/// Events that a consumer could not digest, with the cause.
#[utoipa::path(
    get, path = "/api/operations/dead-letters", tag = "operations", operation_id = "listDeadLetters",
    params(DeadLetterParameters),
    responses((status = 200, description = "The oldest that wait.", body = DeadLetters))
)]
pub(super) async fn dead_letters(
    State(gateway): State<Gateway>,
    user: User,
    query: Result<Query<DeadLetterParameters>, ApiError>,
) -> Result<Json<DeadLetters>, ApiError> {
    user.may(&Action::Operate)?;
    let Query(query) = query?;
    let limit = page_size(query.limit)?;
    let consumers = match &query.consumer {
        Some(consumer) => vec![known(consumer)?],
        None => GROUPS.to_vec(),
    };
    let reading = async {
        let _turn = gateway.dead_letters.lock().await;
        let mut items = Vec::new();
        for consumer in consumers {
            items.extend(dead_letters::peek(&*gateway.log, consumer, limit).await?);
        }
        Ok::<_, messaging::LogError>(items)
    };
    Ok(Json(DeadLetters { items: in_time(reading).await? }))
}

/// Publish a consumer's dead letters to their topics again; safe at any time and as often as wanted.
#[utoipa::path(
    post, path = "/api/operations/dead-letters/redrive", tag = "operations", operation_id = "redriveDeadLetters",
    request_body = Redrive,
    responses((status = 200, description = "How many.", body = Redriven))
)]
pub(super) async fn redrive(
    State(gateway): State<Gateway>,
    user: User,
    body: Result<Strict<Redrive>, ApiError>,
) -> Result<Json<Redriven>, ApiError> {
    user.may(&Action::Operate)?;
    let Strict(redrive) = body?;
    let consumer = known(&redrive.consumer)?;
    let redriving = async {
        let _turn = gateway.dead_letters.lock().await;
        dead_letters::redrive(&*gateway.log, consumer).await
    };
    Ok(Json(Redriven { redriven: in_time(redriving).await? }))
}

/// Declare a drone failed, as if it had said so itself.
#[utoipa::path(
    post, path = "/api/operations/drones/{id}/fail", tag = "operations", operation_id = "failDrone",
    params(("id" = DroneId, Path, description = "The drone.")),
    responses(
        (status = 200, description = "Failed.", body = FleetDrone),
        (status = 404, description = "There is no such drone.", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn fail_drone(
    State(gateway): State<Gateway>,
    user: User,
    id: Result<Path<DroneId>, ApiError>,
) -> Result<Json<FleetDrone>, ApiError> {
    user.may(&Action::Operate)?;
    let Path(id) = id?;
    let fleet = &gateway.services.fleet;
    Ok(Json(fleet.fetch(fleet.request_as(&user.token, Method::POST, &format!("/drones/{id}/fail"))).await?))
}

fn known(consumer: &str) -> Result<&'static str, ApiError> {
    let found = GROUPS.into_iter().find(|group| *group == consumer);
    found.ok_or_else(|| ApiError::invalid_field("consumer", format!("must be one of {}", GROUPS.join(", "))))
}

async fn in_time<T>(work: impl Future<Output = Result<T, messaging::LogError>>) -> Result<T, ApiError> {
    let done = tokio::time::timeout(DEAD_LETTERS_DEADLINE, work).await;
    done.map_err(|elapsed| ApiError::unavailable(&elapsed))?.map_err(|error| ApiError::unavailable(&error))
}
