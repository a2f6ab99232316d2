//! The internal HTTP interface: history for the gateway, and what the lake has for delivery.

use std::sync::Arc;

use auth::Action;
use axum::{
    Router,
    extract::{FromRef, State},
    routing::post,
};
use chassis::{
    ApiError, Json,
    auth::{Authenticator, Caller, ServiceCaller},
};
use contracts::{
    CustomerId, DeliveryId,
    api::{DeliveryView, HistoryItem, HistoryPage, HistoryQuery, MAX_PAGE},
    events::DeliveryRecord,
};
use serde::{Deserialize, Serialize};

use crate::lake::{LakeError, Reader, belongs_to};

/// Ids in one question whether the lake has them: each may cost a look into a few files.
pub const MAX_CONTAINS_IDS: usize = 512;

/// What handlers need.
#[derive(Clone)]
pub(crate) struct AppState {
    pub(crate) reader: Arc<Reader>,
    pub(crate) authenticator: Authenticator,
}

impl FromRef<AppState> for Authenticator {
    fn from_ref(state: &AppState) -> Self {
        state.authenticator.clone()
    }
}

/// The service's routes.
pub(crate) fn router(state: AppState) -> Router {
    Router::new()
        .route("/queries/history", post(history))
        .route("/queries/delivery", post(delivery))
        .route("/queries/contains", post(contains))
        .with_state(state)
}

/// `POST /queries/delivery`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeliveryQuery {
    /// Which.
    pub delivery_id: DeliveryId,
    /// Found only if it is this customer's.
    #[serde(default)]
    pub customer_id: Option<CustomerId>,
}

/// `POST /queries/contains`, and its answer: those of the ids that the lake has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeliveryIds {
    /// The deliveries, at most [`MAX_CONTAINS_IDS`].
    pub ids: Vec<DeliveryId>,
}

async fn history(
    State(state): State<AppState>,
    caller: Caller,
    Json(query): Json<HistoryQuery>,
) -> Result<Json<HistoryPage>, ApiError> {
    caller.sees(&Action::ReadDelivery { owner: &query.customer_id })?;
    if query.limit == 0 || query.limit > MAX_PAGE {
        return Err(ApiError::invalid_field("limit", format!("must be between 1 and {MAX_PAGE}")));
    }
    let found = state.reader.history(&query).await?;
    Ok(Json(HistoryPage { items: found.records.into_iter().map(item).collect(), next: found.next }))
}

fn item(record: DeliveryRecord) -> HistoryItem {
    let delivery = DeliveryView::from(&record);
    HistoryItem { delivery, customer_id: record.customer_id, stages: record.stages, source: "lake".to_owned() }
}

async fn delivery(
    State(state): State<AppState>,
    caller: Caller,
    Json(query): Json<DeliveryQuery>,
) -> Result<Json<DeliveryRecord>, ApiError> {
    let record = state.reader.delivery(query.delivery_id).await?.ok_or_else(ApiError::not_found)?;
    caller.sees(&Action::ReadDelivery { owner: &record.customer_id })?;
    if !belongs_to(&record, query.customer_id.as_ref()) {
        return Err(ApiError::not_found());
    }
    Ok(Json(record))
}

async fn contains(
    State(state): State<AppState>,
    _: ServiceCaller,
    Json(query): Json<DeliveryIds>,
) -> Result<Json<DeliveryIds>, ApiError> {
    if query.ids.len() > MAX_CONTAINS_IDS {
        return Err(ApiError::invalid_field("ids", format!("must be at most {MAX_CONTAINS_IDS}")));
    }
    Ok(Json(DeliveryIds { ids: state.reader.contains(&query.ids).await? }))
}

