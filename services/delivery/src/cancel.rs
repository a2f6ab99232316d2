//! Cancelling: writes the intent, then waits until the lease holder has decided.

use std::time::Duration;

use contracts::{Stage, events::DeliveryRecord};

use crate::{
    domain::{Changes, Delivery},
    driver::Driver,
    ledger::Ledger,
    live::{Filter, Message},
    store::{LeaseChange, StoreError},
};

/// How long a caller waits for the decision before it hears that nothing is decided yet: below the gateway's own deadline.
const PATIENCE: chrono::Duration = chrono::Duration::milliseconds(2_500);

/// How often the store is asked meanwhile: another instance may decide.
const POLL: Duration = Duration::from_millis(200);

/// Why there is no cancelled delivery to answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CancelError {
    /// It has gone too far.
    #[error("the delivery can no longer be cancelled: it is {0}")]
    TooLate(Stage),
    /// The intent is in the row; the lease holder has not decided yet.
    #[error("the cancellation is noted and still being decided; ask again")]
    Undecided,
    /// It was forgotten meanwhile.
    #[error("there is no such delivery any more")]
    Gone,
    /// The store did not do as asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Cancels; answers the cancelled delivery.
pub(crate) async fn cancel(
    ledger: &Ledger,
    driver: &Driver,
    mut delivery: Delivery,
) -> Result<DeliveryRecord, CancelError> {
    let id = delivery.record.delivery_id;
    let mut watch = ledger.live.watch(Filter::One(id));
    let give_up_at = ledger.clock.now() + PATIENCE;
    loop {
        if let Some(answer) = settled(&delivery) {
            return answer;
        }
        let mut next = delivery.clone();
        if !next.want_cancel(ledger.clock.now()) {
            return Err(CancelError::TooLate(delivery.record.stage));
        }
        match ledger.update(&delivery, &mut next, &Changes::default(), LeaseChange::Keep).await {
            Ok(()) => break,
            Err(StoreError::Conflict) if ledger.clock.now() < give_up_at => {
                delivery = ledger.load(id).await?.ok_or(CancelError::Gone)?;
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
        let now = ledger.load(id).await?.ok_or(CancelError::Gone)?;
        if let Some(answer) = settled(&now) {
            return answer;
        }
        if now.intents.cancel.is_none() {
            return Err(CancelError::TooLate(now.record.stage));
        }
    }
    Err(CancelError::Undecided)
}

fn settled(delivery: &Delivery) -> Option<Result<DeliveryRecord, CancelError>> {
    match delivery.record.stage {
        Stage::Cancelled => Some(Ok(delivery.record.clone())),
        stage if stage.is_terminal() => Some(Err(CancelError::TooLate(stage))),
        _ => None,
    }
}
