//! The HTTP side: commands from the saga, a package for its owner.

use std::sync::Arc;

use axum::{
    Router,
    extract::{FromRef, State},
    routing::{get, post},
};
use chassis::{
    ApiError, Json, Node, Path,
    auth::{Authenticator, Caller, ServiceCaller},
};
use contracts::{
    DeliveryId,
    commands::{Commands, MAX_COMMANDS, Outcomes, PackageOutcome, RegisterPackage, WithdrawPackage},
    events::PackageRecord,
};
use messaging::{abort_point, outbox::chain};

use crate::{
    domain::Command,
    store::{Ingest, Store},
};

pub(crate) fn router(node: &Node, store: Arc<dyn Store>, ingest: Ingest) -> Router {
    Router::new()
        .route("/commands/register", post(register))
        .route("/commands/withdraw", post(withdraw))
        .route("/packages/{delivery_id}", get(package))
        .with_state(Api { authenticator: Authenticator::of(node), store, ingest })
}

#[derive(Clone)]
struct Api {
    authenticator: Authenticator,
    store: Arc<dyn Store>,
    ingest: Ingest,
}

impl FromRef<Api> for Authenticator {
    fn from_ref(api: &Api) -> Self {
        api.authenticator.clone()
    }
}

async fn register(
    State(api): State<Api>,
    _: ServiceCaller,
    Json(request): Json<Commands<RegisterPackage>>,
) -> Result<Json<Outcomes<PackageOutcome>>, ApiError> {
    let outcomes = api.apply(request.commands, Command::Register).await?;
    abort_point("package.registered");
    Ok(outcomes)
}

async fn withdraw(
    State(api): State<Api>,
    _: ServiceCaller,
    Json(request): Json<Commands<WithdrawPackage>>,
) -> Result<Json<Outcomes<PackageOutcome>>, ApiError> {
    let outcomes = api.apply(request.commands, Command::Withdraw).await?;
    abort_point("package.withdrawn");
    Ok(outcomes)
}

impl Api {
    async fn apply<C>(
        &self,
        commands: Vec<C>,
        command: impl Fn(C) -> Command,
    ) -> Result<Json<Outcomes<PackageOutcome>>, ApiError> {
        if commands.len() > MAX_COMMANDS {
            return Err(ApiError::invalid_field("commands", format!("must be at most {MAX_COMMANDS}")));
        }
        let commands = commands.into_iter().map(command).collect();
        let results = self.ingest.call(commands).await.map_err(|closed| ApiError::unavailable(&closed))?;
        if let Some(Err(error)) = results.iter().find(|result| result.is_err()) {
            tracing::warn!(error = %chain(error), "some commands could not be carried out");
        }
        let outcomes = results.into_iter().map(|result| result.unwrap_or(PackageOutcome::Unavailable)).collect();
        Ok(Json(Outcomes { outcomes }))
    }
}

async fn package(
    State(api): State<Api>,
    caller: Caller,
    Path(delivery_id): Path<DeliveryId>,
) -> Result<Json<PackageRecord>, ApiError> {
    let found = api.store.find(delivery_id).await.map_err(|error| ApiError::unavailable(&error))?;
    let record = found.ok_or_else(ApiError::not_found)?;
    caller.sees(&auth::Action::ReadDelivery { owner: &record.customer_id })?;
    Ok(Json(record))
}