impl From<LakeError> for ApiError {
    fn from(error: LakeError) -> Self {
        Self::unavailable(&error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use contracts::api::Role;
    use reqwest::{Client, StatusCode};
    use serde_json::{Value, json};
    use testkit::World;
    use tokio::task::JoinSet;

    use crate::{
        Config,
        audit::{scan_deliveries, scan_positions_keys},
        fixtures::{at, delivery_event, finished, position_event},
    };

    async fn ask(url: &str, token: &str, path: &str, body: &Value) -> (StatusCode, Value) {
        let client = Client::builder().build().unwrap();
        let answer = client.post(format!("{url}{path}")).bearer_auth(token).json(body).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn from_event_to_answer() {
        let world = World::new().await;
        let (node, url) = world.node("history", &[]).await;
        let lake = world.path("lake").display().to_string();
        let config = Config { flush_interval: Duration::from_millis(50), ..Config::new(&lake) };
        let mut tasks = JoinSet::new();
        testkit::serving(&mut tasks, node.door.opened(), crate::run(config, node)).await;

        let records: Vec<_> = (0..30).map(|n| finished(n, if n < 25 { "alice" } else { "bob" }, at(1, 1))).collect();
        let mut events: Vec<_> = records.iter().map(|record| delivery_event(record).encode()).collect();
        events.extend((0..5).map(|sequence| position_event(1, 1, sequence, at(1, 1)).encode()));
        world.log.publish(events).await.unwrap();

        let service = world.token("gateway", Role::Service);
        let (alice, bob) = (world.token("alice", Role::Customer), world.token("bob", Role::Customer));
        let last = json!({"delivery_id": records[29].delivery_id, "customer_id": "bob"});
        testkit::until("the lake's answer", || async {
            (ask(&url, &service, "/queries/delivery", &last).await.0 == StatusCode::OK).then_some(())
        })
        .await;
        testkit::until("the positions", || async {
            let keys = scan_positions_keys(&lake).await.unwrap();
            (keys.rows == 5 && keys.doubled == 0).then_some(())
        })
        .await;

        let (status, found) = ask(&url, &bob, "/queries/delivery", &last).await;
        assert_eq!(
            (status, &found["end_reason"], &found["stage"]),
            (StatusCode::OK, &Value::Null, &json!("Completed"))
        );
        assert_eq!(ask(&url, &alice, "/queries/delivery", &last).await.0, StatusCode::NOT_FOUND);
        let not_hers = json!({"delivery_id": records[29].delivery_id, "customer_id": "alice"});
        assert_eq!(ask(&url, &service, "/queries/delivery", &not_hers).await.0, StatusCode::NOT_FOUND);
        assert_eq!(ask(&url, "nonsense", "/queries/delivery", &last).await.0, StatusCode::UNAUTHORIZED);

        let mut query = json!({"customer_id": "alice", "from": at(1, 0), "to": at(2, 0), "after": null, "limit": 20});
        let (status, page) = ask(&url, &service, "/queries/history", &query).await;
        assert_eq!((status, page["items"].as_array().unwrap().len()), (StatusCode::OK, 20));
        assert_eq!((&page["items"][0]["source"], &page["items"][0]["customer_id"]), (&json!("lake"), &json!("alice")));
        let last = &page["items"][19];
        query["after"] = json!([last["finished_at"], last["id"]]);
        let (_, page) = ask(&url, &alice, "/queries/history", &query).await;
        assert_eq!((page["items"].as_array().unwrap().len(), &page["next"]), (5, &Value::Null));
        assert_eq!(ask(&url, &bob, "/queries/history", &query).await.0, StatusCode::NOT_FOUND);
        query["limit"] = json!(1_000);
        assert_eq!(ask(&url, &alice, "/queries/history", &query).await.0, StatusCode::UNPROCESSABLE_ENTITY);

        let ids = json!({"ids": [records[3].delivery_id, finished(77, "alice", at(1, 1)).delivery_id]});
        let (_, had) = ask(&url, &service, "/queries/contains", &ids).await;
        assert_eq!(had["ids"], json!([records[3].delivery_id]));
        assert_eq!(ask(&url, &alice, "/queries/contains", &ids).await.0, StatusCode::FORBIDDEN);

        world.shutdown.cancel();
        tasks.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(scan_deliveries(&lake).await.unwrap().len(), 30);
    }
}
