//! Cancelling: writes the intent, then waits until the lease holder has decided.

use std::time::Duration;

use contracts::{Stage, Timestamp, events::DeliveryRecord};

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
    /// The lease holder has not decided yet, or the row changed so often that the intent did not get in: nobody knows
    /// what becomes of the delivery, so that asking again is the answer, not a refusal.
    #[error("the cancellation is not decided yet; ask again")]
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
    delivery: Delivery,
) -> Result<DeliveryRecord, CancelError> {
    let id = delivery.record.delivery_id;
    let mut watch = ledger.live.watch(Filter::One(id));
    let give_up_at = ledger.clock.now() + PATIENCE;
    if let Some(cancelled) = note_intent(ledger, delivery, give_up_at).await? {
        return Ok(cancelled);
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

/// Writes the intent into the row; the delivery, where it is cancelled already.
async fn note_intent(
    ledger: &Ledger,
    mut delivery: Delivery,
    give_up_at: Timestamp,
) -> Result<Option<DeliveryRecord>, CancelError> {
    let id = delivery.record.delivery_id;
    loop {
        if let Some(answer) = settled(&delivery) {
            return answer.map(Some);
        }
        let mut next = delivery.clone();
        if !next.want_cancel(ledger.clock.now()) {
            return Err(CancelError::TooLate(delivery.record.stage));
        }
        match ledger.update(&delivery, &mut next, &Changes::default(), LeaseChange::Keep).await {
            Ok(()) => return Ok(None),
            Err(StoreError::Conflict) if ledger.clock.now() >= give_up_at => return Err(CancelError::Undecided),
            Err(StoreError::Conflict) => delivery = ledger.load(id).await?.ok_or(CancelError::Gone)?,
            Err(error) => return Err(error.into()),
        }
    }
}

fn settled(delivery: &Delivery) -> Option<Result<DeliveryRecord, CancelError>> {
    match delivery.record.stage {
        Stage::Cancelled => Some(Ok(delivery.record.clone())),
        stage if stage.is_terminal() => Some(Err(CancelError::TooLate(stage))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use contracts::{
        Coordinate,
        api::{Confirmation, CreateDelivery, PackageSize, PackageSpec, default_region},
    };
    use testkit::World;

    use super::*;
    use crate::{live::Live, store};

    #[tokio::test]
    async fn who_loses_every_race_for_the_row_hears_that_nothing_is_decided() {
        let world = World::new().await;
        let store = store::open(&format!("sqlite:{}", world.path("delivery.db").display())).await.unwrap();
        let mut tasks = chassis::supervise::Tasks::new();
        let ledger = Ledger::new(store, world.clock.clone(), Live::new(), &mut tasks);
        let wish = CreateDelivery {
            pickup: Coordinate { latitude: 1.0, longitude: 2.0 },
            dropoff: Coordinate { latitude: 1.1, longitude: 2.0 },
            package: PackageSpec { size: PackageSize::Small, weight_kg: 0.5, tag: None, description: None },
            deadline: None,
            expedited: false,
            confirmation: Confirmation::None,
        };
        let (id, now) = (ledger.clock.new_delivery_id(), ledger.clock.now());
        let (read, changes) = Delivery::request(id, "alice".parse().unwrap(), default_region(), wish, now);
        ledger.insert(&read, &changes, LeaseChange::Keep, None).await.unwrap();
        let mut changed = read.clone();
        ledger.update(&read, &mut changed, &Changes::default(), LeaseChange::Keep).await.unwrap();

        let undecided = note_intent(&ledger, read.clone(), now).await;
        assert!(matches!(undecided, Err(CancelError::Undecided)), "{undecided:?}");
        assert!(ledger.load(id).await.unwrap().unwrap().intents.cancel.is_none());
        let in_time = note_intent(&ledger, read, now + chrono::Duration::days(1)).await;
        assert!(matches!(in_time, Ok(None)), "{in_time:?}");
        assert!(ledger.load(id).await.unwrap().unwrap().intents.cancel.is_some());
    }
}
