//! Cancelling: writes the intent, then waits until the lease holder has decided.

use std::time::Duration;

use axum::http::StatusCode;
use chassis::ApiError;
use contracts::{Stage, events::DeliveryRecord};

use crate::{
    domain::{Changes, Delivery},
    driver::Driver,
    ledger::Ledger,
    live::{Filter, Message},
    store::{LeaseChange, StoreError},
};

/// How long a caller waits for the decision before the answer is 503: below the gateway's own deadline.
const PATIENCE: chrono::Duration = chrono::Duration::milliseconds(2_500);

/// How often the store is asked meanwhile: another instance may decide.
const POLL: Duration = Duration::from_millis(200);

/// Cancels; answers the cancelled delivery, 409 where it is too late, 503 while it is undecided.
pub(crate) async fn cancel(
    ledger: &Ledger,
    driver: &Driver,
    mut delivery: Delivery,
) -> Result<DeliveryRecord, ApiError> {
    let id = delivery.record.delivery_id;
    let mut watch = ledger.live.watch(Filter::One(id));
    let give_up_at = ledger.clock.now() + PATIENCE;
    loop {
        if let Some(answer) = settled(&delivery) {
            return answer;
        }
        let mut next = delivery.clone();
        if !next.want_cancel(ledger.clock.now()) {
            return Err(too_late(delivery.record.stage));
        }
        match ledger.update(&delivery, &mut next, &Changes::default(), LeaseChange::Keep).await {
            Ok(()) => break,
            Err(StoreError::Conflict) if ledger.clock.now() < give_up_at => {
                delivery = ledger.load(id).await?.ok_or_else(ApiError::not_found)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    driver.kick(id);
    while ledger.clock.now() < give_up_at {
        tokio::select! {
            message = watch.next() => if matches!(message, Message::Closed) { break },
            () = ledger.clock.sleep(POLL) => {}
        }
        let now = ledger.load(id).await?.ok_or_else(ApiError::not_found)?;
        if let Some(answer) = settled(&now) {
            return answer;
        }
        if now.intents.cancel.is_none() {
            return Err(too_late(now.record.stage));
        }
    }
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the cancellation is noted and still being decided; ask again"))
}

fn settled(delivery: &Delivery) -> Option<Result<DeliveryRecord, ApiError>> {
    match delivery.record.stage {
        Stage::Cancelled => Some(Ok(delivery.record.clone())),
        stage if stage.is_terminal() => Some(Err(too_late(stage))),
        _ => None,
    }
}

fn too_late(stage: Stage) -> ApiError {
    ApiError::conflict(format!("the delivery can no longer be cancelled: it is {stage}"))
}
